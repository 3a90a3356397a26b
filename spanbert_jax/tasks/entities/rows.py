"""Rows of sentences for the token head, which tags words, and the span head, which labels spans of words.

Invariant: each word of a sentence is tagged in exactly one row, and spans that begin with the word are labelled in that
row alone, however long the sentence is. Every word has at least one piece.
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set

from spanbert_jax.tasks.rows import Row, widen
from spanbert_jax.text.tokenizer import Tokenizer

Span = tuple[int, int, str]  # first word, word after the last, type


@dataclasses.dataclass(frozen=True)
class WordExample:
    """A sentence with its entities, and with words around the sentence that may fill up a row."""

    id: str
    words: tuple[str, ...]
    spans: tuple[Span, ...] = ()  # the entities, which may nest
    before: tuple[str, ...] = ()  # words of the document before the sentence
    after: tuple[str, ...] = ()  # and after it
    text: str = ""  # from which the words were cut; "" where it is the words joined by spaces
    places: tuple[tuple[int, int], ...] = ()  # the characters [start, end) of each word in `text`


@dataclasses.dataclass(frozen=True)
class WordRowMaker(abc.ABC):
    """Makes the rows of each `WordExample`: [CLS], consecutive words of the sentence and words around them, [SEP].

    Every word is encoded by itself. A row tags the words [start, end) of the sentence, which in most rows are all of
    them. Rows have the columns input_ids, token_type_ids and "cut", which is 1 where a tagged word is longer than a row
    and lost its end; a subclass adds the columns of its head.
    """

    tokenizer: Tokenizer
    length: int  # pieces, [CLS] and [SEP] included
    labels: tuple[str, ...]  # token head: "O" and the tags of IOB2; span head: "O" and the types
    max_width: int  # words in a span

    def __call__(self, examples: Sequence[WordExample]) -> list[list[Row]]:
        """The rows of each example."""
        words = list(dict.fromkeys(word for e in examples for word in (*e.before, *e.words, *e.after)))
        encoded = self.tokenizer.tokenize_batch(words)
        room = self.length - 2
        # A word of control characters alone has no pieces, and gets [UNK].
        pieces = {word: ids[:room] or [self.tokenizer.unk_id] for word, ids in zip(words, encoded, strict=True)}
        cut = {word for word, ids in zip(words, encoded, strict=True) if len(ids) > room}
        return [list(self._rows(example, pieces, cut)) for example in examples]

    def _rows(self, example: WordExample, pieces: Mapping[str, list[int]], cut: Set[str]) -> Iterator[Row]:
        around = [pieces[word] for word in (*example.before, *example.words, *example.after)]
        offset = len(example.before)  # of the sentence in `around`
        sizes = [len(word) for word in around]
        for start, end, reach in self._cuts(sizes[offset : offset + len(example.words)]):
            low, high = widen(sizes, offset + start, offset + reach, self.length - 2)
            ids, first = [self.tokenizer.cls_id], []
            for word in around[low:high]:
                first.append(len(ids))
                ids += word
            row: Row = {"input_ids": [*ids, self.tokenizer.sep_id], "token_type_ids": [0] * (len(ids) + 1)}
            row["cut"] = int(not cut.isdisjoint(example.words[start:end]))
            first = first[offset + start - low : offset + len(example.words) - low]  # of the slots
            last = [piece + len(pieces[word]) - 1 for piece, word in zip(first, example.words[start:], strict=False)]
            yield row | self._columns(example, start, end, first, last, len(row["input_ids"]))

    @abc.abstractmethod
    def _columns(
        self, example: WordExample, start: int, end: int, first: list[int], last: list[int], length: int
    ) -> Row:
        """The head's columns of a row of `length` pieces that tags the words [start, end).

        first, last: the positions of the first and the last piece of each word from `start` to the row's end.
        """

    def _cuts(self, sizes: list[int]) -> Iterator[tuple[int, int, int]]:
        """(start, end, reach) of each row. A row tags the words [start, end), and has the words up to `reach`, in which
        spans that begin before `end` may end. Where a sentence needs several rows, each keeps a quarter free for the
        words around."""
        room = self.length - 2
        if sum(sizes) <= room:
            yield 0, len(sizes), len(sizes)
            return
        start = reach = 0
        while reach < len(sizes):
            reach, used = start, 0
            while reach < len(sizes):
                used += sizes[reach]
                if used > (room if reach < start + self.max_width else room * 3 // 4):
                    break
                reach += 1
            end = len(sizes) if reach == len(sizes) else max(reach - self.max_width + 1, start + 1)
            yield start, end, reach
            start = end


class TokenRowMaker(WordRowMaker):
    """Rows for the token head. Their columns "label" and "word" (the word's number) have values at the first piece of
    each tagged word, and -1 elsewhere."""

    def _columns(
        self, example: WordExample, start: int, end: int, first: list[int], last: list[int], length: int
    ) -> Row:
        tags = _tags(example)
        label, word = [-1] * length, [-1] * length
        for number, piece in zip(range(start, end), first, strict=False):
            label[piece], word[piece] = self.labels.index(tags[number]), number
        return {"label": label, "word": word}


class SpanRowMaker(WordRowMaker):
    """Rows for the span head. Their slots are the words of the sentence from `start` to the row's end.

    Columns with a value for each slot: "first" and "last", the positions of the slot's first and last piece, or -1;
    "span_1" to "span_N", the label of the span of 1 to N words that begins at the slot, 0 where the span is no entity.
    Columns with one number: "starts", the number of slots at which spans are scored, and "first_word", the number of
    the first slot's word.
    """

    def _columns(
        self, example: WordExample, start: int, end: int, first: list[int], last: list[int], length: int
    ) -> Row:
        labels = {label: number for number, label in enumerate(self.labels)}
        columns = [[0] * length for _ in range(self.max_width)]
        for begins, ends, kind in example.spans:
            if start <= begins < end and ends <= start + len(first) and ends - begins <= self.max_width:
                columns[ends - begins - 1][begins - start] = labels[kind]
        fill = [-1] * (length - len(first))
        return {
            "first": first + fill,
            "last": last + fill,
            **{f"span_{width}": column for width, column in enumerate(columns, start=1)},
            "starts": end - start,
            "first_word": start,
        }


def _tags(example: WordExample) -> list[str]:
    """The words' tags in IOB2; raises ValueError where spans overlap, since a word has one tag."""
    tags = ["O"] * len(example.words)
    for start, end, kind in example.spans:
        if any(tag != "O" for tag in tags[start:end]):
            raise ValueError(
                f"{example.id}: entity {(start, end, kind)} overlaps another; the token head has one a word"
            )
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tags
