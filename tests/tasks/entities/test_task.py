"""Named-entity recognition: its loss, what it reads, decodes, measures and writes, and that both heads learn."""

import dataclasses
import functools
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.metrics import entities
from spanbert_jax.serving.prediction_files import write_jsonl
from spanbert_jax.tasks.entities.rows import Span, WordExample
from spanbert_jax.tasks.entities.tagging import Tagging
from spanbert_jax.tasks.entities.task import resolve
from spanbert_jax.tasks.rows import Rows
from tests.support.tagging_tasks import LETTERS, TOKENIZER, rows_of, task_of


def batch_of(task: Tagging[Any], rows: Rows) -> dict[str, np.ndarray]:
    return rows.collate(np.arange(len(rows)), int(rows.lengths.max()), task.padding)


def compiled_outputs(task: Tagging[Any], model: Any) -> Callable[[Any, Rows], list[dict[str, np.ndarray]]]:
    """(params, rows) -> the outputs of each row."""
    compute = jax.jit(functools.partial(task.outputs, model))

    def outputs(params: Any, rows: Rows) -> list[dict[str, np.ndarray]]:
        computed = {name: np.asarray(value) for name, value in compute(params, batch_of(task, rows)).items()}
        return [{name: value[row] for name, value in computed.items()} for row in range(len(rows))]

    return outputs


def random_params(task: Tagging[Any], model: Any, std: float) -> Any:
    rng, shapes = np.random.default_rng(2), jax.eval_shape(lambda: task.init_params(model, jax.random.key(0)))

    def leaf(path: tuple, x: Any) -> np.ndarray:
        return rng.normal(float("scale" in jax.tree_util.keystr(path)), std, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def random_examples(count: int, seed: int, nested: bool = False, longest: int = 12) -> list[WordExample]:
    """Sentences of random letters, whose entities only a model that learns them by heart can know."""
    rng = random.Random(seed)
    examples = []
    for number in range(count):
        words = tuple("".join(rng.choices(LETTERS, k=rng.randint(1, 3))) for _ in range(rng.randint(2, longest)))
        spans: list[Span] = []
        start = 0
        while start < len(words):
            end = min(start + rng.randint(1, 4), len(words))
            if rng.random() < 0.5:
                spans.append((start, end, rng.choice(["LOC", "PER"])))
                if nested and end - start > 1:
                    spans.append((start + rng.randint(0, 1), end - 1, "ORG"))
            start = end
        spans = [span for span in spans if span[0] < span[1]]
        examples.append(WordExample(str(number + 1), words, tuple(dict((s[:2], s) for s in spans).values())))
    return examples


def gold_prediction(example: WordExample) -> dict[str, Any]:
    found = [{"type": kind, "start_word": start, "end_word": end} for start, end, kind in example.spans]
    return {"id": example.id, "entities": found}


def test_the_token_heads_loss_and_gradient_are_those_of_transformers() -> None:
    import torch
    import transformers

    from spanbert_jax.convert.huggingface import named_views, to_tensors

    examples = random_examples(9, seed=1)
    task = task_of("token", examples)
    batch, model, size = batch_of(task, rows_of(task, examples)), task.model("cpu"), task.config.model
    params = random_params(task, model, 0.3)
    objective = task.objective(model)
    count = objective.totals(batch)
    assert count == sum(len(example.words) for example in examples)
    loss = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, batch, count, None, None), has_aux=True))
    (value, sums), gradient = loss(params)
    assert sums["count"] == count

    theirs = transformers.BertForTokenClassification(
        transformers.BertConfig(
            vocab_size=TOKENIZER.vocab_size,
            hidden_size=size.embed,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.mlp,
            max_position_embeddings=size.max_length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=len(task.learnt.labels),
        )
    )
    tensors = to_tensors(params, TOKENIZER.vocab_size, np.dtype(np.float32))
    theirs.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()}, strict=True)
    valid = torch.tensor(np.arange(batch["input_ids"].shape[1]) < batch["lengths"][:, None]).long()
    labels = torch.tensor(np.where(batch["label"] < 0, -100, batch["label"])).long()
    output = theirs(torch.tensor(batch["input_ids"]), valid, torch.tensor(batch["token_type_ids"]), labels=labels)
    output.loss.backward()
    np.testing.assert_allclose(value, output.loss.item(), rtol=0, atol=2e-5)
    ours = named_views(jax.tree.map(np.array, gradient), TOKENIZER.vocab_size)
    for name, parameter in theirs.named_parameters():
        if "word_embeddings" not in name:  # whose piece 0, padding, transformers never trains
            np.testing.assert_allclose(ours[name], parameter.grad.numpy(), rtol=0, atol=2e-5, err_msg=name)
    mine = compiled_outputs(task, model)(params, rows_of(task, examples))
    probabilities = output.logits.softmax(-1).detach().numpy()
    for row, one in enumerate(mine):
        words = batch["word"][row] >= 0
        np.testing.assert_array_equal(one["label"][words], probabilities[row].argmax(-1)[words])
        np.testing.assert_allclose(one["score"][words], probabilities[row].max(-1)[words], rtol=0, atol=2e-5)


