"""Pairs of texts for next-sentence prediction: a text of a document, and either the text that follows it or one of
another document.

Invariant: the pairs of a document depend on its key, on the lengths of its sentences and on the other documents of its
task. The tasks depend on the documents, in their order, and on the share that is held out. So pairs are the same for
any number of processes, and a held-out document is never paired with one for training.

The rules are those of SpanBERT's code (span_bert_dataset.py:129-232, break mode "doc"), in which a chunk of whole
sentences is cut into A and B. There are three departures. The other document is drawn from those of the task, among
which the code never draws the corpus's last one. A document never pairs with itself or with a copy of itself. A
sentence of more pieces than a row has was cut before (`packing.cut`).
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from spanbert_jax.errors import UserError
from spanbert_jax.text.documents import Document, in_share

PAIR = "pair"  # the feature of a record: the number of pieces in A, and the label (1: B is of another document)
SHORT_SHARE = 0.1  # of the documents: their chunks aim at fewer pieces than a row has (the code's short_seq_prob)
MOST_CHARS = 50_000_000  # of a single document; the documents of a task are held in memory

Task = list[tuple[str, bool, bytes]]  # the documents of one call of `BlockMaker`: (text, whether held out, key)


class Lengths(NamedTuple):
    """A document, in numbers."""

    key: bytes  # as `Document.key`
    sentences: list[int]  # the number of pieces in each sentence, 1 or more


class Segment(NamedTuple):
    """Pieces start .. stop - 1 of a document."""

    document: int  # its place among the documents of the task
    start: int
    stop: int


class Pair(NamedTuple):
    """The two segments of a row."""

    first: Segment
    second: Segment
    is_random: bool  # whether `second` is of another document


def make_pairs(documents: Sequence[Lengths], limit: int) -> Iterator[Pair]:
    """The pairs of all documents, in order; the two segments of a pair have at most `limit` pieces together.

    Raises UserError where fewer than two documents that are not copies of each other have sentences.
    """
    if len({document.key for document in documents if document.sentences}) == 1:
        raise UserError(one_document("a task"))
    for place in range(len(documents)):
        yield from _pairs_of(documents, place, limit)


def _pairs_of(documents: Sequence[Lengths], place: int, limit: int) -> Iterator[Pair]:
    key, lengths = documents[place]
    draws = random.Random(int.from_bytes(key, "big"))
    ends = [0, *itertools.accumulate(lengths)]  # of the sentences, each the beginning of the next one
    target = 2 + _below(draws, limit - 2) if draws.random() < SHORT_SHARE else limit
    begin = 0
    while begin < len(lengths):
        end = begin + 1  # of the chunk: sentences begin .. end - 1
        while end < len(lengths) and ends[end] - ends[begin] < target:
            end += 1
        split = begin + (1 if end - begin <= 2 else 1 + _below(draws, end - begin - 2))
        first = Segment(place, ends[begin], ends[split])
        is_random = draws.random() > 0.5 or end - begin == 1
        if is_random:
            second = _elsewhere(documents, key, target - (first.stop - first.start), draws)
            begin = split  # the rest of the chunk is put back
        else:
            second = Segment(place, ends[split], ends[end])
            begin = end
        yield Pair(*_truncated(first, second, limit, draws), is_random)


def _elsewhere(documents: Sequence[Lengths], key: bytes, wanted: int, draws: random.Random) -> Segment:
    """Whole sentences of a document with another key, from a random one on, until they have `wanted` pieces."""
    other = _below(draws, len(documents))
    while documents[other].key == key or not documents[other].sentences:
        other = _below(draws, len(documents))
    lengths = documents[other].sentences
    first = last = _below(draws, len(lengths))
    size = lengths[first]
    while size < wanted and last + 1 < len(lengths):
        last += 1
        size += lengths[last]
    start = sum(lengths[:first])
    return Segment(other, start, start + size)


def _truncated(first: Segment, second: Segment, limit: int, draws: random.Random) -> tuple[Segment, Segment]:
    """The segments with at most `limit` pieces together: one piece after another is taken from the longer one, or from
    `second` where both are as long, at its front or at its back."""
    spans = [[first.start, first.stop], [second.start, second.stop]]
    sizes = [stop - start for start, stop in spans]
    for _ in range(sum(sizes) - limit):
        longer = 0 if sizes[0] > sizes[1] else 1
        sizes[longer] -= 1
        if draws.random() < 0.5:
            spans[longer][0] += 1
        else:
            spans[longer][1] -= 1
    return Segment(first.document, *spans[0]), Segment(second.document, *spans[1])


def _below(draws: random.Random, stop: int) -> int:
    """Uniform on 0 .. stop - 1. Python promises that only `random.random` gives the same numbers in all versions."""
    return int(draws.random() * stop)


def pair_tasks(
    documents: Iterable[Document], held_out: float, fractions: list[float | None], chars: int
) -> Iterator[Task]:
    """Groups documents into tasks of at least `chars` characters in which every document finds another one.

    A task has documents for training alone or held-out documents alone, and at least two that are not copies of each
    other. Within either kind, the order is that of the corpus. held_out, fractions: as for `corpus.build.make_tasks`.
    Raises UserError where there is a single document of a kind, or a document has more than 50 million characters.
    """
    ready: dict[bool, Task] = {}  # whole tasks, which wait for another one, lest too few documents are left over
    growing: dict[bool, Task] = {False: [], True: []}
    sizes = {False: 0, True: 0}  # characters in the growing tasks
    fraction = None
    for document in documents:
        side = in_share(document.key, held_out)
        task, fraction = growing[side], document.fraction
        task.append((document.text, side, document.key))
        sizes[side] += len(document.text)
        if sizes[side] >= chars and _is_varied(task):
            if side in ready:
                fractions.append(fraction)
                yield ready[side]
            ready[side], growing[side], sizes[side] = task, [], 0
        elif sizes[side] > MOST_CHARS:
            raise UserError(
                f"config.corpus.pairs is True, and a document has more than {MOST_CHARS:,} characters; separate the "
                "corpus's documents (config.corpus.document_break), or set config.corpus.pairs=False"
            )
    for side, rest in growing.items():
        whole = ready.get(side, [])
        if rest and not whole and not _is_varied(rest):
            raise UserError(one_document("evaluation" if side else "training"))
        for task in (whole, rest) if _is_varied(rest) else (whole + rest,):
            if task:
                fractions.append(fraction)
                yield task


def _is_varied(task: Task) -> bool:
    return len({key for _, _, key in task}) > 1


def check_sentences(documents: int, sentences: int) -> None:
    """Raises UserError where so many documents have one sentence each, so that no text follows another."""
    if 0 < documents == sentences:
        raise UserError(
            f"config.corpus.pairs is True, and each of the {documents:,} documents has one sentence, which no other "
            "sentence follows; give longer documents (config.corpus.document_break), a sentence splitter "
            "(--config.corpus.sentences=sentencex), or --config.corpus.pairs=False"
        )


def one_document(of: str) -> str:
    """The message where the documents `of` training, evaluation or a task are a single one."""
    return (
        f"config.corpus.pairs is True, and {of} has a single document, so half of its pairs would lack a text of "
        "another one; give more documents, another --config.corpus.held_out, or --config.corpus.pairs=False"
    )
