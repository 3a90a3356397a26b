"""Documents and examples from prepared TFDS datasets, such as Wikipedia's articles.

Invariant: nothing is downloaded or prepared, only read. No code that came with a dataset is run, and no file outside of
the dataset's directory is opened. A missing network is reported within seconds, and damage with the file that has it.
"""

import contextlib
import itertools
import mmap
import os
import re
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow_datasets.core import naming
from tensorflow_datasets.proto import tf_example_pb2

from spanbert_jax.corpus.blocks import read_records
from spanbert_jax.errors import UserError
from spanbert_jax.files import is_remote
from spanbert_jax.text.documents import Document, make_documents

BUCKET = "gs://tfds-data/datasets"
STORAGE_URL = "https://storage.googleapis.com"
_TIMEOUT_SECONDS = 8
_INSTEAD = "Name text files instead: --config.corpus.files='data/*.txt'"
_MOST_LABELS = 1_000_000
_READ_AHEAD = 256  # records of a TFRecord file
# Of a TFRecord: the length (uint64) and its checksum (4 bytes), the bytes of the record, and their checksum (4 bytes).
_LENGTH, _FRAME = struct.Struct("<Q"), 8 + 4 + 4
_TEMPLATE = re.compile(r"(\{(DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\}|[\w./-]){1,99}")
_FORMATS = ("tfrecord", "array_record")
# The classes that a dataset may name for its features: those of TFDS itself, which are already imported.
_FEATURES = {
    f"{one.__module__}.{one.__name__}"
    for one in vars(tfds.features).values()
    if isinstance(one, type) and issubclass(one, tfds.features.FeatureConnector)
}
_T = TypeVar("_T")


def read_tfds(name: str, data_dir: str) -> Iterator[Document]:
    """The documents of a prepared dataset, in its own order: those of the split "train", or of all splits where there
    is no "train".

    The dataset is looked for in `data_dir`; where `data_dir` is "", in TFDS's default directory and then in TFDS's
    public bucket. Raises UserError where the dataset is not found, has no feature `text`, or would run code of its own.
    """
    builder, splits = _with_text(name, data_dir)
    return make_documents(_texts(builder, splits))


def record_files(name: str, data_dir: str) -> tuple[list[str], str]:
    """The files whose records, one after another, are the examples that `read_tfds` reads, and their format
    ("tfrecord" or "array_record").

    Beam's workers read these files without TensorFlow. Raises the UserErrors of `read_tfds`.
    """
    builder, splits = _with_text(name, data_dir)
    return [path for split in splits for path, _ in _files(builder, split)], builder.info.file_format.value


def text_of(record: bytes) -> str:
    """The feature "text" of a serialised tf.train.Example; raises ValueError where there is none."""
    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise ValueError("no tf.train.Example") from error
    values = features["text"].bytes_list.value
    if len(values) != 1:
        raise ValueError(f"{len(values)} values of the feature 'text'; expected one")
    return values[0].decode("utf-8", "replace")


