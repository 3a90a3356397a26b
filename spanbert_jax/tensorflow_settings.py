"""Settings that TensorFlow reads when it is imported; whoever imports TensorFlow imports this module first.

Invariant: each is a default, which a user's own environment overrides.
"""

import os

# TensorFlow moves integers here: oneDNN would do nothing but announce itself.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Keras 3, which nothing here uses, takes TensorFlow more than a second to import, and this keeps it from that.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
