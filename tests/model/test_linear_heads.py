"""The fine-tuning heads: scores and gradients of transformers, and dropout that knows only its key and row."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spanbert_jax.config import Config
from spanbert_jax.convert.huggingface import named_views, to_tensors
from spanbert_jax.convert.published_weights import open_published_weights
from spanbert_jax.model.encoder import encode
from spanbert_jax.model.linear_heads import TaskModel, apply, init_params, task_model
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.text.tokenizer import SPECIALS
from tests.support.published import load
from tests.support.synthetic import VOCAB, small_config

LABELS = 5
CONFIG = small_config(compute={"dtype": "float32"})
HEADS = {
    "question_answering": {"qa_outputs": 0},
    "token_classification": {"classifier": LABELS},
    "sequence_classification": {"pooler": 0, "classifier": LABELS},
}
CLASSES = {
    "question_answering": "BertForQuestionAnswering",
    "token_classification": "BertForTokenClassification",
    "sequence_classification": "BertForSequenceClassification",
}
applied = jax.jit(apply, static_argnums=0)
every_task = pytest.mark.parametrize("task", HEADS)


class Rows(NamedTuple):
    """Rows of several lengths, both token types, and labels: [batch, 2], [batch, length] or [batch]."""

    ids: np.ndarray
    lengths: np.ndarray
    types: np.ndarray
    labels: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        return np.arange(self.ids.shape[1]) < self.lengths[:, None]

    @property
    def scored(self) -> np.ndarray:
        """Which scores mean something: rows [batch] where labels are rows', else positions [batch, length]."""
        return np.ones(len(self.ids), bool) if self.labels.ndim == 1 else self.valid


def rows_for(task: str) -> Rows:
    rng, lengths = np.random.default_rng(5), np.array([19, 7, 32, 1, 12], np.int32)
    shape = (len(lengths), 32)
    labels = {
        "question_answering": rng.integers(0, lengths[:, None], (len(lengths), 2)),
        "token_classification": rng.integers(0, LABELS, shape),
        "sequence_classification": rng.integers(0, LABELS, len(lengths)),
    }[task]
    # Piece 0 is padding, whose embedding transformers never trains (padding_idx).
    return Rows(rng.integers(1, VOCAB, shape), lengths, rng.integers(0, 2, shape), labels)


@functools.cache
def model_and_params(task: str) -> tuple[TaskModel, dict[str, Any]]:
    """Parameters with sharp attention and no bias of 0, so that gradients are large beside the tolerance."""
    model = task_model(task, CONFIG, VOCAB, LABELS, "cpu")
    rng = np.random.default_rng(6)

    def leaf(path: tuple, shape: tuple[int, ...]) -> np.ndarray:
        return rng.normal(float("scale" in jax.tree_util.keystr(path)), 0.3, shape).astype(np.float32)

    tree = parameter_shapes(CONFIG.model, VOCAB, HEADS[task])
    return model, jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=lambda x: isinstance(x, tuple))


def scored(task: str, logits: Any, rows: Rows, unpadded: Any) -> tuple[list[Any], np.ndarray]:
    """What losses are taken over: scores [n, classes] and labels [n], once or (for an answer's two ends) twice.

    unpadded: puts -1e9 at the padded positions of [batch, length].
    """
    if task == "question_answering":
        return [unpadded(logits[..., i]) for i in range(2)], rows.labels.T
    if task == "token_classification":
        return [logits[rows.scored]], rows.labels[rows.scored][None]
    return [logits], rows.labels[None]


def our_loss(model: TaskModel, task: str, rows: Rows, params: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    """(loss, logits)."""
    logits = apply(model, params, rows.ids, rows.lengths, rows.types)
    parts, labels = scored(task, logits, rows, lambda x: jnp.where(rows.valid, x, -1e9))
    pairs = zip(parts, labels, strict=True)
    losses = [-jax.nn.log_softmax(x)[np.arange(len(y)), y].mean() for x, y in pairs]
    return sum(losses, jnp.zeros(())), logits


def their_results(
    task: str, params: dict[str, Any], rows: Rows, implementation: str
) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """Logits, loss and its gradient of transformers' class with our weights, all of them, and without dropout."""
    import torch
    import transformers

    model = CONFIG.model
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=model.embed,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=model.mlp,
        max_position_embeddings=model.max_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2 if task == "question_answering" else LABELS,
        attn_implementation=implementation,
    )
    theirs = getattr(transformers, CLASSES[task])(config)
    tensors = to_tensors(params, VOCAB, np.dtype(np.float32))
    theirs.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()}, strict=True)
    theirs.train()
    assert theirs.config._attn_implementation == implementation

    valid = torch.tensor(rows.valid)
    output = theirs(torch.tensor(rows.ids), valid.long(), torch.tensor(rows.types))
    answers = task == "question_answering"
    logits = torch.stack([output.start_logits, output.end_logits], -1) if answers else output.logits
    parts, labels = scored(task, logits, rows, lambda x: x.masked_fill(~valid, -1e9))
    losses = [torch.nn.functional.cross_entropy(x, torch.tensor(y)) for x, y in zip(parts, labels, strict=True)]
    loss = torch.stack(losses).sum()
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    return logits.detach().numpy(), loss.item(), gradients


