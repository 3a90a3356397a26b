"""Every answer that is returned is the text at its offset, whatever the characters; what is dropped is counted."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.tasks.example_files import Contents, Role
from spanbert_jax.tasks.question_answering.files import Question, parse, read
from tests.support.labelled_tfds import prepare_tfds

# Combining marks, joined emoji, line ends, spaces of all kinds.
ODD = "e\u0301 👩‍👩‍👧 \r\n\u00a0\u2028\u200b\ufeffİß𝒜中\t"
CONTEXTS = st.text(st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"])), min_size=1, max_size=40)
ON_DISK = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, content: Any) -> str:
    """A list as JSON lines, all else as JSON."""
    lines = content if isinstance(content, list) else [content]
    data = "".join(json.dumps(line, ensure_ascii=bool(i % 2)) + "\n" for i, line in enumerate(lines)).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return str(path)


def answer(start: int, text: str) -> dict[str, Any]:
    return {"answer_start": start, "text": text}


def squad(*qas: dict[str, Any], context: str = "Rome is a city.") -> dict[str, Any]:
    full = [{"id": str(i), "question": "What?", **qa} for i, qa in enumerate(qas)]
    return {"version": "1.1", "data": [{"title": "Rome", "paragraphs": [{"context": context, "qas": full}]}]}


def mrqa(*detected: tuple[str, list[Any]], context: str = "The U.S. and the u.s. of A") -> list[Any]:
    found = [{"text": text, "char_spans": spans, "token_spans": [[0, 0]]} for text, spans in detected]
    qa = {"qid": "q", "question": "Who?", "question_tokens": [["Who", 0]], "detected_answers": found, "answers": ["US"]}
    return [
        {"header": {"dataset": "X", "split": "train"}},
        {"id": "", "context": context, "context_tokens": [], "qas": [qa]},
    ]


@pytest.mark.parametrize(
    ("name", "count", "impossible"),
    [("train-v1.1-subset.json", 11877, 0), ("dev-v1.1.json", 10570, 0), ("dev-v2.0.json", 11873, 5945)],
)
def test_real_squad_is_read_whole_in_its_order(shared_data: Path, name: str, count: int, impossible: int) -> None:
    path = shared_data / "squad" / name
    examples, warnings = read(str(path), "train" if "train" in name else "dev")
    assert warnings == [] and len(examples) == count and sum(one.impossible for one in examples) == impossible
    rows = [
        (qa["id"], qa["question"], paragraph["context"], [(a["answer_start"], a["text"]) for a in qa["answers"]])
        for article in json.loads(path.read_text("utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    assert [(one.id, one.question, one.context, list(one.answers)) for one in examples] == rows
    assert all(one.gold_texts == tuple(text for _, text in one.answers) for one in examples)
    questions, warnings = read(str(path), "predict")
    assert [(one.id, one.answers) for one in questions] == [(row[0], ()) for row in rows] and warnings == []


@ON_DISK
@given(context=CONTEXTS, data=st.data())
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_squad_answers_are_the_text_at_their_offsets_and_others_are_counted(
    tmp_path: Path, name: str, context: str, data: st.DataObject
) -> None:
    place = st.integers(0, len(context) - 1)
    spans = data.draw(st.lists(st.tuples(place, place).map(sorted), max_size=3))
    right = [(first, context[first : last + 1]) for first, last in spans]
    wrong = data.draw(st.lists(st.tuples(st.integers(-50, 50), st.text(max_size=3)), max_size=3))
    wrong = [
        (start, text) for start, text in wrong if not (start >= 0 and text and context[start:][: len(text)] == text)
    ]
    mixed = data.draw(st.permutations(right + wrong))
    path = write(tmp_path / name, squad({"answers": [answer(*one) for one in mixed]}, context=context))
    (example,), warnings = read(path, "dev")
    assert [one for one in mixed if one in right] == list(example.answers)
    assert all(example.context[start : start + len(text)] == text != "" for start, text in example.answers)
    assert example.context == context and example.gold_texts == tuple(text for _, text in mixed)
    dropped = [line for line in warnings if "not at their offset" in line]
    assert dropped == (
        [f"{len(wrong)} answer(s) are not at their offset and are left out; the first: {path}, question 0"]
        if wrong
        else []
    )


@ON_DISK
@given(context=CONTEXTS, data=st.data())
def test_mrqa_answers_are_the_context_s_own_text_in_order(tmp_path: Path, context: str, data: st.DataObject) -> None:
    place = st.integers(0, len(context) - 1)
    spans = data.draw(st.lists(st.tuples(place, place).map(sorted), min_size=1, max_size=4))
    detected = [(f" {context[a : b + 1]}.", [[a, b], [a, b]]) for a, b in spans]
    (example,), warnings = read(write(tmp_path / "a.jsonl.gz", mrqa(*detected, context=context)))
    assert example.answers == tuple(sorted({(a, context[a : b + 1]) for a, b in spans})) and warnings == []


def test_mrqa_spans_include_their_ends_and_normalised_texts_match_the_context(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", mrqa(("u.s", [[17, 20], [4, 7]]), ("the us", [[0, 7], [9, 11]]), ("US", [[20, 99]]))
    )
    (example,), warnings = read(path)
    assert example == Question(
        "q",
        "Who?",
        "The U.S. and the u.s. of A",
        ((0, "The U.S."), (4, "U.S."), (17, "u.s.")),
        gold_texts=("US",),
    )
    assert warnings == [f"2 answer(s) are not at their offset and are left out; the first: {path}, line 2, question q"]


def test_a_training_question_whose_answers_are_misplaced_is_left_out_and_a_dev_question_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", squad({"answers": [answer(1, "Rome")]}, {"answers": [answer(0, "Rome")]}))
    examples, warnings = read(path, "train")
    assert [one.id for one in examples] == ["1"]
    assert warnings == [
        f"1 answer(s) are not at their offset and are left out; the first: {path}, question 0",
        f"1 question(s) have no answer in their context and are left out; the first: {path}, question 0",
    ]
    examples, warnings = read(path, "dev")
    assert [(one.id, one.answers, one.gold_texts) for one in examples] == [
        ("0", (), ("Rome",)),
        ("1", ((0, "Rome"),), ("Rome",)),
    ]
    assert warnings[1:] == [
        f"1 question(s) have no answer in their context, nor are they marked impossible; the first: {path}, question 0"
    ]


HUGGING_FACE = {"text": ["Rome"], "answer_start": [0]}  # its form of the answers


@pytest.mark.parametrize("role", ["train", "dev"])
@pytest.mark.parametrize("mark", [{}, {"is_impossible": False}])
def test_a_question_without_answers_has_none_in_training_and_evaluation_alike(
    tmp_path: Path, role: Role, mark: dict[str, Any]
) -> None:
    qas = [{"answers": [answer(0, "Rome")]}, {"answers": [], **mark}, {"answers": [], **mark}]
    path = write(tmp_path / "a.json", squad(*qas))
    examples, warnings = read(path, role)
    assert [(one.id, one.impossible, one.gold_texts) for one in examples] == [
        ("0", False, ("Rome",)),
        ("1", True, ()),
        ("2", True, ()),
    ]
    assert warnings == [
        "2 question(s) have no answers and no mark is_impossible: they count as without an answer; the first: "
        f"{path}, question 1"
    ]
    with pytest.raises(
        UserError, match=r"a.json: 2 of 3 questions have no answer, the first is 1; .*configs/squad2.py"
    ):
        read(path, role, unanswerable=False)


@pytest.mark.parametrize("role", ["train", "dev", "predict"])
def test_one_object_a_question_is_read_from_json_lines_a_list_and_one_alone(tmp_path: Path, role: Role) -> None:
    rows = [
        {"id": "a", "title": "T", "context": "Rome", "question": "Where?", "answers": HUGGING_FACE},
        {"context": "Rome", "question": "When?", "answers": {"text": [], "answer_start": []}},
    ]
    found = [(0, "Rome")] if role != "predict" else []
    impossible = role != "predict"
    first = Question("a", "Where?", "Rome", tuple(found), title="T", gold_texts=tuple(text for _, text in found))
    expected = [first, Question("1", "When?", "Rome", impossible=impossible)]
    for name, content in (("a.txt", rows), ("a.jsonl", json.dumps(rows, indent=1)), ("a.xml", json.dumps(rows))):
        path = tmp_path / name
        path.write_text(content) if isinstance(content, str) else write(path, content)
        assert read(str(path), role)[0] == expected
    assert read(write(tmp_path / "one", rows[0]), role)[0] == [first]
    assert read(Contents("standard input", json.dumps(rows[0], indent=2).encode()), role)[0] == [first]


def test_one_record_is_parsed_with_its_place_in_errors() -> None:
    record = {"question": "Where?", "context": "Rome"}
    assert parse(record, "request 1", "7") == Question("7", "Where?", "Rome")
    assert parse({**record, "id": 3}, "request 1", "7").id == "3"
    with pytest.raises(UserError, match=r"standard input, line 3: 'Where[?]' is no question with its text; give each"):
        parse("Where?", "standard input, line 3", "7")
    with pytest.raises(UserError, match="request 1: no 'context', only 'question'"):
        parse({"question": "?"}, "request 1", "7")
    with pytest.raises(UserError, match=r"request 1\.answers: 2 in 'text', 1 in 'answer_start'"):
        parse({**record, "answers": {"text": ["a", "b"], "answer_start": [0]}}, "request 1", "7", "dev")


def test_impossible_questions_stay_and_plausible_answers_do_not_count(tmp_path: Path) -> None:
    qa = {"is_impossible": True, "answers": [], "plausible_answers": [answer(0, "Rome")]}
    examples, warnings = read(write(tmp_path / "a.json", squad(qa)))
    assert [(one.impossible, one.answers, one.title) for one in examples] == [(True, (), "Rome")] and warnings == []


def test_half_characters_take_one_place_and_offsets_stay(tmp_path: Path) -> None:
    context = "\ud83d \ude00 end"
    (tmp_path / "a.json").write_text(
        json.dumps(squad({"answers": [answer(4, "end"), answer(2, "\ude00")]}, context=context))
    )
    (example,), warnings = read(str(tmp_path / "a.json"))
    assert example.answers == ((4, "end"), (2, "\ufffd")) and example.context == "\ufffd \ufffd end" and warnings == []


def test_plain_questions_are_read_to_predict_alone(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", [{"id": "x", "question": "Who?", "context": "A"}, {"question": "What?", "context": "B"}]
    )
    assert read(path, "predict") == ([Question("x", "Who?", "A"), Question("1", "What?", "B")], [])
    with pytest.raises(UserError, match="line 1: no 'answers', only 'id', 'question', 'context'"):
        read(path, "train")
    examples, _ = read(write(tmp_path / "m.jsonl", mrqa(("US", [[4, 7]]))), "predict")
    assert [(one.id, one.answers) for one in examples] == [("q", ())]
    no_answers = write(tmp_path / "a.json", squad({}))
    assert [one.question for one in read(no_answers, "predict")[0]] == ["What?"]
    with pytest.raises(UserError, match=r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: no 'answers', only 'id', 'question'"):
        read(no_answers, "dev")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "a.json has nothing in it; expected SQuAD's JSON"),
        (
            "a.json",
            "Where is Rome?\n\nIn Italy.",
            "line 1 'Where is Rome[?]' and line 3 'In Italy.'; expected SQuAD's JSON",
        ),
        ("a.json", '{"data": [', "a.json: not JSON"),
        ("a.json", '{"data": [\n\n{]', "a.json, line 3: not JSON"),
        ("a.json", '{"a": 1}\n{"a": 2}', "a.json, line 1: no 'question', only 'a'"),
        ("a.json", "[]", "a.json has no questions"),
        ("a.json", '[{"header": {}}, 1]', r"a.json, \[1\]: found a JSON int; expected objects with named fields"),
        ("a.json", {"data": []}, "a.json has no questions"),
        ("a.json", {"version": "1"}, "a.json, line 1: no 'question', only 'version'"),
        ("a.json", {"data": ["x"]}, r"a.json, data\[0\]: str instead of an object with 'paragraphs'"),
        ("a.json", {"data": [{"paragraphs": [{}]}]}, r"data\[0\]\.paragraphs\[0\]: no 'context'"),
        ("a.json", squad({"answers": [{"text": "Rome"}]}), r"qas\[0\]\.answers: no 'answer_start', only 'text'"),
        ("a.json", squad({"answers": [answer(0.0, "Rome")]}), "'answer_start' is 0.0; .* type int"),
        ("a.json", squad({"answers": [answer(True, "Rome")]}), "'answer_start' is true"),
        ("a.json", squad({"answers": [answer(0, "Rome")], "is_impossible": True}), "is_impossible, but has answers"),
        ("a.json", squad({"answers": [], "is_impossible": "yes"}), "'is_impossible' is \"yes\""),
        ("a.json", squad({"answers": [], "id": "0"}, {"answers": [], "id": 0}), "question 0: .* the same id"),
        ("a.json", squad({"answers": [answer(3, "Rome")]}), "has no question with an answer at its offset"),
        ("a.jsonl", [{"header": {}}, {"context": "A"}], "a.jsonl, line 2: no 'question'"),
        ("a.jsonl", [{"context": "A", "qas": [{"question": "?"}]}], "a.jsonl, line 1: no 'qid', only 'question'"),
        ("a.jsonl", mrqa(("US", [4, 7])), r"a.jsonl, line 2: 4 in 'char_spans' is no \[first"),
        ("a.jsonl", mrqa(("US", [[4, "7"]])), r"\[4, '7'\] in 'char_spans'"),
        ("a.jsonl", mrqa(("US", [[4, 7]])) * 2, "a.jsonl, line 4, question q: a question before has the same id"),
    ],
)
def test_a_bad_file_is_told_with_its_place(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    else:
        write(path, content)
    with pytest.raises(UserError, match=message):
        read(str(path))


@pytest.mark.parametrize("version", ["v1.1", "v2.0"])
def test_squad_from_tfds_gives_what_its_files_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    qas = [{"answers": [answer(0, "Rome"), answer(10, "city")], "is_impossible": False}]
    qas += [{"answers": [answer(3, "Rome")], "is_impossible": False}]
    qas += [{"answers": [], "is_impossible": True}] if version == "v2.0" else []
    files = {"train": squad(*qas), "dev": squad(*qas, context="Rome, the 👩‍👩‍👧 city.")}
    paths = {role: write(tmp_path / f"{role}.json", content) for role, content in files.items()}
    prepare_tfds(f"squad/{version}", paths, tmp_path, monkeypatch)
    for role, path in paths.items():
        expected, said = read(path, role)
        examples, warnings = read(f"squad/{version}", role)
        assert sorted(examples, key=lambda one: one.id) == expected
        assert [line.partition(";")[0] for line in warnings] == [line.partition(";")[0] for line in said] != []


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_mrqa_from_tfds_gives_what_its_files_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str
) -> None:
    lines = mrqa(("u.s", [[17, 20], [4, 7]]), ("the us", [[0, 7]]), ("US", [[1, 2]]))
    paths = {role: write(tmp_path / f"{role}.jsonl", lines) for role in ("train", "validation")}
    prepare_tfds("mrqa/squad", paths, tmp_path, monkeypatch, file_format)
    for role in ("train", "dev", "predict"):
        expected, said = read(paths["train"], role)
        examples, warnings = read("mrqa/squad", role)
        assert examples == expected and len(expected[0].answers) == (0 if role == "predict" else 3)
        assert len(warnings) == len(said) == (0 if role == "predict" else 1)
    with pytest.raises(UserError, match="mrqa/squad has no split 'test', only train, validation"):
        read("mrqa/squad:test")
