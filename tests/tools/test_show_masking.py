"""tools/show_masking.py on a small corpus of its own: what it prints, its page, and its statistics."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from configs.tiny import get_config
from spanbert_jax.batch import KEPT, MASK, RANDOM
from spanbert_jax.config import Config, from_dict
from spanbert_jax.corpus.blocks import read_metadata
from spanbert_jax.errors import UserError
from spanbert_jax.runs import start_from
from spanbert_jax.runs.start_from import StartingWeights
from spanbert_jax.text.tokenizer import Tokenizer
from tests.support import runs
from tools import show_masking
from tools.show_masking import Segment, collect, describe_row, expected_coverage, first_rows, page, text_lengths

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "birds")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(
        "wordpiece", "\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", ".")).encode()
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A folder with two files of 40 documents each, and the vocabulary."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        documents = ("\n".join(" ".join(rng.choice(WORDS, 12)) + " ." for _ in range(20)) for _ in range(40))
        (folder / f"{name}.txt").write_text("\n\n".join(documents) + "\n")
    tokenizer.save(folder)
    return folder


def run(
    corpus: Path, name: str = "run", masking: Mapping[str, Any] | None = None, spans: str = "", **given: Any
) -> str:
    """What the tool prints in this process, with a workdir of this name; given: its flags."""
    config = get_config()
    config.masking.update(masking or {})
    config.corpus.spans = spans
    fields = {"files": f"{corpus}/*.txt", "sentences": "none", "workers": 1, "held_out": 0.2}
    config.corpus.update(fields)
    config.tokenizer.update(kind="wordpiece", vocab_file=str(corpus / "vocab.txt"))
    built = from_dict(config.to_dict())
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**given):
        return runs.here(lambda: show_masking.main(built, str(corpus / name))).stdout


def test_prints_blocks_then_the_same_as_a_page_and_statistics(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = run(corpus, rows=3)
    assert re.findall(r"Block (\d+): \d+ pieces, \d+ masked in \d+ spans", text) == ["1", "2", "3"]
    assert text.count("[CLS]") == text.count("[SEP]") == 3

    run(corpus, rows=3, html=str(tmp_path / "masks.html"))
    page_text = Text.of((tmp_path / "masks.html").read_text(encoding="utf-8"))
    for line in re.findall(r"^\[CLS\].{60}", text, re.MULTILINE):
        assert line in page_text

    table = run(corpus, statistics=True)
    shown = {line.split("│")[1].strip(): line.split("│")[2:4] for line in table.splitlines() if "│" in line}
    assert [cell.strip() for cell in shown["blocks with ⌈0.15 × pieces⌉ masked"]] == ["100.00%", "100%"]
    mean, law = (float(cell) for cell in shown["words in a drawn span, mean"])
    assert law == 3.797 and abs(mean - law) < 0.05
    observed, expected = (float(cell.strip(" %")) for cell in shown["merged spans that become [MASK]"])
    assert expected == 80 and abs(observed - expected) < 2


def test_statistics_of_units(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (corpus / "pets.list").write_text("the cat\ncat\n")
    (corpus / "mats.list").write_text("mat\na\n")
    masking = {"scheme": "unit", "unit_share": 0.5, "units": "pets"}
    spans = f"gazetteer:{corpus}/mats.list; gazetteer:{corpus}/pets.list"
    table = run(corpus, "units", masking, spans, statistics=True)
    shown = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in table.splitlines() if "│" in line}
    assert shown["blocks with ⌈0.15 × pieces⌉ masked"] == "100.00%"
    assert 1 < float(shown["pieces in a unit, mean"]) < 1.2 and float(shown["units in a block, mean"]) > 5
    inside, masked = (float(shown[name].strip("%")) for name in ("pieces inside units", "masked pieces inside units"))
    assert 5 < inside < 12 and 35 < masked < 55


def test_blocks_of_a_run_from_other_weights_are_shown_with_the_weights_fields(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adopted(config: Config, workdir: Any, start: StartingWeights) -> Config:
        return dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, spans="capitals"))

    monkeypatch.setattr(start_from, "adopt", adopted)
    run(corpus, "from_others", rows=1)
    assert read_metadata(corpus / "from_others" / "data" / "blocks").kinds == ["capitals"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"html": "masks.html", "statistics": True}, "--html shows blocks and --statistics numbers"),
        ({"html": "/no/such/place/masks.html"}, "there is no directory /no/such/place"),
        ({"html": "/"}, "--html / is a directory; name a file"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_anything_is_prepared(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**given), pytest.raises(UserError, match=message):
        show_masking.main(Config(), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class Text(HTMLParser):
    """The text of a page."""

    @classmethod
    def of(cls, source: str) -> str:
        parser = cls()
        parser.parts = []
        parser.feed(source)
        return "".join(parser.parts)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def example_row(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """the cats sat on a mat: "the" masked, "sat on" replaced at random, "mat" kept."""
    ids = {piece: i for i, piece in enumerate((*[""] * 5, *WORDS, "##s", "."))}
    return {
        "input_ids": np.array([2, 4, ids["cat"], ids["##s"], ids["birds"], ids["##s"], ids["a"], ids["mat"], 3, 0]),
        "lengths": np.array(9),
        "masked_positions": np.array([1, 4, 5, 7, 0]),
        "masked_ids": np.array([ids["the"], ids["sat"], ids["on"], ids["mat"], 0]),
        "masked_weights": np.array([1.0, 1, 1, 1, 0]),
        "replacement": np.array([MASK, RANDOM, RANDOM, KEPT, 0]),
        "span_left": np.array([0, 3, 3, 0, 0]),
        "span_right": np.array([0, 6, 6, 0, 0]),
        "span_weights": np.array([0.0, 1, 1, 0, 0]),
    }


def test_a_row_becomes_words_spans_originals_and_boundaries(tokenizer: Tokenizer) -> None:
    title, segments = describe_row(tokenizer, example_row(tokenizer))
    assert title == "7 pieces, 4 masked in 3 spans, 2 of them predicted by SBO as well"
    assert segments == [
        Segment("special", "[CLS]", True),
        Segment("mask", "[MASK]×1", True),
        Segment("original", "‹the; MLM only›", False),
        Segment("plain", "cat", True),
        Segment("boundary", "s", False),
        Segment("random", "birds s", True),
        Segment("original", "‹sat on›", False),
        Segment("boundary", "a", True),
        Segment("kept", "mat", True),
        Segment("original", "‹mat; MLM only›", False),
        Segment("special", "[SEP]", True),
    ]


def test_a_row_of_two_texts_says_where_the_second_one_is_from(tokenizer: Tokenizer) -> None:
    ids = {piece: i for i, piece in enumerate((*[""] * 5, *WORDS, "##s", "."))}
    row = {
        "input_ids": np.array([2, ids["the"], 4, 3, ids["##s"], ids["sat"], 3, 0]),
        "token_type_ids": np.array([0, 0, 0, 0, 1, 1, 1, 0]),
        "lengths": np.array(7),
        "next_labels": np.array(1),
        "masked_positions": np.array([2, 0]),
        "masked_ids": np.array([ids["cat"], 0]),
        "masked_weights": np.array([1.0, 0]),
        "replacement": np.array([MASK, 0]),
        "span_left": np.zeros(2, int),
        "span_right": np.zeros(2, int),
        "span_weights": np.zeros(2),
    }
    title, segments = describe_row(tokenizer, row)
    assert title.startswith("4 pieces (2 and 2, of another document), 1 masked in 1 spans")
    assert [(one.kind, one.text) for one in segments if one.kind in ("special", "plain")] == [
        *(("special", "[CLS]"), ("plain", "the"), ("special", "[SEP]")),
        *(("plain", "s"), ("plain", "sat"), ("special", "[SEP]")),
    ]
    assert describe_row(tokenizer, {**row, "next_labels": np.array(0)})[0].startswith(
        "4 pieces (2 and 2, the text that"
    )
    rows = {name: value[None] for name, value in row.items()}
    assert [lengths.tolist() for lengths in text_lengths(rows)] == [[2], [2]]


def test_units_are_shown_with_their_kinds(tokenizer: Tokenizer) -> None:
    tags = np.array([0, 0, 5, 4, 3, 0, 0, 5, 0, 0])  # "cats", "sat" and "mat"
    _, segments = describe_row(tokenizer, {**example_row(tokenizer), "block_tags": tags}, ["VP", "NP"])
    assert [segment.text for segment in segments if segment.kind == "unit"] == ["cat"]
    originals = [segment.text for segment in segments if segment.kind == "original"]
    assert originals == ["‹the; MLM only›", "‹sat on; VP›", "‹mat; NP; MLM only›"]
    assert "a unit: a span" in page([("", segments)], "runs/x") and "a unit:" not in page([("", [])], "runs/x")


def test_a_page_escapes_what_it_shows_and_needs_no_other_file() -> None:
    text = page([("a & b", [Segment("plain", "<script>", True)])], "runs/<x>")
    assert "&lt;script&gt;" in text and "<script" not in text and "a &amp; b" in text
    assert not re.search(r"(src|href)=|url\(|@import", text)


def test_rows_go_on_over_batches_without_the_empty_ones_that_fill_them_up() -> None:
    def batches() -> Iterator[dict[str, np.ndarray]]:
        return iter([{"lengths": np.array(lengths)} for lengths in ([3, 4, 0], [5, 0, 0], [6, 7, 8])])

    assert [int(row["lengths"]) for row in first_rows(batches(), 5)] == [3, 4, 5, 6, 7]
    assert collect(batches(), 5)["lengths"].tolist() == [3, 4, 5, 6, 7]


def test_the_expected_coverage_is_what_was_measured() -> None:
    assert expected_coverage(Config(), np.array([510, 510])) == "about 98%"
    assert expected_coverage(Config(), np.array([126])) == "about 96%"
    assert expected_coverage(Config(), np.array([30])) == "about 87%"
