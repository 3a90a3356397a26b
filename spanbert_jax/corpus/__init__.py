"""Raw text to blocks to masked batches. Knows no model; of the package only this folder trains with TensorFlow."""

import spanbert_jax.tensorflow_settings  # noqa: F401  # before TensorFlow is imported
