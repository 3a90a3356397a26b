"""Question answering: answers are text at offsets, the best of all spans; transformers' loss; a run that learns."""

import contextlib
import dataclasses
import functools
import io
import json
import math
import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.config import Config, from_dict
from spanbert_jax.config_check import check
from spanbert_jax.convert.huggingface import named_views, to_tensors
from spanbert_jax.errors import UserError
from spanbert_jax.metrics import squad
from spanbert_jax.model.linear_heads import task_model
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.runs import finetuning as finetuning_run
from spanbert_jax.tasks.example_files import Role
from spanbert_jax.tasks.finetuning import Learnt
from spanbert_jax.tasks.question_answering.files import Question
from spanbert_jax.tasks.question_answering.rows import QuestionRowMaker
from spanbert_jax.tasks.question_answering.task import QuestionAnswering, best_spans, span_objective
from spanbert_jax.tasks.rows import Rows, make_rows
from tests.support.learning import tokenizer_of_texts
from tests.support.synthetic import VOCAB, small_config
from tests.support.texts_and_tokenizers import KINDS, TEXTS, tokenizer_of

ROOT = Path(__file__).resolve().parents[3]
Outputs = list[dict[str, np.ndarray]]


def task_of(kind: str, **fields: Any) -> QuestionAnswering:
    """The task in windows of 24 pieces; keywords are fields of config.question_answering."""
    wanted = {"stride": 5, "max_question": 6, "max_answer": 7, "n_best": 4, **fields}
    config = small_config(data={"block_length": 24}, question_answering=wanted)
    return QuestionAnswering(config, tokenizer_of(kind), Learnt())


def rows_and_outputs(task: QuestionAnswering, examples: list[Question], seed: int) -> tuple[Rows, Outputs]:
    """Rows, and random scores for more positions than a row has, as in a padded batch."""
    rows = make_rows(task.featuriser("dev")(examples))
    random = np.random.default_rng(seed)
    scores = random.normal(size=(len(rows), 2, 30)).astype(np.float32)
    return rows, [{"start": start, "end": end} for start, end in scores]


def all_answers(task: QuestionAnswering, example: Question, outputs: Outputs) -> dict[str, tuple[float, int, int]]:
    """text -> its best (score, start, end), of the n_best best of every span that there is, best text first."""
    found: list[tuple[float, int, int]] = []
    for row, scores in zip(task.featuriser("dev")([example])[0], outputs, strict=True):
        chars = list(zip(row["start_char"], row["end_char"], strict=True))
        for first in range(len(chars)):
            for last in range(first, min(first + task.config.question_answering.max_answer, len(chars))):
                if row["max_context"][first] and chars[first][0] < chars[first][1] and chars[last][0] < chars[last][1]:
                    score = float(scores["start"][first]) + float(scores["end"][last])
                    found.append((score, chars[first][0], chars[last][1]))
    best: dict[str, tuple[float, int, int]] = {}
    for score, start, end in sorted(found, reverse=True)[: task.config.question_answering.n_best]:
        best.setdefault(example.context[start:end], (score, start, end))
    return best


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), st.integers(0, 99))
def test_every_answer_is_the_text_at_its_offsets_and_the_best_of_all_spans(
    kind: str, texts: list[tuple[str, str]], seed: int
) -> None:
    task = task_of(kind)
    examples = [Question(str(i), question, context) for i, (question, context) in enumerate(texts)]
    rows, outputs = rows_and_outputs(task, examples, seed)
    predictions = task.decode(examples, rows, outputs, {})
    for number, (example, prediction) in enumerate(zip(examples, predictions, strict=True)):
        own = [output for output, owner in zip(outputs, rows.example, strict=True) if owner == number]
        expected = list(all_answers(task, example, own).items())
        assert prediction["id"] == example.id and "no_answer_score" not in prediction
        if not expected:
            assert (prediction["text"], prediction["start"], prediction["end"], prediction["n_best"]) == ("", 0, 0, [])
            continue
        for found, (text, (score, start, end)) in zip(prediction["n_best"], expected, strict=True):
            assert text == found["text"] == example.context[found["start"] : found["end"]] != ""
            assert not text[0].isspace() and not text[-1].isspace()
            assert found["score"] == pytest.approx(score, abs=1e-9)
            assert (found["start"], found["end"]) == (start, end)
        assert prediction.items() >= {name: prediction["n_best"][0][name] for name in ("text", "start", "end")}.items()
        odds = np.exp([score for _, (score, _, _) in expected])
        np.testing.assert_allclose([found["probability"] for found in prediction["n_best"]], odds / odds.sum())


