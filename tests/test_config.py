"""The configuration: what is refused, with which words, and that every file in configs/ loads."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spanbert_jax import config as configuration
from spanbert_jax.batch import slots
from spanbert_jax.config import Config
from spanbert_jax.config_check import check
from spanbert_jax.errors import UserError
from spanbert_jax.training.metadata import config_from_json, config_to_json

ROOT = Path(__file__).resolve().parents[1]


# The architecture of configs/tiny.py:bert.
PAPERS = {
    f"model__{name}": value for name, value in importlib.import_module("configs.tiny").get_config("bert").model.items()
}


def changed(**fields: Any) -> Config:
    """The tiny configuration with fields (dots as __) changed."""
    nested = importlib.import_module("configs.tiny").get_config().to_dict()
    for name, value in fields.items():
        section, field = name.split("__")
        nested[section][field] = value
    config = configuration.from_dict(nested)
    check(config)
    return config


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_configuration_loads_passes_its_checks_and_survives_json(path: Path) -> None:
    nested = importlib.import_module(f"configs.{path.stem}").get_config().to_dict()
    if nested["task"] != "pretraining":  # these need data and weights
        with pytest.raises(UserError, match="is empty"):
            check(configuration.from_dict(nested))
        nested["data"].update(train="train.json", dev="dev.json")
        nested["init_from"] = "runs/base"
    config = configuration.from_dict(nested)
    check(config)
    assert config_from_json(config_to_json(config), "config.json") == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("decoder:bse", "there is no configs/bse.py, only base, bert, .*, tiny; name one of pre-training"),
        ("decoder:squad", "configs/squad.py is for question_answering; name a configuration of pre-training"),
        ("bert:Uncased", "unknown kind of text 'Uncased'; it is one of uncased, cased"),
        ("tiny:modem", "unknown architecture 'modem'; it is one of modern, bert"),
    ],
)
def test_a_mistyped_argument_of_a_configuration_is_refused_with_the_known_ones(given: str, message: str) -> None:
    name, _, argument = given.partition(":")
    with pytest.raises(ValueError, match=message):
        importlib.import_module(f"configs.{name}").get_config(argument)


def test_a_mistyped_argument_of_a_configuration_is_one_line_on_the_command_line() -> None:
    command = [sys.executable, "-m", "spanbert_jax.main", "--config", "configs/decoder.py:bse"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: flag --config=configs/decoder.py:bse: there is no configs/bse.py, only ")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import ml_collections\ndef get_config(:\n", "FILE, line 2: SyntaxError: invalid syntax"),
        ("import absent_module\n", "FILE, line 1: ModuleNotFoundError: No module named 'absent_module'"),
        ("def get_config():\n    return absent\n", "FILE, line 2: NameError: name 'absent' is not defined"),
        ("def get_config():\n    return {}['a']\n", "FILE, line 2: KeyError: 'a'"),
        ("import os\nos.absent\n", "FILE, line 2: AttributeError: module 'os' has no attribute 'absent'"),
        ("layers = 3\n", "FILE: it has no function get_config; configs/tiny.py has one"),
        ("def get_config():\n    return 3\n", "FILE: get_config returns int; let it return a ConfigDict"),
    ],
)
def test_a_mistake_in_the_code_of_a_configuration_is_one_line_that_names_its_place(
    code: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    command = [sys.executable, "-m", "spanbert_jax.main", "--config", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"error: --config {message.replace('FILE', str(file))}\n")


def test_base_and_large_are_the_published_models() -> None:
    base, large = (
        configuration.from_dict(importlib.import_module(f"configs.{name}").get_config().to_dict())
        for name in ("base", "large")
    )
    assert (base.model.layers, base.model.embed, base.model.heads, base.model.mlp) == (12, 768, 12, 3072)
    assert (large.model.layers, large.model.embed, large.model.heads, large.model.mlp) == (24, 1024, 16, 4096)
    assert (large.optimizer.learning_rate, large.train.steps, large.optimizer.warmup_steps) == (1e-4, 2_400_000, 10_000)
    assert (base.optimizer.learning_rate, base.train.steps, base.train.batch_size) == (5e-4, 300_000, 2048)
    assert slots(base) == 80


@pytest.mark.parametrize("text", ["uncased", "cased"])
def test_bert_is_the_published_model_and_task(text: str) -> None:
    """Devlin et al. 2019, section 3.1 and appendix A.2; google-research/bert, optimization.py."""
    bert = configuration.from_dict(importlib.import_module("configs.bert").get_config(text).to_dict())
    check(bert)
    assert bert.model == configuration.Config().model
    assert (bert.train.batch_size, bert.train.steps, bert.optimizer.warmup_steps) == (256, 1_000_000, 10_000)
    assert (bert.optimizer.learning_rate, bert.optimizer.weight_decay, bert.optimizer.eps) == (1e-4, 0.01, 1e-6)
    assert (bert.train.nsp_weight, bert.train.sbo_weight, bert.corpus.pairs) == (1, 0, True)
    assert (bert.masking.scheme, bert.masking.rate, bert.masking.granularity) == ("subword", 0.15, "piece")
    assert (bert.tokenizer.kind, bert.tokenizer.lowercase) == ("wordpiece", text == "uncased")


def test_every_number_and_name_of_the_model_and_the_optimizer_has_a_range() -> None:
    config = configuration.from_dict(importlib.import_module("configs.tiny").get_config().to_dict())
    fields = {name: value for name, value in configuration.flatten(config).items() if not isinstance(value, bool)}
    for name in (name for name in fields if name.startswith(("model.", "optimizer."))):
        bad = "another" if isinstance(fields[name], str) else -1
        with pytest.raises(UserError, match=rf"^config\.{name} is {bad!r}; it "):
            check(configuration.from_saved(configuration.flatten(config) | {name: bad}))


def test_the_modern_models_have_the_published_shapes() -> None:
    shapes = {
        "modern_base": (22, 768, 12, 1152),
        "modern_large": (28, 1024, 16, 2624),
        "modern_small": (7, 256, 4, 384),
    }
    for name, shape in shapes.items():
        model = configuration.from_dict(importlib.import_module(f"configs.{name}").get_config().to_dict()).model
        assert (model.layers, model.embed, model.heads, model.mlp) == shape
        assert (model.family, model.window, model.full_every, model.rope_theta) == ("modern", 64, 3, 160_000)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"corpus__workers": -1}, "config.corpus.workers is -1; it must not be negative"),
        ({"model__init": "local"}, "config.model.init is 'local', which config.model.family 'modern' does not have"),
        ({"model__family": "modern", "model__heads": 128}, "is 1; rotary positions turn pairs of numbers"),
        ({**PAPERS, "data__block_length": 256}, "block_length 256 is over the position table's 128 rows"),
        (
            {**PAPERS, "model__window": 4},
            "config.model.window is 4, and config.model.family 'bert' has 0 alone; set con",
        ),
        (
            {**PAPERS, "model__init": "truncated"},
            "config.model.init is 'truncated', which config.model.family 'bert' d",
        ),
        ({"train__eval_blocks": -5}, "config.train.eval_blocks is -5; it must not be negative"),
        ({"train__seed": 2**64}, "config.train.seed is 18446744073709551616"),
        ({"train__steps": 0}, "config.train.steps is 0; it must be greater than 0"),
        ({"optimizer__beta1": 1.0}, "config.optimizer.beta1 is 1.0; it is a share"),
        ({"optimizer__beta2": 1.5}, "config.optimizer.beta2 is 1.5"),
        ({"optimizer__eps": -1e-8}, "config.optimizer.eps is -1e-08"),
        ({"optimizer__learning_rate": float("nan")}, "config.optimizer.learning_rate is nan"),
        ({"train__sbo_weight": float("nan")}, "config.train.sbo_weight is nan"),
        ({"train__nsp_weight": -1.0}, "config.train.nsp_weight is -1.0; it must not be negative"),
        ({"train__nsp_weight": 1.0}, "config.train.nsp_weight is 1, and config.corpus.pairs is False"),
        ({**PAPERS, "corpus__pairs": True, "model__token_types": 1}, "config.model.token_types is 1, and pairs need 2"),
        ({"optimizer__warmup_steps": 5000}, "warmup_steps 5000 is over config.train.steps 1600"),
        ({"optimizer__eps_placement": "before"}, "must be one of 'corrected', 'uncorrected'"),
        ({"optimizer__name": "lion"}, "config.optimizer.name is 'lion'; it must be one of 'adamw', 'muon', 'stable_"),
        ({"optimizer__muon_momentum": 1.0}, "config.optimizer.muon_momentum is 1.0; it is a share"),
        ({"optimizer__muon_rms": 0.0}, "config.optimizer.muon_rms is 0.0; it must be greater than 0"),
        ({"optimizer__schedule": "cosine"}, "it must be one of 'linear', 'wsd'"),
        ({"optimizer__decay_steps": -1}, "config.optimizer.decay_steps is -1; it must not be negative"),
        ({"optimizer__decay_steps": 9}, "config.optimizer.decay_steps is 9, and config.optimizer.schedule is 'linear'"),
        (
            {"optimizer__schedule": "wsd", "optimizer__decay_steps": 1900},
            "warmup_steps 200 and decay_steps 1900 add up to 2100, over config.train.steps 1600; lower one",
        ),
        ({"optimizer__schedule": "wsd", "optimizer__decay_from": "warmup_end"}, "decay_from 'warmup_end' is for the"),
        ({"optimizer__eps": 0.0}, "config.optimizer.eps is 0.0; it must be greater than 0"),
        ({"optimizer__clip_norm": float("inf")}, "config.optimizer.clip_norm is inf; it must be finite"),
        ({"train__only": ","}, "config.train.only is ',', and names no group of parameters"),
        ({"optimizer__name": "stable_adamw", "optimizer__bias_correction": False}, "bias_correction is False and eps_"),
        ({"tokenizer__vocab_size": 1}, "it must be at least 300"),
        ({"tokenizer__kind": "wordpiece"}, "give one with --config.tokenizer.vocab_file=vocab.txt"),
        ({"tokenizer__lowercase": True}, "lowercase is for 'wordpiece'"),
        ({"masking__rate": 0.0}, "config.masking.rate is 0.0; it must lie between 0 and 1"),
        ({"masking__mask_share": 0.95}, "add up to 1.05"),
        ({"masking__span_min": 11}, "span_max 10 is under span_min 11"),
        ({"masking__span_p": 1.0}, "config.masking.span_p is 1.0"),
        ({"masking__scheme": "subword"}, "set config.train.sbo_weight=0"),
        (
            {"masking__scheme": "unit"},
            "config.masking.scheme is 'unit', and config.corpus.spans has no rules that find",
        ),
        ({"masking__unit_share": 1.0}, "config.masking.unit_share is 1.0; it must be greater than 0, and at most 0.9"),
        (
            {"masking__unit_rest": "subword"},
            "config.masking.unit_rest is 'subword'; it must be one of 'whole_word', 's",
        ),
        (
            {"masking__units": "NP"},
            "config.masking.units is 'NP', and config.masking.scheme 'span' masks no units; set",
        ),
        ({"corpus__spans": "names"}, "config.corpus.spans: 'names' is no rule for spans; the rules are sent"),
        ({"model__head_scales": "input"}, "config.model.head_scales is 'input'; it must be one of 'none', 'output', "),
        (
            {"model__attention_composition": 2, "compute__attention": "splash", "model__attention_dropout": 0.0},
            "compute.attention is 'splash', which never holds them; set config.compute.attention=xla",
        ),
        (
            {"model__span_attention": "own"},
            "span_attention 'own', and config.corpus.spans has no rules that find spans; set it",
        ),
        (
            {"model__context_encoder_input": "output"},
            "config.model.context_encoder_input is 'output', and there is no context encoder; leave it out, or",
        ),
        (
            {
                **PAPERS,
                "model__context_encoder": "mingru",
                "model__embed": 9,
                "model__heads": 3,
                "model__init": "normal",
            },
            "config.model.embed is 9, and each direction of config.model.context_encoder has half of it; use an even",
        ),
        ({"data__block_length": 256}, "block_length 256 is over the model's longest row of 128 pieces"),
        ({"data__block_length": 4}, "it must be at least 8"),
        ({"model__heads": 3}, "embed 128 is not divisible by config.model.heads 3; use 126"),
        ({"model__dropout": 1.0}, "config.model.dropout is 1.0; it is a share, from 0 to less than 1"),
        ({"masking__mask_share": 1.5}, "config.masking.mask_share is 1.5; it is a share, from 0 to 1"),
        ({"corpus__held_out": 0.0}, "evaluation needs a share of the documents"),
        ({"corpus__name": ""}, "give --config.corpus.files"),
        ({"mesh__fsdp": -1}, "at most one of them is -1"),
        ({"mesh__model": 0}, "sizes are at least 1"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_the_numbers(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=r"^config") as error:
        changed(**fields)
    assert words in str(error.value)


def test_a_schedule_in_steps_is_refused_for_fine_tuning_which_counts_epochs() -> None:
    nested = importlib.import_module("configs.squad").get_config().to_dict()
    nested["data"].update(train="train.json", dev="dev.json")
    nested["optimizer"].update(schedule="wsd", decay_from="start")
    with pytest.raises(UserError, match=r"config.optimizer.schedule is 'wsd', .* config.finetuning.epochs; use 'lin"):
        check(configuration.from_dict(nested | {"init_from": "runs/base"}))


def test_the_slots_follow_the_largest_masking_rate() -> None:
    assert slots(changed()) == 24
    assert slots(changed(masking__final_rate=0.3)) == 24  # without rate_steps it never gets there
    assert slots(changed(masking__final_rate=0.3, masking__rate_steps=10)) == 40


def test_an_unknown_field_in_a_saved_configuration_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown field model\.layer; known here: family, layers, embed"):
        configuration.from_dict({"model": {"layer": 3}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": {"layers": "12"}}, "model.layers is '12'; expected a value of type int"),
        ({"model": {"layers": True}}, "model.layers is True; expected a value of type int"),
        ({"model": {"layers": {"a": 1}}}, r"model.layers is {'a': 1}; expected a value of type int"),
        ({"model": {"dropout": None}}, "model.dropout is None; expected a value of type float"),
        ({"model": {"pre_norm": 1}}, "model.pre_norm is 1; expected a value of type bool"),
        ({"model": {"family": ["x" * 10**5]}}, r"model.family is \['xxx.*; expected a value of type str"),
        ({"model": 3}, "model is 3; expected fields with values"),
        ({"model": {"x" * 10**5: 3}}, r"unknown field model\.xxx"),
    ],
)
def test_a_field_of_another_type_in_a_saved_configuration_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^config: {message}") as caught:
        configuration.from_dict(fields)
    assert len(str(caught.value)) < 1000
    assert configuration.from_dict({"model": {"dropout": 0}}).model.dropout == 0


def test_a_renamed_field_in_a_user_s_configuration_is_refused_with_its_new_name() -> None:
    with pytest.raises(UserError, match=r"unknown field finetuning\.lengths; its name is data\.lengths now"):
        configuration.from_dict({"finetuning": {"lengths": 3}})


def test_old_names_stand_for_fields_there_are_and_no_field_has_one() -> None:
    fields = configuration.flatten(Config())
    assert set(configuration.RENAMED.values()) <= set(fields)
    assert not {*configuration.RENAMED, *configuration.REMOVED} & set(fields)


@pytest.mark.parametrize("nested", [False, True])
def test_a_saved_configuration_of_an_earlier_version_keeps_what_it_computed(nested: bool) -> None:
    """Fine-tuning had `finetuning.lengths`; pre-training padded every row to block_length."""
    flat = configuration.flatten(Config())
    del flat["data.lengths"]
    flat |= {"finetuning.lengths": 3, "finetuning.trials": 5}
    fields: dict[str, Any] = flat
    if nested:
        fields = {}
        for name, value in flat.items():
            section, _, field = name.rpartition(".")
            (fields.setdefault(section, {}) if section else fields)[field] = value
    assert configuration.from_saved(fields).data.lengths == 1
    tuned = configuration.from_saved(fields | {"task": "question_answering"})
    assert (tuned.data.lengths, tuned.trials) == (3, 5)
    with pytest.raises(UserError, match=r"unknown field data\.legnths"):
        configuration.from_saved(flat | {"data.legnths": 3})
