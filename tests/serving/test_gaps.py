"""Gaps of texts: marks and spans, the pieces around them, the pieces that may fill them, and what is refused."""

import pydoc_data.topics

import pytest

from spanbert_jax.convert.tokenizer_import import read_tokenizer
from spanbert_jax.errors import UserError
from spanbert_jax.serving.gaps import CONTINUES, JOINED, SPACED, Gap, GappedText, piece_classes, read_gaps
from spanbert_jax.serving.infilling import spelled
from spanbert_jax.text.tokenizer import Tokenizer
from tests.support.other_tokenizers import write
from tests.support.sentencepiece_models import other_model
from tests.support.texts_and_tokenizers import tokenizer_of
from tests.support.tuned import WORDPIECE

TOKENIZERS = {"wordpiece": WORDPIECE, "unigram": tokenizer_of("unigram")}


def read(text: str, kind: str, **options: object) -> GappedText:
    tokenizer = TOKENIZERS[kind]
    return read_gaps(text, options.get("spans"), options.get("words", 2), tokenizer, piece_classes(tokenizer))  # type: ignore[arg-type]


def places(gapped: GappedText) -> list[tuple[int, int, tuple[int, ...]]]:
    return [(gap.start, gap.end, gap.lengths) for gap in gapped.gaps]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_marks_are_gaps_and_the_pieces_around_them_are_those_of_the_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    gapped = read("The [MASK] [MASK] sat (on ____).", kind, words=(2, 3))
    assert places(gapped) == [(4, 17, (2,)), (26, 30, (2, 3, 4, 5, 6))]
    assert [gap.words for gap in gapped.gaps] == [(1, 2), (2, 3)]
    whole = tokenizer.tokenize("The b sat (on b).")
    ids, of_gaps = gapped.row(tokenizer, (2, 1))
    assert [len(of) for of in of_gaps] == [2, 1] and all(ids[p] == tokenizer.mask_id for of in of_gaps for p in of)
    around = [tokenizer.tokenize(text) for text in ("The", "sat (on")]
    assert gapped.around[0] == around[0] and gapped.around[1] == around[1]
    assert gapped.around[2] == whole[-len(gapped.around[2]) :] and tokenizer.decode(gapped.around[2]) == ")."
    assert ids == [tokenizer.cls_id, *around[0], *[tokenizer.mask_id] * 2, *around[1], tokenizer.mask_id,
                   *gapped.around[2], tokenizer.sep_id]  # fmt: skip


def test_a_lone_surrogate_is_read_as_a_replacement_character() -> None:
    assert read("a \udcff ___", "wordpiece") == read("a \ufffd ___", "wordpiece")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_with_spans_marks_are_text(kind: str) -> None:
    gapped = read("[MASK] a fat cat ___", kind, spans=[(12, 17), (6, 8)])
    assert [(gap.start, gap.end) for gap in gapped.gaps] == [(7, 8), (13, 16)]
    assert TOKENIZERS[kind].decode(gapped.around[0]).replace(" ", "").lower() == "[mask]"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """SentencePiece's BPE, and byte-level BPE without a space before the first word, as ModernBERT's."""
    folder, lines = tmp_path_factory.mktemp("modern"), list(pydoc_data.topics.topics.values())[:12]
    write("modern", lines, folder)
    return {"bpe": other_model("\n".join(lines).splitlines(), "bpe"), "modern": read_tokenizer(folder)[0]}


@pytest.mark.parametrize("kind", ["bpe", "modern"])
def test_bpe_vocabularies_have_gaps_too(kind: str, others: dict[str, Tokenizer]) -> None:
    tokenizer = others[kind]
    classes = piece_classes(tokenizer)
    gapped = read_gaps("___ of (___), the ___.", None, 1, tokenizer, classes)
    at_start = {JOINED, CONTINUES} if kind == "modern" else {SPACED}
    assert [set(gap.first) for gap in gapped.gaps] == [at_start, {JOINED, CONTINUES}, {SPACED}]
    row = [*gapped.around[0], *tokenizer.tokenize("int"), *gapped.around[1]]
    assert gapped.around[0] == [] and tokenizer.decode(row) == "int of ("
    assert [tokenizer.decode(of).strip() for of in gapped.around[2:]] == ["), the", "."]
    texts = ["The value, of the object's attributes (see below)."]
    for text in texts + (["It is not 中文, é."] if kind == "modern" else []):
        ids, offsets = tokenizer.tokenize_with_offsets(text)
        spelled_text, places = spelled(tokenizer, ids)
        told = [(place, offset) for place, offset in zip(places, offsets, strict=True) if offset[0] < offset[1]]
        assert spelled_text == text and len(told) > 5
        assert [place for place, _ in told] == [offset for _, offset in told]


