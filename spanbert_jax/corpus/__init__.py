"""Raw text to blocks to masked batches. Knows no model. Outside of this folder TensorFlow is used only to read
TensorFlow-1 checkpoints (convert/) and to write SavedModels (serving/)."""

import spanbert_jax.tensorflow_settings  # noqa: F401  # before TensorFlow is imported
