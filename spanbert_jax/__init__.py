"""SpanBERT in JAX: span-aware encoder pre-training from raw text, on CPU, GPU and TPU pods."""

__version__ = "0.2.0"
