"""Weights as others publish them: a Hugging Face BERT or ModernBERT, SpanBERT's archives, a TensorFlow-1 BERT.

Invariant: the files themselves say how they are read, and sizes and settings come from them. (Alone the number of
attention heads of a fairseq checkpoint without config.json is a convention, see `fairseq.config_fields`.) Each tensor
is taken, or named as missing or as left alone.
"""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spanbert_jax.config import ModelConfig
from spanbert_jax.convert import archive, fairseq, google_bert, huggingface
from spanbert_jax.convert.config_fields import size
from spanbert_jax.convert.huggingface_config import class_of, labels_of, read_config, task_of, to_model_config
from spanbert_jax.convert.names import SBO
from spanbert_jax.convert.tensor_files import read_tensors
from spanbert_jax.convert.tensors import Tensors
from spanbert_jax.convert.tokenizer_import import read_tokenizer
from spanbert_jax.errors import UserError, quoted, shortened
from spanbert_jax.text.tokenizer import Tokenizer

SBO_FILE = "sbo_head.safetensors"
# Megatron pads the table to a multiple of 128 for each of the devices (up to 8) that it divides the table over.
_MOST_PADDING = 8 * 128
_MOST_AXES, _LONGEST_AXIS = 8, 2**31 - 1  # of a tensor


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Weights that another program trained. Their tensors are read by `load` alone."""

    source: Path
    kind: str  # for people: "a Hugging Face BERT", ...
    model: ModelConfig
    tokenizer: Tokenizer
    notes: tuple[str, ...]  # lines for people: how text is read and why, rows without pieces
    labels: tuple[str, ...]  # the names of a classifier's labels, in order; empty without a classifier
    task: str  # of the class in config.json, where its tensors do not tell it; "" elsewhere
    span_boundary: tuple[int, int] | None  # (offsets, width) of the span-boundary head's table of offsets
    load: Callable[[huggingface.Shapes], tuple[huggingface.Params, huggingface.Coverage]]  # as `from_tensors`


@contextlib.contextmanager
def open_published_weights(path: Path, vocab: Path | None = None) -> Iterator[PublishedWeights]:
    """The weights in a directory, a file or a .tar.gz, with the vocabulary in `vocab` (a file or directory), by default
    that beside the weights.

    Raises UserError where there are no weights, where they are damaged or of another architecture, or where no
    vocabulary fits. An unpacked archive is deleted at the end of the context.
    """
    with contextlib.ExitStack() as stack:
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            found = _find(archive.take_out(path, folder))
        else:
            found = _find(path)
        tensors, fields, left, kind = _read(found)
        _check_axes(tensors, found)
        name, architecture = str(path if path.is_file() else found), class_of(fields)
        config = found.parent / "config.json"
        # The architecture is checked before the vocabulary: another architecture often has another kind of vocabulary,
        # and an error about the vocabulary would hide the cause.
        model = to_model_config(fields, str(config) if config.is_file() else name)
        tokenizer, notes = read_tokenizer(vocab or found.parent)
        vocab_rows = fields.get("vocab_size", tokenizer.vocab_size)  # `from_tensors` compares this with the tables.
        size(vocab_rows, "vocab_size", str(config))
        _check_rows(vocab_rows, tokenizer.vocab_size, name, vocab or found.parent, is_given=vocab is not None)
        huggingface.check_sizes(tensors, model, vocab_rows, name)
        if vocab_rows > tokenizer.vocab_size:
            model = dataclasses.replace(model, vocab_rows=vocab_rows)
            notes += (
                f"Rows: {vocab_rows:,} in the word table, and {tokenizer.vocab_size:,} pieces; the rows without a "
                "piece are kept and never score",
            )
        if path.is_dir() and len(list(path.glob("*.ckpt*.index"))) > 1:
            notes += (f"Checkpoint: {found.name}, the newest of the directory's",)
        span_boundary = _span_boundary(tensors)
        if span_boundary:
            model = dataclasses.replace(model, span_offset_embed=span_boundary[1])

        def load(shapes: huggingface.Shapes) -> tuple[huggingface.Params, huggingface.Coverage]:
            try:
                params, report = huggingface.from_tensors(tensors, model, vocab_rows, shapes, name, architecture)
            except MemoryError as error:
                raise UserError(f"{name}: the model does not fit in this machine's free memory ({error})") from error
            return params, report._replace(left=(*report.left, *left))

        unlike = _unlike_classifier(fields, tensors, architecture)
        if unlike:
            left = [*left, *sorted(tensor for tensor in tensors if tensor.startswith("classifier."))]
            tensors = {key: tensor for key, tensor in tensors.items() if key not in left}
            notes += (f"Classifier: {unlike}; the classifier is left alone",)
        heads = huggingface.NAMES[model.family].heads(architecture)
        is_classifier = "classifier" in heads and "classifier.weight" in tensors
        rows, *width = tensors["classifier.weight"].shape or (0,) if is_classifier else (0,)
        labels = labels_of(fields, rows, name) if width == [model.embed] else ()
        task = "" if unlike else task_of(architecture)
        yield PublishedWeights(path, kind, model, tokenizer, notes, labels, task, span_boundary, load)


def _unlike_classifier(fields: Mapping[str, Any], tensors: Tensors, architecture: str) -> str:
    """Why the scores of a text classifier in the file do not mean what they mean here, where one of several labels is
    right or one number is asked for; "" where they do, or where there is none."""
    kind = fields.get("problem_type")
    if not architecture.endswith("ForSequenceClassification") or "classifier.weight" not in tensors:
        return ""
    rows = (tensors["classifier.weight"].shape or (0,))[0]
    if kind in (None, "single_label_classification") or (kind == "regression" and rows == 1):
        return ""
    return (
        f"problem_type is {quoted(kind)} with {rows:,} outputs, and only one label of several, or one number, is read"
    )


def _check_rows(vocab_rows: int, pieces: int, name: str, vocabulary: Path, is_given: bool) -> None:
    """Raises UserError where a vocabulary cannot belong to a word table of `vocab_rows` rows.

    It does not belong where it has more pieces than the table has rows. A vocabulary that the user gave does not belong
    either where it has far fewer, because its size alone tells whether it belongs to the weights.
    """
    if vocab_rows < pieces or (is_given and vocab_rows - pieces >= _MOST_PADDING):
        beside = (
            " If this is that vocabulary, copy it into the directory of the weights." if vocab_rows > pieces else ""
        )
        raise UserError(
            f"{name}: the word table has {vocab_rows:,} rows, and the vocabulary in {vocabulary} has {pieces:,} "
            f"pieces; give the vocabulary that the weights were trained with (--vocab).{beside}"
        )


def _span_boundary(tensors: Tensors) -> tuple[int, int] | None:
    """The shape of the span-boundary head's table of offsets, which config.json does not hold."""
    name = f"{SBO}.position_embeddings.weight"
    shape = tensors[name].shape if name in tensors else ()
    return (shape[0], shape[1]) if len(shape) == 2 else None