@every_task
def test_logits_and_gradients_of_the_loss_are_those_of_transformers(task: str) -> None:
    model, params = model_and_params(task)
    rows = rows_for(task)
    loss = functools.partial(our_loss, model, task, rows)
    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    ours = named_views(jax.tree.map(np.array, gradient), VOCAB)
    assert logits.dtype == jnp.float32 and not np.any(gradient["embeddings"]["word"][VOCAB:])
    # A softmax does not see what all keys have in common, nor what all positions have as an answer's end.
    last = f"bert.encoder.layer.{CONFIG.model.layers - 1}.output.LayerNorm.bias"
    unseen = ("qa_outputs.bias", last) if task == "question_answering" else ()
    for implementation in ("eager", "sdpa"):
        expected, expected_loss, gradients = their_results(task, params, rows, implementation)
        assert expected.shape == logits.shape and expected[rows.scored].std() > 0.3
        np.testing.assert_allclose(np.asarray(logits)[rows.scored], expected[rows.scored], rtol=0, atol=2e-5)
        np.testing.assert_allclose(value, expected_loss, rtol=0, atol=2e-5)
        assert set(ours) == set(gradients)
        for name, theirs in gradients.items():
            np.testing.assert_allclose(ours[name], theirs, rtol=0, atol=2e-5, err_msg=name)
            if name.endswith("self.key.bias") or name in unseen:
                assert max(np.abs(theirs).max(), np.abs(ours[name]).max()) < 1e-6
            else:
                assert np.abs(theirs).max() > 100 * np.abs(ours[name] - theirs).max(), name


@every_task
def test_padding_never_changes_a_score(task: str) -> None:
    model, params = model_and_params(task)
    rows = rows_for(task)
    ids = np.where(rows.valid, rows.ids, VOCAB - rows.ids)
    types = np.where(rows.valid, rows.types, 1 - rows.types)
    logits = np.asarray(applied(model, params, rows.ids, rows.lengths, rows.types))
    other = np.asarray(applied(model, params, ids, rows.lengths, types))
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits[rows.scored], other[rows.scored])


@every_task
def test_token_types_count_and_are_0_where_none_are_given(task: str) -> None:
    model, params = model_and_params(task)
    rows = rows_for(task)
    zeros, given = (
        np.asarray(applied(model, params, rows.ids, rows.lengths, types)) for types in (rows.types * 0, rows.types)
    )
    none = applied(model, params, rows.ids, rows.lengths)
    np.testing.assert_allclose(none, zeros, rtol=0, atol=1e-5)
    assert np.abs(given - zeros).max() > 0.1


@every_task
def test_dropout_changes_scores_and_depends_on_key_and_row_alone(task: str) -> None:
    model, params = model_and_params(task)
    rows = rows_for(task)

    def scores(key: int, order: list[int], numbers: list[int]) -> np.ndarray:
        inputs = (x[order] for x in (rows.ids, rows.lengths, rows.types))
        return np.asarray(applied(model, params, *inputs, jnp.uint32(key), jnp.array(numbers, jnp.uint32)))

    def least_difference(x: np.ndarray, y: np.ndarray) -> float:
        """Of the rows: the one that differs least."""
        return min(np.abs(x[row] - y[row]).max() for row in range(len(x)))

    order, shuffled = [0, 1, 2, 3, 4], [4, 2, 0, 3, 1]
    first = scores(1, order, [7, 8, 9, 10, 11])
    assert least_difference(first, np.asarray(applied(model, params, rows.ids, rows.lengths, rows.types))) > 0.01
    moved = scores(1, shuffled, [11, 9, 7, 10, 8])  # other neighbours, another place in the batch
    np.testing.assert_allclose(moved, first[shuffled], rtol=0, atol=1e-5)
    assert least_difference(first, scores(2, order, [7, 8, 9, 10, 11])) > 0.01
    assert least_difference(first, scores(1, order, [8, 7, 10, 9, 12])) > 0.01


