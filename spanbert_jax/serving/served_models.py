"""Trained weights as models of the engine: embeddings of texts, pieces and spans, and the answers of a fine-tuned task.

Invariant: a row's output does not depend on the other rows of its batch, up to rounding, and not at all with
`deterministic`. Pooling and normalising are done on the device, by flags in the batch, so that they need no programs of
their own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from spanbert_jax.batch import Batch, NumpyBatch
from spanbert_jax.batches.shapes import Shape, shape_table
from spanbert_jax.convert.names import ENCODER
from spanbert_jax.errors import UserError
from spanbert_jax.model.encoder import resolved
from spanbert_jax.model.row_pooling import ROW_POOLINGS, pool_rows, unit
from spanbert_jax.model.span_pooling import pool_spans
from spanbert_jax.serving.answers import kept_metrics, trained_task
from spanbert_jax.serving.engine import ModelFailed
from spanbert_jax.serving.functions import EXACT, encode_function
from spanbert_jax.serving.predictor import Compute, Params, Predictor
from spanbert_jax.serving.scheduler import Output, Row
from spanbert_jax.serving.text_encoder import pieces_of_spans
from spanbert_jax.serving.weights import Weights
from spanbert_jax.tasks.example_files import Record
from spanbert_jax.tasks.finetuning import Prediction
from spanbert_jax.tasks.rows import make_rows

SPAN_POOLINGS = {"mean": 1, "ends": 2, "boundary": 2, "attention": 1}  # of a span: name -> parts of its vector
_SLOTS = 16  # spans in a row; a text with more has several rows
# Lengths that a table has at most. 12 are all that `shape_table` knows; models that are asked less have fewer programs.
_LENGTHS, _FEW_LENGTHS = 12, 4


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


class Predicted(NamedTuple):
    """The answer of a fine-tuned task."""

    prediction: Prediction  # as tools/predict.py writes it
    outputs: list[Output]  # of each row


class CompiledModel:
    """What the models share: programs by shape, and batches from rows."""

    def __init__(
        self,
        name: str,
        compute: Compute,
        params: Params,
        layout: NamedSharding,
        table: Callable[[int], Sequence[Shape]],
        inputs: Callable[[Shape], Mapping[str, tuple[int, ...]]],
        padding: Mapping[str, int],
        deterministic: bool,
    ):
        """table: takes the number that divides every number of rows. inputs: the shape of every field of a batch.
        padding: of a field, where it is not 0. deterministic: whether each length has one number of rows."""
        self._predictor = Predictor(compute, layout)
        self._params, self._inputs, self._padding = self._predictor.place(params), inputs, padding
        self.name, self.is_first = name, True
        self.table: Sequence[Shape] = tuple(table(self._predictor.multiple))
        if deterministic:
            fewest = {shape.length: shape for shape in sorted(self.table, reverse=True)}
            self.table = tuple(shape for shape in self.table if fewest[shape.length] == shape)
        self.ready: Sequence[Shape] = ()

    def prepare(self, shape: Shape) -> None:
        """Compiles the program of a shape, and puts the shape into `ready`."""
        abstract = {name: jax.ShapeDtypeStruct(dims, np.int32) for name, dims in self._inputs(shape).items()}
        self._predictor.warm_up(self._params, [abstract])
        self.ready = (*self.ready, shape)

    def start(self, rows: Sequence[Row], shape: Shape) -> dict[str, jax.Array]:
        """Begins to compute the rows, and does not wait for the end."""
        return self._predictor.start(self._params, self._batch(rows, shape))

    def finish(self, started: dict[str, jax.Array]) -> dict[str, np.ndarray]:
        """Waits for the result of `start`."""
        return {name: np.asarray(values) for name, values in started.items()}

    def _batch(self, rows: Sequence[Row], shape: Shape) -> NumpyBatch:
        """The batch of the rows, whose last rows may be empty. Each field is int32."""
        batch = {
            name: np.full(dims, self._padding.get(name, 0), np.int32) for name, dims in self._inputs(shape).items()
        }
        for place, row in enumerate(rows):
            for name, values in batch.items():
                value = len(row["input_ids"]) if name == "lengths" else row[name]
                if isinstance(value, list):
                    values[place, : len(value)] = value
                else:
                    values[place] = value
        return batch


class TextModel(CompiledModel):
    """What the models that embed share: the encoder, and rows of texts."""

    def __init__(
        self,
        name: str,
        weights: Weights,
        params: Params,
        layout: NamedSharding,
        pool: Callable[[jax.Array, Batch], dict[str, jax.Array]],
        flags: Mapping[str, tuple[int, ...]],
        longest: int,
        deterministic: bool,
        dtype: str,
        lengths: int = _FEW_LENGTHS,
    ):
        """pool: takes the hidden states and the batch. flags: further fields of a batch, with their axes after that of
        the rows. longest: pieces in a row at most, special ones included. dtype: "float32" or "bfloat16", in which the
        encoder computes; its states are float32 again. lengths: that rows are padded to, at most."""
        self.tokenizer, self.longest = weights.tokenizer, min(longest, weights.config.model.max_length)
        self.tokenizer.tokenize("")  # the first call starts the tokenizer's threads
        platform, compute_as = layout.mesh.devices.flat[0].platform, EXACT
        if dtype != EXACT.dtype:
            wanted = dataclasses.replace(weights.config.compute, dtype=dtype)
            compute_as = resolved(wanted, weights.config.model, platform)
        encode = encode_function(weights.config, weights.tokenizer.vocab_size, None, compute_as)

        def compute(params: Params, batch: Batch) -> dict[str, jax.Array]:
            with jax.default_matmul_precision("highest"):  # as the encoder itself
                return pool(encode(params, batch["input_ids"], batch["lengths"], batch["token_type_ids"]), batch)

        def inputs(shape: Shape) -> dict[str, tuple[int, ...]]:
            fields: dict[str, tuple[int, ...]] = {"input_ids": shape, "token_type_ids": shape, "lengths": (shape.rows,)}
            return fields | {name: (shape.rows, *axes) for name, axes in flags.items()}

        encoder = {group: params[group] for group in ENCODER if group in params}
        table = lambda multiple: shape_table(self.longest, lengths, multiple)  # noqa: E731
        super().__init__(name, compute, encoder, layout, table, inputs, {}, deterministic)
        self.is_first = lengths > _FEW_LENGTHS

    def _row(self, ids: Sequence[int]) -> dict[str, Any]:
        """The row of a text's pieces, the last of which are left out where they are too many."""
        kept = [self.tokenizer.cls_id, *ids[: self.longest - 2], self.tokenizer.sep_id]
        return {"input_ids": kept, "token_type_ids": [0] * len(kept), "cut": int(len(ids) > self.longest - 2)}

    def _text_row(self, number: int, item: Text, ids: Sequence[int]) -> dict[str, Any]:
        row = self._row(ids)
        if not ids:
            raise UserError(f"inputs[{number}] has no piece; give a text that is not blank")
        if row["cut"] and not item.truncate:
            raise UserError(
                f"inputs[{number}] has {len(ids) + 2:,} pieces; {self.longest:,} are the most; give less text, or set "
                "truncate"
            )
        return row

    def _ids(self, items: Sequence[Text]) -> list[Sequence[int]]:
        """The ids of each item, without special pieces; raises UserError where an item has ids that are no pieces."""
        found = iter(self.tokenizer.tokenize_batch([item.text for item in items if isinstance(item.text, str)]))
        ids = [next(found) if isinstance(item.text, str) else item.text for item in items]
        most = self.tokenizer.vocab_size
        for number, of in enumerate(ids):
            if not all(0 <= id < most for id in of):
                raise UserError(f"inputs[{number}] has an id that is no piece; the vocabulary has 0 to {most - 1:,}")
        return ids


