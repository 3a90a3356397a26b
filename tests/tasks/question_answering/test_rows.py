"""Windows of questions: the reference's algorithm, word for word, and what must hold for every text."""

import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.tasks.question_answering import files as question_answering
from spanbert_jax.tasks.question_answering.files import Question
from spanbert_jax.tasks.question_answering.rows import QuestionRowMaker, max_context, windows
from spanbert_jax.tasks.rows import Rows, build_rows, make_rows
from spanbert_jax.text.tokenizer import Tokenizer, wordpiece_from_vocab
from tests.support.texts_and_tokenizers import KINDS, TEXTS, tokenizer_of

LENGTH, STRIDE, MAX_QUESTION = 24, 5, 6


@st.composite
def examples(draw: st.DrawFn) -> Question:
    """A question whose answer is anywhere in its context, or nowhere."""
    context = draw(TEXTS)
    first = draw(st.integers(0, len(context)))
    text = context[first : draw(st.integers(first, len(context)))]
    answers = ((first, text),) if text else ()
    return Question("id", draw(TEXTS), context, answers, impossible=not text, gold_texts=(text,) if text else ())


def featuriser(kind: str, labelled: bool = True) -> QuestionRowMaker:
    return QuestionRowMaker(tokenizer_of(kind), LENGTH, STRIDE, MAX_QUESTION, labelled)


def window_with_most_context(spans: list[tuple[int, int]], piece: int) -> int:
    """spans: (first piece, count) of each window."""
    best, best_score = -1, -1.0
    for number, (begin, count) in enumerate(spans):
        end = begin + count - 1
        if begin <= piece <= end:
            score = min(piece - begin, end - piece) + 0.01 * count
            if score > best_score:
                best, best_score = number, score
    return best


def literal_rows(tokenizer: Tokenizer, example: Question) -> list[dict[str, Any]]:
    """The algorithm as BERT's run_squad.py states it, one piece and one window at a time."""
    question = tokenizer.tokenize(example.question)[:MAX_QUESTION]
    pieces, offsets = tokenizer.tokenize_with_offsets(example.context)
    room = LENGTH - len(question) - 3
    spans: list[tuple[int, int]] = []
    begin = 0
    while True:
        count = min(len(pieces) - begin, room)
        spans.append((begin, count))
        if begin + count == len(pieces):
            break
        begin += min(count, STRIDE)
    answer: list[int] = []
    for first, text in example.answers[:1]:
        wanted = set(range(first, first + len(text)))
        answer = [i for i, (start, end) in enumerate(offsets) if wanted & set(range(start, end))]
    rows = []
    for number, (begin, count) in enumerate(spans):
        row: dict[str, Any] = {
            "input_ids": [tokenizer.cls_id, *question, tokenizer.sep_id],
            "token_type_ids": [0] * (len(question) + 2),
            "start_char": [-1] * (len(question) + 2),
            "end_char": [-1] * (len(question) + 2),
            "max_context": [0] * (len(question) + 2),
            "answer_start": 0,
            "answer_end": 0,
            "cut": int(len(tokenizer.tokenize(example.question)) > MAX_QUESTION),
        }
        for piece in range(begin, begin + count):
            best = window_with_most_context(spans, piece)
            if answer and answer[0] >= begin and answer[-1] < begin + count:
                row["answer_start"] = row["answer_start"] or (len(row["input_ids"]) if piece == answer[0] else 0)
                row["answer_end"] = row["answer_end"] or (len(row["input_ids"]) if piece == answer[-1] else 0)
            row["input_ids"].append(pieces[piece])
            row["token_type_ids"].append(1)
            row["start_char"].append(offsets[piece][0])
            row["end_char"].append(offsets[piece][1])
            row["max_context"].append(int(best == number))
        for name, last in (("input_ids", tokenizer.sep_id), ("token_type_ids", 1), ("max_context", 0)):
            row[name].append(last)
        row["start_char"].append(-1)
        row["end_char"].append(-1)
        rows.append(row)
    return rows


