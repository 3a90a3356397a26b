"""A real TensorFlow-1 checkpoint under transformers' names: every tensor, every value, and what damage says."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from spanbert_jax.convert import google_bert
from spanbert_jax.convert.tensorflow_checkpoint import read_checkpoint
from spanbert_jax.convert.tensors import Tensor
from spanbert_jax.errors import UserError
from tests.support.published import lazy

NAME = "bert_model.ckpt"
DATA = f"{NAME}.data-00000-of-00001"


@pytest.fixture
def folder(shared_data: Path) -> Path:
    return shared_data / "checkpoints/tiny_bert_tf1"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The checkpoint in a folder of the test's own."""
    for name in (f"{NAME}.index", DATA):
        shutil.copyfile(folder / name, tmp_path / name)  # without the original's read-only mode
    return tmp_path


def _read() -> np.ndarray:
    raise AssertionError("translating a name reads no tensor")


nothing = Tensor((3, 2), _read)


def test_all_139_tensors_are_translated_or_named_as_left_alone(folder: Path) -> None:
    tensors = read_checkpoint(folder / NAME)
    translated, left = google_bert.translate(tensors)
    assert len(tensors) == 139 and len(translated) == 46 and len(left) == len(set(left)) == 93
    slots = [name for name in tensors if name.endswith(("/adam_m", "/adam_v"))]
    assert left == sorted([*slots, "global_step"]) and len(slots) == 2 * 46


def test_every_value_is_what_tensorflow_reads_and_transformers_takes_all_of_them(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertForPreTraining

    model = BertForPreTraining(BertConfig(**google_bert.config_fields(folder / "bert_config.json")))
    translated, _ = google_bert.translate(read_checkpoint(folder / NAME))
    state = {name.replace("gamma", "weight").replace("beta", "bias"): read() for name, read in translated.items()}
    # transformers lists the decoder too, which is tied to these two.
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    torch_state = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in state.items()}
    model.load_state_dict(torch_state, strict=True)  # raises at a missing or unexpected name, or at another shape

    reader = tf.train.load_checkpoint(str(folder / NAME))
    table, parts = model.bert.embeddings, model.cls
    assert_equal(table.word_embeddings.weight, reader, "bert/embeddings/word_embeddings")
    assert_equal(table.position_embeddings.weight, reader, "bert/embeddings/position_embeddings")
    assert_equal(table.token_type_embeddings.weight, reader, "bert/embeddings/token_type_embeddings")
    assert_equal(parts.predictions.bias, reader, "cls/predictions/output_bias")
    assert_equal(parts.seq_relationship.weight, reader, "cls/seq_relationship/output_weights")
    assert_equal(parts.seq_relationship.bias, reader, "cls/seq_relationship/output_bias")
    linears = [(model.bert.pooler.dense, "bert/pooler/dense")]
    linears += [(parts.predictions.transform.dense, "cls/predictions/transform/dense")]
    norms = [(table.LayerNorm, "bert/embeddings"), (parts.predictions.transform.LayerNorm, "cls/predictions/transform")]
    for index, layer in enumerate(model.bert.encoder.layer):
        name = f"bert/encoder/layer_{index}"
        attention = layer.attention
        linears += [
            (attention.self.query, f"{name}/attention/self/query"),
            (attention.self.key, f"{name}/attention/self/key"),
            (attention.self.value, f"{name}/attention/self/value"),
            (attention.output.dense, f"{name}/attention/output/dense"),
            (layer.intermediate.dense, f"{name}/intermediate/dense"),
            (layer.output.dense, f"{name}/output/dense"),
        ]
        norms += [(attention.output.LayerNorm, f"{name}/attention/output"), (layer.output.LayerNorm, f"{name}/output")]
    for linear, name in linears:
        assert_equal(linear.weight.T, reader, f"{name}/kernel")
        assert_equal(linear.bias, reader, f"{name}/bias")
    for norm, name in norms:
        assert_equal(norm.weight, reader, f"{name}/LayerNorm/gamma")
        assert_equal(norm.bias, reader, f"{name}/LayerNorm/beta")
    assert 6 + 2 * len(linears) + 2 * len(norms) == len(translated)


def assert_equal(parameter: Any, reader: Any, name: str) -> None:
    np.testing.assert_array_equal(parameter.detach().numpy(), reader.get_tensor(name), err_msg=name)