def test_the_span_heads_loss_is_the_mean_over_valid_spans() -> None:
    examples = random_examples(7, seed=3, nested=True, longest=20)
    task = task_of("span", examples, max_width=3)
    batch, model = batch_of(task, rows_of(task, examples)), task.model("cpu")
    params = random_params(task, model, 0.02)
    params["classifier"] = {"kernel": np.zeros((32, 4), np.float32), "bias": np.arange(4, dtype=np.float32)}
    objective = task.objective(model)
    count = objective.totals(batch)
    value, _ = jax.jit(lambda: objective.loss(params, batch, count, None, None))()
    widths = [(example, width) for example in examples for width in (1, 2, 3)]
    spans = sum(max(len(example.words) - width + 1, 0) for example, width in widths)
    found = [kind for example in examples for start, end, kind in example.spans if end - start <= 3]
    assert count == spans and task.learnt.labels == ("O", "LOC", "ORG", "PER")
    log_shares = np.arange(4) - np.log(np.exp(np.arange(4)).sum())  # of a head that sees nothing
    total = sum(log_shares[task.learnt.labels.index(kind)] for kind in found) + (spans - len(found)) * log_shares[0]
    np.testing.assert_allclose(value, -total / spans, rtol=1e-5)


@pytest.mark.parametrize(("head", "nested"), [("token", False), ("span", False), ("span", True)])
def test_32_sentences_are_learnt_by_heart(head: str, nested: bool) -> None:
    examples = random_examples(32, seed=5, nested=nested, longest=8)
    task = task_of(head, examples, max_width=4)
    assert task.learnt.nested == nested
    rows, model = rows_of(task, examples), task.model("cpu")
    batch, objective = batch_of(task, rows), task.objective(model)
    optimizer, count = optax.adam(5e-3), objective.totals(batch)

    @jax.jit
    def train(params: Any, state: Any) -> tuple[Any, Any]:
        def step(_: Any, carry: Any) -> Any:
            grads = jax.grad(lambda p: objective.loss(p, batch, count, None, None)[0])(carry[0])
            updates, state = optimizer.update(grads, carry[1])
            return optax.apply_updates(carry[0], updates), state

        return jax.lax.fori_loop(0, 200, step, (params, state))

    outputs, params = compiled_outputs(task, model), random_params(task, model, 0.02)
    before = task.metrics(examples, task.decode(examples, rows, outputs(params, rows), {}))
    params, _ = train(params, optimizer.init(params))
    after = task.metrics(examples, task.decode(examples, rows, outputs(params, rows), {}))
    assert before["f1"] < 50 and set(after.values()) == {100.0}


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.2, 0.5, 0.7, 0.9]), st.integers(0, 9), st.integers(1, 5), st.sampled_from("AB")),
        unique_by=lambda x: x[1:3],
        max_size=15,
    ),
    st.booleans(),
)
def test_an_overlap_keeps_the_highest_score(drawn: list[tuple[float, int, int, str]], may_nest: bool) -> None:
    found = [(score, (start, start + width, kind)) for score, start, width, kind in drawn]

    def conflict(a: Span, b: Span) -> bool:
        one, two = set(range(a[0], a[1])), set(range(b[0], b[1]))
        return bool(one & two) and not (may_nest and (one <= two or two <= one))

    kept = resolve(found, may_nest)
    assert set(kept) <= set(found) and len(set(kept)) == len(kept)
    assert not any(conflict(a, b) for (_, a), (_, b) in itertools.combinations(kept, 2))
    for score, span in set(found) - set(kept):
        assert any(other >= score and conflict(span, kept_span) for other, kept_span in kept)


