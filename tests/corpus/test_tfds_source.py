"""TFDS datasets of strangers: their texts, or one line with the file and the record; no code, and no file elsewhere."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spanbert_jax.corpus import tfds_source
from spanbert_jax.errors import UserError
from tests.support.prose_tfds import write_tfds
from tests.support.small_corpus import document

FORMATS = ("tfrecord", "array_record")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Format -> a data_dir with the dataset "prose", which tests copy."""
    folders = {file_format: tmp_path_factory.mktemp(file_format) for file_format in FORMATS}
    for file_format, folder in folders.items():
        write_tfds(folder / "prose/1.0.0", file_format)
    return folders


@pytest.fixture(params=FORMATS)
def data_dir(request: pytest.FixtureRequest, prepared: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared[request.param], tmp_path / "tfds"))


def texts(data_dir: Path) -> list[str]:
    return [one.text for one in tfds_source.read_tfds("prose", str(data_dir))]


def refused(data_dir: Path, *parts: str) -> str:
    with pytest.raises(UserError) as error:
        texts(data_dir)
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and len(message) < 900, message
    return message


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_every_text_is_read_in_order(data_dir: Path) -> None:
    assert texts(data_dir) == [document(i) for i in range(100)]
    builder = tfds_source.find_builder("prose", str(data_dir), "flag")
    part = tfds_source.read_examples(builder, "train[95:]")
    assert [example["text"].decode() for example in part] == [document(i) for i in range(95, 100)]


def test_a_missing_a_cut_and_an_exchanged_shard_are_named(data_dir: Path) -> None:
    shards = sorted(data_dir.rglob("prose-train*"))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    refused(data_dir, str(shards[1]), "again")
    shards[1].write_bytes(shards[0].read_bytes())
    refused(data_dir, f"{shards[1]}: has 30 records", "says 40")
    shards[1].unlink()
    refused(data_dir, str(shards[1]), "40")


def test_any_changed_byte_of_a_shard_gives_the_texts_or_one_line_with_the_file(data_dir: Path) -> None:
    expected = [document(i) for i in range(100)]
    shard = sorted(data_dir.rglob("prose-train*"))[1]
    data, rng, refusals = shard.read_bytes(), np.random.default_rng(3), 0
    for position in rng.choice(np.flatnonzero(np.frombuffer(data, np.uint8)), 10, replace=False):  # 0 may be padding
        changed = bytearray(data)
        changed[position] ^= rng.integers(1, 256)
        shard.write_bytes(changed)
        try:
            assert texts(data_dir) == expected  # a byte that nothing reads, such as padding
        except UserError as error:
            assert str(shard) in str(error) and "\n" not in str(error) and len(str(error)) < 900
            refusals += 1
    assert refusals > 7


def test_examples_of_a_damaged_shard_are_an_error_that_names_it(data_dir: Path) -> None:
    shard = sorted(data_dir.rglob("prose-train*"))[2]
    shard.write_bytes(shard.read_bytes()[:-40])
    builder = tfds_source.find_builder("prose", str(data_dir), "flag")
    with pytest.raises(UserError, match=str(shard)):
        list(tfds_source.read_examples(builder, "train"))


def test_a_length_that_no_memory_has_is_damage(prepared: dict[str, Path], tmp_path: Path) -> None:
    """The length's own checksum is right, as only someone who means it writes it."""
    data_dir = Path(shutil.copytree(prepared["tfrecord"], tmp_path / "tfds"))
    shard = sorted(data_dir.rglob("prose-train*"))[0]
    shard.write_bytes((2**40).to_bytes(8, "little") + masked_crc32c((2**40).to_bytes(8, "little")) + bytes(100))
    refused(data_dir, f"{shard}: record 1 does not end where the file does")


def masked_crc32c(data: bytes) -> bytes:
    """TFRecord's checksum, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


@pytest.mark.parametrize(
    "name", ["os.PathLike", "evil.X", "tensorflow_datasets.scripts.cli.main.X", "tensorflow_datasets.X", "X", ""]
)
def test_a_class_that_is_no_feature_of_tfds_is_refused_by_name_and_not_imported(
    name: str, prepared: dict[str, Path], tmp_path: Path
) -> None:
    data_dir = Path(shutil.copytree(prepared["tfrecord"], tmp_path / "tfds"))
    edit(data_dir / "prose/1.0.0/features.json", lambda fields: fields.update(pythonClassName=name))
    refused(data_dir, f"names the Python class {name!r}", "JSON lines", str(data_dir))
    assert "tensorflow_datasets.scripts.cli.main" not in sys.modules


def test_labels_that_no_memory_has_are_refused(prepared: dict[str, Path], tmp_path: Path) -> None:
    data_dir = Path(shutil.copytree(prepared["tfrecord"], tmp_path / "tfds"))
    own = "tensorflow_datasets.core.features"
    labels = {"pythonClassName": f"{own}.class_label_feature.ClassLabel", "classLabel": {"numClasses": "9000000000"}}
    listed = {"pythonClassName": f"{own}.sequence_feature.Sequence", "sequence": {"feature": labels, "length": "-1"}}
    path = data_dir / "prose/1.0.0/features.json"
    edit(path, lambda fields: fields["featuresDict"]["features"].update(tags=listed))
    refused(data_dir, f"{path}: a feature has 9,000,000,000 labels")


def test_the_dataset_of_a_community_whose_code_would_run_is_refused() -> None:
    with pytest.raises(UserError, match="'huggingface:glue' is a dataset of a community"):
        tfds_source.read_tfds("huggingface:glue", "")


@pytest.mark.parametrize(
    "template",
    [
        "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "/etc/{SPLIT}",
        "a/../../{SPLIT}",
        "{SPLIT:>99999999999}",
        "{SPLIT.__class__}",
        "{SPDIT}",
        "{SPLIT!r:>99999999999}",
    ],
)
def test_file_names_that_lead_elsewhere_or_take_memory_are_refused(
    template: str, prepared: dict[str, Path], tmp_path: Path
) -> None:
    data_dir = Path(shutil.copytree(prepared["tfrecord"], tmp_path / "tfds"))
    info = data_dir / "prose/1.0.0/dataset_info.json"
    edit(info, lambda fields: fields["splits"][0].update(filepathTemplate=template))
    refused(data_dir, f"{info}: the files of split 'train' are {template!r}")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_metadata_is_one_line(name: str, prepared: dict[str, Path], tmp_path: Path) -> None:
    data_dir = Path(shutil.copytree(prepared["tfrecord"], tmp_path / "tfds"))
    path = data_dir / "prose/1.0.0" / name
    good = path.read_text()
    junk = ["", "{", "[]", "null", "[" * 100_000, good[: len(good) // 2], good.replace('"', "'"), '{"a": 1}', "{}"]
    for bad in [*junk, good.replace("train", "t" * 10**5), good.replace("30", "-30"), good.replace("30", "1" * 30)]:
        if bad != good:
            path.write_text(bad)
            refused(data_dir)
