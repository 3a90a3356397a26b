"""Every shape of file gives its rows with nothing lost, and what is wrong is told with its line."""

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spanbert_jax.corpus import tfds_source
from spanbert_jax.errors import UserError
from spanbert_jax.tasks.example_files import Contents, Role
from spanbert_jax.tasks.text_classification.files import LabelledText, columns_of, parse, read
from tests.support.labelled_tfds import prepare_tfds

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).map(lambda text: text + "x")
ON_DISK = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, content: str) -> str:
    data = content.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)
    return str(path)


# As GLUE ships them: columns, headers or none, quotes that nothing closes, CoLA's mark, MRPC's BOM, MNLI's five labels.
GLUE_FILES = {
    "cola": ('gj04\t1\t\tThe "sailors rode.\nks08\t0\t*\tIt was.\n', [("0", 'The "sailors rode.', None, "1")]),
    "sst2": ("sentence\tlabel\nhide new secretions \t0\n", [("0", "hide new secretions ", None, "0")]),
    "mrpc": (
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t70\t71\t" Yes , he said .\tNo .\r\n',
        [("0", '" Yes , he said .', "No .", "1")],
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n7\t1\t2\tHow?\tWhy?\t1\n",
        [("7", "How?", "Why?", "1")],
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "3\tmain\tMSRvid\t2012\t0001\tnone\tnone\tA plane.\tA jet.\t4.800\n",
        [("3", "A plane.", "A jet.", 4.8)],
    ),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
        "9\t1\t1c\tslate\t(\t(\t(\t(\tOne.\tTwo.\tneutral\tneutral\tentailment\tneutral\tneutral\tneutral\n",
        [("9", "One.", "Two.", "neutral")],
    ),
    "qnli": ("index\tquestion\tsentence\tlabel\n4\tWho?\tHe.\tentailment\n", [("4", "Who?", "He.", "entailment")]),
    "rte": ("index\tsentence1\tsentence2\tlabel\n5\tA.\tB.\tnot_entailment\n", [("5", "A.", "B.", "not_entailment")]),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t1\n", [("0", "A.", "B.", "1")]),
}


@pytest.mark.parametrize("task", GLUE_FILES)
@pytest.mark.parametrize("name", ["dev_matched.tsv", "train.tsv.gz"])
def test_the_files_of_all_nine_glue_tasks_are_read_as_they_are(tmp_path: Path, task: str, name: str) -> None:
    content, expected = GLUE_FILES[task]
    examples, warnings = read(write(tmp_path / name, content), task=task)
    assert examples[:1] == [LabelledText(*row) for row in expected] and warnings == []
    assert len(examples) == (2 if task == "cola" else 1)


@pytest.mark.parametrize(
    "header",
    [
        ["sentence_source", "label", "label_notes", "sentence"],  # as many columns as GLUE's rows without a header
        ["sentence", "label"],
        ["id", "sentence", "label"],
    ],
)
@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_cola_with_a_header_is_read_by_its_names(tmp_path: Path, header: list[str], delimiter: str) -> None:
    rows = [dict.fromkeys(header, "x") | {"id": f"n{i}", "sentence": f"S{i}.", "label": str(i)} for i in range(2)]
    lines = [header, *([row[name] for name in header] for row in rows)]
    path = write(tmp_path / "a.tsv", "".join(delimiter.join(line) + "\n" for line in lines))
    ids = ["n0", "n1"] if "id" in header else ["0", "1"]
    for role in ("train", "predict"):
        examples, warnings = read(path, role, task="cola")
        labels = ["0", "1"] if role == "train" else [None, None]
        assert [(one.id, one.text, one.label) for one in examples] == list(
            zip(ids, ("S0.", "S1."), labels, strict=True)
        )
        assert warnings == []


@pytest.mark.parametrize(
    ("task", "content"),
    [
        ("cola", "index\tsentence\n0\tBill whistled.\n"),
        ("qqp", "id\tquestion1\tquestion2\n0\tBill whistled.\tWhy?\n"),
        ("sst2", "index\tsentence\n0\tBill whistled.\n"),
    ],
)
def test_test_sets_without_labels_are_read_to_predict_and_refused_to_train(
    tmp_path: Path, task: str, content: str
) -> None:
    path = write(tmp_path / "test.tsv", content)
    examples, _ = read(path, "predict", task=task)
    assert [(one.id, one.text, one.label) for one in examples] == [("0", "Bill whistled.", None)]
    with pytest.raises(UserError, match=r"test.tsv, line 2: no '(label|is_duplicate)', only '(index|id)'"):
        read(path, task=task)


