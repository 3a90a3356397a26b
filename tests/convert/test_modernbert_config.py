"""ModernBERT's config.json: both of transformers' spellings are read, ours is understood, and the rest is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from spanbert_jax.config import ModelConfig
from spanbert_jax.convert.config_fields import SpecialIds
from spanbert_jax.convert.huggingface_config import architecture, read_config, to_fields, to_model_config
from spanbert_jax.errors import UserError
from spanbert_jax.model.layer_modern import FAMILY

# The fields of answerdotai/ModernBERT-base, as transformers 4.48 wrote them.
PUBLISHED = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "sep_token_id": 50282,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 50368,
}
BASE = ModelConfig(
    family="modern",
    layers=22,
    embed=768,
    heads=12,
    mlp=1152,
    max_length=8192,
    dropout=0.0,
    attention_dropout=0.0,
    layer_norm_eps=1e-5,
    pre_norm=True,
    gated_mlp=True,
    attention_bias=False,
    mlp_bias=False,
    norm_bias=False,
    head_bias=False,
    window=64,
    full_every=3,
    rope_theta=160_000.0,
    local_rope_theta=10_000.0,
    init="truncated",
    pooling="mean",
)
# Every field is another value than transformers' default.
ODD = dataclasses.replace(
    BASE,
    layers=5,
    embed=60,
    heads=5,
    mlp=100,
    max_length=41,
    dropout=0.25,
    attention_dropout=0.125,
    layer_norm_eps=1e-7,
    init_std=0.05,
    attention_bias=True,
    mlp_bias=True,
    norm_bias=True,
    head_bias=True,
    window=7,
    full_every=4,
    rope_theta=700.0,
    local_rope_theta=90.0,
)
SPECIALS = SpecialIds(7, 5, 6)
SOURCE = "there/config.json"


def test_the_fields_of_transformers_4_are_read_and_so_are_those_that_transformers_5_makes_of_them(
    tmp_path: Path,
) -> None:
    assert to_model_config(PUBLISHED, SOURCE) == BASE
    transformers.ModernBertConfig(**PUBLISHED).save_pretrained(tmp_path)
    saved = read_config(tmp_path / "config.json")
    assert {"rope_parameters", "layer_types"} <= saved.keys() and "global_rope_theta" not in saved
    assert to_model_config(saved, SOURCE) == BASE


def test_fields_that_are_not_there_take_transformers_defaults(tmp_path: Path) -> None:
    transformers.ModernBertConfig().save_pretrained(tmp_path)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    given = {name: PUBLISHED[name] for name in sizes} | {"model_type": "modernbert"}
    assert to_model_config(given, SOURCE) == to_model_config(read_config(tmp_path / "config.json"), SOURCE)


@pytest.mark.parametrize(
    "model", [ODD, BASE, dataclasses.replace(ODD, window=0, full_every=3)], ids=["odd", "base", "no_window"]
)
def test_transformers_reads_what_was_meant_and_a_written_configuration_is_read_back_the_same(
    model: ModelConfig, tmp_path: Path
) -> None:
    fields = to_fields(model, 131, SPECIALS, "ModernBertForMaskedLM", (), "float32")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = transformers.AutoConfig.from_pretrained(tmp_path)  # strict: a field of another type is an error
    assert type(config) is transformers.ModernBertConfig
    meant = {
        "num_hidden_layers": model.layers,
        "hidden_size": model.embed,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp,
        "max_position_embeddings": model.max_length,
        "attention_dropout": model.attention_dropout,
        "embedding_dropout": model.dropout,
        "mlp_dropout": model.dropout,
        "classifier_dropout": model.dropout,
        "norm_eps": model.layer_norm_eps,
        "initializer_range": model.init_std,
        "attention_bias": model.attention_bias,
        "mlp_bias": model.mlp_bias,
        "norm_bias": model.norm_bias,
        "classifier_bias": model.head_bias,
        "classifier_pooling": "mean",
        "pad_token_id": 7,
        "cls_token_id": 5,
        "bos_token_id": 5,
        "sep_token_id": 6,
        "eos_token_id": 6,
        "vocab_size": 131,
    }
    assert {field: getattr(config, field) for field in meant} == meant
    every = model.full_every if model.window else 1
    assert (
        config.layer_types
        == transformers.ModernBertConfig(num_hidden_layers=model.layers, global_attn_every_n_layers=every).layer_types
    )
    assert not model.window or config.sliding_window == model.window
    thetas = [config.rope_parameters[kind]["rope_theta"] for kind in ("full_attention", "sliding_attention")]
    assert thetas == [model.rope_theta, model.local_rope_theta]
    assert to_model_config(fields, SOURCE) == model
    legacy = {name: value for name, value in fields.items() if name not in ("rope_parameters", "layer_types")}
    assert to_model_config(legacy, SOURCE) == model
    modern = {name: value for name, value in fields.items() if not name.startswith(("global_", "local_rope"))}
    assert to_model_config(modern, SOURCE) == model


def test_every_field_that_transformers_writes_is_written(tmp_path: Path) -> None:
    fields = to_fields(ODD, 131, SPECIALS, "ModernBertForTokenClassification", ("a", "b", "c"), "float32")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    theirs = json.loads((tmp_path / "again" / "config.json").read_text())
    del theirs["transformers_version"]
    assert theirs == {name: value for name, value in fields.items() if not name.endswith("_rope_theta")}


@pytest.mark.parametrize("layers", [1, 2, 4, 7])
@pytest.mark.parametrize("every", [1, 2, 3, 7, 9])
def test_any_pattern_of_windows_is_followed(layers: int, every: int) -> None:
    config = transformers.ModernBertConfig(num_hidden_layers=layers, global_attn_every_n_layers=every)
    model = to_model_config(config.to_dict(), SOURCE)
    windowed = [bool(model.window) and layer % model.full_every > 0 for layer in range(layers)]
    assert windowed == [kind == "sliding_attention" for kind in config.layer_types]


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_activation", "silu", "hidden_activation is 'silu'; only 'gelu' or 'gelu_python'"),
        ("hidden_activation", "gelu_new", "hidden_activation is 'gelu_new'"),
        ("classifier_activation", "relu", "classifier_activation is 'relu'"),
        ("classifier_pooling", "max", "classifier_pooling is 'max'; only 'cls' or 'mean'"),
        ("decoder_bias", False, "decoder_bias is False; only True"),
        ("tie_word_embeddings", False, "tie_word_embeddings is False; only True"),
        ("norm_bias", "yes", "norm_bias is 'yes'; only False or True"),
        ("attention_bias", None, "attention_bias is None"),
        ("local_attention", 127, "local_attention is 127; expected an even whole number"),
        ("local_attention", 0, "local_attention is 0"),
        ("local_attention", -1, "local_attention is -1"),
        ("local_attention", "128", "local_attention is '128'"),
        ("global_attn_every_n_layers", 0, "global_attn_every_n_layers is 0; expected a whole number greater than 0"),
        ("layer_types", [SLIDING] + [FULL] * 21, "layer_types is .*; only 'full_attention' for layers 0, n, 2 n"),
        ("layer_types", [FULL, SLIDING] * 10 + [FULL] * 2, "layer_types is"),
        ("layer_types", [FULL] * 21, "layer_types is .* of 22 layers"),
        ("layer_types", [FULL] * 21 + ["chunked_attention"], "layer_types is"),
        ("layer_types", [], "layer_types is"),
        ("layer_types", "full_attention", "layer_types is"),
        ("rope_parameters", {FULL: {"rope_type": "yarn"}}, "rope_type of rope_parameters.full_attention is 'yarn'"),
        (
            "rope_parameters",
            {SLIDING: {"type": "linear"}},
            "rope_type of rope_parameters.sliding_attention is 'linear'",
        ),
        ("rope_parameters", {"rope_type": "dynamic"}, "rope_type of rope_parameters is 'dynamic'"),
        ("rope_parameters", "default", "rope_parameters.full_attention is 'default'; expected an object"),
        ("rope_parameters", {FULL: {"rope_theta": "big"}}, "rope_theta of full_attention is 'big'; expected a number"),
        ("rope_parameters", {FULL: {"rope_theta": 0}}, "rope_theta of full_attention is 0.0; expected .* than 0"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_type of rope_scaling is 'linear'"),
        ("rope_scaling", {"rope_theta": 5e5}, r"rope_scaling has a rope_theta, 500000\.0"),
        ("global_rope_theta", None, "global_rope_theta is None; expected a number"),
        ("local_rope_theta", None, "local_rope_theta is None; expected a number"),
        ("num_attention_heads", 7, "hidden_size 768 is not divisible by 7 heads"),
        ("num_attention_heads", 256, "hidden_size 768 / num_attention_heads 256 is 3; .* even width"),
        ("hidden_size", "768", "hidden_size is '768'; expected a whole number"),
        ("max_position_embeddings", None, "max_position_embeddings is None"),
        ("norm_eps", "1e-5", "norm_eps is '1e-5'; expected a number"),
        ("mlp_dropout", "none", "mlp_dropout is 'none'; expected a number"),
        ("model_type", "modernbert-decoder", "model_type is 'modernbert-decoder'; only 'bert' or 'modernbert'"),
    ],
)
def test_what_our_encoder_does_not_compute_is_refused_by_field_and_value(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"^{SOURCE}: (the )?{message}") as error:
        to_model_config(PUBLISHED | {field: value}, SOURCE)
    assert "\n" not in str(error.value)


def test_three_rates_of_dropout_become_the_largest_of_them() -> None:
    rates = {"embedding_dropout": 0.1, "mlp_dropout": 0.0, "classifier_dropout": 0.3, "attention_dropout": 0.2}
    model = to_model_config(PUBLISHED | rates, SOURCE)
    assert (model.dropout, model.attention_dropout) == (0.3, 0.2)


@pytest.mark.parametrize(
    ("heads", "task", "name"),
    [
        (("mlm", "sbo"), "pretraining", "MaskedLM"),
        (("transform", "qa_outputs"), "question_answering", "QuestionAnswering"),
        (("transform", "classifier"), "token_classification", "TokenClassification"),
        (("transform", "classifier"), "sequence_classification", "SequenceClassification"),
        (("transform", "classifier"), "relation_extraction", "SequenceClassification"),
    ],
)
def test_a_classifiers_task_tells_its_class(heads: tuple[str, ...], task: str, name: str) -> None:
    groups = ("embeddings", "encoder", "final_norm", *heads)
    assert architecture(groups, "modern", task).name == f"ModernBertFor{name}"
    assert architecture(("embeddings", "spans", "classifier"), "modern", task).name == "ModernBertModel"


def test_a_claim_of_full_attention_in_every_two_thousand_millionth_layer_costs_nothing() -> None:
    fields = {**PUBLISHED, "global_attn_every_n_layers": 2**31 - 1}
    model = to_model_config({k: v for k, v in fields.items() if k != "layer_types"}, SOURCE)
    assert model.full_every == model.layers and len(FAMILY.layers(model)) == model.layers
    assert len(FAMILY.layers(dataclasses.replace(model, full_every=2**31 - 1))) == model.layers
