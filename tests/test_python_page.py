"""The code of docs/python.md runs from its first line to its last, and prints what the page says."""

import doctest
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from spanbert_jax.convert.names import Params
from spanbert_jax.serving.functions import functions
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
    write_pretrained(tmp_path / "runs" / "base", random_weights(TOKENIZER_OF_PAGE, **MODEL))
    settings = {"model": MODEL, "data": {"block_length": 24, "lengths": 1}}
    write_tuned(tmp_path / "runs" / "squad", "question_answering", Learnt(), TOKENIZER_OF_PAGE, fit, **settings)
    monkeypatch.chdir(tmp_path)
    page = doctest.DocTestParser().get_doctest(PAGE.read_text(encoding="utf-8"), {}, PAGE.name, str(PAGE), 0)
    printed: list[str] = []
    result = doctest.DocTestRunner(ApartFromDecimals()).run(page, out=printed.append)
    assert result.failed == 0, "".join(printed)
    assert result.attempted >= 20
