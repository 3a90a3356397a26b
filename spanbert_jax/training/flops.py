"""Model FLOPs of a training step, and the peaks that MFU divides by.

Invariant: only the matrix products that the model's definition needs are counted (multiply-add = 2, training =
3 x forward): no rematerialisation, no padding of the vocabulary, heads only on the gathered positions.
"""

from spanbert_jax.config import ModelConfig

# Dense bf16 FLOP/s of one jax device, by its device_kind; makers' data sheets.
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak of the device, or None where it is not in the table: no MFU is better than a wrong one."""
    return _PEAKS.get(device_kind)


def encoder_flops(model: ModelConfig, length: int) -> float:
    """Training FLOPs of the encoder for one row of `length` pieces."""
    linear = length * model.layers * (8 * model.embed**2 + 4 * model.embed * model.mlp)
    attention = 4 * length**2 * model.embed * model.layers
    return 3.0 * (linear + attention)


def pretraining_head_flops(model: ModelConfig, vocab_size: int, masked: int, sbo: bool) -> float:
    """Training FLOPs of the MLM head, and of the SBO head if `sbo`, for one row of `masked` gathered positions."""
    decoder = model.embed * vocab_size
    mlm = model.embed**2 + decoder
    sbo_mlp = (2 * model.embed + model.span_offset_embed) * model.embed + model.embed**2 + decoder
    return 3.0 * masked * 2 * (mlm + (sbo_mlp if sbo else 0))
