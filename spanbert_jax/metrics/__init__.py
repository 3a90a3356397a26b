"""What a task's answers are worth, by the official definitions. Pure Python and NumPy; knows no model and no files."""
