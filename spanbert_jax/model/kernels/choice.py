"""The choice of kernels on a platform: for attention, and for the pointwise operations between a layer's products.

Invariant: "auto" is the fastest kernel that runs on the platform, as measured. To name a kernel that cannot run there
is an error that says what the kernel needs.
"""

import jax
import jax.numpy as jnp

from spanbert_jax.config import ATTENTION_KERNELS, POINTWISE_KERNELS
from spanbert_jax.errors import UserError


def choose_attention(name: str, platform: str, dtype: jnp.dtype, head_dim: int) -> str:
    """`config.compute.attention` with "auto" resolved for `platform` (`jax.Device.platform`), activations of `dtype`
    and heads of `head_dim` numbers. Raises UserError where a kernel that was named cannot run."""
    return _choose("attention", ATTENTION_KERNELS, name, platform, dtype, head_dim)


def choose_pointwise(name: str, platform: str, dtype: jnp.dtype) -> str:
    """`config.compute.pointwise` with "auto" resolved, likewise. The pointwise operations are GELU, and LayerNorm with
    the dropout and the sum before it."""
    return _choose("pointwise", POINTWISE_KERNELS, name, platform, dtype, None)


def _choose(
    field: str, kernels: tuple[str, ...], name: str, platform: str, dtype: jnp.dtype, head_dim: int | None
) -> str:
    if name == "auto":
        return next(kernel for kernel in kernels if not _obstacle(kernel, platform, dtype, head_dim))
    if obstacle := _obstacle(name, platform, dtype, head_dim):
        raise UserError(f"config.compute.{field} is {name!r}, which needs {obstacle}; use 'auto' or 'xla'")
    return name


def _obstacle(kernel: str, platform: str, dtype: jnp.dtype, head_dim: int | None) -> str:
    """A need of `kernel` that is not met, or "". head_dim: None for pointwise kernels."""
    if kernel == "xla":
        return ""
    if dtype != jnp.bfloat16:
        return f"config.compute.dtype 'bfloat16', not {dtype.name!r}"
    if kernel == "splash":
        return "" if platform == "tpu" else f"a TPU, not {platform!r}"
    if platform not in ("gpu", "cuda"):
        return f"an NVIDIA GPU, not {platform!r}"
    of_heads = f"as config.model.embed / config.model.heads, not {head_dim}"
    if kernel == "triton" and head_dim not in (None, 16, 32, 64, 128):
        return f"16, 32, 64 or 128 {of_heads}"
    if kernel == "cudnn" and head_dim is not None and (head_dim % 8 or head_dim > 128):
        return f"a multiple of 8 up to 128 {of_heads}"
    return "" if _is_ampere_or_newer() else "an NVIDIA GPU of the Ampere generation or newer"


def _is_ampere_or_newer() -> bool:
    """Whether this process's GPU is NVIDIA's and new enough. True in a process without a GPU, which compiles for
    another machine."""
    try:
        capability = str(getattr(jax.local_devices(backend="gpu")[0], "compute_capability", ""))
    except RuntimeError:
        return True
    return capability[:1].isdigit() and float(capability) >= 8  # AMD's are "gfx90a" and the like