@pytest.mark.parametrize(
    ("folder", "name", "count"),
    [
        ("sst2", "train", 60614),
        ("sst2", "dev", 6735),
        ("sst2", "test", 872),
        ("rte", "train", 2127),
        ("rte", "dev", 277),
    ],
)
def test_real_glue_files_are_read_whole(shared_data: Path, folder: str, name: str, count: int) -> None:
    path = shared_data / folder / f"{name}.tsv"
    examples, warnings = read(str(path), task=folder)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [[one.text, one.second, one.label] for one in examples] == [
        [row["sentence"], None, row["label"]]
        if folder == "sst2"
        else [row["sentence1"], row["sentence2"], row["label"]]
        for row in rows
    ]
    assert len(examples) == count and warnings == []


def test_rows_that_real_sets_are_known_for_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    broken = header + "1\t1\t2\tHow?\tWhy?\t1\n2\t3\t4\tWas he\n real?\tWho?\t0\n3\t5\t6\tWhen?\t\t0\n"
    examples, warnings = read(write(tmp_path / "train.tsv", broken), task="qqp")
    assert [one.id for one in examples] == ["1", "3"]
    assert warnings == [
        f"2 row(s) have too few columns and are left out; the first: {tmp_path}/train.tsv, line 3",
        f"1 row(s) have an empty text; the first: {tmp_path}/train.tsv, line 5",
    ]
    mnli = "sentence1\tsentence2\tgold_label\nA\tB\t-\nA\tC\tneutral\n"
    examples, warnings = read(write(tmp_path / "m.tsv", mnli), task="mnli")
    assert [one.second for one in examples] == ["C"] and "no gold label" in warnings[0] and "line 2" in warnings[0]


@ON_DISK
@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=8))
@pytest.mark.parametrize(("end", "quoting"), [("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)])
def test_csv_and_json_lines_give_the_texts_that_were_written(
    tmp_path: Path, end: str, quoting: Any, rows: list[Any]
) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end, quoting=quoting).writerows(
        [("class", "premise", "note", "claim"), *((c, a, "", b) for a, b, c in rows)]
    )
    own = {"text": "premise", "second": "claim", "label": "class"}
    expected = [LabelledText(str(i), a, b, c) for i, (a, b, c) in enumerate(rows)]
    assert read(write(tmp_path / "a.csv", file.getvalue()), **own)[0] == expected
    lines = [json.dumps({"premise": a, "claim": b, "class": c}) + end for a, b, c in rows]
    assert read(write(tmp_path / "a.jsonl.gz", "".join(lines)), **own)[0] == expected


@ON_DISK
@given(rows=st.lists(st.tuples(TEXTS, TEXTS).filter(lambda row: not set("\t\n") & set("".join(row))), min_size=1))
def test_tab_separated_rows_keep_quotes_and_odd_line_ends_inside_of_texts(tmp_path: Path, rows: list[Any]) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    assert [(one.text, one.label) for one in read(path)[0]] == rows


def test_ids_come_from_the_file_and_integers_are_labels(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", '{"id": "a", "text": "x", "label": 1}\n\n{"id": 7, "text": "\\ud83d", "label": "1"}\n'
    )
    assert read(path)[0] == [LabelledText("a", "x", None, "1"), LabelledText("7", "\ufffd", None, "1")]


@pytest.mark.parametrize(
    ("name", "content", "task", "message"),
    [
        ("a.tsv", "", "custom", "a.tsv has nothing in it; expected a header that names the columns 'text', 'label'"),
        ("a.tsv", "text\tlabel\n", "custom", "a.tsv has no rows"),
        ("a.tsv", "text\tlabel\na\tb\nc\n", "custom", r"line 3: 1 columns, but the header has 2 \(text, label\)"),
        ("a.tsv", "sentence\tlabel\na\tb\tc\n", "sst2", "line 2: 3 columns"),
        ("a.tsv", "id\tquestion1\nx\ty\tz\n", "qqp", "line 2: 3 columns"),
        ("a.tsv", "id\tqid1\nx\ty\tz\n", "qqp", "names the columns 'question1', 'question2', 'is_duplicate', set"),
        ("a.csv", 'text,label\n"a\nb",1\nc\n', "custom", "line 4: 1 columns, but the header has 2"),
        ("a.csv", 'text,label\na,1\n"b,1\nc,2\n', "custom", "line 3: not CSV"),
        ("a.tsv", "gj04\tok\t*\tIt was.\n", "cola", "without a header, CoLA's four columns, .*label, mark, sentence"),
        ("a.tsv", "body\tlabel\na\tb\n", "custom", r"line 1 'body.tlabel' and line 2 'a.tb'; expected a header"),
        (
            "a.csv",
            "text;label\na;b\n",
            "custom",
            "line 1 'text;label' and line 2 'a;b'; .* set apart by TABs or commas",
        ),
        ("a.txt", "A film.\nTo see, twice.\n", "custom", "line 1 'A film.' and line 2 'To see, twice.'; expected a h"),
        ("a.txt", "[laughs] A film.\n", "custom", r"line 1 '\[laughs\] A film.'; expected a header"),
        ("a.tsv", "text\tlabel\ttext\na\tb\tc\n", "custom", "line 1: the header has 'text' twice"),
        ("a.tsv", "text\tlabel\na\t\n", "custom", "line 2: the label in 'label' is ''"),
        ("a.jsonl", '{"text": "a", "label": 0.5}', "custom", "line 1: the label in 'label' is 0.5"),
        ("a.jsonl", '{"text": "a", "label": true}', "custom", "line 1: 'label' is true"),
        ("a.jsonl", '{"text": 3, "label": "b"}', "custom", "line 1: 'text' is 3; expected 'text' with a value of "),
        ("a.jsonl", '{"text": "a", "label": "b"}\n{', "custom", "line 2: not JSON"),
        ("a.jsonl", '{"text": "a", "label": "b"}\n[1]', "custom", "line 2: found a JSON list; expected objects"),
        ("a.jsonl", '{"text": "a", "label": ', "custom", "a.jsonl: not JSON"),
        ("a.tsv", '[{"a": ' + "[" * 100_000, "custom", "a.tsv: not JSON that can be read"),
        ("a.tsv", "id\ttext\tlabel\n1\ta\tb\n1\tc\td\n", "custom", "line 3: the id '1' has come before"),
        ("a.tsv", "sentence1\tsentence2\tscore\na\tb\thigh\n", "stsb", "line 2: 'score' is 'high', which is no number"),
        ("a.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\n", "stsb", "line 2: 'score' is 'nan', which is no number"),
        ("a.tsv", "text\tlabel\n", "sst5", "unknown classification task 'sst5'"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, name: str, content: str, task: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / name, content), task=task)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "a.tsv",
            b"text\tlabel\na\tb\n\xe9\tc\n",
            r"a.tsv, line 3: byte 15 \(0xe9\) is not UTF-8; convert it: iconv -f LATIN1",
        ),
        ("a.tsv", "text\tlabel\n".encode("utf-16"), "a.tsv, line 1: is UTF-16, not UTF-8; .* -f UTF-16 "),
        (
            "a.tsv.gz",
            gzip.compress(b"text\tlabel\n" + b"a\tb\n" * 9, mtime=0)[:-9],
            r"a.tsv.gz, after line \d+: broken gzip",
        ),
    ],
)
def test_bytes_that_are_no_text_are_told(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / name))


