"""Named-entity recognition with either head: a tag for each word, or a type for each span of words.

Invariant: only `task_class` asks which head the configuration names.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.batch import Batch
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError, listed, quoted
from spanbert_jax.metrics import entities
from spanbert_jax.model import linear_heads, span_head
from spanbert_jax.model.linear_heads import TaskModel
from spanbert_jax.model.span_head import SpanModel
from spanbert_jax.tasks.entities.rows import Span, SpanRowMaker, TokenRowMaker, WordExample
from spanbert_jax.tasks.entities.tagging import Found, Tagging, located, outer_first, types_in
from spanbert_jax.tasks.entities.words import learn_style
from spanbert_jax.tasks.example_files import Role
from spanbert_jax.tasks.finetuning import Learnt, Prediction, cross_entropy_sum, mean_loss, row_logits
from spanbert_jax.tasks.rows import Featurise, Row, Rows
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.step import Objective, Sums


def task_class(config: Config) -> type["TokenTagging"] | type["SpanTagging"]:
    """The class for the configuration's head."""
    return SpanTagging if config.tagging.head == "span" else TokenTagging


class TokenTagging(Tagging[TaskModel]):
    """The task of configs/ner.py: a tag of IOB2 for each word, at the word's first piece."""

    inputs: Mapping[str, int] = {**Tagging.inputs, "word": 2}

    @classmethod
    def widest(cls, config: Config) -> int:
        return 0

    @classmethod
    def learn(cls, config: Config, tokenizer: Tokenizer, examples: Sequence[WordExample]) -> Learnt:
        """The labels, which are "O" and the tags of IOB2, sorted; and how the data cut text into words."""
        tags = [f"{letter}-{kind}" for letter in "BI" for kind in types_in(config, examples)]
        return Learnt(tuple(sorted(["O", *tags])), words=learn_style(one.words for one in examples))

    def types(self) -> set[str]:
        return {label[2:] for label in self.learnt.labels if label != "O"}

    @classmethod
    def row_maker(cls, settings: Config, tokenizer: Tokenizer, learnt: Learnt, role: Role) -> Featurise[WordExample]:
        return TokenRowMaker(tokenizer, settings.data.block_length, learnt.labels, settings.tagging.max_width)

    def model(self, platform: str) -> TaskModel:
        labels, vocab_size = len(self.learnt.labels), self.tokenizer.vocab_size
        return linear_heads.task_model(self.task, self.config, vocab_size, labels, platform)

    def init_params(self, model: TaskModel, key: jax.Array) -> dict[str, Any]:
        return linear_heads.init_params(model, key)

    def objective(self, model: TaskModel) -> Objective:
        return token_objective(model)

    def outputs(self, model: TaskModel, params: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """ "label" int32 and "score" float32 [batch, length]: the best label of each position, and its probability."""
        return _best(self.logits(model, params, batch), batch["word"] >= 0)

    def logits(self, model: TaskModel, params: dict[str, Any], batch: Batch) -> jax.Array:
        """Float32 [batch, length, labels]."""
        return row_logits(model, params, batch)

    def cells(self, example: WordExample, rows: Sequence[Row], target: Any) -> dict[int, list[int]]:
        """The logit of the tag of each word. The target (start, end, type) has characters of words, and the type of an
        entity, whose first word is tagged B and the others I, or one tag for all words."""
        first, end, kind = self.words_of(example, target)
        labels, count = self.learnt.labels, end - first
        tags = [kind] * count if kind in labels else [f"B-{kind}", *[f"I-{kind}"] * (count - 1)]
        if not set(tags) <= set(labels):
            known = ", ".join(map(repr, sorted(self.types())))
            raise UserError(f"target is {quoted(target)}; the type must be one of {known}, or a tag such as 'O'")
        for number, row in enumerate(rows):
            at = {word: position for position, word in enumerate(row["word"]) if word >= 0}
            if at.keys() >= set(range(first, end)):
                tagged = zip(range(first, end), tags, strict=True)
                return {number: [at[word] * len(labels) + labels.index(tag) for word, tag in tagged]}
        raise UserError(f"target is {quoted(target)}, whose words are in several rows of the model; give fewer words")

    def decode(
        self,
        examples: Sequence[WordExample],
        rows: Rows,
        outputs: Sequence[Mapping[str, np.ndarray]],
        tuned: Mapping[str, float],
    ) -> list[Prediction]:
        """{"id", "text", "entities": [{"type", "start", "end", "start_word", "end_word", "text", "score"}, ...]},
        and "tags".

        Ends are exclusive, and offsets count characters. An entity's score is the mean of its words' scores. "tags" are
        the model's tags, which may break the rules of IOB2.
        """
        found: list[list[tuple[int, str, float]]] = [[] for _ in examples]  # (word, tag, score)
        for row, output in enumerate(outputs):
            words = rows.column("word", row)
            found[rows.example[row]] += [
                (int(words[place]), self.learnt.labels[output["label"][place]], float(output["score"][place]))
                for place in np.flatnonzero(words >= 0).tolist()
            ]
        predictions = []
        for example, parts in zip(examples, found, strict=True):
            tags = [tag for _, tag, _ in sorted(parts)]
            scores = [score for _, _, score in sorted(parts)]
            kept = [(float(np.mean(scores[s[0] : s[1]])), s) for s in entities.spans(tags)]
            predictions.append({"id": example.id, **located(example, kept), "tags": tags})
        return predictions


class SpanTagging(Tagging[SpanModel]):
    """The task of configs/ner.py with `tagging.head` "span": a type, or none, for each span of words. Entities may
    nest."""

    inputs: Mapping[str, int] = {**Tagging.inputs, "first": 2, "last": 2, "starts": 1}

    @classmethod
    def widest(cls, config: Config) -> int:
        return config.tagging.max_width

    @classmethod
    def learn(cls, config: Config, tokenizer: Tokenizer, examples: Sequence[WordExample]) -> Learnt:
        """The labels, which are "O" and the sorted types; whether any entities share words; and how the data cut text
        into words."""
        nested = any(
            b[0] < a[1] for example in examples for a, b in itertools.pairwise(sorted(example.spans, key=outer_first))
        )
        words = learn_style(one.words for one in examples)
        return Learnt(("O", *types_in(config, examples)), nested=nested, words=words)

    def types(self) -> set[str]:
        return set(self.learnt.labels[1:])

    @classmethod
    def row_maker(cls, settings: Config, tokenizer: Tokenizer, learnt: Learnt, role: Role) -> Featurise[WordExample]:
        return SpanRowMaker(tokenizer, settings.data.block_length, learnt.labels, settings.tagging.max_width)

    def model(self, platform: str) -> SpanModel:
        return span_head.span_model(self.config, self.tokenizer.vocab_size, len(self.learnt.labels), platform)

    def init_params(self, model: SpanModel, key: jax.Array) -> dict[str, Any]:
        return span_head.init_params(model, key)

    def objective(self, model: SpanModel) -> Objective:
        return span_objective(model)

    def outputs(self, model: SpanModel, params: dict[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """ "label" int32 and "score" float32 [batch, words, max_width]: the best label of each span, and its
        probability."""
        logits = self.logits(model, params, batch)
        return _best(logits, span_head.valid_spans(batch["first"], batch["starts"], model.max_width))

    def decode(
        self,
        examples: Sequence[WordExample],
        rows: Rows,
        outputs: Sequence[Mapping[str, np.ndarray]],
        tuned: Mapping[str, float],
    ) -> list[Prediction]:
        """{"id", "text", "entities": [{"type", "start", "end", "start_word", "end_word", "text", "score"}, ...]}.

        Ends are exclusive, and offsets count characters.
        """
        found: list[list[Found]] = [[] for _ in examples]
        for row, output in enumerate(outputs):
            labels, scores = output["label"], output["score"]
            offset = int(rows.plain["first_word"][row])
            for slot, width in np.argwhere(labels > 0).tolist():
                span = (offset + slot, offset + slot + width + 1, self.learnt.labels[labels[slot, width]])
                found[rows.example[row]].append((float(scores[slot, width]), span))
        return [
            {"id": example.id, **located(example, resolve(parts, self.learnt.nested))}
            for example, parts in zip(examples, found, strict=True)
        ]

    def logits(self, model: SpanModel, params: dict[str, Any], batch: Batch) -> jax.Array:
        """Float32 [batch, words, max_width, labels]."""
        return span_head.apply(model, params, batch)

    def cells(self, example: WordExample, rows: Sequence[Row], target: Any) -> dict[int, list[int]]:
        """The logit of the type of a span. The target (start, end, type) has characters of words, and a type or "O"."""
        first, end, kind = self.words_of(example, target)
        labels, widest = self.learnt.labels, self.config.tagging.max_width
        if kind not in labels:
            raise UserError(f"target is {quoted(target)}; the type must be one of {listed([*map(repr, labels)], 50)}")
        if end - first > widest:
            raise UserError(
                f"target is {quoted(target)}, which has {end - first} words; the head scores {widest} at most"
            )
        for number, row in enumerate(rows):
            slot, last = first - row["first_word"], end - 1 - row["first_word"]
            if 0 <= slot < row["starts"] and last < len(row["first"]) and row["first"][last] >= 0:
                return {number: [(slot * widest + last - slot) * len(labels) + labels.index(kind)]}
        raise UserError(f"target is {quoted(target)}, whose words are in several rows of the model; give fewer words")


def _best(logits: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
    """The best label, or 0 where `valid` is false, and its probability. logits: [..., labels]; valid: bool [...]."""
    return {
        "label": jnp.where(valid, jnp.argmax(logits, axis=-1), 0),
        "score": jnp.max(jax.nn.softmax(logits), axis=-1),
    }


def token_objective(model: TaskModel) -> Objective:
    """The mean cross-entropy over the first pieces of words."""

    def totals(batch: Batch) -> jax.Array:
        return jnp.sum(batch["label"] >= 0).astype(jnp.float32)

    def loss(
        params: dict[str, Any], batch: Batch, count: jax.Array, key: jax.Array | None, row_numbers: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        logits = row_logits(model, params, batch, key, row_numbers)
        return _mean(logits, batch["label"], batch["label"] >= 0, count, batch)

    return Objective(totals, loss)


def span_objective(model: SpanModel) -> Objective:
    """The mean cross-entropy over all spans of up to `max_width` words, most of which are no entity."""

    def totals(batch: Batch) -> jax.Array:
        return jnp.sum(span_head.valid_spans(batch["first"], batch["starts"], model.max_width)).astype(jnp.float32)

    def loss(
        params: dict[str, Any], batch: Batch, count: jax.Array, key: jax.Array | None, row_numbers: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        logits = span_head.apply(model, params, batch, key, row_numbers)
        labels = jnp.stack([batch[f"span_{width}"] for width in range(1, model.max_width + 1)], axis=-1)
        valid = span_head.valid_spans(batch["first"], batch["starts"], model.max_width)
        return _mean(logits, labels, valid, count, batch)

    return Objective(totals, loss)


def _mean(
    logits: jax.Array, labels: jax.Array, valid: jax.Array, count: jax.Array, batch: Batch
) -> tuple[jax.Array, Sums]:
    weights = valid.astype(jnp.float32)
    summed = cross_entropy_sum(logits, labels, weights)
    return mean_loss(summed, weights, count, batch)


def resolve(found: Iterable[Found], may_nest: bool) -> list[Found]:
    """The entities that remain, in the order of the text, when they are taken from the highest score to the lowest. One
    is left out where it crosses an entity taken before or, unless entities may nest, shares a word with one."""
    ordered = sorted(found, key=lambda one: (-one[0], one[1]))
    widest = max((end - begin for _, (begin, end, _) in ordered), default=0)
    kept: dict[int, list[Found]] = {}  # by the first word; only those that begin nearby can share a word
    for score, span in ordered:
        near = (other for first in range(span[0] - widest + 1, span[1]) for _, other in kept.get(first, ()))
        if not any(_in_conflict(span, other, may_nest) for other in near):
            kept.setdefault(span[0], []).append((score, span))
    return sorted(itertools.chain.from_iterable(kept.values()), key=lambda one: outer_first(one[1]))


def _in_conflict(a: Span, b: Span, may_nest: bool) -> bool:
    if a[1] <= b[0] or b[1] <= a[0]:
        return False
    inside = (a[0] >= b[0] and a[1] <= b[1]) or (b[0] >= a[0] and b[1] <= a[1])
    return not (may_nest and inside)
