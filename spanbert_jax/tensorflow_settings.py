"""Settings that TensorFlow reads when it is imported. Every module that imports TensorFlow imports this one first.

Invariant: each setting is a default, which a user's own environment overrides.
"""

import os

# TensorFlow only moves integers in this program, so oneDNN would do nothing but announce itself.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# This keeps TensorFlow from importing Keras 3, which takes more than a second and is not used here.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