TABLE = [("text", "label"), ("A film, to see.", "1"), ("Boring.", "0")]
CONTENTS = {
    "tsv": "".join("\t".join(row) + "\n" for row in TABLE).encode(),
    "csv": b'\xef\xbb\xbftext,label\r\n"A film, to see.",1\r\nBoring.,0\r\n',
    "lines": "".join(json.dumps(dict(zip(TABLE[0], row, strict=True))) + "\n" for row in TABLE[1:]).encode(),
    "list": json.dumps([dict(zip(TABLE[0], row, strict=True)) for row in TABLE[1:]], indent=2).encode(),
}
PACKINGS: dict[str, Any] = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("role", ["train", "dev", "predict"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_what_a_file_holds_and_not_its_name_says_how_it_is_read(tmp_path: Path, kind: str, role: Role) -> None:
    label = (lambda value: None) if role == "predict" else str
    expected = [LabelledText(str(i), text, None, label(value)) for i, (text, value) in enumerate(TABLE[1:])]
    for packing, name in zip(PACKINGS, ("a.txt", "a.csv", "a.jsonl", "a.tsv"), strict=True):
        (tmp_path / name).write_bytes(PACKINGS[packing](CONTENTS[kind]))
        assert read(str(tmp_path / name), role)[0] == expected
    assert read(Contents("standard input", CONTENTS[kind]), role)[0] == expected


def test_quotes_tell_the_csv_of_one_column(tmp_path: Path) -> None:
    for content, texts in (
        ('text\n"A film, to see."\n"""Boring"""\n', ["A film, to see.", '"Boring"']),
        ('text\nA film, to see.\n"Boring" it is.\n', ["A film, to see.", '"Boring" it is.']),
    ):
        assert [one.text for one in read(write(tmp_path / "a.txt", content), "predict")[0]] == texts


def test_plain_text_is_an_example_a_line_to_predict_where_nothing_else_is_in_the_file(tmp_path: Path) -> None:
    text = "[laughs] A film.\n\nTo see, twice, \t really.\r\nYes, well.\n"
    expected = [
        LabelledText("1", "[laughs] A film.", None, None),
        LabelledText("3", "To see, twice, \t really.", None, None),
        LabelledText("4", "Yes, well.", None, None),
    ]
    for task in ("custom", "sst2", "cola"):
        assert read(write(tmp_path / "a.txt", text), "predict", task=task) == (expected, [])
        assert read(Contents("standard input", text.encode()), "predict", task=task) == (expected, [])
    for line in ("one,two", "a book " * 40_000):
        assert [one.text for one in read(Contents("standard input", line.encode()), "predict")[0]] == [line.strip()]
    with pytest.raises(
        UserError, match=r"expected a header .* or plain text, an example a line, in a .txt or on stand"
    ):
        read(write(tmp_path / "a.md", text), "predict")
    for other in ("review\tstars\nGood.\t5\n", 'review,stars\n"Good, well.",5\n'):
        with pytest.raises(UserError, match=r"line 1 'review.*stars' and line 2 .*; expected a header that names"):
            read(write(tmp_path / "a.txt", other), "predict")
    with pytest.raises(UserError, match="names the columns 'sentence1', 'sentence2', set apart"):
        read(write(tmp_path / "a.txt", text), "predict", task="rte")


def test_one_record_is_parsed_with_its_place_in_errors() -> None:
    one, two = columns_of("custom", "text", "", "label"), columns_of("rte", "", "", "")
    assert parse("A film. ", "request 1", "7", one) == LabelledText("7", "A film.", None, None)
    assert parse({"text": "A film.", "id": 3}, "request 1", "7", one) == LabelledText("3", "A film.", None, None)
    assert parse({"sentence1": "A", "sentence2": "B", "label": "x"}, "request 1", "7", two, "dev").label == "x"
    with pytest.raises(
        UserError, match=r"standard input, line 3: 'A' is no example; expected a header .*'sentence2', set"
    ):
        parse("A", "standard input, line 3", "7", two)
    with pytest.raises(UserError, match="request 1: no 'sentence2', only 'sentence1'"):
        parse({"sentence1": "A"}, "request 1", "7", two)


def test_what_is_neither_file_nor_tfds_name_is_told_without_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfds_source, "find_builder", None)
    with pytest.raises(UserError, match=f"{tmp_path} is a directory; name a file in it"):
        read(str(tmp_path))
    with pytest.raises(UserError, match=r"trian.tsv does not exist, and no TFDS name that this task reads \(glue\)"):
        read("trian.tsv", task="sst2")
    with pytest.raises(UserError, match="glue/sst2 does not exist; give the path"):
        read("glue/sst2", task="custom")


def test_a_tfds_set_that_is_nowhere_says_where_it_was_sought(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tfds_source, "STORAGE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(UserError) as caught:
        read("glue/sst2", task="sst2")
    message = str(caught.value)
    assert message.startswith("glue/sst2 is no file: no prepared TFDS dataset 'glue/sst2' was found. Tried: ")
    assert tfds_source.BUCKET in message and "Connection refused" in message and "corpus" not in message
    assert message.endswith("Set TFDS_DATA_DIR to where it was prepared, or name a file")


@pytest.mark.parametrize("task", ["sst2", "stsb", "rte", "mnli"])
def test_glue_from_tfds_gives_the_texts_in_order_and_the_labels_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    folder = tmp_path / {"sst2": "SST-2", "stsb": "STS-B", "rte": "RTE", "mnli": "MNLI"}[task]
    folder.mkdir()
    header, row = GLUE_FILES[task][0].splitlines()
    for split, count in (("train", 3), ("dev", 2), ("test", 1)):
        for part in ("_matched", "_mismatched") if task == "mnli" and split != "train" else ("",):
            write(folder / f"{split}{part}.tsv", "\n".join([header, *[row] * count]) + "\n")
    if task == "sst2":
        write(folder / "test.tsv", "index\tsentence\n0\tx\n")
    prepare_tfds(f"glue/{task}", str(tmp_path), tmp_path, monkeypatch)
    (_, text, second, label), *_ = GLUE_FILES[task][1]
    for role, count in (("train", 3), ("dev", 2), ("predict", 2)):
        examples, warnings = read(f"glue/{task}", role, task=task)
        assert sorted(examples, key=lambda one: one.id) == [
            LabelledText(str(i), text, second, None if role == "predict" else label) for i in range(count)
        ]
        assert warnings == []
    assert len(read(f"glue/{task}:train[:2]", "dev", task=task)[0]) == 2
    with pytest.raises(UserError, match=f"is GLUE's {task}, but the task is cola; name the data glue/cola"):
        read(f"glue/{task}", task="cola")
    with pytest.raises(UserError, match=f"glue/{task} has no split 'tset', only "):
        read(f"glue/{task}:tset", task=task)
    if task == "sst2":
        with pytest.raises(UserError, match=r"example 0 has no label \(-1\)"):
            read("glue/sst2:test", "dev", task="sst2")
