"""TFDS sets of labelled examples, prepared from files that a test writes."""

import importlib.resources
import importlib.resources.abc
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from spanbert_jax.corpus import tfds_source


def prepare_tfds(
    name: str, downloads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str = "tfrecord"
) -> None:
    """Prepares the set with TFDS's own builder, from `downloads` (our files) in place of its downloads, and makes
    `tfds_source.find_builder` find it."""
    # To prepare a set TFDS imports the backport importlib_resources; Python's own module is the same.
    monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, urls: downloads)
    builder = tfds.builder(name, data_dir=tmp_path / "tfds", file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(register_checksums=False))
    monkeypatch.setattr(
        tfds_source, "find_builder", lambda name, data_dir, *_: tfds.builder(name, data_dir=tmp_path / "tfds")
    )
