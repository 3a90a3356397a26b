"""Rows of a question and a window of its text: [CLS] question [SEP] window [SEP], token type 1 from the window on.

Invariant: every piece of a text is in at least one window. In exactly one window its `max_context` is 1: the one that
has the most context of the piece, counted on the side that has less (code: run_squad.py, _check_is_max_context).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from spanbert_jax.tasks.question_answering.files import Question
from spanbert_jax.tasks.rows import Row
from spanbert_jax.text.tokenizer import Tokenizer

Offsets = list[tuple[int, int]]  # the characters [start, end) of each piece


@dataclasses.dataclass(frozen=True)
class QuestionRowMaker:
    """Makes one row or more of each question.

    A row has lists with one value for each piece: "input_ids"; "token_type_ids"; "start_char" and "end_char", the
    piece's characters [start, end) in the context, -1 outside the window; "max_context". And it has numbers:
    "answer_start" and "answer_end", the positions of the answer's first and last piece, both 0 where the window lacks a
    part of the answer; "cut", 1 where the question was cut.
    """

    tokenizer: Tokenizer
    length: int  # pieces of a row, special ones included; at least max_question + 3 + stride
    stride: int  # pieces from one window to the next
    max_question: int  # pieces; longer questions lose their end
    labelled: bool  # whether rows have the answers' positions; otherwise these are 0
    token_types: int = 2  # the model's; where it is 1, question and text have type 0

    def __call__(self, examples: Sequence[Question]) -> list[list[Row]]:
        """The rows of each question, in the order of their windows; an empty text has one window."""
        questions = self.tokenizer.tokenize_batch([example.question for example in examples])
        contexts = dict.fromkeys(example.context for example in examples)  # several questions share one
        encoded = {context: self.tokenizer.tokenize_with_offsets(context) for context in contexts}
        return [
            self._rows(example, question, *encoded[example.context])
            for example, question in zip(examples, questions, strict=True)
        ]

    def _rows(self, example: Question, question: list[int], pieces: list[int], offsets: Offsets) -> list[Row]:
        cls, sep = self.tokenizer.cls_id, self.tokenizer.sep_id
        head = [cls, *question[: self.max_question], sep]
        outside, starts, ends = [-1] * len(head), [start for start, _ in offsets], [end for _, end in offsets]
        spans = windows(len(pieces), self.length - len(head) - 1, self.stride)
        answer = answer_pieces(example, offsets) if self.labelled else None
        rows: list[Row] = []
        for (first, last), context in zip(spans, max_context(spans), strict=True):
            shift = len(head) - first
            whole = answer is not None and first <= answer[0] and answer[1] < last
            row: Row = {
                "input_ids": [*head, *pieces[first:last], sep],
                "token_type_ids": [0] * len(head) + [min(self.token_types - 1, 1)] * (last - first + 1),
                "start_char": [*outside, *starts[first:last], -1],
                "end_char": [*outside, *ends[first:last], -1],
                "max_context": [*[0] * len(head), *context, 0],
                "answer_start": answer[0] + shift if answer and whole else 0,
                "answer_end": answer[1] + shift if answer and whole else 0,
                "cut": int(len(question) > self.max_question),
            }
            rows.append(row)
        return rows


def windows(pieces: int, room: int, stride: int) -> list[tuple[int, int]]:
    """The pieces [first, end) of each window of `room` pieces; only the last window may be shorter."""
    last = max(-(-(pieces - room) // stride), 0)  # the number of the first window that reaches the end
    return [(i * stride, min(i * stride + room, pieces)) for i in range(last + 1)]


def max_context(spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """For each window, 1 at the pieces that have their most context in this window, 0 at the others.

    A piece's context in a window is the number of pieces on the side that has fewer, plus 0.01 of the window's length
    (as in BERT). Of equal windows the first one counts.
    """
    pieces = spans[-1][1]
    best, owner = np.full(pieces, -1.0), np.zeros(pieces, np.int64)
    for number, (first, last) in enumerate(spans):
        left = np.arange(last - first)
        score = np.minimum(left, left[::-1]) + 0.01 * (last - first)
        better = score > best[first:last]
        best[first:last][better], owner[first:last][better] = score[better], number
    return [(owner[first:last] == number).astype(int).tolist() for number, (first, last) in enumerate(spans)]


def answer_pieces(example: Question, offsets: Offsets) -> tuple[int, int] | None:
    """The first and the last piece with characters of the question's first answer; None where there is no answer or no
    such piece."""
    if not example.answers:
        return None
    first, text = example.answers[0]
    last = first + len(text)
    covering = [piece for piece, (start, end) in enumerate(offsets) if start < last and first < end and start < end]
    return (covering[0], covering[-1]) if covering else None
