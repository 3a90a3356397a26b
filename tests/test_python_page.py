"""The code of docs/python.md runs from its first line to its last, and prints what the page says."""

import dataclasses
import doctest
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spanbert_jax.convert.names import Params
from spanbert_jax.model import pretraining_heads
from spanbert_jax.serving.functions import functions
from spanbert_jax.serving.weights import Weights
from spanbert_jax.tasks.finetuning import Learnt
from spanbert_jax.tasks.registry import AnyTask
from spanbert_jax.text.tokenizer import SPECIALS, Tokenizer
from tests.support.pretrained import random_weights, write_pretrained
from tests.support.tuned import write_tuned

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
PIECES = "Ada Love ##lace lived in London . She wrote the first program Where did live ?"
TOKENIZER_OF_PAGE = Tokenizer("wordpiece", "\n".join([*SPECIALS, *PIECES.split(), ""]).encode())
MODEL: dict[str, Any] = {"layers": 2, "embed": 32, "mlp": 32, "max_length": 24, "span_offset_embed": 8}
QUESTION = {
    "question": "Where did Ada live?",
    "context": "Ada Lovelace lived in London. She wrote the first program.",
}
_DECIMAL = re.compile(r"-?\d+\.\d+(e-\d+)?")


class ApartFromDecimals(doctest.OutputChecker):
    """Compares numbers with a decimal point by their form alone: another machine rounds them differently."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(_DECIMAL.sub("0.0", want), _DECIMAL.sub("0.0", got), optionflags)


def learnt(weights: Weights) -> Weights:
    """The weights after they have learnt the page's two sentences by heart, from every span of one or two pieces."""
    tokenizer, rows = weights.tokenizer, []
    for sentence in QUESTION["context"].replace(". ", ".\n").splitlines():
        ids = [tokenizer.cls_id, *tokenizer.tokenize(sentence), tokenizer.sep_id]
        for first in range(1, len(ids) - 1):
            for last in range(first, min(first + 2, len(ids) - 1)):
                inside = [min(first + slot, last) for slot in (0, 1)]
                seen = [tokenizer.mask_id if first <= place <= last else id for place, id in enumerate(ids)]
                rows.append((seen, len(ids), inside, [ids[place] for place in inside], first - 1, last + 1))
    batch = {
        "input_ids": np.array([seen + [0] * (16 - len(seen)) for seen, *_ in rows]),
        "lengths": np.array([row[1] for row in rows]),
        "masked_positions": np.array([row[2] for row in rows]),  # of one piece, both slots have it
        "masked_ids": np.array([row[3] for row in rows]),
        "span_left": np.array([[row[4]] * 2 for row in rows]),
        "span_right": np.array([[row[5]] * 2 for row in rows]),
        "span_offset": np.array([np.array(row[2]) - row[2][0] for row in rows]),
    }
    model = pretraining_heads.pretraining_model(weights.config, tokenizer.vocab_size, "cpu")
    optimizer = optax.adam(5e-3)

    def lose(params: Params) -> jax.Array:
        lost = pretraining_heads.losses(model, params, batch)
        return jnp.sum(jnp.stack([jnp.mean(head.loss) for head in lost.values()]))

    @jax.jit
    def train(params: Params) -> tuple[Params, jax.Array]:
        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            loss, gradients = jax.value_and_grad(lose)(carry[0])
            updates, state = optimizer.update(gradients, carry[1])
            return (optax.apply_updates(carry[0], updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), None, length=70)
        return params, losses

    params, losses = train(jax.jit(lambda: pretraining_heads.init_params(model, jax.random.key(0)))())
    assert losses[-1] < 1 < losses[0]
    params = jax.tree.map(np.asarray, params)
    coverage = weights.load()[1]
    return dataclasses.replace(weights, load=lambda: (params, coverage))


def fit(task: AnyTask, params: Params) -> Params:
    """The parameters with scores by which "London" answers the page's question: least squares on the hidden states."""
    (row,) = task.featuriser("predict")([task.parse(QUESTION, "", "")])[0]
    ids, types = (np.array([row[name]], np.int32) for name in ("input_ids", "token_type_ids"))
    encode = functions(task.config, params, task.tokenizer.vocab_size, 0)["encode"]
    states = np.asarray(jax.jit(encode)(params, ids, np.array([ids.shape[1]], np.int32), types))[0]
    start = QUESTION["context"].index("London")
    wanted = np.stack([np.array(row["start_char"]) == start, np.array(row["end_char"]) == start + len("London")], 1)
    assert wanted.sum(axis=0).tolist() == [1, 1]
    inputs = np.concatenate([states, np.ones((len(states), 1))], axis=1)
    solved = np.linalg.lstsq(inputs, np.where(wanted, 4.0, -4.0), rcond=None)[0].astype(np.float32)
    return {**params, "qa_outputs": {"kernel": solved[:-1], "bias": solved[-1]}}


def test_the_pages_code_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pretrained(tmp_path / "runs" / "base", learnt(random_weights(TOKENIZER_OF_PAGE, **MODEL)))
    settings = {"model": MODEL, "data": {"block_length": 24, "lengths": 1}}
    write_tuned(tmp_path / "runs" / "squad", "question_answering", Learnt(), TOKENIZER_OF_PAGE, fit, **settings)
    monkeypatch.chdir(tmp_path)
    page = doctest.DocTestParser().get_doctest(PAGE.read_text(encoding="utf-8"), {}, PAGE.name, str(PAGE), 0)
    printed: list[str] = []
    result = doctest.DocTestRunner(ApartFromDecimals()).run(page, out=printed.append)
    assert result.failed == 0, "".join(printed)
    assert result.attempted >= 20
