"""config.json: what we write transformers understands, what we read is what it says, and what is no BERT is refused."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from spanbert_jax.config import ModelConfig
from spanbert_jax.convert.bert import HEADS
from spanbert_jax.convert.config_fields import SpecialIds
from spanbert_jax.convert.huggingface_config import (
    architecture,
    labels_of,
    read_config,
    task_of,
    to_fields,
    to_model_config,
)
from spanbert_jax.errors import UserError

# Every field is another value than BERT's default, but the width of SBO's table, which config.json does not hold.
ODD = ModelConfig(
    layers=3,
    embed=60,
    heads=5,
    mlp=100,
    max_length=41,
    token_types=3,
    dropout=0.25,
    attention_dropout=0.0,
    layer_norm_eps=1e-7,
    init_std=0.05,
)
SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 60,
    "num_attention_heads": 5,
    "intermediate_size": 100,
    "max_position_embeddings": 41,
    "type_vocab_size": 3,
}
RATES = {
    "hidden_dropout_prob": 0.25,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-7,
    "initializer_range": 0.05,
}
CLASSES = (
    "BertModel",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(("dtype", "labels"), [("float32", ()), ("bfloat16", ("O", "B-PER", "I-PER"))])
def test_transformers_reads_what_was_meant(name: str, dtype: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    fields = to_fields(ODD, 131, SpecialIds(7, 5, 6), name, labels, dtype)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = transformers.AutoConfig.from_pretrained(tmp_path)  # strict: a field of another type is an error
    assert type(config) is transformers.BertConfig
    meant = {**SIZES, **RATES, "vocab_size": 131, "pad_token_id": 7, "hidden_act": "gelu", "is_decoder": False}
    meant |= {"architectures": [name], "tie_word_embeddings": True, "add_cross_attention": False}
    assert {field: getattr(config, field) for field in meant} == meant
    assert str(config.dtype) == f"torch.{dtype}"
    if labels:
        assert config.num_labels == 3 and config.id2label == dict(enumerate(labels))
        assert config.label2id == {label: i for i, label in enumerate(labels)}


@pytest.mark.parametrize("model", [ODD, ModelConfig()], ids=["odd", "base"])
def test_a_written_configuration_is_read_back_the_same(model: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(to_fields(model, 131, SpecialIds(0, 5, 6), "BertModel", (), "float32"))
    )
    again = to_model_config(read_config(tmp_path / "config.json"), "config.json")
    assert again == model
    for field in dataclasses.fields(ModelConfig):
        assert type(getattr(again, field.name)) is type(getattr(model, field.name)), field.name


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_that_transformers_writes_is_written(name: str, tmp_path: Path) -> None:
    config = transformers.BertConfig(
        **SIZES, **RATES, vocab_size=131, architectures=[name], dtype="float32", num_labels=3
    )
    config.save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "config.json").read_text())
    del theirs["transformers_version"]
    ours = to_fields(ODD, 131, SpecialIds(0, 5, 6), name, ("LABEL_0", "LABEL_1", "LABEL_2"), "float32")
    assert {field: ours.get(field, "not written") for field in theirs} == theirs


def test_fields_that_are_not_there_take_transformers_defaults() -> None:
    ours, theirs = to_model_config(SIZES, "config.json"), transformers.BertConfig()
    given = (ours.dropout, ours.attention_dropout, ours.layer_norm_eps, ours.init_std)
    assert given == (
        theirs.hidden_dropout_prob,
        theirs.attention_probs_dropout_prob,
        theirs.layer_norm_eps,
        theirs.initializer_range,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "roberta"),
        ("model_type", "distilbert"),
        ("model_type", "electra"),
        ("hidden_act", "relu"),
        ("hidden_act", "gelu_new"),
        ("position_embedding_type", "relative_key"),
        ("position_embedding_type", "relative_key_query"),
        ("is_decoder", True),
        ("add_cross_attention", True),
    ],
)
def test_what_our_encoder_does_not_compute_is_refused_by_name(field: str, value: Any) -> None:
    fields = {"model_type": "bert", "hidden_act": "gelu", **SIZES, **RATES}
    assert to_model_config(fields, "there/config.json") == ODD
    with pytest.raises(UserError, match=rf"^there/config\.json: {field} is {value!r}; only .* is supported"):
        to_model_config(fields | {field: value}, "there/config.json")


def test_gelu_python_is_the_exact_gelu() -> None:
    x = torch.linspace(-4, 4, 1001)
    assert torch.equal(transformers.activations.ACT2FN["gelu_python"](x), x * 0.5 * (1 + torch.erf(x / 2**0.5)))
    fields = {"model_type": "bert", "hidden_act": "gelu_python", **SIZES, **RATES}
    assert to_model_config(fields, "config.json") == ODD


@pytest.mark.parametrize("class_name", ["RobertaConfig", "DistilBertConfig", "AlbertConfig", "ElectraConfig"])
def test_other_architectures_of_transformers_are_refused_by_name(class_name: str, tmp_path: Path) -> None:
    config = getattr(transformers, class_name)()
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"model_type is '{config.model_type}'"):
        to_model_config(read_config(tmp_path / "config.json"), str(tmp_path / "config.json"))


@pytest.mark.parametrize("value", ["60", 0, -1, 1.5, None, [60]])
@pytest.mark.parametrize("field", SIZES)
def test_a_size_that_is_no_positive_whole_number_is_an_error_that_names_it(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^there/config\.json: {field} is "):
        to_model_config({**SIZES, field: value}, "there/config.json")


@pytest.mark.parametrize("field", SIZES)
def test_a_missing_size_is_an_error_that_names_it(field: str) -> None:
    with pytest.raises(UserError, match=rf"^there/config\.json: {field} is None"):
        to_model_config({name: value for name, value in SIZES.items() if name != field}, "there/config.json")


@pytest.mark.parametrize("value", ["1e-12", None, [0.1]])
@pytest.mark.parametrize("field", RATES)
def test_a_rate_that_is_no_number_is_an_error_that_names_it(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^there/config\.json: {field} is "):
        to_model_config({**SIZES, field: value}, "there/config.json")


def test_a_width_that_heads_do_not_divide_is_an_error_with_both() -> None:
    with pytest.raises(UserError, match=r"hidden_size 60 .* 7 heads"):
        to_model_config({**SIZES, "num_attention_heads": 7}, "config.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"bert"', b"\xff\xfe{}", b"<html>", None])
def test_a_file_that_is_no_configuration_is_an_error_that_names_it(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: "):
        read_config(path)


def test_labels_are_in_the_order_of_their_numbers_and_have_transformers_names_without_any() -> None:
    labels = {str(i): f"tag-{i}" for i in reversed(range(12))}  # "10" sorts before "2"
    assert labels_of({"id2label": labels}, 12, "config.json") == tuple(f"tag-{i}" for i in range(12))
    assert labels_of({"id2label": {"1": "yes"}}, 2, "config.json") == ("LABEL_0", "yes")
    unnamed = tuple(transformers.BertConfig(num_labels=3).id2label.values())
    assert labels_of({}, 3, "config.json") == labels_of({"id2label": None}, 3, "config.json") == unnamed


@pytest.mark.parametrize("labels", [["no", "yes"], {"no": 0, "yes": 1}, "no"])
def test_labels_that_are_no_names_of_numbers_are_an_error_that_names_the_field(labels: Any) -> None:
    with pytest.raises(UserError, match="id2label"):
        labels_of({"id2label": labels}, 2, "config.json")


EVERY_SET = [heads for size in range(len(HEADS) + 1) for heads in itertools.combinations(HEADS, size)]


def heads_in(class_name: str, **options: Any) -> set[str]:
    """The heads of ours that are in a class of transformers."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = getattr(transformers, class_name)(transformers.BertConfig(vocab_size=9, **sizes), **options)
    prefix = "bert." if class_name == "BertModel" else ""
    names = [prefix + name for name in model.state_dict()]
    return {head for head, start in HEADS.items() if any(name.startswith(start) for name in names)}