def _find(path: Path) -> Path:
    """The file of weights that `path` is or holds; for a TensorFlow checkpoint, the prefix of its files."""
    if path.is_dir():
        names = [path / name for name in archive.WEIGHTS if (path / name).is_file()]
        return names[0] if names else _newest_tensorflow(path)
    if part := re.fullmatch(r"(.*)\.(index|meta|data-\d+-of-\d+)", path.name):  # of a TensorFlow checkpoint
        return path.with_name(part[1])
    if not path.is_file() and not path.with_name(f"{path.name}.index").is_file():
        raise UserError(f"{path}: no such file or directory; give a checkpoint of ours, or weights of others")
    return path


def _newest_tensorflow(directory: Path) -> Path:
    """The prefix of the directory's TensorFlow checkpoint. Of several that differ in the step alone, the newest counts.

    Raises UserError where there is no checkpoint, or where their names do not tell which is the newest.
    """
    prefixes = [index.with_suffix("") for index in sorted(directory.glob("*.ckpt*.index"))]
    if not prefixes:
        raise UserError(f"{directory}: no weights there; expected one of {', '.join(archive.WEIGHTS)} or *.ckpt*.index")
    if len(prefixes) == 1:
        return prefixes[0]
    steps = [re.fullmatch(r"(.*\.ckpt)-(\d+)", prefix.name) for prefix in prefixes]
    if len({step and step[1] for step in steps}) > 1 or None in steps:
        found = ", ".join(prefix.name for prefix in prefixes)
        raise UserError(f"{directory}: {len(prefixes)} TensorFlow checkpoints there ({found}); name one of them")
    return max(zip(steps, prefixes, strict=True), key=lambda row: int(row[0][2]) if row[0] else -1)[1]


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Puts the file's name before the message of an error that does not begin with it."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(str(file)):
            raise
        raise UserError(f"{file}: {error}") from error


def _check_axes(tensors: Tensors, found: Path) -> None:
    """Raises UserError where a tensor has more or longer axes than any parameter of a model."""
    for name, tensor in tensors.items():
        if len(tensor.shape) > _MOST_AXES or any(length > _LONGEST_AXIS for length in tensor.shape):
            raise UserError(
                f"{found}: {shortened(name)} has shape {tensor.shape!s:.200}; at most {_MOST_AXES} axes of up to "
                f"{_LONGEST_AXIS:,} are supported"
            )


def _read(found: Path) -> tuple[Tensors, dict[str, Any], list[str], str]:
    """(tensors under transformers' names, the fields of a config.json, tensors left alone, kind)."""
    if found.with_name(f"{found.name}.index").is_file():
        from spanbert_jax.convert.tensorflow_checkpoint import read_checkpoint  # Importing TensorFlow takes seconds.

        with _naming(found):
            tensors, left = google_bert.translate(read_checkpoint(found))
        return tensors, google_bert.config_fields(found.parent / "bert_config.json"), left, "a TensorFlow-1 BERT"
    tensors = read_tensors(found)
    config = found.parent / "config.json"
    if fairseq.is_fairseq(tensors):
        with _naming(found):
            tensors, left = fairseq.translate(tensors)
            fields = read_config(config) if config.is_file() else fairseq.config_fields(tensors)
        return tensors, fields, left, "a fairseq SpanBERT"
    sbo = found.parent / SBO_FILE
    if sbo.is_file():
        tensors = {**tensors, **read_tensors(sbo)}
    fields = read_config(config)
    title = "ModernBERT" if fields.get("model_type") == "modernbert" else "BERT"
    return tensors, fields, [], f"a Hugging Face {title}"
