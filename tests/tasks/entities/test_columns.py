"""Words, tags and entities come out of every delimiter and scheme as they went in; broken rules are told."""

import gzip
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.metrics import entities
from spanbert_jax.tasks.entities.columns import Layout, Sentence, check_tags, read_columns
from spanbert_jax.tasks.entities.files import read
from spanbert_jax.tasks.entities.rows import WordExample
from spanbert_jax.tasks.example_files import Role, Warnings, read_lines
from tests.support.labelled_tfds import prepare_tfds

Spans = tuple[tuple[int, int, str], ...]
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" \t\r\n"), min_size=1, max_size=5)


def sentences_of(
    path: str | Path, role: Role = "train", scheme: str = "auto", **layout: object
) -> tuple[list[Sentence], list[str]]:
    """The sentences of a file and the warnings of its reading, once `read` has taken it too."""
    columns, warnings = Layout(**layout), Warnings()
    examples, said = read(str(path), role, layout=columns, scheme=scheme)
    found = read_columns(Path(path), read_lines(Path(path)), columns, role != "predict", warnings)
    if role != "predict":
        check_tags(str(path), found, scheme, warnings)
    assert [(one.id, one.words, list(one.spans)) for one in examples] == [
        (str(one.line), one.words, entities.spans(one.tags)) for one in found
    ]
    assert said == warnings.lines()
    return found, said


def entities_of(tags: tuple[str, ...]) -> tuple[tuple[int, int, str], ...]:
    """(first word, the one after the last, type) of each entity."""
    return tuple(entities.spans(tags))


def write(path: Path, content: str) -> str:
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return str(path)


def encode(length: int, spans: Spans, scheme: str) -> list[str]:
    """Tags by the letters of a scheme: its own definition, written span by span."""
    tags = ["O"] * length
    for k, (start, end, kind) in enumerate(spans):
        touches = k > 0 and spans[k - 1][1] == start and spans[k - 1][2] == kind
        begin, inside, last, single = {
            "IOB1": "BIII" if touches else "IIII",
            "IOB2": "BIIB",
            "BILOU": "BILU",
            "IOBES": "BIES",
        }[scheme]
        if scheme == "IOB1":
            single = begin
        for i in range(start, end):
            letter = begin if i == start else inside
            letter = last if i == end - 1 else letter
            letter = single if end - start == 1 else letter
            tags[i] = f"{letter}-{kind}"
        if scheme == "IOB1" and touches:
            tags[start] = f"B-{kind}"
    return tags


@st.composite
def sentences(draw: st.DrawFn) -> list[tuple[list[str], Spans]]:
    drawn = []
    for _ in range(draw(st.integers(1, 5))):
        words = draw(st.lists(WORDS, min_size=1, max_size=8))
        cuts = sorted(draw(st.sets(st.integers(0, len(words)), max_size=6)))
        kinds = [draw(st.sampled_from(["", "PER", "LOC", "I-B"])) for _ in cuts[1:]]
        drawn.append((words, tuple((a, b, kind) for a, b, kind in zip(cuts, cuts[1:], kinds, strict=False) if kind)))
    return drawn


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=sentences(), columns=st.sampled_from([(" ", ""), ("\t", ""), ("\t", "\t"), ("|-|", "|-|"), (" \t ", "")]))
@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BILOU", "IOBES"])
def test_entities_of_every_scheme_and_delimiter_are_read_as_they_were_written(
    tmp_path: Path, scheme: str, drawn: list[tuple[list[str], Spans]], columns: tuple[str, str]
) -> None:
    written, delimiter = columns
    drawn = [([f"x{word}" for word in words], spans) for words, spans in drawn]  # no comment, no -DOCSTART-
    lines: list[str] = []
    for words, spans in drawn:
        tags = encode(len(words), spans, scheme)
        lines += [written.join((word, "NN", tag)) for word, tag in zip(words, tags, strict=True)] + [""]
    path = write(tmp_path / "a.conll", "\n".join(lines))
    for given_scheme in ("auto", "BILOU" if scheme == "IOBES" else scheme):
        found, warnings = sentences_of(path, delimiter=delimiter, scheme=given_scheme)
        assert [(list(one.words), entities_of(one.tags)) for one in found] == drawn and warnings == []
    assert [lines[one.line - 1].startswith(one.words[0]) for one in found] == [True] * len(drawn)


