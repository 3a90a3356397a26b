"""The recipes and tasks of ablation.py.

Invariant: a recipe is a set of configuration fields on top of those of its start, and every recipe that trains on one
kind of blocks reads the same batches. An extension and its control have the same number of parameters, up to half a
percent.

The masking schemes and objectives are those of tables 6 and 7 of Joshi et al. 2020 (arXiv:1907.10529). As there, the
schemes are compared with two segments and next-sentence prediction, and without the span-boundary objective.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from benchmarks.worker import Json
from configs.tiny import get_config
from spanbert_jax.config import ModelConfig
from spanbert_jax.model.parameters import parameter_shapes

GUESS = "neighbours"  # the guess of spanbert_jax/corpus/neighbours.py, in the place of a recipe
RULES = "capitals; pos:NP=D?[AC]*N+"  # named entities and noun phrases
PAIRS: Json = {"corpus.pairs": True, "train.nsp_weight": 1.0, "train.sbo_weight": 0.0}
SPANS: Json = {"masking.scheme": "span"}


class Recipe(NamedTuple):
    """What is trained."""

    title: str
    fields: Mapping[str, Any]


class Row(NamedTuple):
    """A row of a table. reference: the recipe that this one is compared with, seed by seed."""

    recipe: str
    reference: str | None


def _units(kind: str) -> Json:
    return {"masking.scheme": "unit", "masking.units": kind, "masking.unit_rest": "whole_word"}


RECIPES: dict[str, Recipe] = {
    "subword": Recipe("subword pieces, two segments and NSP", {**PAIRS, "masking.scheme": "subword"}),
    "whole_word": Recipe("whole words, two segments and NSP", {**PAIRS, "masking.scheme": "whole_word"}),
    "entities": Recipe("named entities (runs of capitals), two segments and NSP", {**PAIRS, **_units("capitals")}),
    "noun_phrases": Recipe("noun phrases (by tags), two segments and NSP", {**PAIRS, **_units("NP")}),
    "spans": Recipe("geometric spans, two segments and NSP", {**PAIRS, **SPANS}),
    "one": Recipe("geometric spans, one sequence", {**SPANS, "train.sbo_weight": 0.0}),
    "one_sbo": Recipe("geometric spans, one sequence and SBO", SPANS),
}
EXTENSIONS: dict[str, Json] = {
    "scales_output": {"head_scales": "output"},
    "scales_full": {"head_scales": "full"},
    "composition": {"attention_composition": 2},
    "mingru": {"context_encoder": "mingru"},
    "bilstm": {"context_encoder": "bilstm"},
    "span_embedding": {"span_embedding": True},
    "span_attention": {"span_attention": "row"},
}
_SLIGHT = 0.005


@functools.cache
def controls() -> dict[str, Recipe]:
    """The controls of extensions of the encoder of configs/tiny.py: the encoder whose feed-forward network is wider by
    as many parameters as the extension has. An extension that adds less than `_SLIGHT` of the parameters has none: the
    encoder as it is has as many."""
    config = get_config()
    model, vocab_size = ModelConfig(**config.model.to_dict()), config.tokenizer.vocab_size
    bare = count(model, vocab_size)
    unit = count(dataclasses.replace(model, mlp=model.mlp + 1), vocab_size) - bare
    recipes = {}
    for name, fields in EXTENSIONS.items():
        more = count(dataclasses.replace(model, **fields), vocab_size) - bare
        if more >= _SLIGHT * bare:
            wider = model.mlp + round(more / unit)
            recipes[f"control_{name}"] = Recipe(f"mlp {wider}", {**SPANS, "model.mlp": wider})
    return recipes


def recipes() -> dict[str, Recipe]:
    """All recipes, and the guess."""
    extended = {GUESS: Recipe("without a model", {})}
    for name, fields in EXTENSIONS.items():
        shown = ", ".join(f"{field}={value}" for field, value in fields.items())
        extended[name] = Recipe(shown, {**SPANS, **{f"model.{field}": value for field, value in fields.items()}})
    return RECIPES | extended | controls()


def rows_of(start: str, group: str) -> list[Row]:
    """The rows of a table.

    Weights that exist decide the encoder's sizes, so an extension of them has no control of equal parameters, and is
    compared with the encoder as it is.
    """
    if group == "masking":
        others = ("subword", "whole_word", "entities", "noun_phrases")
        return [*(Row(name, "spans") for name in others), Row("spans", None)]
    if group == "objective":
        return [Row("spans", "one_sbo"), Row("one", "one_sbo"), Row("one_sbo", None)]
    rows = [Row("one_sbo", None)]
    for name in EXTENSIONS:
        control = f"control_{name}"
        if start == "random" and control in controls():
            rows += [Row(name, control), Row(control, "one_sbo")]
        else:
            rows.append(Row(name, "one_sbo"))
    return rows


def count(model: ModelConfig, vocab_size: int) -> int:
    """The parameters of the encoder."""
    shapes = parameter_shapes(model, vocab_size, {})
    return sum(math.prod(shape) for shape in jax.tree.leaves(shapes, is_leaf=lambda node: isinstance(node, tuple)))


class Task(NamedTuple):
    """A task that every pre-trained encoder is fine-tuned for."""

    title: str  # with the metric
    config: str  # a module of configs/ and its argument
    train: str  # paths in the directory of labelled data, or, for "litbank", files that `litbank` wrote
    dev: str
    train_examples: int | None  # evenly spread over the file; None: all
    dev_examples: int | None
    epochs: float
    fields: Mapping[str, Any] = MappingProxyType({})


_SPAN_HEAD: Json = {"tagging.head": "span"}
TASKS = {
    "squad": Task(
        "SQuAD, F1",
        "squad",
        "squad/train-v1.1-subset.json",
        "squad/dev-v1.1.json",
        800,
        300,
        1.0,
        {"train.batch_size": 16, "question_answering.stride": 64, "question_answering.max_question": 32},
    ),
    "wnut17": Task(
        "WNUT-17, F1", "ner", "wnut17/wnut17train.conll", "wnut17/emerging.dev.conll", 1_500, 400, 3.0, _SPAN_HEAD
    ),
    "semeval": Task(
        "SemEval-2010, F1",
        "relation:semeval",
        "semeval2010_task8/TRAIN_FILE.TXT",
        "semeval2010_task8/TEST_FILE_FULL.TXT",
        2_400,
        800,
        2.0,
    ),
    "litbank": Task("LitBank mentions, F1", "ner", "train.jsonl", "dev.jsonl", 1_000, 400, 2.0, _SPAN_HEAD),
}
# Fields of every fine-tuning.
TUNING: Json = {
    "data.block_length": 128,
    "data.lengths": 4,
    "corpus.workers": 1,
    "model.dropout": 0.0,
    "model.attention_dropout": 0.0,
    "optimizer.bias_correction": True,
    "train.batch_size": 32,
}


class Start(NamedTuple):
    """Where trainings start."""

    title: str
    config: str  # a module of configs/ and its argument
    steps: int
    fields: Mapping[str, Any]  # of the pre-training
    tuning: Mapping[str, Any]  # of every fine-tuning


# The files of text and the weights lie in --data.
TEXT = "text/enwiki2015/wiki_0*"
MINILM = "checkpoints/minilm_l6"
# What Muon pre-trained, Muon fine-tunes: with AdamW such encoders learn little in so few steps (docs/finetuning.md).
_MUON: Json = {"optimizer.name": "muon", "optimizer.learning_rate": 3e-3}
STARTS = {
    # configs/tiny.py:bert learns later: after 800 steps of 16 rows it has 6.32 nats, the neighbours' guess 6.01.
    "random": Start("random weights, configs/tiny.py", "tiny", 1_000, {}, _MUON),
    "minilm": Start(
        "MiniLM, 6 layers of 384",
        "base",
        300,
        {
            "data.block_length": 128,
            "data.lengths": 4,
            "model.dropout": 0.0,
            "model.attention_dropout": 0.0,
            "optimizer.learning_rate": 2e-4,
            "optimizer.weight_decay": 0.01,
            "train.batch_size": 8,
        },
        {"optimizer.learning_rate": 2e-4},
    ),
}
LENGTHS = ((1, 1), (2, 2), (3, 3), (4, 5), (6, 10), (11, 128))  # of masked spans, in pieces, for held-out losses
