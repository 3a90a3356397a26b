"""tools/infill.py: what it prints is what the Python interface gives."""

import json
from pathlib import Path

import pytest

import spanbert_jax
from tests.support.pretrained import random_weights, write_pretrained
from tests.support.runs import tool
from tests.support.tuned import WORDPIECE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("pretrained")
    write_pretrained(workdir, random_weights(WORDPIECE))
    return workdir


def test_texts_are_printed_filled(run: Path) -> None:
    model = spanbert_jax.load(run)
    texts = ["a [MASK] b", "the ___ ."]
    expected = model.infiller.infill(texts, words=2)
    printed = tool("infill", "--checkpoint", run, "--words", "2", "--json", stdin="\n\n".join(texts).encode()).stdout
    found = [json.loads(line) for line in printed.splitlines()]
    assert [one["text"] for one in found] == [one.text for one in expected]
    assert found == [json.loads(json.dumps(one.to_json())) for one in expected]
    shown = tool("infill", "--checkpoint", run, "--words", "2", texts[1]).stdout
    gap = expected[1].gaps[0]
    assert shown.splitlines()[0] == expected[1].text and f" {gap.text} " in shown
    for piece in gap.pieces:
        assert piece.piece in shown and f"MLM {piece.heads['mlm']:.1%}" in shown
    spans = tool("infill", "--checkpoint", run, "--span", "2:5", "--words", "1-1", "--json", "a cat b ___").stdout
    assert json.loads(spans)["text"] == model.infill("a cat b ___", [(2, 5)], 1).text


def test_the_decoder_fills_where_it_is_asked_to(tmp_path: Path, run: Path) -> None:
    write_pretrained(tmp_path, random_weights(WORDPIECE, ("mlm", "sbo", "decoder"), decoder_layers=1))
    given = ("--heads", "decoder", "the [MASK] and ___ .")
    expected = spanbert_jax.load(tmp_path).infill(given[-1], heads="decoder")
    printed = tool("infill", "--checkpoint", tmp_path, "--json", *given).stdout
    assert json.loads(printed) == json.loads(json.dumps(expected.to_json()))
    shown = tool("infill", "--checkpoint", tmp_path, *given).stdout
    assert shown.splitlines()[0] == expected.text and f"  log p {expected.gaps[1].log_probability:.2f}" in shown
    failed = tool("infill", "--checkpoint", run, *given, expect=1)
    assert "has no span decoder; train one with" in failed.stderr and failed.stderr.count("\n") == 1


def test_mistakes_end_in_one_line(run: Path) -> None:
    for arguments, message in (
        (["a b"], "'a b' has nothing to fill in"),
        (["a ___", "--words", "x"], "--words x: expected two numbers, such as 1-4"),
        (["a b c", "--span", "2"], "--span 2: expected two numbers, such as 1:4"),
    ):
        failed = tool("infill", "--checkpoint", run, *arguments, expect=1)
        assert failed.stderr.startswith(f"error: {message}") and failed.stderr.count("\n") == 1
