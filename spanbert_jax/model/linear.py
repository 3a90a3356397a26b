"""Linear maps, with their parameters.

Invariant: parameters are float32, kernels drawn from N(0, std) and not truncated, biases 0.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.model.axes import is_divided


class LinearParams(nn.Module):
    """The float32 parameters of a linear map, for a caller that computes with them: kernel [*inputs, *features] and
    bias [*features]."""

    inputs: tuple[int, ...]
    features: tuple[int, ...]
    std: float

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", nn.initializers.normal(self.std), (*self.inputs, *self.features))
        return kernel, self.param("bias", nn.initializers.zeros, self.features)


class Dense(nn.Module):
    """A linear map of the last `axes` axes onto `features`, computed in `dtype`.

    The leading axes are flattened first. With two leading axes XLA transposes whole activations for the kernel's
    gradient.
    """

    features: tuple[int, ...]
    std: float
    dtype: jnp.dtype
    axes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        leading, inputs = x.shape[: -self.axes], x.shape[-self.axes :]
        kernel = self.param("kernel", nn.initializers.normal(self.std), (*inputs, *self.features))
        bias = self.param("bias", nn.initializers.zeros, self.features)
        y = jnp.tensordot(x.reshape(-1, *inputs), kernel.astype(self.dtype), self.axes)
        if not is_divided("heads"):  # cuBLAS can add a vector to its product, but no matrix
            y, bias = y.reshape(y.shape[0], -1), bias.reshape(-1)
        return (y + bias.astype(self.dtype)).reshape(*leading, *self.features)
