"""Model FLOPs of a training step, and the peaks of devices, by which MFU divides.

Invariant: only the matrix products that the model's definition needs are counted (multiply-add = 2, training =
3 x forward). Rematerialisation and the padding of the vocabulary are not counted, and heads count only for the gathered
positions. An encoder that `train.only` leaves out counts 1 x forward.
"""

from typing import NamedTuple

from spanbert_jax.batch import slots
from spanbert_jax.config import Config, is_trained
from spanbert_jax.model import extensions, pretraining_heads
from spanbert_jax.model.families import family_of


class Chip(NamedTuple):
    """Peaks of one TPU chip; bandwidths are in bytes a second."""

    flops: float  # dense bf16 FLOP/s
    memory: float  # bytes of HBM
    memory_bandwidth: float
    link_bandwidth: float  # sent over all links to other chips (ICI) at once
    network_bandwidth: float | None  # sent over the data centre's network (DCN): the chip's share of its slice's


# By device_kind. Source: Google's tables of system architecture (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e). Links: 6
# of 50 GB/s for v4 (Jouppi et al. 2023), 4,800 Gbit/s for v5p, half of the bidirectional bandwidth for v5e and v6e.
# Network: 6.4 Tbit/s for a v5e pod of 256.
TPUS = {
    "TPU v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9, None),
    "TPU v5 lite": Chip(197e12, 16 * 2**30, 819e9, 200e9, 3.125e9),
    "TPU v5": Chip(459e12, 95 * 2**30, 2765e9, 600e9, None),
    "TPU v6 lite": Chip(918e12, 32 * 2**30, 1638e9, 400e9, None),
}

# Dense bf16 FLOP/s of one jax device, by device_kind. Source: the makers' data sheets.
_PEAKS = {
    **{kind: chip.flops for kind, chip in TPUS.items()},
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of the device, or None where the table lacks it: no MFU is better than a wrong one."""
    return _PEAKS.get(device_kind)


def encoder_flops(config: Config, length: int) -> float:
    """FLOPs of a training step for the encoder, extensions included, and one row of `length` pieces."""
    model, passes = config.model, 3.0 if is_trained(config.train, "encoder") else 1.0
    return passes * (family_of(model).flops(model, length) + extensions.flops(model, length))


def pretraining_head_flops(config: Config, vocab_size: int, length: int) -> float:
    """Training FLOPs of the heads that `config` trains, for one row of `length` positions. vocab_size: without
    padding."""
    model, masked = config.model, slots(config, length)
    decoder, multiply_adds = model.embed * vocab_size, 0
    for head in pretraining_heads.trained_heads(config):
        own = head.multiply_adds(model)
        multiply_adds += own if head.classes else masked * (own + decoder)
        multiply_adds += head.row_multiply_adds(model, length, masked)
    return 3.0 * 2 * multiply_adds


def pretraining_row_flops(config: Config, vocab_size: int, length: int) -> float:
    """Training FLOPs of the pre-training model for one row of `length` positions."""
    return encoder_flops(config, length) + pretraining_head_flops(config, vocab_size, length)