class EmbeddingModel(TextModel):
    """A vector for each `Text`, float32 [embed]."""

    def __init__(self, name: str, weights: Weights, params: Params, layout: NamedSharding, **sizes: Any):
        """sizes: longest, deterministic and dtype, as for `TextModel`."""
        super().__init__(
            name, weights, params, layout, _embed, {"pooling": (), "normalize": ()}, lengths=_LENGTHS, **sizes
        )

    def rows(self, items: Sequence[Text]) -> list[list[Row]]:
        """One row of each text."""
        rows = [self._text_row(i, *of) for i, of in enumerate(zip(items, self._ids(items), strict=True))]
        flags = ({"pooling": ROW_POOLINGS.index(item.pooling), "normalize": int(item.normalize)} for item in items)
        return [[{**row, **of}] for row, of in zip(rows, flags, strict=True)]

    def answer(self, items: Sequence[Text], rows: list[list[Row]], outputs: list[list[Output]]) -> list[np.ndarray]:
        """The vectors; raises ModelFailed where one is 0."""
        vectors = [of[0]["embedding"] for of in outputs]
        if not all(vector.any() for vector in vectors):
            raise ModelFailed("the model gave a vector of zeros")
        return vectors


def _embed(hidden: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    by_name = jnp.stack(
        [pool_rows(hidden, batch["lengths"], name) for name in ROW_POOLINGS]
    )  # [poolings, batch, embed]
    pooled = jnp.take_along_axis(by_name, batch["pooling"][None, :, None], axis=0)[0]
    return {"embedding": jnp.where(batch["normalize"][:, None] > 0, unit(pooled), pooled)}


class PieceModel(TextModel):
    """The hidden states of each `Text`, float32 [pieces, embed], those of [CLS] and [SEP] included."""

    def __init__(self, name: str, weights: Weights, params: Params, layout: NamedSharding, **sizes: Any):
        """sizes: longest, deterministic and dtype, as for `TextModel`."""
        super().__init__(name, weights, params, layout, lambda hidden, _: {"states": hidden}, {}, **sizes)

    def rows(self, items: Sequence[Text]) -> list[list[Row]]:
        """One row of each text."""
        return [[self._text_row(i, *of)] for i, of in enumerate(zip(items, self._ids(items), strict=True))]

    def answer(self, items: Sequence[Text], rows: list[list[Row]], outputs: list[list[Output]]) -> list[np.ndarray]:
        """The states of the pieces, without those of the padding."""
        found = zip(rows, outputs, strict=True)
        return [output[0]["states"][: len(row[0]["input_ids"])] for row, output in found]


class SpanModel(TextModel):
    """The vectors of the spans of each `TextWithSpans`, float32 [spans, parts * embed]."""

    def __init__(self, name: str, weights: Weights, params: Params, layout: NamedSharding, **sizes: Any):
        """sizes: longest, deterministic and dtype, as for `TextModel`."""
        self._embed = weights.config.model.embed
        flags = {"pooling": (), "first": (_SLOTS,), "last": (_SLOTS,)}
        super().__init__(name, weights, params, layout, _pool_by_flag, flags, **sizes)

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
                raise UserError(f"inputs[{number}]: {error}") from error
            row = {**self._row(ids), "pooling": list(SPAN_POOLINGS).index(item.pooling)}
            parts = [ends[i : i + _SLOTS] for i in range(0, max(len(ends), 1), _SLOTS)]
            filled = [[*part, *[(-1, -1)] * (_SLOTS - len(part))] for part in parts]
            made.append([{**row, "first": [a for a, _ in part], "last": [b for _, b in part]} for part in filled])
        return made

    def answer(
        self, items: Sequence[TextWithSpans], rows: list[list[Row]], outputs: list[list[Output]]
    ) -> list[np.ndarray]:
        """The vectors, in the order of the spans."""
        found = [np.concatenate([output["vectors"] for output in of]) for of in outputs]
        return [
            vectors[: len(item.spans), : SPAN_POOLINGS[item.pooling] * self._embed]
            for item, vectors in zip(items, found, strict=True)
        ]


def _pool_by_flag(hidden: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    pooled = []
    for name, parts in SPAN_POOLINGS.items():
        vectors = pool_spans(hidden, batch["first"], batch["last"], name)
        pooled.append(jnp.pad(vectors, ((0, 0), (0, 0), (0, (2 - parts) * hidden.shape[-1]))))
    chosen = batch["pooling"][None, :, None, None]
    return {"vectors": jnp.take_along_axis(jnp.stack(pooled), chosen, axis=0)[0]}  # [batch, slots, 2 * embed]


class TaskModel(CompiledModel):
    """The predictions of a fine-tuned task for records, as tools/predict.py makes them."""

    def __init__(self, name: str, weights: Weights, params: Params, layout: NamedSharding, deterministic: bool):
        """Raises UserError where the weights were not fine-tuned, or the task has batches that are not [rows,
        length]."""
        self.task, self._tuned = trained_task(weights), kept_metrics(weights.metadata)
        task, model = self.task, self.task.model(layout.mesh.devices.flat[0].platform)
        self._featurise = task.featuriser("predict")

        def compute(params: Params, batch: Batch) -> dict[str, jax.Array]:
            return task.outputs(model, params, batch)

        def table(multiple: int) -> list[Shape]:
            shapes = []
            for fields in task.eval_shapes(multiple):
                shape = Shape(*fields["input_ids"].shape[:2])
                if {name: field.shape for name, field in fields.items()} != inputs(shape):
                    raise UserError(f"the task {task.task} has batches of its own, which the engine does not serve")
                shapes.append(shape)
            return shapes

        def inputs(shape: Shape) -> dict[str, tuple[int, ...]]:
            return {name: tuple(shape[:axes]) for name, axes in task.inputs.items()}

        super().__init__(name, compute, params, layout, table, inputs, task.padding, deterministic)

    def rows(self, items: Sequence[Record]) -> list[list[Row]]:
        """The rows of each record; raises UserError, naming inputs[i], where the task cannot read a record."""
        return [list(rows) for rows in self._featurise(self._examples(items))]

    def _examples(self, items: Sequence[Record]) -> list[Any]:
        return [self.task.parse(record, f"inputs[{i}]", str(i)) for i, record in enumerate(items)]

    def answer(self, items: Sequence[Record], rows: list[list[Row]], outputs: list[list[Output]]) -> list[Predicted]:
        """The predictions, with the outputs that they come from."""
        made = make_rows([[dict(row) for row in of] for of in rows])
        flat = [output for of in outputs for output in of]
        predictions = self.task.decode(self._examples(items), made, flat, self._tuned)
        return [Predicted(*of) for of in zip(predictions, outputs, strict=True)]


class ServedModels(NamedTuple):
    """The models of one checkpoint."""

    embed: EmbeddingModel
    pieces: PieceModel
    spans: SpanModel
    task: TaskModel | None  # of weights that were fine-tuned


def served_models(
    name: str,
    weights: Weights,
    params: Params,
    layout: NamedSharding,
    longest: int,
    deterministic: bool,
    dtype: str,
) -> ServedModels:
    """The models of trained weights, whose names begin with `name`.

    longest: pieces in a row of the models that embed, special ones included; a task's rows are as long as in training.
    deterministic: whether a row's output is bitwise the same whatever else is in the batch, since each length has one
    shape of batch, that with the fewest rows. dtype: "float32" or "bfloat16", in which texts are encoded; a task
    computes as its run did.
    """
    sizes = {"longest": longest, "deterministic": deterministic, "dtype": dtype}
    tuned = weights.metadata is not None and weights.metadata.task not in ("pretraining", "imported")
    return ServedModels(
        EmbeddingModel(f"{name}/embed", weights, params, layout, **sizes),
        PieceModel(f"{name}/pieces", weights, params, layout, **sizes),
        SpanModel(f"{name}/spans", weights, params, layout, **sizes),
        TaskModel(f"{name}/task", weights, params, layout, deterministic) if tuned else None,
    )