@pytest.mark.parametrize(
    ("original", "ours"),
    [
        ("output_weights", "classifier.weight"),
        ("output_bias", "classifier.bias"),
        ("cls/squad/output_weights", "qa_outputs.weight"),
        ("cls/squad/output_bias", "qa_outputs.bias"),
        ("bert/encoder/layer_11/output/dense/bias", "bert.encoder.layer.11.output.dense.bias"),
    ],
)
def test_fine_tuned_heads_and_deep_layers_keep_their_orientation(original: str, ours: str) -> None:
    tensor = np.arange(6).reshape(3, 2)  # three labels by a width of two: labels come first in both programs
    tensors = {"bert/embeddings/word_embeddings": nothing, **lazy({original: tensor})}
    translated, left = google_bert.translate(tensors)
    assert left == [] and set(translated) == {"bert.embeddings.word_embeddings.weight", ours}
    np.testing.assert_array_equal(translated[ours](), tensor)


def test_a_kernel_is_transposed_and_a_name_that_only_resembles_one_is_left_alone() -> None:
    kernel = np.arange(6).reshape(3, 2)
    strangers = [
        "bert/encoder/layer_0/intermediate/dense/kernel/Adam",
        "bert/encoder/layer_0/crossattention/dense/kernel",
        "bert/encoder/layer_x/intermediate/dense/kernel",
        "scope/bert/pooler/dense/kernel",
        "output_weights/adam_v",
        "beta1_power",
    ]
    name = "bert/encoder/layer_0/intermediate/dense/kernel"
    tensors = {"bert/embeddings/word_embeddings": nothing, **lazy({name: kernel})} | dict.fromkeys(strangers, nothing)
    translated, left = google_bert.translate(tensors)
    assert left == sorted(strangers)
    np.testing.assert_array_equal(
        translated["bert.encoder.layer.0.intermediate.dense.weight"](), [[0, 2, 4], [1, 3, 5]]
    )


def test_another_architecture_is_an_error_that_says_what_was_found() -> None:
    with pytest.raises(UserError, match=r"no tensor bert/embeddings/word_embeddings among 1 \(electra/embeddings"):
        google_bert.translate({"electra/embeddings/word_embeddings": nothing})


def test_the_configuration_has_google_sizes_and_transformers_names(folder: Path) -> None:
    path = folder / "bert_config.json"
    given, fields = json.loads(path.read_text()), google_bert.config_fields(path)
    added = {"model_type": "bert", "layer_norm_eps": 1e-12, "pad_token_id": 0}
    dropped = {name for name in given if name.startswith("pooler_")} | {"directionality"}
    assert fields == {name: value for name, value in given.items() if name not in dropped} | added


def test_a_configuration_without_its_optional_fields_has_the_defaults_of_the_original(tmp_path: Path) -> None:
    path = tmp_path / "bert_config.json"
    sizes = {"vocab_size": 15, "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 16, "type_vocab_size": 2}
    path.write_text(json.dumps(sizes))
    defaults = {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    assert google_bert.config_fields(path).items() >= (sizes | defaults | {"initializer_range": 0.02}).items()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not a JSON file"),
        ("[1]", "no whole number as vocab_size, hidden_size"),
        ('{"vocab_size": 15, "hidden_size": "4"}', "no whole number as hidden_size, num_hidden_layers"),
    ],
)
def test_a_configuration_that_is_missing_or_broken_is_an_error_that_names_it(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "bert_config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        google_bert.config_fields(path)


def test_a_missing_index_is_an_error_that_names_it(copy: Path) -> None:
    (copy / f"{NAME}.index").unlink()
    with pytest.raises(UserError, match=rf"{copy}/{NAME}.index: no such file"):
        read_checkpoint(copy / NAME)


@pytest.mark.parametrize("keep", [0, 2000])
def test_a_truncated_index_is_an_error_that_names_it(copy: Path, keep: int) -> None:
    path = copy / f"{NAME}.index"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{path}: not the index of a TensorFlow checkpoint"):
        read_checkpoint(copy / NAME)


def test_missing_data_is_an_error_before_anything_is_read(copy: Path) -> None:
    (copy / DATA).unlink()
    with pytest.raises(UserError, match=rf"{NAME}.data-\*: no such file, only {NAME}.index"):
        read_checkpoint(copy / NAME)


def test_data_that_is_one_byte_short_is_an_error_before_anything_is_read(copy: Path) -> None:
    path = copy / DATA
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"{DATA}: {len(whole) - 1} bytes; the tensors take {len(whole)}"):
        read_checkpoint(copy / NAME)


def test_a_changed_byte_is_an_error_that_names_its_tensor_and_no_other(copy: Path) -> None:
    path = copy / DATA
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    errors = []
    for read in read_checkpoint(copy / NAME).values():
        try:
            read()
        except UserError as error:
            errors.append(str(error))
    (message,) = errors
    assert f"{NAME}.data-*: tensor bert/embeddings/position_embeddings is damaged" in message and "Checksum" in message