@pytest.mark.parametrize(
    ("name", "count", "documents", "entities"),
    [("wnut17/emerging.dev.conll", 1009, 1, 836), ("bc5cdr/dev.txt", 3949, 500, 9455)],
)
def test_real_files_are_read_whole_and_their_entities_are_seqeval_s(
    shared_data: Path, name: str, count: int, documents: int, entities: int
) -> None:
    path, warnings = shared_data / name, Warnings()
    found = read_columns(path, read_lines(path), Layout(), True, warnings)
    check_tags(name, found, "auto", warnings)
    rows = [line.split("\t") for line in path.read_text("utf-8").split("\n")]
    rows = [row for row in rows if row[-1] and not row[0].startswith("-DOCSTART-")]
    assert [word for one in found for word in one.words] == [row[0] for row in rows]
    assert [tag for one in found for tag in one.tags] == [row[-1] for row in rows]
    assert (len(found), len({one.document for one in found})) == (count, documents)
    assert sum(len(entities_of(one.tags)) for one in found) == entities
    # BC5CDR marks entities of one word with I-, longer ones with B-: neither IOB1 nor IOB2
    said = ["tag(s) break the rules of IOB1, and " in line for line in warnings.lines()]
    assert said == [True] * ("bc5" in name)
    get_entities = pytest.importorskip("seqeval.metrics.sequence_labeling").get_entities
    for one in found:
        assert entities_of(one.tags) == tuple(
            (start, end + 1, kind) for kind, start, end in get_entities(list(one.tags))
        )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["O", *(f"{letter}-{kind}" for letter in "BI" for kind in "XY")]), max_size=12))
def test_tags_against_the_rules_are_read_as_conll_s_scorer_reads_them(tags: list[str]) -> None:
    get_entities = pytest.importorskip("seqeval.metrics.sequence_labeling").get_entities
    assert entities_of(tags) == tuple((start, end + 1, kind) for kind, start, end in get_entities(tags))


def test_conll_2003_s_own_layout_is_read(tmp_path: Path) -> None:
    content = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n\n"
    content += "-DOCSTART- -X- -X- O\n\n-DOCSTART- -X- -X- O\n. . O O\n-DOCSTART-\nEND NN I-NP I-LOC\n"
    path = write(tmp_path / "eng.testa.gz", content.replace("I-LOC", "B-LOC"))
    expected = [
        Sentence(("EU", "rejects"), ("B-ORG", "O"), 0, 3),
        Sentence(("Peter",), ("B-PER",), 0, 6),
        Sentence((".",), ("O",), 1, 11),
        Sentence(("END",), ("B-LOC",), 2, 13),
    ]
    assert sentences_of(path) == (expected, [])
    chunks, _ = sentences_of(path, tag_column=2)
    assert [one.tags for one in chunks] == [("B-NP", "B-VP"), ("B-NP",), ("O",), ("I-NP",)]


def test_a_number_sign_is_a_word_wherever_it_has_the_columns_of_one(tmp_path: Path) -> None:
    content = "# newdoc\n# text = # tag\n#\tO\n#tag\tB-X\n# no comment\tO\n\n# text\nword\tO\n\n#\tO\n"
    path = write(tmp_path / "a.conll", content)
    found, warnings = sentences_of(path, delimiter="\t")
    assert found == [
        Sentence(("#", "#tag", "# no comment"), ("O", "B-X", "O"), 0, 3),
        Sentence(("word",), ("O",), 0, 8),
        Sentence(("#",), ("O",), 0, 10),
    ]
    assert warnings == [f"3 line(s) that begin with # before a sentence are comments; the first: {path}, line 1"]


@pytest.mark.parametrize("name", ["a.conll", "a.txt"])
@pytest.mark.parametrize("role", ["train", "dev", "predict"])
@pytest.mark.parametrize("tags", [("B-PER", "O"), ("_", "_"), ("B-PER", "O", "O", "O")])
def test_a_comment_with_as_many_columns_as_words_is_a_comment_in_every_role(
    tmp_path: Path, role: Role, name: str, tags: tuple[str, ...]
) -> None:
    comments = ["# id 0001\tdomain=en", "# newdoc _ _", "# a = b", "# sent_id = 7"]
    rows = [f"w{i} _ _ {tag}" for i, tag in enumerate(tags)]
    lines = [line for comment in comments for line in (comment, *rows, "")] + ["# _ _ O", *rows]
    path = write(tmp_path / name, "\n".join(lines))
    if tags[0] == "_" and (role != "predict" or name == "a.txt"):  # no columns that anything tells from words of a text
        if role != "predict":
            with pytest.raises(UserError, match=r"expected columns, a word and its tag on every line"):
                read(path, role)
        return
    found, warnings = read(path, role)
    words = tuple(f"w{i}" for i in range(len(tags)))
    hash_is_word = ("#", *words)  # with a tag, or with the columns of words without tags
    assert [one.words for one in found] == [*[words] * 4, hash_is_word]
    assert warnings == [f"4 line(s) that begin with # before a sentence are comments; the first: {path}, line 1"]


def test_a_word_may_hold_spaces_that_are_not_blanks(tmp_path: Path) -> None:
    found, _ = sentences_of(write(tmp_path / "a.txt", "a\u00a0b O\r\n\u2028 B-X\r\n \t\r\n\u3000\tO \r\n"))
    assert [(one.words, one.tags) for one in found] == [(("a\u00a0b", "\u2028"), ("O", "B-X")), (("\u3000",), ("O",))]


