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
    """Linear warm-up, then a decay to 0 at `steps`. The schedule's argument is the number of updates already made.

    The n-th update of the warm-up has n / warmup_steps of the peak. Afterwards, with decay_from "start" (code:
    polynomial_decay_schedule.py), the rate after n updates is the peak times 1 - n / steps, so it steps down a little
    at the end of the warm-up. With "warmup_end" the decay starts from the peak. With the schedule "wsd" the rate stays
    at the peak until `decay_steps` before the end; k updates later it is the peak times 1 - sqrt(k / decay_steps)
    (Warner et al. 2024, arXiv:2412.13663, section 2.2).
    """

    def decayed(count: jax.Array) -> jax.Array:
        if config.schedule == "wsd":
            return 1 - jnp.sqrt(jnp.maximum(count - (steps - config.decay_steps), 0.0) / max(config.decay_steps, 1))
        start = config.warmup_steps if config.decay_from == "warmup_end" else 0
        return 1 - (count - start) / max(steps - start, 1)

    def schedule(count: Any) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        warm = (count + 1) / max(config.warmup_steps, 1)
        later = decayed(count)
        return config.learning_rate * jnp.where(count < config.warmup_steps, warm, jnp.maximum(later, 0.0))

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


def _stable_adamw(config: OptimizerConfig, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    """AdamW whose step for a tensor is divided by the root mean square of g / max(sqrt(v), eps) where that is over 1
    (Wortsman et al. 2023, arXiv:2304.13013, algorithm 2): g is the gradient, v Adam's corrected second moment.

    decay: the weight decay, which is divided too. The tensors of the layers are stacked on the first axis under
    "encoder/", and each layer's is one of its own.
    """
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, of_adam = adam.update(grads, state[0], params)
        updates, of_decay = decay.update(updates, state[1], params)
        second = optax.tree.bias_correction(of_adam.nu, config.beta2, of_adam.count)

        def divided(path: tuple[Any, ...], update: jax.Array, grad: jax.Array, moment: jax.Array) -> jax.Array:
            axes = range(1 if path[0].key == "encoder" else 0, grad.ndim)
            jump = jnp.mean(grad**2 / jnp.maximum(moment, config.eps**2), axis=tuple(axes), keepdims=True)
            return update / jnp.maximum(1.0, jnp.sqrt(jump))

        return jax.tree_util.tree_map_with_path(divided, updates, grads, second), (of_adam, of_decay)

    return optax.GradientTransformation(lambda params: (adam.init(params), decay.init(params)), update)


def _clip(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, which takes the norm of the undivided gradients where the caller knows it."""

    def update(grads: Any, state: Any, params: Any = None, *, norm: jax.Array | None = None, **_: Any) -> Any:
        known = norm if norm is not None and config.gradient_divisor == 1 else optax.tree.norm(grads)
        largest = config.clip_norm
        return jax.tree.map(lambda x: jax.lax.select(known < largest, x, (x / known) * largest), grads), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """The chain of transformations: divide, clip, the named optimizer with decoupled weight decay, learning rate.

    steps: of the run, for the schedule. The last state of the chain is the schedule's count of updates. `update` takes
    the keyword `norm`, the gradients' global norm, which it otherwise computes.
    """

    def matrices(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: decays(path), params)

    decay = optax.add_decayed_weights(config.weight_decay, matrices if config.decay_scope == "matrices" else None)
    decayed_updates = {
        "adamw": lambda: (_adam(config), decay),
        "muon": lambda: (muon(config, _adam(config)), decay),
        "stable_adamw": lambda: (_stable_adamw(config, decay),),
    }
    chain = optax.chain(
        optax.scale(1 / config.gradient_divisor),
        _clip(config) if config.clip_norm else optax.identity(),
        *decayed_updates[config.name](),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
    return optax.with_extra_args_support(chain)
