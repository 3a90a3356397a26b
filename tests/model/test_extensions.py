"""Every extension, alone and with the others: a start at the identity, gradients, axes, FLOPs, and its way out."""

import dataclasses
import functools
import random
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.config import EXTENSIONS as FIELDS
from spanbert_jax.config import ComputeConfig, Config, ModelConfig
from spanbert_jax.convert.names import ENCODER
from spanbert_jax.errors import UserError
from spanbert_jax.model import extensions
from spanbert_jax.model.encoder import Encoder, encode
from spanbert_jax.model.families import FAMILIES, family_of
from spanbert_jax.model.linear_heads import init_params, task_model
from spanbert_jax.model.parameters import parameter_axes
from spanbert_jax.training.muon import dimension_numbers
from tests.support.quick_keys import quick_key

SMALL = ModelConfig(layers=1, embed=16, heads=2, mlp=24, max_length=24, dropout=0.0, attention_dropout=0.0)
MODERN = dataclasses.replace(SMALL, family="modern", layers=2, pre_norm=True, gated_mlp=True, window=4, full_every=2)
VALUES: dict[str, tuple[Any, ...]] = {
    "head_scales": ("none", "output", "full"),
    "attention_composition": (0, 2),
    "context_encoder": ("none", "bilstm", "mingru"),
    "span_embedding": (False, True),
    "span_attention": ("none", "own", "row"),
}
OFF = {name: values[0] for name, values in VALUES.items()}
ALONE = [OFF | {name: value} for name, values in VALUES.items() for value in values[1:]]
EVERYTHING = {name: values[-1] for name, values in VALUES.items()}
DRAWN = [{name: draw.choice(values) for name, values in VALUES.items()} for draw in map(random.Random, range(6))]
COMBINATIONS = [*ALONE, *DRAWN, EVERYTHING]  # of 107
IDS = np.random.default_rng(0).integers(0, 60, (2, 19))
LENGTHS = np.array([19, 11])
VALID = np.arange(19) < LENGTHS[:, None]
# The first row has spans of 1, 3 and 2 pieces, the last two side by side; the second row has one.
TAGS = np.zeros((2, 19), np.int32)
TAGS[0, [2, 5, 6, 7, 8, 9]], TAGS[1, [9, 10]] = (3, 5, 4, 4, 3, 2), (3, 2)


def encoder(model: ModelConfig) -> Encoder:
    """An encoder of unrolled layers."""
    config = Config(model=model, compute=ComputeConfig(dtype="float32", unroll=True))
    return task_model("question_answering", config, 60, 2, "cpu")


def moved(params: Any, seed: int = 1) -> Any:
    """The parameters with noise added, so that no parameter is 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x + rng.normal(0, 0.1, x.shape), np.float32), params)


def with_leaves(params: Any, leaves: dict[str, Any]) -> Any:
    """The parameters with those of `leaves` (path -> values) in their places."""

    def leaf(path: tuple, value: Any) -> Any:
        return leaves.get(jax.tree_util.keystr(path, simple=True, separator="/"), value)

    return jax.tree_util.tree_map_with_path(leaf, params)


def test_the_table_has_a_row_for_each_field_of_the_configuration() -> None:
    assert list(extensions.EXTENSIONS) == list(FIELDS) == list(VALUES)


@pytest.mark.parametrize(
    ("base", "combinations"), [(SMALL, COMBINATIONS), (MODERN, [EVERYTHING])], ids=["bert", "modern"]
)
def test_every_combination_of_extensions_starts_at_the_identity_and_leaves_it(
    base: ModelConfig, combinations: list[dict[str, Any]]
) -> None:
    bare = encoder(base)
    params = drawn(bare)
    trained = moved(params)  # as an imported checkpoint's: no norm's scale is 1, no bias 0
    hidden = jax.jit(lambda params: encode(bare, params, IDS, LENGTHS))(trained)
    for fields in combinations:
        model = dataclasses.replace(base, **fields)
        differentiated = fields in ALONE or fields == EVERYTHING  # the others would only take time
        fresh, states, gradient = started(encoder(model), trained, differentiated)
        plain, without = extensions.without(fresh, model)
        assert without == base
        assert jax.tree.all(jax.tree.map(np.array_equal, plain, params)), fields  # the same draws as without
        assert np.abs(states - hidden)[VALID].max() <= 1e-6, fields
        for name, row in extensions.chosen(model).items():
            mine = {path: leaf for path, leaf in extensions.paths(fresh).items() if row.owns(path)}
            zeros = [path for path in mine if re.fullmatch(row.zero, path)]
            assert zeros and not any(np.any(mine[path]) for path in zeros)
            if differentiated:
                assert all(np.any(extensions.paths(gradient)[path]) for path in zeros), name
            for path, leaf in mine.items():
                assert len(parameter_axes(path, base.family)) == leaf.ndim
                dimension_numbers(path, leaf.ndim)  # one row says whether Muon takes the parameter


def drawn(module: Encoder) -> Any:
    """Fresh parameters."""
    return jax.jit(lambda: init_params(module, quick_key(0)))()


def started(module: Encoder, trained: Any, differentiated: bool) -> tuple[Any, Any, Any]:
    """Fresh parameters; the hidden states with `trained` in the places of those that it has; and the gradient of a sum
    over the valid positions by all of them, None without `differentiated`. One program computes the three."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        states = encode(module, params, IDS, LENGTHS, span_tags=TAGS)
        return jnp.sum(jnp.sin(states) * VALID[..., None]), states

    @jax.jit
    def compute(trained: Any) -> tuple[Any, Any, Any]:
        fresh = init_params(module, quick_key(0))
        params = with_leaves(fresh, extensions.paths(trained))
        if not differentiated:
            return fresh, loss(params)[1], None
        (_, states), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return fresh, states, gradient

    return jax.tree.map(np.asarray, compute(trained))


