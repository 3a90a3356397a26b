"""The rows of axes: every parameter has exactly one, and every row has a parameter."""

import re
from typing import Any

import jax
import pytest

from spanbert_jax import config as configuration
from spanbert_jax.model import encoder, linear_heads, pretraining_heads, span_head
from spanbert_jax.model.families import FAMILIES
from spanbert_jax.model.parameters import described_axes, parameter_axes, parameter_shapes
from tests.support.synthetic import VOCAB, small_config

EXTENSIONS: dict[str, Any] = {
    "head_scales": "full",
    "attention_composition": 2,
    "context_encoder": "bilstm",
    "span_embedding": True,
    "span_attention": "own",
}


def every_parameter(family: str) -> dict[str, Any]:
    """The path of each parameter of each model with layers of a family, and with every extension -> its shape."""
    model = EXTENSIONS | {"family": family, "pre_norm": family != "bert", "decoder_layers": 1}
    config, key = small_config(model=model, corpus={"spans": "capitals"}), jax.random.key(0)
    tasks = ("question_answering", "token_classification", "sequence_classification")
    linear = [linear_heads.task_model(task, config, VOCAB, 3, "cpu") for task in tasks]
    spans, pretraining = span_head.span_model(config, VOCAB, 3, "cpu"), pretraining_heads
    heads = pretraining.pretraining_model(config, VOCAB, "cpu", pretraining.HEADS)
    trees = [jax.eval_shape(lambda m=m: linear_heads.init_params(m, key)) for m in linear]
    trees.append(jax.eval_shape(lambda: span_head.init_params(spans, key)))
    trees.append(jax.eval_shape(lambda: pretraining.init_params(heads, key)))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for tree in trees
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_every_parameter_matches_exactly_one_row_and_every_row_a_parameter() -> None:
    matched = set()
    for family in FAMILIES:
        for path, shape in every_parameter(family).items():
            assert len(parameter_axes(path, family)) == len(shape)
            matched |= {pattern for pattern, _ in described_axes(family) if re.fullmatch(pattern, path)}
    assert matched == {pattern for family in FAMILIES for pattern, _ in described_axes(family)}


def test_a_parameter_that_no_row_knows_stops_the_start() -> None:
    with pytest.raises(ValueError, match="pooler/weight matches 0 rows"):
        parameter_axes("pooler/weight", "bert")


def test_a_parameter_that_two_rows_know_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "AXES", (*encoder.AXES, ("mlm/bias", (None,))))
    with pytest.raises(ValueError, match="mlm/bias matches 2 rows"):
        parameter_axes("mlm/bias", "bert")


def test_a_configuration_can_name_every_family_and_no_other() -> None:
    assert set(configuration.FAMILIES) == set(FAMILIES)


@pytest.mark.parametrize(
    ("task", "heads"),
    [
        ("pretraining", {"mlm": 0, "sbo": 7}),
        ("next sentence", {"mlm": 0, "sbo": 7, "nsp": 0, "pooler": 0}),
        ("question_answering", {"qa_outputs": 0}),
        ("token_classification", {"classifier": 3}),
        ("sequence_classification", {"pooler": 0, "classifier": 3}),
    ],
)
def test_the_shapes_of_chosen_heads_are_those_of_the_model_that_has_them(task: str, heads: dict[str, int]) -> None:
    paired = {"corpus": {"pairs": True}, "train": {"nsp_weight": 1.0}} if "nsp" in heads else {}
    config, key = small_config(masking={"max_span_offset": 7}, **paired), jax.random.key(0)
    if "mlm" in heads:
        model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
        params = jax.eval_shape(lambda: pretraining_heads.init_params(model, key))
    else:
        head = linear_heads.task_model(task, config, VOCAB, 3, "cpu")
        params = jax.eval_shape(lambda: linear_heads.init_params(head, key))
    assert parameter_shapes(config.model, VOCAB, heads) == jax.tree.map(lambda leaf: leaf.shape, params)