words = st.text(min_size=1, max_size=6).map(lambda x: "".join(x.split())).filter(bool) | st.sampled_from(
    ["😀", "e\u0301", "\u200d", "a\u00a0b", "\u200b", "\x01", "👩\u200d👩\u200d👧"]
)


@pytest.mark.parametrize("head", ["token", "span"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_an_entitys_text_is_what_its_offsets_cut_out_and_long_sentences_lose_nothing(head: str, data: Any) -> None:
    sentences = data.draw(st.lists(st.lists(words, min_size=1, max_size=60).map(tuple), min_size=1, max_size=3))
    sentences = [tuple(word.encode("utf-8", "ignore").decode() or "x" for word in sentence) for sentence in sentences]
    examples = [WordExample(str(i), sentence, ((0, 1, "LOC"),)) for i, sentence in enumerate(sentences)]
    task = task_of(head, examples, max_width=3)
    rows = rows_of(task, examples)
    # A model that knows one word in three to be an entity's first, by heart.
    outputs = []
    for row in range(len(rows)):
        if head == "token":
            numbers = rows.column("word", row)
            label = np.where(numbers % 3 == 0, task.learnt.labels.index("B-LOC"), task.learnt.labels.index("I-LOC"))
            outputs.append(
                {"label": np.where(numbers % 3 == 2, task.learnt.labels.index("O"), label), "score": label * 0 + 0.5}
            )
        else:
            slots, starts = np.arange(int(rows.lengths[row])), int(rows.plain["starts"][row])
            exists = (rows.column("first", row) >= 0) & (slots < starts)
            label = np.zeros((len(slots), 3), int)
            label[:, 0] = exists & ((rows.plain["first_word"][row] + slots) % 3 == 0)
            outputs.append({"label": label, "score": np.full(label.shape, 0.5)})
    for example, prediction in zip(examples, task.decode(examples, rows, outputs, {}), strict=True):
        assert prediction["id"] == example.id and prediction["text"] == " ".join(example.words)
        found = prediction["entities"]
        assert [e["start_word"] for e in found] == list(range(0, len(example.words), 3))
        for entity in found:
            cut = example.words[entity["start_word"] : entity["end_word"]]
            assert len(cut) == (1 if head == "span" else min(2, len(example.words) - entity["start_word"]))
            assert entity["text"] == " ".join(cut) == prediction["text"][entity["start"] : entity["end"]]
            assert entity["type"] == "LOC" and entity["score"] == 0.5


def test_metrics_are_seqevals_in_default_and_strict_mode() -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

    rng = random.Random(7)
    examples = random_examples(60, seed=8)
    task = task_of("token", examples)
    golds = [entities.tags_from_spans(example.spans, len(example.words), "IOB2") for example in examples]
    guesses = [[tag if rng.random() < 0.6 else rng.choice(task.learnt.labels) for tag in tags] for tags in golds]
    predictions = []
    for example, tags in zip(examples, guesses, strict=True):
        found = gold_prediction(dataclasses.replace(example, spans=tuple(entities.spans(tags))))
        predictions.append({**found, "tags": tags})
    metrics = task.metrics(examples, predictions)
    assert list(metrics) == ["precision", "recall", "f1", "strict_f1", "f1/LOC", "f1/PER"]
    assert metrics["f1"] == pytest.approx(100 * f1_score(golds, guesses))
    assert metrics["precision"] == pytest.approx(100 * precision_score(golds, guesses))
    assert metrics["recall"] == pytest.approx(100 * recall_score(golds, guesses))
    assert metrics["strict_f1"] == pytest.approx(100 * f1_score(golds, guesses, mode="strict", scheme=IOB2))
    by_type = f1_score(golds, guesses, average=None)
    assert [metrics["f1/LOC"], metrics["f1/PER"]] == pytest.approx([100 * value for value in by_type])
    assert metrics["strict_f1"] != metrics["f1"]


def test_trials_have_the_same_metrics_whatever_types_they_predict() -> None:
    task = task_of("span", [WordExample("1", ("a", "b"), ((0, 1, "PER"), (1, 2, "MISC")))])
    dev = WordExample("1", ("a", "b"), ((0, 1, "PER"),))
    right, wrong = (
        task.metrics([dev], [gold_prediction(dataclasses.replace(dev, spans=spans))])
        for spans in (dev.spans, (*dev.spans, (1, 2, "MISC")))
    )
    assert list(right) == list(wrong) == ["precision", "recall", "f1", "strict_f1", "f1/PER"]
    assert (right["precision"], wrong["precision"]) == (100, 50)


def test_the_file_of_predictions_is_conllevals_input_with_the_outermost_of_nested_entities(tmp_path: Path) -> None:
    example = WordExample("1", ("New", "York\u00a0s", "Times", "."), ((0, 2, "a place"), (0, 3, "ORG")))
    task = task_of("span", [example])
    assert task.learnt.nested
    predicted = dataclasses.replace(example, spans=((0, 2, "a place"), (3, 4, "ORG")))
    path = task.write([example, example], [gold_prediction(predicted), gold_prediction(example)], tmp_path)
    first = "New B-ORG B-a_place\nYork_s I-ORG I-a_place\nTimes I-ORG O\n. O B-ORG\n\n"
    second = "New B-ORG B-ORG\nYork_s I-ORG I-ORG\nTimes I-ORG I-ORG\n. O O\n\n"
    assert path.read_text(encoding="utf-8") == first + second


@pytest.mark.parametrize("head", ["token", "span"])
def test_a_type_that_train_has_not_is_named_with_its_line(head: str) -> None:
    task = task_of(head, [WordExample("1", ("a",), ((0, 1, "PER"),))])
    dev = [WordExample(line, ("a",), ((0, 1, kind),)) for line, kind in (("1", "PER"), ("7", "X"), ("9", "X"))]
    task.check(dev[:1], "dev.conll")
    with pytest.raises(
        UserError,
        match=r"2 entities are of types .*train lacks \(X\), the first is in sentence 7; .*PER; train on exa",
    ):
        task.check(dev, "dev.conll")
    with pytest.raises(UserError, match=r"train.conll has no entities"):
        task.learn(task.config, TOKENIZER, [WordExample("1", ("a",))])


def test_predictions_are_json_and_come_for_unlabelled_examples(tmp_path: Path) -> None:
    task = task_of("span", [WordExample("1", ("a",), ((0, 1, "PER"),))], max_width=2)
    examples = [WordExample("1", ("a", "bc"))]
    outputs = [{"label": np.array([[0, 1], [0, 0], [0, 0]], np.int32), "score": np.full((3, 2), 0.75, np.float32)}]
    write_jsonl(task.decode(examples, rows_of(task, examples), outputs, {}), tmp_path / "x.jsonl")
    (line,) = (tmp_path / "x.jsonl").read_text().splitlines()
    entity = {"type": "PER", "start": 0, "end": 4, "start_word": 0, "end_word": 2, "text": "a bc", "score": 0.75}
    assert json.loads(line) == {"id": "1", "text": "a bc", "entities": [entity]}


def test_the_baseline_looks_up_the_longest_entities_that_training_has() -> None:
    train = [
        WordExample("1", ("New", "York", "in", "May"), ((0, 2, "PLACE"), (3, 4, "TIME"))),
        WordExample("2", ("New", "York", "City"), ((0, 3, "PLACE"),)),
        WordExample("3", ("May", "May"), ((0, 1, "PERSON"), (1, 2, "PERSON"))),
    ]
    task = task_of("token", train)
    (guess,) = task.baseline(train, [WordExample("4", ("May", "saw", "New", "York", "City", "York"))])
    found = [(entity["text"], entity["type"]) for entity in guess["entities"]]
    assert found == [("May", "PERSON"), ("New York City", "PLACE")]
