"""Text classification and relations: learnt by heart, measured as GLUE and SemEval do, and loud on new labels."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.tasks.finetuning import FineTuning
from spanbert_jax.tasks.relations import files
from spanbert_jax.tasks.relations.task import RelationExtraction
from spanbert_jax.tasks.rows import make_rows
from spanbert_jax.tasks.text_classification.files import LabelledText
from spanbert_jax.tasks.text_classification.task import SequenceClassification
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer
from tests.support.learning import learn_by_heart, tokenizer_of_texts
from tests.support.quick_keys import quick_key
from tests.support.synthetic import small_config

WORDS = [f"w{i}" for i in range(20)]
UNUSED = [f"[unused{i}]" for i in range(5)]
TOKENIZER = Tokenizer("wordpiece", "\n".join([*SPECIALS, *UNUSED, *WORDS]).encode())
MODEL = {"layers": 1, "embed": 32, "heads": 2, "mlp": 64, "max_length": 96, "init_std": 0.1}


def config_of(task: str, **sections: dict[str, Any]) -> Config:
    model = MODEL | {"dropout": 0.0, "attention_dropout": 0.0}
    sections = {"data": {"block_length": 96}, "compute": {"dtype": "float32"}, "model": model, **sections}
    return dataclasses.replace(small_config(**sections), task=task)


def make(kind: type[FineTuning], config: Config, tokenizer: Tokenizer, examples: list[Any]) -> Any:
    return kind(config, tokenizer, kind.learn(config, tokenizer, examples))


def random_texts(count: int, pair: bool) -> list[LabelledText]:
    rng = np.random.default_rng(0)

    def text() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(4, 9)))

    return [LabelledText(str(i), text(), text() if pair else None, "abc"[rng.integers(3)]) for i in range(count)]


@pytest.mark.parametrize("pair", [False, True])
def test_32_texts_are_learnt_by_heart(pair: bool) -> None:
    examples = random_texts(32, pair)
    config = config_of("sequence_classification", classification={"name": "custom"}, data={"block_length": 24})
    task = make(SequenceClassification, config, TOKENIZER, examples)
    predictions = learn_by_heart(task, examples, 3e-3, 150)
    assert task.metrics(examples, predictions) == {"accuracy": 100.0, "macro_f1": 100.0}
    assert [p["label"] for p in predictions] == [example.label for example in examples]
    assert all(0.5 < p["score"] <= 1 for p in predictions)


def test_32_scores_are_learnt_by_heart() -> None:
    texts = random_texts(32, True)
    examples = [dataclasses.replace(text, label=i % 11 / 2) for i, text in enumerate(texts)]
    config = config_of("sequence_classification", classification={"name": "stsb"}, data={"block_length": 24})
    task = make(SequenceClassification, config, TOKENIZER, examples)
    assert task.learnt.labels == ("score",)
    metrics = task.metrics(examples, learn_by_heart(task, examples, 3e-3, 300))
    assert metrics["pearson"] > 99 and metrics["spearman"] > 99


@pytest.mark.parametrize("entities", ["mask", "markers"])
def test_32_real_relations_are_learnt_by_heart(shared_data: Path, entities: str) -> None:
    folder = shared_data / "semeval2010_task8"
    examples = files.read(str(folder / "TRAIN_FILE.TXT"), "train", "semeval")[0][:32]
    texts = [" ".join(example.words) for example in examples]
    tokenizer = tokenizer_of_texts(shared_data / "vocab" / "bert-base-cased-vocab.txt", texts)
    relation = {"format": "semeval", "entities": entities}
    config = config_of("relation_extraction", relation=relation, data={"block_length": 64})
    task = make(RelationExtraction, config, tokenizer, examples)
    predictions = learn_by_heart(task, examples, 5e-3, 100)
    assert task.metrics(examples, predictions)["macro_f1"] == 100.0
    first, example = predictions[0], examples[0]
    assert first["subject"] == " ".join(example.words[slice(*example.subject[:2])])


def test_the_loss_is_the_mean_over_the_rows_that_are_not_empty() -> None:
    examples = random_texts(5, False)
    config = config_of("sequence_classification", classification={"name": "custom"})
    task = make(SequenceClassification, config, TOKENIZER, examples)
    rows = make_rows(task.featuriser("train")(examples))
    model = task.model("cpu")
    params = jax.jit(lambda: task.init_params(model, quick_key(1)))()
    goal = task.objective(model)
    full, padded = (rows.collate(indices, 96, {}) for indices in (np.arange(5), np.array([0, -1, 1, 2, -1, 3, 4])))
    loss = jax.jit(lambda params, batch: goal.loss(params, batch, goal.totals(batch), None, None)[0])
    losses = [loss(params, batch) for batch in (full, padded)]
    probabilities = jax.jit(lambda params: task.outputs(model, params, full))(params)["scores"]
    expected = -np.mean(np.log(np.asarray(probabilities)[np.arange(5), full["label"]]))
    np.testing.assert_allclose(losses, [expected, expected], rtol=1e-5)


def test_a_label_that_training_did_not_have_is_an_error_that_names_it() -> None:
    examples = random_texts(9, False)
    task = make(SequenceClassification, config_of("sequence_classification"), TOKENIZER, examples)
    with pytest.raises(
        UserError, match=r"dev.tsv: 1 of 1 examples .*, the first is 7 with 'new'; config.data.train has a, b, c; "
    ):
        task.check([LabelledText("7", "w1", None, "new")], "dev.tsv")
    related = [files.RelationSentence("1", ("w1", "w2"), (0, 1, "A"), (1, 2, "B"), "no_relation")]
    task = make(RelationExtraction, config_of("relation_extraction"), TOKENIZER, [])
    with pytest.raises(
        UserError, match=r"dev.json: 1 of 1 examples have a relation .*, the first is 1 with 'no_relation'"
    ):
        task.check(related, "dev.json")


def test_files_of_predictions_are_those_that_the_scorers_read(tmp_path: Path) -> None:
    examples = random_texts(2, False)
    task = make(SequenceClassification, config_of("sequence_classification"), TOKENIZER, examples)
    predictions = [{"id": "0", "label": "a", "score": 0.5}, {"id": "1", "label": "b", "score": 0.7}]
    assert task.write(examples, predictions, tmp_path).read_text() == "index\tprediction\n0\ta\n1\tb\n"
    found = [{"id": "8001", "relation": "Other"}, {"id": "8002", "relation": "Cause-Effect(e1,e2)"}]
    lines = {"semeval": "8001\tOther\n8002\tCause-Effect(e1,e2)\n", "tacred": "Other\nCause-Effect(e1,e2)\n"}
    for form, expected in lines.items():
        task = make(RelationExtraction, config_of("relation_extraction", relation={"format": form}), TOKENIZER, [])
        assert task.write([], found, tmp_path).read_text() == expected


def test_the_baseline_is_the_commonest_label_and_relation() -> None:
    texts = [dataclasses.replace(text, label="b" if i < 5 else "a") for i, text in enumerate(random_texts(8, False))]
    config = config_of("sequence_classification", classification={"name": "custom"})
    task = make(SequenceClassification, config, TOKENIZER, texts)
    assert [guess["label"] for guess in task.baseline(texts, texts[:2])] == ["b", "b"]
    assert task.metrics(texts, task.baseline(texts, texts))["accuracy"] == 62.5
    labels = ["Other", "Other", "Cause-Effect(e1,e2)", "Other"]
    related = [files.RelationSentence(str(i), ("w1",), (0, 1, None), (0, 1, None), x) for i, x in enumerate(labels)]
    task = make(RelationExtraction, config_of("relation_extraction"), TOKENIZER, related)
    assert {guess["relation"] for guess in task.baseline(related, related)} == {"Cause-Effect(e1,e2)"}
