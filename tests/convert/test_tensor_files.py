"""Files of tensors: what is in them comes back exact and only when asked for, and what is wrong with them is said."""

import argparse
import builtins
import json
import os
import pickle
import struct
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from spanbert_jax.convert import tensor_files
from spanbert_jax.convert.tensor_files import read_tensors
from spanbert_jax.errors import UserError


def some_tensors(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"encoder.layer.0.weight": (7, 5), "encoder.layer.0.bias": (5,), "word": (11, 3), "cube": (2, 3, 4)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write_shards(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Two shards with the index that transformers writes beside them."""
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (i >= 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return index


def write_pickle(path: Path, value: Any, legacy: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_read(path: Path, expected: dict[str, np.ndarray]) -> None:
    tensors = read_tensors(path)
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        found = tensors[name]()
        assert found.shape == tensor.shape
        np.testing.assert_array_equal(found.astype(np.float64), tensor.astype(np.float64), err_msg=name)


def assert_refused(path: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        for read in read_tensors(path).values():
            read()
    message = str(error.value)
    assert message.startswith(str(path.parent)) and path.name in message and all(part in message for part in parts)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_one_file_of_safetensors_and_its_shards_give_every_value(dtype: Any, tmp_path: Path) -> None:
    tensors = some_tensors(dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_read(tmp_path / "model.safetensors", tensors)
    assert_read(write_shards(tmp_path, tensors), tensors)


def test_a_tensor_of_safetensors_is_read_when_it_is_asked_for_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = tensor_files.safe_open

    class Recording:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.file = original(*args, **options)

        def __getattr__(self, name: str) -> Any:
            assert name in ("offset_keys", "keys", "get_slice"), name  # what reads no values
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> np.ndarray:
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(tensor_files, "safe_open", Recording)
    tensors = some_tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", write_shards(tmp_path, tensors)):
        read.clear()
        found = read_tensors(path)
        assert read == []
        found["word"]()
        assert read == ["word"]


def header_of(data: bytes) -> tuple[int, dict[str, Any]]:
    size = struct.unpack("<Q", data[:8])[0]
    return size, json.loads(data[8 : 8 + size])


def with_header(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    size, header = header_of(data)
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def test_safetensors_cut_anywhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(some_tensors(), path)
    data = path.read_bytes()
    size, _ = header_of(data)
    for length in (0, 1, 7, 8, 9, 8 + size // 2, 7 + size, 8 + size, 9 + size, len(data) - 4, len(data) - 1):
        path.write_bytes(data[:length])
        assert_refused(path, "not a whole safetensors file")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: data[:8] + b"\xff" * 20 + data[28:],
        lambda data: struct.pack("<Q", 2**63) + data[8:],
        lambda data: struct.pack("<Q", len(data)) + data[8:],
        lambda data: data + b"more",
        lambda data: with_header(data, lambda h: h["word"].update(shape=[11, 4])),
        lambda data: with_header(data, lambda h: h["word"].update(shape=[-11, -3])),
        lambda data: with_header(data, lambda h: h["word"].update(dtype="X32")),
        lambda data: with_header(data, lambda h: h["word"].update(data_offsets=[0, 10**12])),
        lambda data: with_header(data, lambda h: h["word"].update(data_offsets=h["cube"]["data_offsets"])),
        lambda data: with_header(data, lambda h: h["word"].pop("data_offsets")),
        lambda data: b"<html>404: Not Found</html>" * 20,
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n",
    ],
    ids=[
        "no_json",
        "no_text",
        "endless_header",
        "header_over_the_end",
        "longer",
        "other_shape",
        "negative_shape",
        "unknown_dtype",
        "offset_over_the_end",
        "overlap",
        "no_offset",
        "html",
        "git_lfs",
    ],
)
def test_damaged_safetensors_are_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(some_tensors(), path)
    path.write_bytes(damage(path.read_bytes()))
    assert_refused(path, "not a whole safetensors file")


def test_any_changed_byte_of_a_header_gives_tensors_or_one_message(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(some_tensors(), path)
    data = path.read_bytes()
    size, _ = header_of(data)
    rng, refused = np.random.default_rng(2), 0
    for position in rng.integers(0, 8 + size, 300):
        changed = bytearray(data)
        changed[position] = rng.integers(256)
        path.write_bytes(changed)
        try:
            for read in read_tensors(path).values():
                read()
        except UserError as error:
            assert str(error).startswith(str(path))
            refused += 1
    assert 100 < refused < 300


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": ["word"]}',
        '{"weight_map": {"word": 3}}',
        '{"weight_map": {"word": "gone.safetensors"}}',
        '{"weight_map": {"strange": "model-00001-of-00002.safetensors"}}',
        '{"weight_map": ' + "[" * 100_000,
    ],
)
def test_an_index_that_shards_do_not_bear_out_is_refused(index: str, tmp_path: Path) -> None:
    path = write_shards(tmp_path, some_tensors())
    path.write_text(index)
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        read_tensors(path)
    assert path.name in str(error.value) or "gone.safetensors" in str(error.value)


def test_a_damaged_shard_is_refused_by_its_own_name(tmp_path: Path) -> None:
    path, shard = write_shards(tmp_path, some_tensors()), tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{shard}: not a whole safetensors file"):
        read_tensors(path)


both_formats = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@both_formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_pickled_state_dict_gives_every_value(dtype: torch.dtype, legacy: bool, tmp_path: Path) -> None:
    state = OrderedDict((name, torch.tensor(tensor).to(dtype)) for name, tensor in some_tensors().items())
    state["transposed"] = state["word"].T  # not contiguous
    path = write_pickle(tmp_path / "pytorch_model.bin", state, legacy)
    assert_read(path, {name: tensor.double().numpy() for name, tensor in state.items()})


@both_formats
def test_parameters_that_want_a_gradient_are_tensors_like_others(legacy: bool, tmp_path: Path) -> None:
    tensors = some_tensors()
    state = {name: torch.nn.Parameter(torch.tensor(tensor)) for name, tensor in tensors.items()}
    assert_read(write_pickle(tmp_path / "pytorch_model.bin", state, legacy), tensors)


@both_formats
def test_of_a_whole_fairseq_checkpoint_the_models_tensors_are_read(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = some_tensors(np.float16)
    meters = types.ModuleType("fairseq.meters")
    fairseq = types.ModuleType("fairseq")
    names = ("AverageMeter", "TimeMeter", "StopwatchMeter")
    for name in names:
        setattr(meters, name, type(name, (), {"__module__": "fairseq.meters"}))
    values = {name: getattr(meters, name)() for name in names}
    values["AverageMeter"].__dict__ |= {"val": 0.5, "avg": 1.5, "sum": 3.0, "count": 2}
    whole = {
        "args": argparse.Namespace(arch="cased_bert_pair", lr=[1e-4], adam_betas="(0.9, 0.999)", fp16=True),
        "model": OrderedDict((name, torch.tensor(tensor)) for name, tensor in tensors.items()),
        "optimizer_history": [{"criterion_name": "SpanBertLoss", "num_updates": 2, "lr_scheduler_state": {"best": 1}}],
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.ones(3), "step": 7}}, "param_groups": [{"lr": 0.1}]},
        "extra_state": {"epoch": 1, "train_meters": OrderedDict(values), "val_loss": None, "batch_offset": 3},
    }
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "fairseq", fairseq)
        patched.setitem(sys.modules, "fairseq.meters", meters)
        path = write_pickle(tmp_path / "model.pt", whole, legacy)
    assert "fairseq" not in sys.modules
    assert b"fairseq.meters" in path.read_bytes()
    assert_read(path, tensors)


class Code:
    """Pickles as a call."""

    def __init__(self, function: Callable, *arguments: str) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("where", ["zip", "legacy", "plain"])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, f"{os.system.__module__}.system"), (builtins.exec, "exec")],
    ids=["system", "exec"],
)
def test_a_pickle_with_code_in_it_is_refused_by_the_codes_name_and_the_code_does_not_run(
    function: Callable, name: str, where: str, tmp_path: Path
) -> None:
    evidence = tmp_path / "evidence"
    command = f"touch {evidence}" if function is os.system else f"open({str(evidence)!r}, 'w').close()"
    state, path = {"word": torch.ones(3), "payload": Code(function, command)}, tmp_path / "pytorch_model.bin"
    if where == "plain":
        path.write_bytes(pickle.dumps(state["payload"], 2))
    else:
        write_pickle(path, state, legacy=where == "legacy")
    assert_refused(path, name, "nothing in it was run")
    assert not evidence.exists()
    function(command)  # what was refused would have run
    assert evidence.exists()


@both_formats
def test_a_pickled_model_is_refused_by_its_classs_name(legacy: bool, tmp_path: Path) -> None:
    assert_refused(write_pickle(tmp_path / "model.pt", torch.nn.Linear(2, 3), legacy), "torch.nn.modules.linear.Linear")


@both_formats
def test_pickles_cut_anywhere_are_refused(legacy: bool, tmp_path: Path) -> None:
    state = {name: torch.tensor(tensor) for name, tensor in some_tensors().items()}
    path = write_pickle(tmp_path / "pytorch_model.bin", state, legacy)
    data = path.read_bytes()
    for length in (0, 1, 2, 100, len(data) // 3, len(data) // 2, len(data) - 60, len(data) - 1):
        path.write_bytes(data[:length])
        assert_refused(path)


@pytest.mark.parametrize("junk", [b"<html>404: Not Found</html>", b"\x80\x02.", b"PK\x03\x04" + b"\0" * 40, b"\n" * 99])
def test_junk_is_refused(junk: bytes, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(junk)
    assert_refused(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("value", [{}, {"epoch": 3}, [torch.ones(2)], torch.ones(2), {"model": {}}, 3, None])
def test_a_pickle_without_a_state_dict_is_refused_with_what_it_holds(value: Any, tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "model.pt", value, False)
    assert_refused(path, type(value).__name__, "state_dict")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        assert_refused(tmp_path / name, "no such file")
        (tmp_path / name).mkdir()
        assert_refused(tmp_path / name, "no such file")


def test_without_torch_a_pickle_says_what_to_install_and_safetensors_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = some_tensors()
    path = write_pickle(tmp_path / "pytorch_model.bin", {"word": torch.ones(2)}, False)
    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_refused(path, "requirements-torch.txt")
    assert_read(tmp_path / "model.safetensors", load_file(tmp_path / "model.safetensors"))
