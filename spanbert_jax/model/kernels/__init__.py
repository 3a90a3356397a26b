"""Kernels that one kind of device has, and which of them runs where."""