def test_the_best_spans_are_those_of_a_search_through_all() -> None:
    random = np.random.default_rng(3)
    for length, max_answer, n_best in ((40, 6, 5), (40, 60, 20), (3, 30, 20), (1, 1, 1), (17, 1, 3)):
        start, end = random.normal(size=(2, 6, length))
        start[random.random(start.shape) < 0.2] = end[random.random(end.shape) < 0.4] = -math.inf
        spans = best_spans(start, end, max_answer, n_best)
        for row in range(len(start)):
            every = [
                (start[row, first] + end[row, last], first, last)
                for first in range(length)
                for last in range(first, min(first + max_answer, length))
                if start[row, first] + end[row, last] > -math.inf
            ]
            mine = spans.row == row
            found = zip(spans.score[mine], spans.first[mine], spans.last[mine], strict=True)
            assert sorted(found, reverse=True) == sorted(every, reverse=True)[:n_best]


def test_an_answer_is_found_in_any_window_of_a_long_text() -> None:
    task = task_of("wordpiece")
    context = "the cat\r\n" * 40 + "a\u00a0b cat"
    rows, outputs = rows_and_outputs(task, [Question("id", "ab", context)], 0)
    assert len(rows) > 10
    start = context.index("a\u00a0b")
    for number in range(len(rows)):  # only the window where it has most context is asked for its start
        first = np.flatnonzero(rows.column("start_char", number) == start)
        last = np.flatnonzero(rows.column("end_char", number) == start + 3)
        if len(first) and len(last):
            outputs[number]["start"][first], outputs[number]["end"][last] = 50, 50
    prediction = task.decode([Question("id", "ab", context)], rows, outputs, {})[0]
    assert prediction["text"] == "a\u00a0b" and (prediction["start"], prediction["end"]) == (start, start + 3)


def unanswerable(seed: int = 1) -> tuple[QuestionAnswering, list[Question], Rows, Outputs]:
    task = task_of("wordpiece", unanswerable=True)
    contexts = {"the cat, the cat": "cat", "a b c d e f g h i j k l m n o p q r s t u v w": "b", "(1) 2": "1"}
    examples = [
        Question(str(i), "cat", text, ((text.index(gold), gold),), gold_texts=(gold,))
        if i % 2
        else Question(str(i), "cat", text, impossible=True)
        for i, (text, gold) in enumerate(list(contexts.items()) * 8)
    ]
    return task, examples, *rows_and_outputs(task, examples, seed)


def test_no_answer_is_as_good_as_the_least_of_the_windows_says() -> None:
    task, examples, rows, outputs = unanswerable()
    for number, prediction in enumerate(task.decode(examples, rows, outputs, {})):
        own = [output for output, owner in zip(outputs, rows.example, strict=True) if owner == number]
        nothing = min(float(output["start"][0]) + float(output["end"][0]) for output in own)
        text, (score, *_) = next(iter(all_answers(task, examples[number], own).items()))
        assert prediction["text"] == text and prediction["no_answer_score"] == pytest.approx(nothing - score)
        texts = [entry["text"] for entry in prediction["n_best"]]
        scores = [entry["score"] for entry in prediction["n_best"]]
        assert scores == sorted(scores, reverse=True) and scores[texts.index("")] == pytest.approx(nothing)
        assert sum(entry["probability"] for entry in prediction["n_best"]) == pytest.approx(1)
    assert max(np.bincount(rows.example)) > 1


def test_the_tuned_threshold_empties_texts_and_what_is_written_scores_as_the_metrics_say(tmp_path: Path) -> None:
    task, examples, rows, outputs = unanswerable()
    for number, example in enumerate(examples):  # so that a threshold pays
        for row in np.flatnonzero(rows.example == number):
            outputs[row]["start"][0] = 4.0 if example.impossible and number % 3 else -4.0
    first = task.decode(examples, rows, outputs, {})
    golds = {example.id: example.gold_texts for example in examples}
    scores = {prediction["id"]: prediction["no_answer_score"] for prediction in first}
    metrics = task.metrics(examples, first)
    expected = squad.evaluate_v2(
        golds, {prediction["id"]: prediction["text"] for prediction in first}, scores, math.inf
    )
    assert metrics == expected and task.best in metrics

    threshold = metrics["best_f1_thresh"]
    tuned = task.decode(examples, rows, outputs, metrics)
    for before, after in zip(first, tuned, strict=True):
        assert after["no_answer_score"] == before["no_answer_score"] and after["n_best"] == before["n_best"]
        if before["no_answer_score"] > threshold:
            assert (after["text"], after["start"], after["end"]) == ("", 0, 0)
        else:
            assert after == before
    assert 0 < sum(prediction["text"] == "" for prediction in tuned) < len(tuned)

    path = task.write(examples, tuned, tmp_path)
    assert json.loads((tmp_path / "null_odds.json").read_text()) == scores
    official = squad.evaluate_v2(golds, json.loads(path.read_text()))
    table = task.metrics(examples, tuned)
    assert table.items() >= official.items()
    assert table["f1"] == pytest.approx(metrics["best_f1"]) and table["f1"] > metrics["f1"]
    assert {name for name in table if name.startswith("best")} == {name for name in metrics if name.startswith("best")}
    assert all(table[name] == metrics[name] for name in metrics if name.startswith("best"))


