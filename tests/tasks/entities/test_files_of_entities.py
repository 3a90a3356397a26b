"""What named-entity recognition reads: columns of any scheme, documents, nested entities, plain text, real files."""

import dataclasses
import json
from pathlib import Path

import pytest

from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.tasks.entities.rows import WordExample
from spanbert_jax.tasks.entities.task import task_class
from spanbert_jax.tasks.example_files import Contents, Role
from spanbert_jax.tasks.finetuning import Learnt
from spanbert_jax.tasks.registry import AnyTask
from spanbert_jax.training.metadata import Metadata, from_json
from tests.support.tagging_tasks import TOKENIZER, config_of, rows_of, task_of


def read(config: Config, source: str, role: Role) -> tuple[list[WordExample], list[str]]:
    return task_class(config).read(config, source, role)


def labels(config: Config, examples: list[WordExample]) -> tuple[str, ...]:
    return task_class(config).learn(config, TOKENIZER, examples).labels


def test_columns_of_any_scheme_become_spans_and_labels_are_sorted_tags(tmp_path: Path) -> None:
    files = {
        "IOB1": "a I-PER\nb B-PER\nc I-PER\nd O\n",
        "IOB2": "a B-PER\nb B-PER\nc I-PER\nd O\n",
        "BILOU": "a U-PER\nb B-PER\nc L-PER\nd O\n",
    }
    for scheme, text in files.items():
        (tmp_path / scheme).write_text(text)
        for given_scheme in ("auto", scheme):
            config = config_of("token", scheme=given_scheme)
            (example,), warnings = read(config, str(tmp_path / scheme), "train")
            assert example.words == tuple("abcd") and example.spans == ((0, 1, "PER"), (1, 3, "PER")) and not warnings
            assert labels(config, [example]) == ("B-PER", "I-PER", "O")
            assert labels(config_of("span"), [example]) == ("O", "PER")


def test_documents_lend_their_sentences_as_context_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "x.conll"
    path.write_text("a O\nb O\n\nc O\n\nd O\n\n-DOCSTART- O\n\ne O\n\nf O\n")
    examples, _ = read(config_of("token", document_context=True), str(path), "dev")
    assert [(e.id, "".join(e.before), "".join(e.words), "".join(e.after)) for e in examples] == [
        *[
            ("1", "", "ab", "cd"),
            ("4", "ab", "c", "d"),
            ("6", "abc", "d", ""),
            ("10", "", "e", "f"),
            ("12", "e", "f", ""),
        ]
    ]
    examples, _ = read(config_of("token"), str(path), "dev")
    assert not any(e.before or e.after for e in examples)


def test_a_tfds_set_has_no_documents_and_is_refused_where_they_are_asked_for() -> None:
    config = config_of("token", document_context=True)
    roles: tuple[Role, ...] = ("train", "dev", "predict")
    for role in roles:
        with pytest.raises(
            UserError, match=r"^config\.tagging\.document_context is True, .* TFDS's conll2003, .* nor documents; name"
        ):
            read(config, "conll2003", role)


def test_entities_too_wide_for_the_span_head_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.conll"
    path.write_text("a O\nb B-X\nc I-X\nd I-X\n\ne B-X\nf I-X\ng I-X\nh I-X\n")
    _, warnings = read(config_of("span", max_width=2), str(path), "train")
    assert len(warnings) == 1 and warnings[0].startswith("2 entities are longer than config.tagging.max_width 2 words")
    assert f"{path}, sentence 1, words 1 to 3" in warnings[0]
    assert read(config_of("token", max_width=2), str(path), "train")[1] == []