def test_the_first_piece_fits_the_character_before_the_gap() -> None:
    unigram = {"a ___": {SPACED}, "___ a": {SPACED}, "(___)": {JOINED, CONTINUES}, 'the "___".': {JOINED, CONTINUES}}
    for text, expected in unigram.items():
        assert read(text, "unigram").gaps[0].first == expected
        assert read(text, "wordpiece").gaps[0].first == {SPACED}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_classes_part_the_pieces_that_can_be_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    classes = piece_classes(tokenizer)
    assert classes.sum(axis=0).max() == 1
    for id in range(tokenizer.vocab_size):
        piece = tokenizer.piece(id)
        is_text = not (piece.startswith("[") and len(piece) > 1) and piece != "▁" and not piece.startswith("<0x")
        assert classes[:, id].any() == is_text, piece
        if is_text and kind == "wordpiece":
            assert classes[CONTINUES if piece.startswith("##") else SPACED, id], piece
        elif is_text:
            expected = SPACED if piece.startswith("▁") else CONTINUES if piece[0].isalnum() else JOINED
            assert classes[expected, id], piece


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("no gap", {}, "'no gap' has nothing to fill in"),
        ("pl[MASK] a", {}, "the gap from character 2 to 8 ends inside a word, beside 'l'"),
        ("[MASK]ing", {}, "ends inside a word, beside 'i'"),
        ("[MASK] ___ a", {}, "the gaps that end at character 6 and begin at 7 touch"),
        ("a ___", {"words": 0}, "words is 0; expected a number from 1 to 10"),
        ("a ___", {"words": (3, 2)}, r"words is \(3, 2\)"),
        ("a ___", {"words": 11}, "words is 11"),
        ("a b", {"spans": []}, "spans is empty"),
        ("a b", {"spans": [(0, 4)]}, r"the span \(0, 4\) has no characters to replace: the text has 3 characters"),
        ("a b", {"spans": [(1, 2)]}, r"the span \(1, 2\) has no characters"),
        ("a b", {"spans": [(2, 2)]}, r"the span \(2, 2\) has no characters"),
        ("a cat b", {"spans": [(2, 4)]}, "ends inside a word, beside 't'"),
        ("a cat b", {"spans": [(2, 5), (0, 3)]}, "touch"),
        ("", {}, "has nothing to fill in"),
        (["a ___"], {}, r"expected a text, found list \(\"\['a ___'\]\"\)"),
        ("a ___", {"words": "2"}, "words is '2'; expected"),
        ("a ___", {"words": (1, 2, 3)}, "words is"),
        ("a b", {"spans": [(0, 1, 2)]}, r"\(0, 1, 2\) is no span; give \(start, end\)"),
        ("a b", {"spans": [0, 1]}, "0 is no span"),
    ],
)
def test_what_cannot_be_filled_is_refused_in_one_line(text: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(text, "wordpiece", **options)


def test_wordpiece_is_spelled_with_spaces_between_words_but_not_beside_punctuation() -> None:
    for text in ("a cat, the (old) dog's well-fed.", "$ab or b%"):
        ids = WORDPIECE.tokenize(text)
        assert spelled(WORDPIECE, ids) == (text, WORDPIECE.tokenize_with_offsets(text)[1])


def test_a_vocabulary_without_words_needs_the_number_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer("wordpiece", WORDPIECE.vocabulary, True)
    tokenizer.marks_words = False
    classes = piece_classes(tokenizer)
    assert not classes[SPACED].any() and not classes[JOINED].any()
    gap = read_gaps("a [MASK]", None, 1, tokenizer, classes).gaps[0]
    assert gap == Gap(2, 8, (1,), (1, 1), frozenset({SPACED, JOINED, CONTINUES}))
    with pytest.raises(UserError, match=r"do not show where words begin, so the gap at character 2 needs"):
        read_gaps("a ___", None, 1, tokenizer, classes)