def read_examples(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[dict[str, Any]]:
    """The examples of a split, or of a part of one ("train[:10%]"), as NumPy.

    Raises UserError, naming the file or the dataset's directory, where a file is missing or damaged.
    """
    try:
        if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:  # as_dataset does not read this format
            source = builder.as_data_source(split)
            yield from (source[i] for i in range(len(source)))
        else:
            for one in builder.info.splits[split].file_instructions:
                _check_lengths(str(one.filename))
            yield from tfds.as_numpy(builder.as_dataset(split=split))
    except UserError:
        raise
    except Exception as error:  # TFDS, TensorFlow and array_record have no class of their own for damaged files
        for one in builder.info.splits:
            for _ in _decoded(builder, one, bytes):  # raises UserError at the file that is damaged
                pass
        raise UserError(f"{builder.data_dir}: split {split!r} cannot be read ({_short(error)})") from error


def _with_text(name: str, data_dir: str) -> tuple[tfds.core.DatasetBuilder, list[str]]:
    """The builder, and the splits to read."""
    builder = find_builder(name, data_dir, "config.corpus.name", _INSTEAD)
    names = [str(one)[:100] for one in getattr(builder.info.features, "keys", list)()]
    if "text" not in names:
        raise UserError(
            f"config.corpus.name: the TFDS dataset {name!r} has no feature 'text', only {', '.join(names[:20])}. "
            f"{_INSTEAD}"
        )
    return builder, ["train"] if "train" in builder.info.splits else sorted(builder.info.splits)


def _texts(builder: tfds.core.DatasetBuilder, splits: list[str]) -> Iterator[tuple[str, float]]:
    total = sum(builder.info.splits[split].num_examples for split in splits)
    texts = itertools.chain.from_iterable(_decoded(builder, split, text_of) for split in splits)
    return ((text, done / total) for done, text in enumerate(texts, 1))


def _decoded(builder: tfds.core.DatasetBuilder, split: str, decode: Callable[[bytes], _T]) -> Iterator[_T]:
    """`decode` of each record of a split, in order. Raises UserError, naming the file, where a file is missing or
    damaged, has another number of records than the dataset says, or `decode` raises."""
    for path, count in _files(builder, split):
        place = 0
        try:
            for record in _records(path, builder.info.file_format.value):
                yield decode(record)
                place += 1
        except UserError:
            raise
        except Exception as error:  # TensorFlow and array_record have no class of their own for damaged files
            raise UserError(
                f"{path}: cannot be read after {place:,} of {count:,} records ({_short(error)}); copy or prepare the "
                "dataset again"
            ) from error
        if place != count:
            raise UserError(
                f"{path}: has {place:,} records, and dataset_info.json beside it says {count:,}; copy or prepare the "
                "dataset again"
            )


def _records(path: str, file_format: str) -> Iterator[bytes]:
    if file_format == "array_record":
        return read_records(Path(path))
    _check_lengths(path)
    import tensorflow as tf  # which Beam's workers, who read records by other means, do not have to wait for

    batches = tf.data.TFRecordDataset(path).batch(_READ_AHEAD).as_numpy_iterator()
    return itertools.chain.from_iterable(batches)


def _check_lengths(path: str) -> None:
    """Raises UserError where the lengths in a TFRecord file do not lead from record to record to the file's end.

    TensorFlow compares a length with the length's checksum alone, then takes as much memory, and crashes where there is
    none. Files in buckets are not checked, since each read of a few bytes takes a request there.
    """
    if is_remote(path) or not os.path.getsize(path):
        return
    place = count = 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while place + _LENGTH.size <= len(data):
            place += _LENGTH.unpack_from(data, place)[0] + _FRAME
            count += 1
        if place != len(data):
            raise UserError(
                f"{path}: record {max(count, 1):,} does not end where the file does; copy or prepare the dataset again"
            )


def _files(builder: tfds.core.DatasetBuilder, split: str) -> list[tuple[str, int]]:
    """(path, number of records) of each file of a split, in order; raises UserError for formats that are not read."""
    file_format = builder.info.file_format.value if builder.info.file_format else "no known format"
    if file_format not in _FORMATS:
        raise UserError(f"{builder.data_dir}: stored as {file_format}; expected {' or '.join(_FORMATS)}. {_INSTEAD}")
    instructions = builder.info.splits[split].file_instructions
    return [(str(one.filename), one.examples_in_shard) for one in instructions]


def _check_files(builder: tfds.core.DatasetBuilder) -> None:
    """Raises UserError where dataset_info.json gives files names that may lead out of the dataset's directory, or
    negative numbers of records."""
    for name, split in builder.info.splits.items():
        template = split.filename_template.template
        # TFDS takes the template for a format string, in which "{SPLIT:>99999999999}" would ask for so much memory.
        plain = _TEMPLATE.fullmatch(template) and ".." not in template and not template.startswith("/")
        if not plain or not all(re.fullmatch(r"\w[\w.-]{0,99}", one) for one in (name, builder.info.name)):
            raise UserError(
                f"{builder.data_dir}/dataset_info.json: the files of split {name[:100]!r} are {template[:100]!r}; "
                "expected plain names in that directory"
            )
        if min(split.shard_lengths, default=0) < 0:
            raise UserError(f"{builder.data_dir}/dataset_info.json: split {name!r} has a negative number of records")


def _check_labels(builder: tfds.core.DatasetBuilder) -> None:
    """Raises UserError where features.json claims more labels than a task has: TFDS makes a name for each."""
    features = [builder.info.features]
    while features:
        one = features.pop()
        if isinstance(one, tfds.features.FeaturesDict):
            features += one.values()
        elif isinstance(one, tfds.features.Sequence):
            features.append(one.feature)
        elif isinstance(one, tfds.features.ClassLabel) and (one.num_classes or 0) > _MOST_LABELS:
            raise UserError(
                f"{builder.data_dir}/features.json: a feature has {one.num_classes:,} labels; at most "
                f"{_MOST_LABELS:,} are supported"
            )


def _short(error: BaseException) -> str:
    """The type of a library's error and the beginning of its message, on one line, without TensorFlow's op names."""
    said = re.sub(r"\{\{[^}]*\}\}|\[Op:\w+\] name:", "", str(error))
    return f"{type(error).__name__}: {' '.join(said.split())[:200]}"


def find_builder(name: str, data_dir: str, asked: str, instead: str = "") -> tfds.core.DatasetBuilder:
    """The builder of a prepared dataset.

    Raises UserError where there is none. asked: the field or flag that names the dataset, at the message's beginning.
    instead: the advice at the message's end.
    """
    tried: list[str] = []
    for place in [data_dir] if data_dir else ["", BUCKET]:
        obstacle = _unreachable(place)
        if obstacle:
            tried.append(f"{place} ({obstacle})")
            continue
        try:
            with _own_features_alone(place):
                if naming.parse_builder_name_kwargs(name)[0].namespace:
                    raise UserError(f"{asked}: {name!r} is a dataset of a community, whose code would run. {instead}")
                builder = tfds.builder(name, data_dir=place or None)
                if builder.is_prepared():
                    _check_files(builder)
                    _check_labels(builder)
                    return builder
            tried.append(f"{builder.data_dir} (not there)")
        except tfds.core.registered.DatasetNotFoundError:
            tried.append(f"{place or 'the default directory'} (no dataset of that name, nor does TFDS know one)")
        except UserError:
            raise
        except Exception as error:  # whatever TFDS, TF's file systems and the dataset's own code raise
            tried.append(f"{place or 'the default directory'} ({_short(error)})")
    raise UserError(
        f"{asked}: no prepared TFDS dataset {name!r} was found. Tried: {'; '.join(tried)}. {instead}".rstrip()
    )


@contextlib.contextmanager
def _own_features_alone(place: str) -> Iterator[None]:
    """Refuses datasets whose features.json names a class other than `_FEATURES`. TFDS would import the Python module of
    that name, and so run it, even where the module came with the data."""
    connector = tfds.features.FeatureConnector
    find = connector.cls_from_name

    def own(name: str) -> type[tfds.features.FeatureConnector]:
        if name not in _FEATURES:
            raise UserError(
                f"{place or 'a dataset in the default directory'}: its features.json names the Python class "
                f"{name[:200]!r}, whose code would run; only the classes of tfds.features are read. If you trust the "
                "dataset, read it with tfds.load in a program of your own, write its texts as JSON lines "
                '({"text": ...}), and name these files'
            )
        return find(name)

    connector.cls_from_name = own
    try:
        yield
    finally:
        connector.cls_from_name = find


def _unreachable(place: str) -> str:
    """The reason why a gs:// place cannot be reached, or "". TensorFlow's client would retry for minutes."""
    if not place.startswith("gs://"):
        return ""
    try:
        socket.getaddrinfo("metadata.google.internal", 80)
    except OSError:
        os.environ.setdefault("NO_GCE_CHECK", "true")  # not on Google Cloud: there are no credentials to wait for
    try:
        urllib.request.urlopen(STORAGE_URL, timeout=_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # an answer, whatever it is
    except OSError as error:
        return f"no connection: {getattr(error, 'reason', error)}"
    return ""
