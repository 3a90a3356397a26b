"""Weights of strangers: a claim is compared with the file before memory is taken, and no file elsewhere is opened."""

import dataclasses
import json
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from spanbert_jax.convert import huggingface, huggingface_config
from spanbert_jax.convert.config_fields import SpecialIds
from spanbert_jax.convert.published_weights import open_published_weights
from spanbert_jax.convert.tensor_files import read_tensors
from spanbert_jax.errors import UserError
from spanbert_jax.text.tokenizer import load_tokenizer, wordpiece_from_vocab
from tests.support.published import load, write_vocabulary
from tests.support.random_params import COMBINATIONS, MODEL, filled, shapes
from tests.support.synthetic import VOCAB

_LITTLE = 60 * 2**20  # bytes; the claims below are of gigabytes and more


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    params = filled(shapes(COMBINATIONS["token_classification"]), lambda shape: np.ones(shape, np.float32))
    return huggingface.to_tensors(params, VOCAB, np.dtype(np.float32))


@pytest.fixture
def model(tensors: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """A directory as transformers writes it."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    fields = huggingface_config.to_fields(
        MODEL, VOCAB, SpecialIds(0, 2, 3), "BertForTokenClassification", list("abcde"), "float32"
    )
    (folder / "config.json").write_text(json.dumps(fields))
    write_vocabulary(folder / "vocab.txt")
    return folder


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fails where Python and NumPy together have ever held more than `_LITTLE`."""
    tracemalloc.start(1)
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < _LITTLE


def refused(path: Path, *parts: str, read: Callable[[Path], object] | None = None) -> None:
    with pytest.raises(UserError) as error:
        if read:
            read(path)
        else:
            with open_published_weights(path) as published:
                load(published)
    message = str(error.value)
    assert "\n" not in message and len(message) < 700, message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("num_hidden_layers", 10**6, "bert.encoder.layer.2. is missing, and its configuration says 1000000 layers"),
        ("num_hidden_layers", 10**12, "num_hidden_layers is 1000000000000; expected at most"),
        ("max_position_embeddings", 10**9, "expected (1000000000, 24), as its configuration says"),
        ("hidden_size", 10**9, "has shape (131, 24); expected (131, 1000000000)"),
        ("intermediate_size", 10**9, "intermediate.dense.weight has shape (40, 24); expected (1000000000, 24)"),
        ("type_vocab_size", 10**9, "expected (1000000000, 24)"),
        ("vocab_size", 10**9, "word_embeddings.weight has shape (131, 24); expected (1000000000, 24)"),
        ("vocab_size", 10**4000, "vocab_size is 1000"),
        ("layer_norm_eps", 10**4000, "layer_norm_eps is 1000"),
        ("num_attention_heads", 10**9, "hidden_size 24 is not divisible by 1000000000 heads"),
        ("hidden_act", "x" * 10**5, "hidden_act is 'xxx"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.usefixtures("little_memory")
def test_a_size_that_the_tensors_do_not_have_is_refused_by_its_name(
    field: str, value: Any, part: str, model: Path
) -> None:
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {field: value}))
    refused(model, part)


@pytest.mark.parametrize("rows", [2**31 - 1, 2**31])
@pytest.mark.usefixtures("little_memory")
def test_a_table_without_elements_claims_no_rows(rows: int, tensors: dict[str, np.ndarray], model: Path) -> None:
    save_file(tensors | {"classifier.weight": np.zeros((rows, 0), np.float32)}, model / "model.safetensors")
    refused(model, "classifier.weight has shape")


def test_a_model_that_memory_does_not_hold_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    with open_published_weights(model) as published:
        monkeypatch.setattr(huggingface, "check_sizes", no_memory)
        with pytest.raises(UserError, match="does not fit in this machine's free memory"):
            load(published)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{}/outside.safetensors", "..", "", "a/b", "a\\b", "a\0", 3]
)
def test_an_index_names_files_beside_it_and_no_others(
    name: Any, tensors: dict[str, np.ndarray], model: Path, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "outside.safetensors")
    (model / "model.safetensors").unlink()
    shard = name.format(tmp_path) if isinstance(name, str) else name
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, shard)}))
    refused(model, str(index), "expected the name of a file beside the index")


