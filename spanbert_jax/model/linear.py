"""Linear maps, with their parameters.

Invariant: parameters are float32, kernels drawn as `initializer` says, biases 0 unless the caller says otherwise.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import ModelConfig
from spanbert_jax.model.axes import is_divided


def initializer(model: ModelConfig, output: bool = False) -> nn.initializers.Initializer:
    """The distribution of fresh kernels and tables: N(0, init_std), unless `model.init` says otherwise.

    With "truncated", numbers beyond 2 init_std are drawn again, and an `output` kernel, which ends a half of a layer,
    is smaller by the square root of the number of halves. These are the distributions of ModernBERT's encoder
    (transformers 5.23, modeling_modernbert.py:340-383). Heads are drawn as the other kernels here. transformers draws
    the layer before a head's last one as an `output`, and a task's last layer from N(0, 1 / embed), truncated.
    """
    if model.init != "truncated":
        return nn.initializers.normal(model.init_std)
    return nn.initializers.truncated_normal(model.init_std / (math.sqrt(2 * model.layers) if output else 1))


class LinearParams(nn.Module):
    """The float32 parameters of a linear map, for a caller that computes with them: kernel [*inputs, *features] and
    bias [*features], which is a constant 0 without `bias`."""

    inputs: tuple[int, ...]
    features: tuple[int, ...]
    kernel_init: nn.initializers.Initializer
    bias: bool = True

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, (*self.inputs, *self.features))
        if not self.bias:
            return kernel, jnp.zeros(self.features)
        return kernel, self.param("bias", nn.initializers.zeros, self.features)


class Dense(nn.Module):
    """A linear map of the last `axes` axes onto `features`, computed in `dtype`.

    The leading axes are flattened first. With two leading axes XLA transposes whole activations for the kernel's
    gradient.
    """

    features: tuple[int, ...]
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype
    axes: int = 1
    bias: bool = True
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        leading, inputs = x.shape[: -self.axes], x.shape[-self.axes :]
        kernel = self.param("kernel", self.kernel_init, (*inputs, *self.features))
        y = jnp.tensordot(x.reshape(-1, *inputs), kernel.astype(self.dtype), self.axes)
        if self.bias:
            bias = self.param("bias", self.bias_init, self.features)
            if not is_divided("heads"):  # cuBLAS can add a vector to its product, but no matrix
                y, bias = y.reshape(y.shape[0], -1), bias.reshape(-1)
            y = y + bias.astype(self.dtype)
        return y.reshape(*leading, *self.features)
