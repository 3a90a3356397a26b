"""Documents to blocks to batches. The only package that imports TensorFlow; knows no model."""

import os

# Read by TensorFlow when it is imported. It moves integers here: oneDNN would do nothing but announce itself.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Keras 3, which nothing here uses, takes TensorFlow more than a second to import, and this keeps it from that.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
