"""Scores of a task's answers, by the official definitions. Pure Python and NumPy; knows no model and no files."""
