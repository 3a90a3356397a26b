"""Span tags of a task's rows."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from tensorflow.core.example import example_pb2

from spanbert_jax.convert.tokenizer_import import read_tokenizer
from spanbert_jax.tasks.row_spans import RowsWithSpans, without_effect
from spanbert_jax.text.block_making import BlockMaker
from spanbert_jax.text.spans import SpanFinder
from spanbert_jax.text.tokenizer import Tokenizer
from tests.support.other_tokenizers import write
from tests.support.texts_and_tokenizers import tokenizer_of

RULES = "regex:AFTER=after [a-z]+; capitals"
TEXT = "After Ada Lovelace came the cat. Soon after dinner, Anne of Cleves met the other. The end"


def spans_of(tokenizer: Tokenizer, ids: list[int], tags: list[int]) -> list[tuple[str, int]]:
    """(text, kind) of each span."""
    found: list[tuple[list[int], int]] = []
    for piece, tag in zip(ids, tags, strict=True):
        if tag & 1:
            found.append(([], tag >> 1))
        if tag:
            found[-1][0].append(piece)
    return [(tokenizer.decode(pieces), kind) for pieces, kind in found]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_row_has_the_tags_of_its_text_and_none_at_special_pieces(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    first, second = (tokenizer.tokenize(text) for text in (TEXT, "Cleves"))
    ids = [tokenizer.cls_id, *first, tokenizer.sep_id, *second, tokenizer.sep_id]
    maker = RowsWithSpans(lambda _: [[{"input_ids": ids}]], tokenizer, SpanFinder(RULES), "en", "sentencex")
    ((row,),) = maker([None])
    tags = row["span_tags"]
    special = np.isin(ids, (tokenizer.cls_id, tokenizer.sep_id))
    assert special.sum() == 3 and not np.any(np.array(tags)[special])
    names = ["Ada Lovelace", "after dinner", "Anne of Cleves", "Cleves"]
    assert [(text.replace(" ", ""), kind) for text, kind in spans_of(tokenizer, ids, tags)] == [
        (name.replace(" ", ""), 1 if name == "after dinner" else 2) for name in names
    ]


def test_a_row_s_tags_are_those_of_the_blocks_of_the_same_text(shared_data: Path) -> None:
    tokenizer, finder = tokenizer_of("unigram"), SpanFinder("capitals; regex:LONG=[a-z]{9,}")
    lines = (shared_data / "text/enwiki2015/wiki_00").read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if 200 < len(line) < 2000 and line.isascii() and not line.startswith("<")][:60]
    maker = RowsWithSpans(lambda _: [], tokenizer, finder, "en", "sentencex")
    block_maker = BlockMaker(tokenizer, "en", "sentencex", 10_000, finder)
    differing = total = 0
    for text in texts:
        (record,) = block_maker([(text, False, b"")]).records[False]
        features = example_pb2.Example.FromString(record).features.feature
        ids = features["input_ids"].int64_list.value
        expected = np.frombuffer(features["span_tags"].bytes_list.value[0], np.uint8)
        found = np.array(maker.tags(list(ids)))
        differing, total = differing + np.count_nonzero(found != expected), total + len(ids)
    assert total > 5_000 and differing < total / 100  # 0.5%: sentences that join otherwise


def test_tags_of_no_piece_are_none() -> None:
    tokenizer = tokenizer_of("wordpiece")
    maker = RowsWithSpans(lambda _: [], tokenizer, SpanFinder("capitals"), "en", "sentencex")
    assert maker.tags([tokenizer.cls_id, tokenizer.sep_id]) == [0, 0]
    assert [key for key, _ in groupby(maker.tags([tokenizer.cls_id, *tokenizer.tokenize("a b")]))] == [0]


def test_rules_that_need_the_text_as_it_was_written_are_named(tmp_path: Path) -> None:
    rules = "capitals; file:spans.jsonl; sentence"
    uncased, cased = tokenizer_of("uncased"), tokenizer_of("wordpiece")
    assert without_effect(rules, cased) == ["file:spans.jsonl"]
    write("nfkc", [TEXT] * 4, tmp_path)  # its tokenizer.json has a normalizer for lower case
    for lowercasing in (uncased, read_tokenizer(tmp_path)[0]):
        assert without_effect(rules, lowercasing) == ["capitals", "file:spans.jsonl"]
    maker = RowsWithSpans(lambda _: [], uncased, SpanFinder("capitals"), "en", "sentencex")
    assert not any(maker.tags([uncased.cls_id, *uncased.tokenize(TEXT), uncased.sep_id]))