def test_words_without_tags_are_read_to_predict(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "EU\nrejects\n\nPeter\n")
    expected = [Sentence(("EU", "rejects"), (), 0, 1), Sentence(("Peter",), (), 0, 4)]
    assert sentences_of(path, "predict") == (expected, [])
    with pytest.raises(UserError, match="line 1 'EU' and line 2 'rejects'; expected columns, a word and its tag"):
        read(path, "dev")
    germeval = write(tmp_path / "b.tsv", "#\thttp://x\n1\tEU\tB-ORG\tO\n2\t#\tO\tO\n")
    assert sentences_of(germeval, tag_column=2, word_column=1)[0] == [Sentence(("EU", "#"), ("B-ORG", "O"), 0, 2)]


@pytest.mark.parametrize(
    ("tags", "scheme", "line"),
    [
        ("O I-X O", "IOB2", 2),
        ("B-X I-Y", "IOB2", 2),
        ("I-X B-X O B-X", "IOB1", 4),
        ("I-X B-Y", "IOB1", 2),
        ("U-X B-X O", "BILOU", 3),
        ("O B-X I-X", "BILOU", 3),
        ("B-X L-Y", "BILOU", 2),
        ("U-X L-X", "auto", 2),
        ("B-X S-X", "auto", 2),
        ("B-X L-X E-X", "auto", 3),
        ("I-X U-X", "IOB1", 2),
        ("O NN", "auto", 2),
        ("O B_X", "auto", 2),
        ("O M-X", "auto", 2),
        ("O B-", "auto", 2),
    ],
)
def test_tags_that_break_their_scheme_are_told_with_their_line(
    tmp_path: Path, tags: str, scheme: str, line: int
) -> None:
    lines = "".join(f"word {tag}\n" for tag in tags.split())
    with pytest.raises(UserError, match=rf"a.txt, line {line}: .*{re.escape(tags.split()[line - 1])}"):
        read(write(tmp_path / "a.txt", lines), scheme=scheme)


def test_auto_warns_of_mixed_iob_and_names_the_first_of_the_fewer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "w B-X\nw I-X\n\nw O\nw I-Y\n\nw B-X\nw O\nw B-X\n")
    found, warnings = sentences_of(path)
    assert [entities_of(one.tags) for one in found] == [((0, 2, "X"),), ((1, 2, "Y"),), ((0, 1, "X"), (2, 3, "X"))]
    assert len(warnings) == 1
    assert warnings[0].startswith("1 tag(s) break the rules of IOB2, and 3 those of IOB1; ")
    assert warnings[0].endswith(f"the first: {path}, line 5: I-Y after O")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "a.txt has no words"),
        (
            "Anna lives in Rome.\nShe sings.\n",
            {},
            "line 1 'Anna lives in Rome.' and line 2 'She sings.'; expected columns",
        ),
        ("\n \n-DOCSTART- O\n", {}, "a.txt has no words"),
        ("# a comment\n", {}, "line 1: 'comment' is no tag"),
        ("#tag\na O\n", {}, "line 1: column 0 of 1 would be both word and tag"),
        ("a O\n\n#tag\n", {}, "line 3: 1 columns, but line 1 has 2"),
        ("a O\n\nb_X b_X\n", {}, "line 3: 'b_X' is no tag"),
        ("a O\nb NN O\n", {}, "line 2: 3 columns, but line 1 has 2"),
        ("a O\nNew York B-X\n", {}, "line 2: 3 columns, .* another delimiter, such as TAB"),
        ("a O\nb\n", {}, "line 2: 1 columns"),
        ("a O\n# no comment here\n", {}, "line 2: 4 columns"),
        ("a\tO\n\tO\n", {"delimiter": "\t"}, "line 2: the word is empty"),
        ("a\tO\nb\tO\n", {"tag_column": 2}, "line 1: no column 2; the line has 2 columns, counted from 0"),
        ("a\tO\nb\tO\n", {"tag_column": -3}, "line 1: no column -3"),
        ("a O\n", {"scheme": "IOBX"}, "unknown tagging scheme 'IOBX'"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, content: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sentences_of(write(tmp_path / "a.txt", content), **options)


def test_conll_2003_from_tfds_gives_what_its_files_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {
        "train": "EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n\n",
        "valid": "EU NNP B-NP B-ORG\n\n",
    }
    for name, content in {**contents, "test": contents["valid"]}.items():
        write(tmp_path / f"{name}.txt", content)
    prepare_tfds("conll2003", tmp_path, tmp_path, monkeypatch)

    def words_and_spans(found: Sequence[WordExample]) -> list[tuple]:
        return sorted((one.words, one.spans) for one in found)

    for role, name in (("train", "train"), ("dev", "valid"), ("predict", "valid")):
        expected, _ = read(str(tmp_path / f"{name}.txt"), role)
        examples, warnings = read("conll2003", role)
        assert words_and_spans(examples) == words_and_spans(expected) and warnings == []