def test_question_and_text_have_the_one_type_of_a_model_with_one() -> None:
    made = QuestionRowMaker(tokenizer_of("wordpiece"), LENGTH, STRIDE, MAX_QUESTION, True, token_types=1)
    ((row, *_),) = made([Question("id", "Where?", "Rome is in Italy.")])
    assert set(row["token_type_ids"]) == {0} and len(row["token_type_ids"]) == len(row["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(st.lists(examples(), min_size=1, max_size=3))
def test_windows_are_those_of_the_algorithm_stated_piece_by_piece(kind: str, drawn: list[Question]) -> None:
    expected = [literal_rows(tokenizer_of(kind), example) for example in drawn]
    assert featuriser(kind)(drawn) == expected
    nothing = {"answer_start": 0, "answer_end": 0}
    assert featuriser(kind, labelled=False)(drawn) == [[{**row, **nothing} for row in rows] for rows in expected]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(examples())
def test_every_piece_is_in_a_window_and_in_one_of_them_with_most_context(kind: str, example: Question) -> None:
    pieces, offsets = tokenizer_of(kind).tokenize_with_offsets(example.context)
    rows = featuriser(kind)([example])[0]
    question = rows[0]["token_type_ids"].count(0)
    owned: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        assert len(row["input_ids"]) <= LENGTH
        assert {len(value) for value in row.values() if isinstance(value, list)} == {len(row["input_ids"])}
        inside = [i for i, start in enumerate(row["start_char"]) if start >= 0]
        assert inside == list(range(question, len(row["input_ids"]) - 1))
        assert [row["input_ids"][i] for i in inside] == pieces[number * STRIDE :][: len(inside)]
        assert not any(row["max_context"][i] for i in range(len(row["input_ids"])) if i not in inside)
        owned += [
            (row["input_ids"][i], row["start_char"][i], row["end_char"][i]) for i in inside if row["max_context"][i]
        ]
    assert sorted(owned) == sorted((id, *chars) for id, chars in zip(pieces, offsets, strict=True))


def test_most_context_is_the_algorithms_whatever_the_sizes() -> None:
    # Lengths decide only where they differ by more than 100 pieces.
    long = [(430, 300, 128), (517, 389, 128), (600, 445, 150)]
    for pieces, room, stride in [*itertools.product(range(60), range(4, 12), range(1, 5)), *long]:
        spans = windows(pieces, room, stride)
        counted = [(first, last - first) for first, last in spans]
        owners = [window_with_most_context(counted, piece) for piece in range(pieces)]
        expected = [[int(owners[i] == number) for i in range(*span)] for number, span in enumerate(spans)]
        assert max_context(spans) == expected


def test_a_long_text_in_numbers() -> None:
    context = "a b c d e f g h i j k l m n o p q r s t"  # 20 pieces; windows of 24 - 2 - 3 = 19, which are 2
    rows = featuriser("wordpiece")([Question("id", "ab", context, ((38, "t"),))])[0]
    assert [len(row["input_ids"]) for row in rows] == [24, 4 + 15 + 1]
    # Piece 5 has no text before it in the second window, and piece 12 is 6 from the first one's end.
    assert rows[0]["max_context"] == [0] * 4 + [1] * 12 + [0] * 7 + [0]
    assert rows[1]["max_context"] == [0] * 4 + [0] * 7 + [1] * 8 + [0]
    assert [(row["answer_start"], row["answer_end"]) for row in rows] == [(0, 0), (18, 18)]


def test_an_answer_that_begins_inside_a_piece_takes_that_piece() -> None:
    context = "1234 cat\r\nthe\u00a0cat"
    for answer, pieces in {
        "23": "23",
        "at": "cat",
        " cat\r\n": "cat",
        "at\r\nth": "cat\r\nthe",
        "e\u00a0c": None,
    }.items():
        example = Question("id", "?", context, ((context.index(answer), answer),))
        row = featuriser("wordpiece")([example])[0][0]
        covered = context[row["start_char"][row["answer_start"]] : row["end_char"][row["answer_end"]]]
        assert covered == (pieces or "the\u00a0cat")


def test_the_first_answer_is_learnt_and_one_without_pieces_is_none() -> None:
    both = Question("id", "?", "the cat the", ((8, "the"), (0, "the")))
    space = Question("id", "?", "the  cat", ((3, "  "),))
    rows = [rows[0] for rows in featuriser("wordpiece")([both, space])]
    assert [(row["answer_start"], row["answer_end"]) for row in rows] == [(5, 5), (0, 0)]


def test_an_empty_text_has_one_row() -> None:
    row = featuriser("unigram")([Question("id", "", "")])[0][0]
    tokenizer = tokenizer_of("unigram")
    assert row["input_ids"] == [tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id]
    assert row["token_type_ids"] == [0, 0, 1]


def same(ours: Rows, theirs: Rows) -> None:
    assert ours.plain.keys() == theirs.plain.keys() and ours.ragged.keys() == theirs.ragged.keys()
    for name, values in ours.plain.items():
        np.testing.assert_array_equal(values, theirs.plain[name])
    for name, columns in ours.ragged.items():
        for values, others in zip(columns, theirs.ragged[name], strict=True):
            np.testing.assert_array_equal(values, others)


def test_rows_do_not_depend_on_the_number_of_processes() -> None:
    random = np.random.default_rng(1)
    contexts = [" ".join(random.choice(["the", "cat", "é👩", "a\r\nb"], 40)) for _ in range(90)]
    made = [Question(str(i), f"cat {i}", contexts[i // 4], ((0, contexts[i // 4][:3]),)) for i in range(330)]
    featurise = featuriser("unigram")
    assert pickle.loads(pickle.dumps(featurise))(made[:9]) == featurise(made[:9])
    one = make_rows(featurise(made))
    assert len(one) > 2 * len(made) and np.count_nonzero(one.plain["answer_start"]) > 300
    for workers in (1, 2):
        same(make_rows(build_rows(made, featurise, workers, lambda share: None)), one)


def test_processes_that_make_windows_need_neither_jax_nor_tensorflow() -> None:
    script = (
        "import sys\n"
        "for name in ('jax', 'flax', 'tensorflow', 'tensorflow_datasets', 'torch'): sys.modules[name] = None\n"
        "import spanbert_jax.tasks.question_answering.rows"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_squads_answers_are_the_text_of_their_pieces(shared_data: Path) -> None:
    source = shared_data / "squad" / "train-v1.1-subset.json"
    asked, _ = question_answering.read(str(source), "train")
    asked = asked[::8]
    tokenizer = wordpiece_from_vocab(shared_data / "vocab" / "bert-base-cased-vocab.txt", lowercase=False)
    answers = {
        qa["id"]: qa["answers"][0]["text"]
        for article in json.loads(source.read_text())["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    }
    exact = labelled = 0
    for example, rows in zip(asked, QuestionRowMaker(tokenizer, 128, 32, 64, True)(asked), strict=True):
        texts = {
            example.context[row["start_char"][row["answer_start"]] : row["end_char"][row["answer_end"]]]
            for row in rows
            if row["answer_start"]
        }
        assert len(texts) <= 1
        labelled += len(texts)
        assert all(answers[example.id] in text for text in texts)
        exact += answers[example.id] in texts
    assert len(asked) > 1400 and labelled > 0.995 * len(asked)
    assert exact > 0.98 * labelled