@every_task
def test_a_classifiers_input_is_dropped_out_and_a_questions_is_not(task: str) -> None:
    embed, rate, rows = CONFIG.model.embed, 0.25, rows_for(task)
    dropped = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dropout=rate))
    model = task_model(task, dropped, VOCAB, embed, "cpu")
    _, params = model_and_params(task)
    if "classifier" in params:  # the identity, which scores its input as it is
        identity = {"kernel": np.eye(embed, dtype=np.float32), "bias": np.zeros(embed, np.float32)}
        params = {**params, "classifier": identity}

    @jax.jit
    def run(params: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        inputs = (rows.ids, rows.lengths, rows.types, jnp.uint32(3))
        return encode(model, params, *inputs), apply(model, params, *inputs)

    hidden, scores = map(np.asarray, run(params))
    if task == "question_answering":
        expected = hidden @ params["qa_outputs"]["kernel"] + params["qa_outputs"]["bias"]
    else:
        pooled = (
            np.tanh(hidden[:, 0] @ params["pooler"]["kernel"] + params["pooler"]["bias"])
            if "pooler" in params
            else hidden
        )
        expected = np.where(scores == 0, 0, pooled / (1 - rate))
        assert abs(np.mean(scores == 0) - rate) < 5 * np.sqrt(rate * (1 - rate) / scores.size)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_a_fresh_head_has_the_law_of_pre_training() -> None:
    config, task = small_config(model={"embed": 64, "init_std": 0.05}), "sequence_classification"
    init = jax.jit(init_params, static_argnums=0)
    params = jax.tree.map(np.asarray, init(task_model(task, config, VOCAB, LABELS, "cpu"), jax.random.key(1)))
    for head in HEADS[task]:
        kernel, bias = params[head]["kernel"], params[head]["bias"]
        assert kernel.dtype == bias.dtype == np.float32 and not bias.any()
        assert abs(kernel.std() / 0.05 - 1) < 4 / np.sqrt(2 * kernel.size)  # 4 standard errors


def imported(folder: Path, name: str, config_name: str, to: Path) -> tuple[Config, dict[str, Any], tuple[str, ...]]:
    """The shared checkpoint, laid out as a directory of Hugging Face's and read as one: (config, params, labels)."""
    shutil.copyfile(folder / name, to / "model.safetensors")
    shutil.copyfile(folder / config_name, to / "config.json")
    (to / "vocab.txt").write_text("".join(f"{piece}\n" for piece in (*SPECIALS, *"aBcDeF")))
    with open_published_weights(to) as published:
        params, _ = load(published)
        config = dataclasses.replace(CONFIG, model=published.model)
        assert published.tokenizer.vocab_size == 11
        return config, params, published.labels


def test_an_imported_encoder_gives_the_float64_hidden_states_of_another_implementation(
    shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "checkpoints" / "tiny_bert_hf"
    config, params, labels = imported(folder, "tiny_bert.safetensors", "tiny_bert_config.json", tmp_path)
    assert labels == ()
    expected = json.loads((folder / "tiny_bert_hidden.json").read_text())
    ids, types = np.array(expected["sequences"]), np.array(expected["token_types"])
    model = task_model("question_answering", config, 11, 0, "cpu")  # which adds nothing to hidden states
    hidden = jax.jit(encode, static_argnums=0)(model, params, ids, np.full(len(ids), ids.shape[1]), types)
    np.testing.assert_allclose(hidden, np.array(expected["hidden"]), rtol=0, atol=1e-6)


def test_an_imported_classifier_gives_the_float64_logits_and_labels_of_another_implementation(
    shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "checkpoints" / "tiny_bert_hf"
    config, params, labels = imported(folder, "tiny_bert_seqcls.safetensors", "tiny_bert_seqcls_config.json", tmp_path)
    assert labels == ("neg", "neu", "pos")
    expected = json.loads((folder / "tiny_bert_seqcls_logits.json").read_text())
    ids, types = np.array(expected["sequences"]), np.array(expected["token_types"])
    model = task_model("sequence_classification", config, 11, len(labels), "cpu")
    logits = np.asarray(applied(model, params, ids, np.full(len(ids), ids.shape[1]), types))
    np.testing.assert_allclose(logits, np.array(expected["logits"]), rtol=0, atol=1e-6)
    assert [labels[i] for i in logits.argmax(-1)] == expected["labels"]