def test_without_unanswerable_questions_the_metrics_are_squad_1s(tmp_path: Path) -> None:
    task = task_of("wordpiece")
    examples = [
        Question("a", "cat", "the cat", gold_texts=("cat", "the cat")),
        Question("b", "1", "a b", gold_texts=("c",)),
    ]
    rows, outputs = rows_and_outputs(task, examples, 0)
    predictions = task.decode(examples, rows, outputs, {})
    predictions[0]["text"] = "a cat"
    assert task.metrics(examples, predictions) == {"exact_match": 50.0, "f1": 50.0} and task.best == "f1"
    written = json.loads(task.write(examples, predictions, tmp_path).read_text())
    assert written == {"a": "a cat", "b": predictions[1]["text"]} and not (tmp_path / "null_odds.json").exists()


def test_questions_without_an_answer_are_refused_where_all_should_have_one(tmp_path: Path) -> None:
    paragraph = {"context": "the cat", "qas": [{"id": "q7", "question": "?", "answers": [], "is_impossible": True}]}
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    config = task_of("wordpiece").config
    roles: tuple[Role, ...] = ("train", "dev")
    for role in roles:
        with pytest.raises(UserError, match=r"dev\.json: 1 of 1 questions have no answer, the first is q7; .*squad2"):
            QuestionAnswering.read(config, str(path), role)
    assert len(QuestionAnswering.read(config, str(path), "predict")[0]) == 1
    allowed = task_of("wordpiece", unanswerable=True).config
    assert QuestionAnswering.read(allowed, str(path), "dev")[0][0].impossible


def batch_of_windows() -> dict[str, Any]:
    """Rows of several lengths, with an answer or without, and an empty row of weight 0."""
    random, lengths = np.random.default_rng(5), np.array([19, 7, 32, 12, 0], np.int32)
    shape = (len(lengths), 32)
    answers = np.sort(random.integers(0, np.maximum(lengths, 1)[:, None], (len(lengths), 2)), axis=1)
    answers[1] = 0
    return {
        "input_ids": random.integers(1, VOCAB, shape),
        "token_type_ids": random.integers(0, 2, shape),
        "answer_start": answers[:, 0],
        "answer_end": answers[:, 1],
        "lengths": lengths,
        "weights": (lengths > 0).astype(np.float32),
    }


def theirs(config: Config, params: Any, batch: dict[str, Any]) -> tuple[list[np.ndarray], float, dict[str, Any]]:
    """(logits of each row, mean loss, its gradients) of transformers' class, its own loss, on rows without padding."""
    import torch
    import transformers

    model = config.model
    bert = transformers.BertForQuestionAnswering(
        transformers.BertConfig(
            vocab_size=VOCAB,
            hidden_size=model.embed,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            intermediate_size=model.mlp,
            max_position_embeddings=model.max_length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    tensors = to_tensors(params, VOCAB, np.dtype(np.float32))
    bert.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()}, strict=True)
    logits, losses = [], []
    for row, length in enumerate(batch["lengths"]):
        if length:
            output = bert(
                torch.tensor(batch["input_ids"][row : row + 1, :length]),
                token_type_ids=torch.tensor(batch["token_type_ids"][row : row + 1, :length]),
                start_positions=torch.tensor(batch["answer_start"][row : row + 1]),
                end_positions=torch.tensor(batch["answer_end"][row : row + 1]),
            )
            logits.append(np.stack([output.start_logits[0].detach(), output.end_logits[0].detach()], -1))
            losses.append(output.loss)
    loss = torch.stack(losses).mean()
    loss.backward()
    gradients: dict[str, Any] = {name: parameter.grad for name, parameter in bert.named_parameters()}
    return logits, loss.item(), {name: gradient.numpy() for name, gradient in gradients.items()}


