"""The optimizers and the learning rate schedule, with the choices of SpanBERT's code as options.

Invariant: with the defaults an update equals torch.optim.AdamW's on the same gradient, clipped to the global norm.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spanbert_jax.config import OptimizerConfig
from spanbert_jax.training.muon import muon


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then linear decay to 0 at `steps`. The schedule's argument is the number of updates already made.

    The n-th update of the warm-up has n / warmup_steps of the peak. Afterwards, with decay_from "start" (code:
    polynomial_decay_schedule.py), the rate after n updates is the peak times 1 - n / steps, so it steps down a little
    at the end of the warm-up. With "warmup_end" the decay starts from the peak.
    """

    def schedule(count: Any) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        warm = (count + 1) / max(config.warmup_steps, 1)
        start = config.warmup_steps if config.decay_from == "warmup_end" else 0
        decayed = 1 - (count - start) / max(steps - start, 1)
        return config.learning_rate * jnp.where(count < config.warmup_steps, warm, jnp.maximum(decayed, 0.0))

    return schedule


def decays(path: tuple[Any, ...]) -> bool:
    """Whether decay_scope "matrices" decays the parameter at this key path: all but biases and LayerNorm's scales."""
    return path[-1].key not in ("bias", "scale")


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    if not config.bias_correction:
        uncorrected = dataclasses.replace(config, bias_correction=True, eps_placement="uncorrected")

        def undo(count: jax.Array) -> jax.Array:
            return (1 - config.beta1 ** (count + 1.0)) / jnp.sqrt(1 - config.beta2 ** (count + 1.0))

        return optax.chain(_adam(uncorrected), optax.scale_by_schedule(undo))  # m / (sqrt(v) + eps)
    if config.eps_placement == "corrected":
        return optax.scale_by_adam(config.beta1, config.beta2, config.eps)

    # fairseq divides by sqrt(v) + eps before it corrects the bias. Dividing after the correction by the root plus
    # eps / sqrt(1 - beta2^t) is the same.
    def eps(count: jax.Array) -> jax.Array:
        return config.eps / jnp.sqrt(1 - config.beta2 ** (count + 1.0))

    return optax.inject_hyperparams(optax.scale_by_adam, static_args=("b1", "b2", "eps_root"))(
        b1=config.beta1, b2=config.beta2, eps=eps
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The chain of transformations: divide, clip, Adam or Muon, decoupled weight decay, learning rate. steps: of the
    run, for the schedule."""

    def matrices(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: decays(path), params)

    return optax.chain(
        optax.scale(1 / config.gradient_divisor),
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        muon(config, _adam(config)) if config.name == "muon" else _adam(config),
        optax.add_decayed_weights(config.weight_decay, matrices if config.decay_scope == "matrices" else None),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
