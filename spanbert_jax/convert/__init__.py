"""Other programs' checkpoints: names, shapes and files."""
