"""Both formats give whole words, entities apart from each other, and no character lost; faults are told with an id."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.tasks.example_files import Contents
from spanbert_jax.tasks.relations.files import Entity, RelationSentence, parse, read

TACRED = {
    "id": "e7798fb926b9403cfcd2",
    "docid": "APW_ENG_20101103.0539",
    "relation": "per:title",
    "token": ["At", "-LRB-", "the", "-rsb-", "Sharpton", "-LRB", "chief"],
    "subj_start": 4,
    "subj_end": 5,
    "obj_start": 1,
    "obj_end": 3,
    "subj_type": "PERSON",
    "obj_type": "TITLE",
    "stanford_pos": ["IN"] * 7,
    "stanford_ner": ["O"] * 7,
    "stanford_head": [0] * 7,
    "stanford_deprel": ["dep"] * 7,
}
CHARACTERS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>")


def write(path: Path, content: Any) -> str:
    data = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return str(path)


def words_of(example: RelationSentence, entity: Entity) -> str:
    return "".join(example.words[entity[0] : entity[1]])


def squeeze(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize(("name", "count"), [("TRAIN_FILE.TXT", 8000), ("TEST_FILE_FULL.TXT", 2717)])
def test_real_semeval_files_are_read_whole(shared_data: Path, name: str, count: int) -> None:
    path = shared_data / "semeval2010_task8" / name
    examples, warnings = read(str(path), "train", "semeval")
    assert len(examples) == count and warnings == []
    for example, block in zip(examples, path.read_text("utf-8").strip().split("\n\n"), strict=True):
        number, text, label = re.findall(r'^(\d+)\t"(.*)"\s*\n(.*)\n', block)[0]
        assert (example.id, example.label) == (number, label)
        assert "".join(example.words) == squeeze(re.sub("</?e[12]>", "", text))
        for entity, mark in ((example.subject, "e1"), (example.object, "e2")):
            assert words_of(example, entity) == squeeze(re.findall(f"<{mark}>(.*)</{mark}>", text)[0])


def test_the_two_formats_give_the_same_entities_of_the_same_real_sentences(shared_data: Path) -> None:
    folder = shared_data / "semeval2010_task8"
    tacred, _ = read(str(folder / "tacred_shape_test.json"))
    semeval, _ = read(str(folder / "TEST_FILE_FULL.TXT"), format="semeval")
    same = 0
    for ours, other in zip(tacred, semeval, strict=True):
        assert ours.label == str(other.label).partition("(")[0]
        same += all(
            words_of(ours, getattr(ours, role)) == words_of(other, getattr(other, role))
            for role in ("subject", "object")
        )
    assert same > 0.97 * len(tacred)


def test_tacred_s_ends_are_included_and_its_brackets_are_brackets(tmp_path: Path) -> None:
    words = ("At", "(", "the", "]", "Sharpton", "-LRB", "chief")
    expected = RelationSentence(TACRED["id"], words, (4, 6, "PERSON"), (1, 4, "TITLE"), "per:title")
    assert read(write(tmp_path / "train.json.gz", [TACRED])) == ([expected], [])


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.tuples(*[st.text(CHARACTERS, max_size=12)] * 5), swapped=st.booleans(), end=st.sampled_from(["\n", "\r\n"])
)
def test_semeval_marks_become_ranges_of_whole_words_and_no_character_is_lost(
    tmp_path: Path, parts: tuple[str, ...], swapped: bool, end: str
) -> None:
    before, first, between, second, after = parts
    first, second = f"x{first}", f"{second}y"
    one, two = ("e2", "e1") if swapped else ("e1", "e2")
    text = f"{before}<{one}>{first}</{one}>{between}<{two}>{second}</{two}>{after}"
    path = write(tmp_path / "a.txt", f'12\t"{text}"{end}Cause-Effect(e2,e1){end}Comment: no"{end}{end}')
    ((example,), _) = read(path, format="semeval")
    assert example.words == tuple(word for part in (before, first, between, second, after) for word in part.split())
    entities = (example.object, example.subject) if swapped else (example.subject, example.object)
    assert [example.words[a:b] for a, b, _ in entities] == [tuple(first.split()), tuple(second.split())]
    assert (example.id, example.label) == ("12", "Cause-Effect(e2,e1)")


def test_sentences_without_relations_are_read_to_predict_and_refused_to_train(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", '1\t"<e1>A</e1> in <e2>B</e2>."\n2\t"<e1>C</e1> <e2>D</e2>"\nOther\n')
    expected = [RelationSentence("1", ("A", "in", "B", "."), (0, 1, None), (2, 3, None), None)]
    expected += [RelationSentence("2", ("C", "D"), (0, 1, None), (1, 2, None), None)]
    assert read(path, "predict", "semeval") == (expected, [])
    named = write(tmp_path / "b.txt", '1\t"<e1>A</e1> in <e2>B</e2>."\nCause\n')
    assert read(named, "predict", "semeval") == (expected[:1], [])
    with pytest.raises(UserError, match="id 1: no relation after the sentence"):
        read(path, "train", "semeval")
    plain = {key: TACRED[key] for key in ("id", "token", "subj_start", "subj_end", "obj_start", "obj_end")}
    ((example,), _) = read(write(tmp_path / "a.json", [plain]), "predict")
    assert (example.subject, example.object, example.label) == ((4, 6, None), (1, 4, None), None)
    with pytest.raises(UserError, match="id e7798fb926b9403cfcd2: no 'relation', only 'id', 'token'"):
        read(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subj_end": 7}, "subj_start 4 and subj_end 7 are not a range within the sentence's words 0 to 6"),
        ({"subj_start": -1}, "subj_start -1 and subj_end 5 are not a range"),
        ({"obj_start": 4}, "obj_start 4 and obj_end 3 are not a range"),
        ({"obj_end": 4}, "the subject is words 4 to 5, the object 1 to 4; they must not have words in common"),
        ({"obj_start": 5, "obj_end": 6}, "the subject is words 4 to 5, the object 5 to 6"),
        ({"obj_end": "3"}, "'obj_end' is \"3\"; expected 'obj_end' with a value of type int"),
        ({"subject_type": "PERSON", "e1": 1}, "unknown keys subject_type, e1; TACRED has id, docid"),
        ({"token": "At the"}, "'token' is \"At the\""),
        ({"token": ["At", None]}, "'token' is null"),
        ({"relation": 3}, "'relation' is 3"),
    ],
)
def test_a_bad_tacred_object_is_told_with_its_id(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"a.json, id e7798fb926b9403cfcd2: {message}"):
        read(write(tmp_path / "a.json", [{**TACRED, "id": "first"}, {**TACRED, **change}]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.json has no sentences"),
        ("[]", "a.json has no sentences"),
        ("EU rejects\nGerman call\n", "line 1 'EU rejects' and line 2 'German call'; expected TACRED's JSON, "),
        ({"token": []}, "a.json, line 1: no 'id', only 'token'"),
        ([TACRED, "x"], r"a.json, \[1\]: found a JSON str"),
        ([{"token": []}], r"a.json, \[0\]: no 'id', only 'token'"),
        ([TACRED, TACRED], "a.json, id e7798fb926b9403cfcd2: this id has come before"),
        ('[{"id": 1}\n{', "a.json, line 2: not JSON"),
    ],
)
def test_a_bad_tacred_file_is_told(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "a.json", content))


GOOD = '1\t"<e1>A</e1> in <e2>B</e2>."\nOther\nComment:\n\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n", "a.txt has no sentences"),
        ("Other\n" + GOOD, "line 1: 'Other' is out of place"),
        (GOOD + '2\t"A in B."\nOther\n', "line 5, id 2: the marks are missing"),
        (GOOD + '2\t"<e1>A <e2>B</e2></e1>"\nOther\n', "line 5, id 2: the marks are <e1> <e2> </e2> </e1>;"),
        (GOOD + '2\t"<e1>A</e1> <e1>B</e1>"\nOther\n', "line 5, id 2: the marks are <e1> </e1> <e1> </e1>;"),
        (GOOD + '2\t"<e1> </e1> <e2>B</e2>"\nOther\n', "line 5, id 2: an entity without a word"),
        (GOOD + GOOD, "a.txt, id 1: this id has come before"),
        (GOOD + "Entity-Origin(e1,e2)\n", r"line 5: 'Entity-Origin\(e1,e2\)' is out of place"),
        (GOOD.replace("Other", "Cause-Effect(e1,e1)"), r"line 2: 'Cause-Effect\(e1,e1\)' is out of place"),
        (
            GOOD.replace("Other", "Cause"),
            r"line 2: the relation 'Cause' has no direction; .* Cause\(e1,e2\) or Cause\(",
        ),
        (GOOD.replace('"', ""), r"line 1: '1\\t<e1>A</e1> in <e2>B</e2>\.' is out of place"),
        (GOOD.replace("Other\n", ""), "a.txt, id 1: no relation after the sentence"),
    ],
)
def test_a_bad_semeval_file_is_told_with_its_line_or_id(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "a.txt", content), format="semeval")


def test_a_format_is_told_by_the_content_and_one_whose_metric_is_not_the_run_s_is_refused(tmp_path: Path) -> None:
    lines = "".join(json.dumps({**TACRED, "id": i}) + "\n" for i in range(2))
    for name, content in (("a.TXT", [TACRED]), ("b.txt", lines), ("c", json.dumps(TACRED, indent=1))):
        path = write(tmp_path / name, content)
        examples, _ = read(path)
        assert {one.words[4] for one in examples} == {"Sharpton"} and len(examples) == (2 if name == "b.txt" else 1)
        assert [one.words for one in read(path, "predict", "semeval")[0]] == [one.words for one in examples]
        with pytest.raises(UserError, match=r"is in the format tacred, but .* --config.relation.format=tacred"):
            read(path, "dev", "semeval")
    path = write(tmp_path / "d.json", GOOD)
    with pytest.raises(UserError, match=r"is in the format semeval, but .* --config.relation.format=semeval"):
        read(path, "train")
    assert [one.words for one in read(path, "predict")[0]] == [("A", "in", "B", ".")]


def test_marked_sentences_alone_are_read_to_predict(tmp_path: Path) -> None:
    lines = "The <e1>fire</e1> by <e2>heat</e2>.\n\n<e2>A</e2> in <e1>B C</e1>\n"
    examples, _ = read(Contents("standard input", lines.encode()), "predict")
    assert [(one.id, one.words) for one in examples] == [
        ("1", ("The", "fire", "by", "heat", ".")),
        ("3", ("A", "in", "B", "C")),
    ]
    assert (examples[1].subject, examples[1].object) == ((2, 4, None), (0, 1, None))
    assert parse("<e2>A</e2> in <e1>B C</e1>", "request 1", "3") == examples[1]
    for role in ("train", "dev"):
        with pytest.raises(UserError, match=r"standard input, line 1: 'The <e1>fire.* is out of place"):
            read(Contents("standard input", lines.encode()), role, "semeval")
    with pytest.raises(UserError, match="request 1, id 3: the marks are missing"):
        parse("A in B", "request 1", "3")
    with pytest.raises(UserError, match="request 1: 'A' has no relation; expected TACRED's JSON"):
        parse("A", "request 1", "3", "dev")


def test_an_unknown_format_and_a_missing_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown format 'conll' of relations; it is one of tacred, semeval"):
        read(write(tmp_path / "a.txt", GOOD), format="conll")
    with pytest.raises(UserError, match=r"nowhere\.json does not exist; give the path of a file"):
        read("nowhere.json")