def test_plain_text_is_a_sentence_a_line_to_predict_for(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("Anna Smith-Lee  lives\r\n\nin\u00a0(Ulm), 😀.\n".encode())
    examples, warnings = read(config_of("token"), str(path), "predict")
    words = [("Anna", "Smith-Lee", "lives"), ("in", "(", "Ulm", ")", ",", "😀", ".")]
    assert [(e.id, e.words) for e in examples] == list(zip("13", words, strict=True))
    assert warnings == [] and all(e.spans == () for e in examples)
    assert [tuple(e.text[start:end] for start, end in e.places) for e in examples] == words
    assert examples[1].text == "in\u00a0(Ulm), 😀."  # the user's own line, not the words joined
    path.write_text("-DOCSTART- O\n\nAnna B-PER\n")
    assert read(config_of("token"), str(path), "predict")[0][0].words == ("Anna",)
    path.write_text("\n \n")
    with pytest.raises(UserError, match=r"x.txt has no words"):
        read(config_of("token"), str(path), "predict")


@pytest.mark.parametrize(
    ("name", "sentences", "types"),
    [
        (
            "wnut17/wnut17train.conll",
            3394,
            {"corporation": 221, "creative-work": 140, "group": 264, "location": 548, "person": 660, "product": 142},
        ),
        ("bc5cdr/train.txt", 3942, None),
    ],
)
def test_real_files_are_read_whole(shared_data: Path, name: str, sentences: int, types: dict[str, int] | None) -> None:
    path = shared_data / name
    examples, warnings = read(config_of("span", document_context=True), str(path), "train")
    assert len(examples) == sentences
    found = [kind for example in examples for _, _, kind in example.spans]
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    tagged = [line for line in lines if len(line) > 1 and line[0] != "-DOCSTART-"]
    assert sum(len(example.words) for example in examples) == len(tagged)
    inside = sum(end - start for example in examples for start, end, _ in example.spans)
    assert inside == sum(line[-1] != "O" for line in tagged)
    if types:
        assert {kind: found.count(kind) for kind in set(found)} == types
    task = task_of("span", examples[:40])
    rows = rows_of(task, examples[:40])
    assert rows.lengths.max() == 32 and sum(rows.plain["starts"]) == sum(len(e.words) for e in examples[:40])
    assert sum("longer than config.tagging.max_width" in warning for warning in warnings) == 1


def test_columns_may_be_anywhere_between_any_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("1,B-X,New York,nn\n2,O,in,p\n")
    config = config_of("token", delimiter=",", word_column=2, tag_column=1)
    (example,), _ = read(config, str(path), "train")
    assert (example.words, example.spans) == (("New York", "in"), ((0, 1, "X"),))


def test_nested_entities_are_read_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"words": ["a", "b", "c"], "entities": [[0, 3, "ORG"], [1, 2, "PER"]]}\n')
    (example,), _ = read(config_of("span"), str(path), "train")
    assert example.spans == ((0, 3, "ORG"), (1, 2, "PER"))
    assert task_class(config_of("span")).learn(config_of("span"), TOKENIZER, [example]).nested
    path.write_text(2 * '{"words": ["a"], "entities": [], "id": 7}\n')
    with pytest.raises(UserError, match=r"x.jsonl, line 2: the id '7' has come before; give every sentence an id of"):
        read(config_of("span"), str(path), "predict")
    for wrong in ('[[2, 2, "X"]]', '[["a", 2, "X"]]', '[[0, 4, "X"]]'):
        path.write_text(f'{{"words": ["a", "b", "c"], "entities": {wrong}}}\n')
        with pytest.raises(UserError, match=r"x.jsonl, line 1: entity .* expected \[first, end, type\]"):
            read(config_of("span"), str(path), "train")


@pytest.mark.parametrize("role", ["train", "dev"])
def test_entities_that_share_words_are_refused_or_counted_by_the_head_alike_in_training_and_evaluation(
    tmp_path: Path, role: Role
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"words": ["U", "of", "T", "Press"], "entities": [[0, 3, "ORG"], [0, 4, "ORG"], [0, 4, "LOC"]]}')
    with pytest.raises(UserError, match=r"x.jsonl, sentence 1: entities .* have words in common, .*tagging.head=span"):
        read(config_of("token"), str(path), role)
    assert read(config_of("token"), str(path), "predict")[1] == []
    (warning,) = read(config_of("span"), str(path), role)[1]
    assert warning.startswith(
        f"1 span(s) have two entities, of which one is learnt and can be found; the first: {path}"
    )


@pytest.mark.parametrize("head", ["token", "span"])
def test_a_trained_task_cuts_texts_as_its_training_data_is_cut(tmp_path: Path, head: str) -> None:
    words = ("Anna", "'s", "drug", "-", "induced", "北京", "市")
    task = task_of(head, [WordExample(str(i), words, ((0, 1, "PER"),)) for i in range(30)])
    kept = Learnt.from_metadata(from_json(json.loads(json.dumps(metadata_of(task).to_json())), "run"))
    assert kept == task.learnt
    text, cut = "Bob's well-known 北京市", ("Bob", "'s", "well", "-", "known", "北京", "市")
    assert task.parse(text, "request 1", "7").words == cut
    (tmp_path / "x.txt").write_text(text)
    for source in (str(tmp_path / "x.txt"), Contents("standard input", text.encode())):
        assert task.read(task.config, source, "predict", kept)[0][0].words == cut
    assert task.read(task.config, str(tmp_path / "x.txt"), "predict")[0][0].words[:2] == ("Bob's", "well-known")


def metadata_of(task: AnyTask) -> Metadata:
    learnt = task.learnt
    words = dataclasses.asdict(learnt.words)
    return Metadata(task.task, 1, task.config, labels=learnt.labels, nested=learnt.nested, words=words)
