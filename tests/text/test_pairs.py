"""Pairs of texts: the rules of SpanBERT's code on the same draws, their shares, and tasks in which every document
finds another."""

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.text import pairs as module
from spanbert_jax.text.documents import Document, hash_text, in_share
from spanbert_jax.text.pairs import Lengths, Pair, Segment, make_pairs, pair_tasks


def documents_of(*sentences: Sequence[int], first: int = 0) -> list[Lengths]:
    return [Lengths(hash_text(f"document {first + i}"), list(lengths)) for i, lengths in enumerate(sentences)]


Piece = tuple[int, int]  # (document, place)


def pieces_of(segment: Segment) -> list[Piece]:
    return [(segment.document, place) for place in range(segment.start, segment.stop)]


def sizes_of(pair: Pair) -> tuple[int, int]:
    return pair.first.stop - pair.first.start, pair.second.stop - pair.second.start


def reference(documents: Sequence[Lengths], limit: int) -> list[tuple[list[Piece], list[Piece], bool]]:
    """The rules on lists of pieces (document, place), with the draws of the implementation in their order: a document's
    target, then for each chunk the end of A, the label, the other document and its first sentence, and the cuts."""
    texts: list[list[list[Piece]]] = []
    for number, (_, lengths) in enumerate(documents):
        places = itertools.count()
        texts.append([[(number, next(places)) for _ in range(length)] for length in lengths])
    found = []
    for number, document in enumerate(texts):
        draw = random.Random(int.from_bytes(documents[number].key, "big")).random
        target = limit
        if draw() < 0.1:
            target = 2 + int(draw() * (limit - 2))
        chunk: list[list[Piece]] = []
        i = 0
        while i < len(document):
            chunk.append(document[i])
            if i == len(document) - 1 or sum(map(len, chunk)) >= target:
                a_end = 1
                if len(chunk) > 2:
                    a_end = 1 + int(draw() * (len(chunk) - 2))  # 1 .. sentences - 2
                a = list(itertools.chain(*chunk[:a_end]))
                label = draw() > 0.5
                if len(chunk) == 1 or label:
                    label = True
                    while True:
                        other = int(draw() * len(texts))
                        if documents[other].key != documents[number].key and texts[other]:
                            break
                    b: list[Piece] = []
                    for sentence in texts[other][int(draw() * len(texts[other])) :]:
                        b += sentence
                        if len(b) >= target - len(a):
                            break
                    i -= len(chunk) - a_end
                else:
                    b = list(itertools.chain(*chunk[a_end:]))
                while len(a) + len(b) > limit:
                    longer = a if len(a) > len(b) else b
                    longer.pop(0 if draw() < 0.5 else -1)
                found.append((a, b, label))
                chunk = []
            i += 1
    return found


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(st.integers(1, 12), max_size=12), min_size=2, max_size=5),
    st.integers(5, 12),
    st.integers(0, 10**6),
)
def test_pairs_are_consecutive_or_of_another_document(sentences: list[list[int]], limit: int, first: int) -> None:
    cut = [[min(length, limit) for length in lengths] for lengths in sentences]
    documents = documents_of(*cut, first=first)
    if sum(map(bool, cut)) == 1:
        with pytest.raises(UserError, match="a single document"):
            list(make_pairs(documents, limit))
        return
    found = list(make_pairs(documents, limit))
    assert [(*map(pieces_of, pair[:2]), pair.is_random) for pair in found] == reference(documents, limit)
    for pair in found:
        assert 2 <= sum(sizes_of(pair)) <= limit and min(sizes_of(pair)) >= 1
        assert pair.is_random is (pair.first.document != pair.second.document)


def test_half_of_the_pairs_are_random_and_every_other_document_is_drawn_as_often() -> None:
    documents = documents_of(*[[10] * 40] * 200)
    found = list(make_pairs(documents, 125))
    elsewhere = [pair for pair in found if pair.is_random]
    assert abs(len(elsewhere) / len(found) - 0.5) < 3 * 0.5 / np.sqrt(len(found))
    drawn = np.bincount([pair.second.document for pair in elsewhere], minlength=200)
    assert abs(np.var(drawn) / drawn.mean() - 1) < 0.4  # a Poisson law's
    starts = np.array([pair.second.start // 10 for pair in elsewhere])
    assert abs(starts.mean() - 19.5) < 3 * 11.5 / np.sqrt(len(elsewhere))
    # A tenth of the documents aim at 2 to 124 pieces, and the others at 125, which 13 sentences have.
    of = [list(group) for _, group in itertools.groupby(found, lambda pair: pair.first.document)]
    following = [[sum(sizes_of(pair)) for pair in pairs[:-1] if not pair.is_random] for pairs in of]
    aimed = [max(sizes) for sizes in following if sizes]
    assert set(aimed) <= {*range(10, 130, 10), 125} and 0.03 < np.mean(np.array(aimed) <= 110) < 0.17


def test_pieces_are_cut_off_at_both_ends_of_the_longer_text() -> None:
    """Two sentences of 60 pieces in a row of 61: about as many pieces are cut at the front as at the back."""
    documents = documents_of(*[[60, 60]] * 400)
    front, back = [], []
    for pair in make_pairs(documents, 61):
        if not pair.is_random:
            assert sizes_of(pair) in ((30, 31), (31, 30))
            front += [pair.first.start, pair.second.start - 60]
            back += [60 - pair.first.stop, 120 - pair.second.stop]
    assert abs(np.mean(front) - np.mean(back)) < 1 and np.mean(front) > 13


def test_documents_of_one_sentence_are_all_followed_by_another_document() -> None:
    found = list(make_pairs(documents_of([5], [6], [7]), 10))
    assert len(found) == 3 and all(pair.is_random for pair in found)


def texts_of(*sizes: int) -> list[Document]:
    return [Document(f"{i} ".ljust(size, "x"), hash_text(str(i)), None) for i, size in enumerate(sizes)]


@settings(deadline=None)
@given(st.lists(st.integers(5, 60), min_size=12, max_size=80), st.integers(1, 100))
def test_tasks_hold_every_document_once_with_another_of_its_side(sizes: list[int], chars: int) -> None:
    documents, share = texts_of(*sizes), 0.3
    sides = [in_share(document.key, share) for document in documents]
    tasks = list(pair_tasks(documents, share, fractions := [], chars))
    assert len(fractions) == len(tasks)
    for side in (False, True):
        mine = [task for task in tasks if task[0][1] is side]
        joined = [key for task in mine for _, _, key in task]
        assert joined == [document.key for document, held_out in zip(documents, sides, strict=True) if held_out is side]
        assert all({held_out for _, held_out, _ in task} == {side} for task in mine)
        assert all(len({key for _, _, key in task}) > 1 for task in mine)
        assert all(sum(len(text) for text, _, _ in task) >= chars for task in mine[:-1])


def test_a_side_with_one_document_and_a_document_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = texts_of(*[20] * 4)
    parts = [documents[0]._replace(text="more")] * 3  # of one long document
    with pytest.raises(UserError, match="training has a single document"):
        list(pair_tasks([*parts, documents[0]], 0.0, [], 10))
    monkeypatch.setattr(module, "MOST_CHARS", 100)
    with pytest.raises(UserError, match="a document has more than 100 characters"):
        list(pair_tasks(parts * 20, 0.0, [], 10))
    assert [len(task) for task in pair_tasks([*parts, documents[1], documents[2]], 0.0, [], 10)] == [5]
