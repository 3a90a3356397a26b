"""The sharded step and the loop around it. Runs where TensorFlow is not installed."""
