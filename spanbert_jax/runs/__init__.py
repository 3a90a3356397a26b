"""The runs of spanbert_jax.main, from files to a report: pre-training and fine-tuning."""
