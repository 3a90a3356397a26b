"""The one list of tasks: each has a class, and its rows depend on declared settings alone."""

import dataclasses

import pytest

from spanbert_jax.config import FINETUNING, Config
from spanbert_jax.errors import UserError
from spanbert_jax.tasks.finetuning import Learnt
from spanbert_jax.tasks.registry import finetuning_task
from spanbert_jax.tasks.settings import declared, values
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer

TOKENIZER = Tokenizer("wordpiece", "".join(f"{piece}\n" for piece in SPECIALS).encode())


def configs(name: str) -> list[Config]:
    heads = ("token", "span") if name == "token_classification" else ("token",)
    return [
        Config(task=name, tagging=dataclasses.replace(Config().tagging, head=head), init_from="x") for head in heads
    ]


@pytest.mark.parametrize("name", FINETUNING)
def test_every_listed_task_has_a_class_whose_featuriser_reads_declared_settings_alone(name: str) -> None:
    for config in configs(name):
        kind = finetuning_task(name, config)
        assert kind.task == name and values(config, kind.settings)
        task = kind(config, TOKENIZER, Learnt(("A", "B")))
        for role in ("train", "dev", "predict"):
            assert task.featuriser(role) == kind.row_maker(config, TOKENIZER, task.learnt, role)


def test_the_configuration_chooses_the_head() -> None:
    kinds = [finetuning_task("token_classification", config) for config in configs("token_classification")]
    assert [kind.__name__ for kind in kinds] == ["TokenTagging", "SpanTagging"]


def test_what_is_no_task_is_refused_with_the_list() -> None:
    with pytest.raises(UserError, match=r"task 'pretraining' is none of question_answering, .*relation_extraction"):
        finetuning_task("pretraining", Config())


def test_settings_that_are_not_declared_cannot_be_read() -> None:
    view = declared(Config(), ("data.block_length", "tagging"))
    assert view.data.block_length == Config().data.block_length and view.tagging == Config().tagging
    with pytest.raises(AttributeError, match=r"config\.data\.lengths is not among the settings"):
        _ = view.data.lengths
    with pytest.raises(AttributeError, match=r"config\.relation is not among the settings"):
        _ = view.relation


def test_a_setting_that_is_no_field_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"tagging\.width"):
        values(Config(), ("tagging.width",))
    assert values(Config(), ("relation", "data.block_length")) == {
        "relation.format": "tacred",
        "relation.entities": "mask",
        "data.block_length": Config().data.block_length,
    }