@pytest.mark.parametrize("fields", ALONE, ids=lambda fields: "-".join(map(str, fields.values())))
def test_flops_are_those_of_the_matrix_products(fields: dict[str, Any]) -> None:
    model = dataclasses.replace(SMALL, **fields)

    def products(model: ModelConfig) -> int:
        module = encoder(model)
        params = jax.eval_shape(lambda: init_params(module, jax.random.key(0)))
        traced = jax.make_jaxpr(lambda p, i, n: encode(module, p, i, n, i * 0))(params, IDS[:1], LENGTHS[:1])
        return _products(traced.jaxpr) - (2 * 19 * (16 + 4) * 16 if model.span_embedding else 0)  # lookups

    family = family_of(SMALL).flops(SMALL, 19)
    one_hot = products(SMALL) - family  # the lookup of the token types
    assert products(model) - one_hot == family + extensions.flops(model, 19)


def _products(jaxpr: Any) -> int:
    """FLOPs of the dot products in a program, those in loops as often as the loop runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = int(np.prod([equation.invars[0].aval.shape[axis] for axis in contracted]))
            total += 2 * int(np.prod(equation.outvars[0].aval.shape)) * inner
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inner_programs = [
            value for value in equation.params.values() if hasattr(value, "jaxpr") or hasattr(value, "eqns")
        ]
        for program in inner_programs:
            total += times * _products(getattr(program, "jaxpr", program))
    return total


def test_every_parameter_belongs_to_one_extension_or_to_none() -> None:
    whole, bare = (
        jax.eval_shape(functools.partial(init_params, encoder(model)), jax.random.key(0))
        for model in (dataclasses.replace(SMALL, **EVERYTHING), SMALL)
    )
    for path in extensions.paths(whole):
        assert sum(row.owns(path) for row in extensions.EXTENSIONS.values()) <= 1
    assert set(whole) - {"qa_outputs"} <= set(ENCODER)  # the groups that an encoder is computed from
    assert set(extensions.paths(bare)) == {
        path for path in extensions.paths(whole) if not any(row.owns(path) for row in extensions.EXTENSIONS.values())
    }
    assert set(FAMILIES) == {"bert", "modern"}  # both are above


@pytest.mark.parametrize("name", list(VALUES))
def test_an_extension_that_has_left_the_identity_is_not_taken_away(name: str) -> None:
    model = dataclasses.replace(SMALL, **{name: VALUES[name][-1]})
    shapes = jax.eval_shape(lambda: init_params(encoder(model), jax.random.key(0)))
    params = moved(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes))
    with pytest.raises(UserError, match=f"model.{name} is .* is not 0 any more"):
        extensions.without(params, model)


def test_a_run_takes_the_extensions_of_its_weights_and_fresh_ones_of_its_own() -> None:
    there = dataclasses.replace(SMALL, head_scales="full", context_encoder="mingru", context_encoder_input="output")
    wanted = dataclasses.replace(SMALL, attention_composition=2)
    fields = extensions.adopted(wanted, there, "runs/one")
    assert fields == {
        "head_scales": "full",
        "attention_composition": 2,
        "context_encoder": "mingru",
        "context_encoder_input": "output",
        "span_embedding": False,
        "span_kinds": 16,
        "span_attention": "none",
    }
    for other in ({"head_scales": "output"}, {"context_encoder": "mingru"}):
        with pytest.raises(UserError, match="the weights in runs/one have"):
            extensions.adopted(dataclasses.replace(SMALL, **other), there, "runs/one")
