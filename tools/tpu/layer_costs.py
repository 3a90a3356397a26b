"""Costs that XLA does not count: of splash attention's kernels, and of layers beyond the few that were compiled.

Invariant: the numbers are exact where each kind of layer costs the same wherever it stands.
"""

from collections.abc import Callable

from spanbert_jax.config import Config
from tools.tpu import hlo_cost

# Matrix products of [length, head_dim] by [length, length] in one call of splash attention's kernels, which XLA leaves
# uncounted. Forward: the scores and the values. Backward: the scores again and four gradients. Where a kernel of its
# own computes the gradient of the queries, both compute the scores and the gradient of the probabilities.
_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}
_SEPARATE_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}


def of_all_layers(costs: Callable[[int], dict[str, float]], layers: int, kinds: int) -> dict[str, float]:
    """`costs(layers)` for `layers` layers of which `kinds` kinds take turns, where each kind adds the same costs
    wherever it stands: from costs of at most 1 + `kinds` layers."""
    turns, rest = divmod(layers - 1, kinds)
    first = costs(1)
    turn = costs(1 + kinds) if turns else first
    last = costs(1 + rest) if rest else first
    return {name: first[name] + turns * (turn[name] - first[name]) + last[name] - first[name] for name in first}


def kernel_flops(program: hlo_cost.Program, config: Config, rows: int) -> float:
    """FLOPs of the calls of splash attention in a step on `rows` rows. Those with a window count the scores of all
    blocks that they compute."""
    from spanbert_jax.model.kernels.attention_splash import SCOPE, computed_scores  # imports JAX

    length, window = config.data.block_length, config.model.window
    calls = [
        (one.name.partition("_segmented")[0], SCOPE in one.origin)
        for computation in program.computations.values()
        for one in computation.values()
        if one.opcode == "custom-call" and "tpu_custom_call" in one.attributes
    ]
    separate = ("splash_mha_dq", True) in calls
    products = {True: _SEPARATE_PRODUCTS if separate else _PRODUCTS, False: _PRODUCTS}
    scores = {True: computed_scores(length, window), False: length**2}
    summed = sum(products[windowed][name] * scores[windowed] for name, windowed in calls)
    return 2.0 * rows * config.model.embed * summed