def test_loss_gradients_and_logits_are_those_of_transformers() -> None:
    config = dataclasses.replace(small_config(compute={"dtype": "float32"}), task="question_answering")
    random, batch = np.random.default_rng(6), batch_of_windows()

    def leaf(path: tuple, shape: tuple[int, ...]) -> np.ndarray:
        return random.normal(float("scale" in jax.tree_util.keystr(path)), 0.3, shape).astype(np.float32)

    tree = parameter_shapes(config.model, VOCAB, {"qa_outputs": 0})
    params = jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=lambda x: isinstance(x, tuple))
    task = QuestionAnswering(config, tokenizer_of("wordpiece"), Learnt())
    model = task_model("question_answering", config, VOCAB, 0, "cpu")
    objective = span_objective(model)

    def loss(params: Any) -> Any:
        return objective.loss(params, batch, objective.totals(batch), None, None)

    (value, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected_logits, expected, gradients = theirs(config, params, batch)
    np.testing.assert_allclose(value, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(sums["loss"], 4 * expected, rtol=0, atol=8e-5)
    assert (sums["count"], sums["pieces"]) == (4, 70) and expected > 1
    outputs = jax.jit(functools.partial(task.outputs, model))(params, batch)
    for row, logits in enumerate(expected_logits):
        found = np.stack([outputs["start"][row], outputs["end"][row]], -1)[: len(logits)]
        np.testing.assert_allclose(found, logits, rtol=0, atol=2e-5)
    ours = named_views(jax.tree.map(np.array, gradient), VOCAB)
    assert set(ours) == set(gradients)
    for name, grad in gradients.items():
        np.testing.assert_allclose(ours[name], grad, rtol=0, atol=2e-5, err_msg=name)
    assert max(np.abs(grad).max() for grad in gradients.values()) > 0.1


def squad_subset(source: Path, path: Path) -> list[str]:
    """Writes two questions about each of the 8 shortest of the first 40 texts of SQuAD's JSON; returns all texts."""
    article = json.loads(source.read_text())["data"][0]
    shortest = sorted(article["paragraphs"][:40], key=lambda paragraph: len(paragraph["context"]))[:8]
    paragraphs = [{**paragraph, "qas": paragraph["qas"][:2]} for paragraph in shortest]
    path.write_text(json.dumps({"data": [{**article, "paragraphs": paragraphs}]}))
    return [text for p in paragraphs for text in (p["context"], *(question["question"] for question in p["qas"]))]


def test_a_run_learns_16_of_squads_questions_by_heart(shared_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.json"
    texts = squad_subset(shared_data / "squad" / "train-v1.1-subset.json", data)
    tokenizer = tokenizer_of_texts(shared_data / "vocab" / "bert-base-cased-vocab.txt", texts)
    tokenizer.save(tmp_path)
    config = runpy.run_path(str(ROOT / "configs" / "squad.py"))["get_config"]()
    config.data.update(train=str(data), dev=str(data), block_length=128)
    config.tokenizer.update(kind="wordpiece", vocab_file=str(tmp_path / "vocab.txt"))
    config.model.update(
        layers=2, embed=48, heads=2, mlp=64, max_length=128, dropout=0.0, attention_dropout=0.0, init_std=0.1
    )
    config.optimizer.update(learning_rate=2e-3)
    config.question_answering.update(stride=64, max_question=40)
    config.train.update(batch_size=8, checkpoint_every=1000)
    config.finetuning.update(epochs=40.0, eval_every_epochs=40.0)
    config.data.lengths = 1
    made = from_dict(config.to_dict())
    check(made)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert finetuning_run.run(QuestionAnswering, made, str(tmp_path / "run"))
    golds = {example.id: example for example in QuestionAnswering.read(made, str(data), "dev")[0]}
    written = json.loads((tmp_path / "run" / "predictions.json").read_text())
    texts = {id: example.gold_texts for id, example in golds.items()}
    assert len(texts) == 16
    assert squad.evaluate_v1(texts, written) == {"exact_match": 100.0, "f1": 100.0}, printed.getvalue()
    assert "16 training examples in" in printed.getvalue() and "100.00" in printed.getvalue()
    for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines():
        prediction = json.loads(line)
        assert golds[prediction["id"]].context[prediction["start"] : prediction["end"]] == written[prediction["id"]]
    rows = QuestionRowMaker(tokenizer, 128, 64, 40, True)(list(golds.values()))
    assert max(map(len, rows)) > 1  # texts longer than a window among them
