"""Documents from a TFDS dataset with a `text` feature, such as Wikipedia.

Invariant: nothing is downloaded or prepared, only read, and no code that came with a dataset is run. A missing network
is reported within seconds.
"""

import contextlib
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from spanbert_jax.errors import UserError
from spanbert_jax.text.documents import Document, make_documents

BUCKET = "gs://tfds-data/datasets"
STORAGE_URL = "https://storage.googleapis.com"
_TIMEOUT_SECONDS = 8
_INSTEAD = "Name text files instead: --config.corpus.files='data/*.txt'"


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

    Beam's workers read these files without TensorFlow. Raises the UserErrors of `read_tfds`, and one for a dataset in
    another format.
    """
    builder, splits = _with_text(name, data_dir)
    file_format = builder.info.file_format.value
    if file_format not in ("tfrecord", "array_record"):
        raise UserError(f"config.corpus.name: {name!r} is stored as {file_format}. {_INSTEAD}")
    return [str(path) for split in splits for path in builder.info.splits[split].filepaths], file_format


def _with_text(name: str, data_dir: str) -> tuple[tfds.core.DatasetBuilder, list[str]]:
    """The builder, and the splits to read."""
    builder = find_builder(name, data_dir, "config.corpus.name", _INSTEAD)
    if "text" not in (builder.info.features or ()):
        raise UserError(
            f"config.corpus.name: the TFDS dataset {name!r} has no feature 'text', only "
            f"{', '.join(builder.info.features or ())}. {_INSTEAD}"
        )
    return builder, ["train"] if "train" in builder.info.splits else sorted(builder.info.splits)


def _texts(builder: tfds.core.DatasetBuilder, splits: list[str]) -> Iterator[tuple[str, float]]:
    total = sum(builder.info.splits[split].num_examples for split in splits)
    done = 0
    for split in splits:
        for example in _examples(builder, split):
            text, done = example["text"], done + 1
            yield text if isinstance(text, str) else text.decode("utf-8", "replace"), done / total


def _examples(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[Any]:
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:  # as_dataset does not read this format
        source = builder.as_data_source(split)
        return (source[i] for i in range(len(source)))
    in_order = tfds.ReadConfig(interleave_cycle_length=1)  # by default 16 files are interleaved
    only_text = tfds.decode.PartialDecoding({"text": True})
    return iter(tfds.as_numpy(builder.as_dataset(split, decoders=only_text, read_config=in_order)))


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
                builder = tfds.builder(name, data_dir=place or None)
                if builder.is_prepared():
                    return builder
            tried.append(f"{builder.data_dir} (not there)")
        except tfds.core.registered.DatasetNotFoundError:
            tried.append(f"{place or 'the default directory'} (no dataset of that name, nor does TFDS know one)")
        except UserError:
            raise
        except Exception as error:  # whatever TFDS, TF's file systems and the dataset's own code raise
            tried.append(
                f"{place or 'the default directory'} ({type(error).__name__}: {str(error).partition(chr(10))[0][:200]})"
            )
    raise UserError(
        f"{asked}: no prepared TFDS dataset {name!r} was found. Tried: {'; '.join(tried)}. {instead}".rstrip()
    )


@contextlib.contextmanager
def _own_features_alone(place: str) -> Iterator[None]:
    """Refuses datasets whose features.json names a class outside of TFDS. TFDS would import the Python module of that
    name, and so run it, even where the module came with the data."""
    connector = tfds.features.FeatureConnector
    find = connector.cls_from_name

    def own(name: str) -> type[tfds.features.FeatureConnector]:
        if not name.startswith("tensorflow_datasets."):
            raise UserError(
                f"{place or 'a dataset in the default directory'}: its features.json names the Python class {name!r}, "
                "whose code would run; only tensorflow_datasets' own classes are read: write the dataset again with "
                "those, or name text files"
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
