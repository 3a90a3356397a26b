"""Other programs' checkpoints and tokenizers: names, shapes and files. Knows no model."""
