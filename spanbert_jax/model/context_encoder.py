"""A recurrent encoder in both directions, beside the transformer layers, whose states a gate adds to theirs.

Invariant: with the output's kernel 0, where it begins, the hidden states are those of the transformer layers alone.
What lies in the padding changes no valid position. The recurrences are float32, and see no position but through the
states before it, so the states at a span's two boundaries hold exactly the text outside of the span.

With h the states of the last layer and c those of the recurrence, the result is
h + sigmoid([h; norm(c)] G + g) * (norm(c) W), and W begins at 0. "mingru" is the linear recurrence of Feng et al. 2024
(arXiv:2410.01201), without their restriction to positive candidates. "bilstm" is the LSTM with forget gates, whose bias
begins at 1. Each direction has half of the width.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from spanbert_jax.config import ModelConfig
from spanbert_jax.model.axes import ParameterAxes, constrain
from spanbert_jax.model.layer_norm import LayerNorm
from spanbert_jax.model.linear import Dense, initializer

AXES: ParameterAxes = (
    (r"context/(input|recurrent)/kernel", ("embed", None, None, None)),
    (r"context/input/bias", (None, None, None)),
    (r"context/norm/(scale|bias)", (None,)),
    (r"context/gate/kernel", ("embed", None)),
    (r"context/gate/bias", (None,)),
    (r"context/output/kernel", ("embed", None)),
)
MATRICES = (
    (r"context/(input|recurrent)/kernel", "i--o"),
    (r"context/(gate|output)/kernel", "io"),
)
ZERO = r"context/output/kernel"

_GATES = {"mingru": 2, "bilstm": 4}
_UNROLL = 8  # steps of a recurrence in one iteration of a loop


class ContextEncoder(nn.Module):
    """The recurrence and the gate."""

    model: ModelConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        model, init = self.model, initializer(self.model)
        shape = (2, _GATES[model.context_encoder], model.embed // 2)  # directions, gates, features
        self.input = Dense(shape, init, self.dtype)
        if model.context_encoder == "bilstm":
            self.recurrent = Recurrent(shape, init)
        self.norm = LayerNorm(model.layer_norm_eps)
        self.gate = Dense((model.embed,), init, self.dtype)
        self.output = Dense((model.embed,), nn.initializers.zeros, self.dtype, bias=False)

    def __call__(self, hidden: jax.Array, embedded: jax.Array, lengths: jax.Array) -> jax.Array:
        """The next `hidden` [batch, length, embed], from the last layer's states, the embeddings' output of the same
        shape, and lengths int32 [batch]."""
        source = embedded if self.model.context_encoder_input == "embeddings" else hidden
        states = self.norm(self.recur(source, lengths).astype(self.dtype))
        gate = nn.sigmoid(self.gate(jnp.concatenate([hidden, states], axis=-1)))
        return constrain(hidden + gate * self.output(states), "batch", "length", "embed")

    def recur(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        """The states of both directions, float32 [batch, length, embed], of `x` [batch, length, embed]."""
        inputs = self.input(x).astype(jnp.float32)  # [batch, length, 2, gates, half]
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        # Time leads, and both directions run in one loop, the second from a row's end to its beginning.
        inputs, valid = jnp.moveaxis(inputs, 1, 0), valid.T[:, :, None]
        inputs = jnp.stack([inputs[:, :, 0], jnp.flip(inputs[:, :, 1], 0)], axis=2)
        valid = jnp.concatenate([valid, jnp.flip(valid, 0)], axis=2)[..., None]  # [length, batch, 2, 1]
        states = (
            min_gru(inputs, valid) if self.model.context_encoder == "mingru" else lstm(inputs, valid, self.recurrent())
        )
        states = jnp.stack([states[:, :, 0], jnp.flip(states[:, :, 1], 0)], axis=2)  # [length, batch, 2, half]
        return jnp.moveaxis(states, 0, 1).reshape(x.shape)


class Recurrent(nn.Module):
    """The matrices from the last state to the gates: [half, 2, gates, half], of an input's kernel's axes."""

    shape: tuple[int, int, int]
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", self.kernel_init, (self.shape[-1], *self.shape))


def min_gru(inputs: jax.Array, valid: jax.Array) -> jax.Array:
    """The states h[t] = (1 - z) h[t - 1] + z c, with z = sigmoid of the first gate's input and c the second's:
    float32 [length, batch, 2, half].

    inputs: float32 [length, batch, 2, 2, half]. valid: bool [length, batch, 2, 1]; elsewhere the state stays.

    The recurrence is linear, so a parallel scan computes it in log2(length) passes over all arrays. A CPU takes the
    loop, which is faster there.
    """
    update, candidate = inputs[:, :, :, 0], inputs[:, :, :, 1]
    share = jnp.where(valid, nn.sigmoid(update), 0)
    kept, added = 1 - share, share * candidate

    def loop(kept: jax.Array, added: jax.Array) -> jax.Array:
        def step(state: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            state = at[0] * state + at[1]
            return state, state

        return _scan(step, jnp.zeros_like(added[0]), (kept, added))

    def parallel(kept: jax.Array, added: jax.Array) -> jax.Array:
        def join(first: tuple, second: tuple) -> tuple:
            return first[0] * second[0], second[0] * first[1] + second[1]

        return jax.lax.associative_scan(join, (kept, added))[1]

    if _is_known(inputs.shape[0]):
        return jax.lax.platform_dependent(kept, added, cpu=loop, default=parallel)
    return loop(kept, added)


def lstm(inputs: jax.Array, valid: jax.Array, kernel: jax.Array) -> jax.Array:
    """The states of an LSTM, float32 [length, batch, 2, half].

    inputs: float32 [length, batch, 2, 4, half], of the gates "input", "forget", "output" and the candidate. valid: bool
    [length, batch, 2, 1]; elsewhere the state stays. kernel: float32 [half, 2, 4, half].
    """

    def step(carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, jax.Array]) -> tuple[tuple, jax.Array]:
        state, cell = carry
        gates = at[0] + jnp.einsum("bdi,idgo->bdgo", state, kernel)  # [batch, 2, 4, half]
        write, keep, read = (nn.sigmoid(gates[:, :, gate] + (gate == 1)) for gate in range(3))
        next_cell = keep * cell + write * jnp.tanh(gates[:, :, 3])
        next_state = read * jnp.tanh(next_cell)
        kept = jnp.where(at[1], next_state, state), jnp.where(at[1], next_cell, cell)
        return kept, kept[0]

    start = jnp.zeros_like(inputs[0, :, :, 0])
    return _scan(step, (start, start), (inputs, valid))


def _scan(step: Callable, start: jax.Array | tuple, arrays: tuple[jax.Array, ...]) -> jax.Array:
    unroll = _UNROLL if _is_known(arrays[0].shape[0]) else 1
    states: jax.Array = jax.lax.scan(step, start, arrays, unroll=unroll)[1]
    return states


def _is_known(length: object) -> bool:
    """Whether the length of rows is a number; in an export for rows of any length there is none."""
    return isinstance(length, int)


def flops(model: ModelConfig, length: int) -> float:
    """FLOPs of one row's forward pass: matrix products alone."""
    gates = _GATES[model.context_encoder]
    recurrent = gates * model.embed * (model.embed // 2) if model.context_encoder == "bilstm" else 0
    return float(2 * length * (gates * model.embed**2 + recurrent + 3 * model.embed**2))