def test_links_of_a_cache_to_files_elsewhere_are_followed(
    tensors: dict[str, np.ndarray], model: Path, tmp_path: Path
) -> None:
    """As Hugging Face's cache lays a model out: a snapshot of links to blobs. The user made these links."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file(tensors, blobs / "0001")
    shutil.copy(model / "config.json", blobs / "0002")
    shutil.copy(model / "vocab.txt", blobs / "0003")
    (blobs / "0004").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model-1.safetensors")}))
    names = ("model-1.safetensors", "config.json", "vocab.txt", "model.safetensors.index.json")
    for number, name in enumerate(names, 1):
        (snapshot / name).symlink_to(f"../../blobs/{number:04d}")
    with open_published_weights(snapshot) as published:
        load(published)


@pytest.mark.parametrize("name", ["../vocab.txt", "{}/vocab.txt", "..", None])
def test_a_tokenizer_names_a_vocabulary_beside_it(name: str | None, tmp_path: Path) -> None:
    tokenizer = wordpiece_from_vocab(write_vocabulary(tmp_path / "vocab.txt"), lowercase=False)
    tokenizer.save(tmp_path / "saved")
    path = tmp_path / "saved/spanbert_tokenizer.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"vocabulary": name and name.format(tmp_path)}))
    refused(tmp_path / "saved", str(path), "is not the name of a file beside it", read=load_tokenizer)


def saved(value: Any, path: Path, legacy: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def repacked(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The zip of a pickle with other records."""
    with zipfile.ZipFile(path) as old:
        records = {name: change(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in records.items():
            new.writestr(name, data)
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_tensor_that_repeats_one_value_is_refused(legacy: bool, tmp_path: Path) -> None:
    state = {"word": torch.ones(3), "all": torch.ones(1).expand(10**6, 10**5)}
    path = saved(state, tmp_path / "model.pt", legacy)
    refused(path, "all has shape (1000000, 100000), 400,000,000,000 bytes, in a storage of 4", read=read_tensors)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_that_share_far_more_than_tied_ones_do_are_refused(legacy: bool, tmp_path: Path) -> None:
    one = torch.ones(10_000)
    path = saved({f"layer{i}": one for i in range(3)}, tmp_path / "model.pt", legacy)
    assert len(read_tensors(path)) == 3
    path = saved({f"layer{i}": one for i in range(12)}, tmp_path / "model.pt", legacy)
    refused(path, "its tensors claim 480,000 bytes", read=read_tensors)


@pytest.mark.parametrize("size", [0, 36, 44, 4000])
def test_a_record_of_another_size_than_its_storage_is_refused(size: int, tmp_path: Path) -> None:
    path = saved({"word": torch.arange(10.0), "other": torch.ones(7)}, tmp_path / "model.pt", legacy=False)
    repacked(path, lambda name, data: data)
    assert read_tensors(path)["word"]().tolist() == list(range(10))
    repacked(path, lambda name, data: bytes(size) if name.endswith("data/0") else data)
    refused(path, str(path), read=read_tensors)


def test_a_compressed_record_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = saved({"word": torch.zeros(2**21)}, tmp_path / "model.pt", legacy=False)
    repacked(path, lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    refused(path, "is compressed, which PyTorch never does", read=read_tensors)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_structure_of_megabytes_beside_the_values_is_refused(legacy: bool, tmp_path: Path) -> None:
    path = saved({"word": torch.ones(3), "more": bytes(5 * 2**20).decode()}, tmp_path / "model.pt", legacy)
    refused(path, "bytes beside its values", read=read_tensors)


@pytest.mark.parametrize("kind", ["sparse", "complex", "float8"])
def test_tensors_that_are_not_dense_numbers_are_refused_or_read_as_float32(kind: str, tmp_path: Path) -> None:
    ones = torch.eye(3)
    made = {"sparse": ones.to_sparse, "complex": ones.cfloat, "float8": lambda: ones.to(torch.float8_e4m3fn)}
    path = saved({"word": made[kind]()}, tmp_path / "model.pt", legacy=False)
    if kind == "sparse":
        refused(path, "word is no dense tensor", read=read_tensors)
    elif kind == "float8":
        np.testing.assert_array_equal(read_tensors(path)["word"](), np.eye(3, dtype=np.float32))
    else:
        assert read_tensors(path)["word"]().dtype == np.complex64


def test_modernberts_sizes_that_no_tensor_has_are_bounded() -> None:
    fields = huggingface_config.to_fields(
        dataclasses.replace(MODEL, family="modern", pre_norm=True, gated_mlp=True, window=4, full_every=2),
        VOCAB,
        SpecialIds(0, 2, 3),
        "ModernBertModel",
        (),
        "float32",
    )
    huggingface_config.to_model_config(fields, "config.json")
    for name, value in {
        "max_position_embeddings": 10**9,
        "local_attention": 10**9,
        "num_hidden_layers": 10**9,
        "layer_types": ["full_attention"] * 10**5,
    }.items():
        with pytest.raises(UserError, match=r"^config\.json: ") as error:
            huggingface_config.to_model_config(fields | {name: value, "global_attn_every_n_layers": 2}, "config.json")
        assert len(str(error.value)) < 500
