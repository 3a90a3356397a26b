"""A checkpoint in use: opened, computed with, asked. Trains nothing."""
