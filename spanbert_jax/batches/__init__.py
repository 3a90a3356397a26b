"""Rows in batches, and batches on devices. NumPy and JAX; knows no model and no file."""
