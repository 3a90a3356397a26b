"""Documents to blocks to batches. The only package that imports TensorFlow; knows no model."""
