"""Models of the engine that encode texts: vectors of texts, of spans, and of every piece.

Invariant: pooling and normalising are done on the device, by flags in the batch, so that they need no programs of their
own.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.shapes import ALL_LENGTHS, Shape, shape_table
from spanbert_jax.convert.names import ENCODER
from spanbert_jax.errors import UserError
from spanbert_jax.model.encoder import resolved
from spanbert_jax.model.row_pooling import ROW_POOLINGS, pool_rows, unit
from spanbert_jax.model.span_pooling import pool_spans
from spanbert_jax.serving.compiled_model import CompiledModel
from spanbert_jax.serving.engine import ModelFailed
from spanbert_jax.serving.functions import EXACT, encode_function
from spanbert_jax.serving.predictor import AbstractBatch, Params
from spanbert_jax.serving.scheduler import Output, Row
from spanbert_jax.serving.weights import Weights

SPAN_POOLINGS = {"mean": 1, "ends": 2, "boundary": 2, "attention": 1}  # of a span: name -> parts of its vector
_SLOTS = 16  # spans in a row; a text with more has several rows


@dataclasses.dataclass(frozen=True)
class Text:
    """A text to embed.

    Attributes:
      text: the text, or the ids of its pieces without [CLS] and [SEP].
      pooling: one of ROW_POOLINGS, over all pieces, [CLS] and [SEP] included.
      normalize: whether the vector gets length 1.
      truncate: whether a text that is too long loses its end; otherwise it is refused.
    """

    text: str | Sequence[int]
    pooling: str = "mean"
    normalize: bool = True
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class TextWithSpans:
    """A text with spans of characters [start, end) to embed. pooling: one of SPAN_POOLINGS."""

    text: str
    spans: Sequence[tuple[int, int]]
    pooling: str = "mean"


class TextModel(CompiledModel):
    """What the models that embed share: the encoder, and rows of texts."""

    is_first = False
    flags: ClassVar[Mapping[str, tuple[int, ...]]] = {}  # further fields of a batch, with the axes after that of rows

    def __init__(
        self,
        name: str,
        weights: Weights,
        params: Params,
        layout: NamedSharding,
        longest: int,
        deterministic: bool = False,
        dtype: str = EXACT.dtype,
        lengths: int = ALL_LENGTHS,
        layer: int | None = None,
        called: str = "inputs",
    ):
        """longest: pieces in a row at most, special ones included. dtype: "float32" or "bfloat16", in which the encoder
        computes; its states are float32 again. lengths: as for `shape_table`. layer: as for `encode_function`. called:
        the items' name in errors."""
        self.tokenizer, self.longest = weights.tokenizer, min(longest, weights.config.model.max_length)
        self.called = called
        self.tokenizer.tokenize("")  # the first call starts the tokenizer's threads
        platform, compute_as = layout.mesh.devices.flat[0].platform, EXACT
        if dtype != EXACT.dtype:
            wanted = dataclasses.replace(weights.config.compute, dtype=dtype)
            compute_as = resolved(wanted, weights.config.model, platform)
        encode = encode_function(weights.config, weights.tokenizer.vocab_size, layer, compute_as)

        def compute(params: Params, batch: Batch) -> dict[str, jax.Array]:
            with jax.default_matmul_precision("highest"):  # as the encoder itself
                hidden = encode(params, batch["input_ids"], batch["lengths"], batch["token_type_ids"])
                return self.pool(hidden, batch)

        encoder = {group: params[group] for group in ENCODER if group in params}
        table = lambda multiple: shape_table(self.longest, lengths, multiple)  # noqa: E731
        super().__init__(name, compute, encoder, layout, table, deterministic)

    @abc.abstractmethod
    def pool(self, hidden: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """The outputs, [batch, ...]. hidden: float32 [batch, length, embed]."""

    def fields(self, shape: Shape) -> AbstractBatch:
        """The arrays of a batch of the shape, all int32."""
        fields: dict[str, tuple[int, ...]] = {"input_ids": shape, "token_type_ids": shape, "lengths": (shape.rows,)}
        fields |= {name: (shape.rows, *axes) for name, axes in self.flags.items()}
        return {name: jax.ShapeDtypeStruct(dims, np.int32) for name, dims in fields.items()}

    def batch(self, rows: Sequence[Row], shape: Shape) -> NumpyBatch:
        """The batch of the rows."""
        batch = {name: np.zeros(field.shape, np.int32) for name, field in self.fields(shape).items()}
        for place, row in enumerate(rows):
            batch["input_ids"][place, : len(row["input_ids"])] = row["input_ids"]
            batch["lengths"][place] = len(row["input_ids"])
            for name in self.flags:
                batch[name][place] = row[name]
        return batch

    def row(self, ids: Sequence[int]) -> dict[str, Any]:
        """The row of a text's pieces, the last of which are left out where they are too many."""
        kept = [self.tokenizer.cls_id, *ids[: self.longest - 2], self.tokenizer.sep_id]
        return {"input_ids": kept, "cut": int(len(ids) > self.longest - 2)}

    def text_rows(self, items: Sequence[Text]) -> list[dict[str, Any]]:
        """The row of each item; raises UserError for an item without a piece, with an id that is no piece, or that is
        too long and may not be cut."""
        found = iter(self.tokenizer.tokenize_batch([item.text for item in items if isinstance(item.text, str)]))
        rows, most = [], self.tokenizer.vocab_size
        for number, item in enumerate(items):
            ids = next(found) if isinstance(item.text, str) else item.text
            place = f"{self.called}[{number}]"
            if not (isinstance(item.text, str) or all(0 <= id < most for id in ids)):
                raise UserError(f"{place} has an id that is no piece; the vocabulary has 0 to {most - 1:,}")
            if not ids:
                raise UserError(f"{place} has no piece; give a text that is not blank")
            rows.append(self.row(ids))
            if rows[-1]["cut"] and not item.truncate:
                raise UserError(
                    f"{place} has {len(ids) + 2:,} pieces; {self.longest:,} are the most; give less text, or set "
                    "truncate"
                )
        return rows


class EmbeddingModel(TextModel):
    """A vector for each `Text`, float32 [embed]."""

    is_first = True
    flags: ClassVar[Mapping[str, tuple[int, ...]]] = {"pooling": (), "normalize": ()}

    def rows(self, items: Sequence[Text]) -> list[list[Row]]:
        """One row of each text."""
        flags = ({"pooling": ROW_POOLINGS.index(item.pooling), "normalize": int(item.normalize)} for item in items)
        return [[{**row, **of}] for row, of in zip(self.text_rows(items), flags, strict=True)]

    def pool(self, hidden: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """{"embedding": [batch, embed]}."""
        by_name = jnp.stack([pool_rows(hidden, batch["lengths"], name) for name in ROW_POOLINGS])
        pooled = jnp.take_along_axis(by_name, batch["pooling"][None, :, None], axis=0)[0]
        return {"embedding": jnp.where(batch["normalize"][:, None] > 0, unit(pooled), pooled)}

    def answer(self, items: Sequence[Text], rows: list[list[Row]], outputs: list[list[Output]]) -> list[np.ndarray]:
        """The vectors; raises ModelFailed where one is 0."""
        vectors = [of[0]["embedding"] for of in outputs]
        if not all(vector.any() for vector in vectors):
            raise ModelFailed("the model gave a vector of zeros")
        return vectors


class PieceModel(TextModel):
    """The hidden states of each `Text`, float32 [pieces, embed], those of [CLS] and [SEP] included."""

    def rows(self, items: Sequence[Text]) -> list[list[Row]]:
        """One row of each text."""
        return [[row] for row in self.text_rows(items)]

    def pool(self, hidden: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """{"states": [batch, length, embed]}."""
        return {"states": hidden}

    def answer(self, items: Sequence[Text], rows: list[list[Row]], outputs: list[list[Output]]) -> list[np.ndarray]:
        """The states of the pieces, without those of the padding."""
        found = zip(rows, outputs, strict=True)
        return [output[0]["states"][: len(row[0]["input_ids"])] for row, output in found]


class SpanModel(TextModel):
    """The vectors of the spans of each `TextWithSpans`, float32 [spans, parts * embed]."""

    flags: ClassVar[Mapping[str, tuple[int, ...]]] = {"pooling": (), "first": (_SLOTS,), "last": (_SLOTS,)}

    def rows(self, items: Sequence[TextWithSpans]) -> list[list[Row]]:
        """A row of each text for every 16 of its spans; raises UserError for a span without a piece."""
        made: list[list[Row]] = []
        for number, item in enumerate(items):
            ids, offsets = self.tokenizer.tokenize_with_offsets(item.text)
            kept = np.array(offsets[: self.longest - 2], np.int32).reshape(-1, 2)
            cut = len(ids) > len(kept)
            try:
                ends = pieces_of_spans(item.text, item.spans, kept, cut)
            except UserError as error:
                raise UserError(f"{self.called}[{number}]: {error}") from error
            row = {**self.row(ids), "pooling": list(SPAN_POOLINGS).index(item.pooling)}
            parts = [ends[i : i + _SLOTS] for i in range(0, max(len(ends), 1), _SLOTS)]
            filled = [[*part, *[(-1, -1)] * (_SLOTS - len(part))] for part in parts]
            made.append([{**row, "first": [a for a, _ in part], "last": [b for _, b in part]} for part in filled])
        return made

    def pool(self, hidden: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """{"vectors": [batch, slots, 2 * embed]}."""
        pooled = []
        for name, parts in SPAN_POOLINGS.items():
            vectors = pool_spans(hidden, batch["first"], batch["last"], name)
            pooled.append(jnp.pad(vectors, ((0, 0), (0, 0), (0, (2 - parts) * hidden.shape[-1]))))
        chosen = batch["pooling"][None, :, None, None]
        return {"vectors": jnp.take_along_axis(jnp.stack(pooled), chosen, axis=0)[0]}

    def answer(
        self, items: Sequence[TextWithSpans], rows: list[list[Row]], outputs: list[list[Output]]
    ) -> list[np.ndarray]:
        """The vectors, in the order of the spans."""
        found = [np.concatenate([output["vectors"] for output in of]) for of in outputs]
        return [
            vectors[: len(item.spans), : SPAN_POOLINGS[item.pooling] * (vectors.shape[-1] // 2)]
            for item, vectors in zip(items, found, strict=True)
        ]


def pieces_of_spans(
    text: str, spans: Sequence[tuple[int, int]], offsets: np.ndarray, cut: bool
) -> list[tuple[int, int]]:
    """The positions, in a row that begins with [CLS], of the first and the last piece of each span of characters.

    offsets: int32 [pieces, 2], those of the text's pieces. cut: whether the row lacks the text's last pieces. Raises
    UserError for a span that has no piece.
    """
    begin, end = offsets.T
    places = [np.flatnonzero((begin < last) & (end > first)) + 1 for first, last in spans]
    for (first, last), pieces in zip(spans, places, strict=True):
        if not 0 <= first < last <= len(text) or not len(pieces):
            what = f"the text has {len(text)} characters" + (" and was cut" if cut else "")
            raise UserError(f"the span ({first}, {last}) has no piece: {what}; give spans (start, end) in it")
    return [(int(pieces[0]), int(pieces[-1])) for pieces in places]
