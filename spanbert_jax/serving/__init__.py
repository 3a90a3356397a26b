"""The use of trained weights: opening them, exporting them, and predicting with them. Nothing here trains."""