@pytest.fixture(scope="module")
def heads_of_classes() -> dict[tuple[str, bool], set[str]]:
    found = {(name, False): heads_in(name) for name in CLASSES[1:]}
    return found | {("BertModel", pooler): heads_in("BertModel", add_pooling_layer=pooler) for pooler in (False, True)}


@pytest.mark.parametrize("heads", EVERY_SET, ids=["+".join(heads) or "none" for heads in EVERY_SET])
def test_any_set_of_heads_has_a_class_with_no_other_heads(
    heads: tuple[str, ...], heads_of_classes: dict[tuple[str, bool], set[str]]
) -> None:
    name, _, has = found = architecture(heads, "bert", "")
    assert set(has) <= set(heads)
    assert set(has) == heads_of_classes[name, name == "BertModel" and "pooler" in has]
    # Of what was trained, a task's head first, then the vocabulary's.
    if "qa_outputs" in heads:
        assert name == "BertForQuestionAnswering"
    elif "classifier" in heads:
        assert name == ("BertForSequenceClassification" if "pooler" in heads else "BertForTokenClassification")
    else:
        whole = {"pooler", "mlm", "nsp"} <= set(heads)
        assert name == ("BertForPreTraining" if whole else "BertForMaskedLM" if "mlm" in heads else "BertModel")
        assert ("pooler" in has) == (whole or ("pooler" in heads and "mlm" not in heads))
    assert architecture(heads[::-1], "bert", "") == found


@pytest.mark.parametrize("task", ["sequence_classification", "token_classification"])
@pytest.mark.parametrize("family", ["Bert", "ModernBert"])
def test_the_name_of_a_classifiers_class_tells_its_task(task: str, family: str) -> None:
    name = f"{family}For{task.title().replace('_', '')}"
    assert task_of(name) == task
    kind, heads = ("bert", ("pooler", "classifier")) if family == "Bert" else ("modern", ("transform", "classifier"))
    assert architecture(heads, kind, task).name == name
    assert task_of("BertForQuestionAnswering") == task_of("BertForMultipleChoice") == ""


def test_a_models_only_label_score_is_a_regression_of_rows() -> None:
    def problem(name: str, labels: tuple[str, ...]) -> Any:
        return to_fields(ODD, 131, SpecialIds(0, 5, 6), name, labels, "float32").get("problem_type")

    assert problem("BertForSequenceClassification", ("score",)) == "regression"
    assert problem("BertForSequenceClassification", ("no", "score")) is None
    assert problem("BertForTokenClassification", ("score",)) is None
    assert labels_of({"problem_type": "regression"}, 1, "config.json") == ("score",)
    assert labels_of({"problem_type": "regression"}, 2, "config.json") == ("LABEL_0", "LABEL_1")
