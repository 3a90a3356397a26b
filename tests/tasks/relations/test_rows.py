"""Rows of relations: what stands for an entity, what stands around it, and what is cut of a long sentence."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.tasks.relations.rows import MARKERS, RelationRowMaker, assign_special, special_names
from spanbert_jax.text.sentencepiece_training import train_sentencepiece
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.text.wordpiece import AddedPiece, WordPieceSettings

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["[PAD]", *(f"[unused{i}]" for i in range(12)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENIZER = Tokenizer("wordpiece", "\n".join([*SPECIAL, *WORDS]).encode())


@dataclasses.dataclass(frozen=True)
class Example:
    words: tuple[str, ...]
    subject: tuple[int, int, str | None]
    object: tuple[int, int, str | None]
    label: str | None = "no_relation"


def pieces(example: Example, entities: str, length: int = 64, known: list[Example] | None = None) -> list[str]:
    special = assign_special(special_names(known or [example], entities), TOKENIZER)
    ((row,),) = RelationRowMaker(TOKENIZER, length, ("no_relation",), special, entities)([example])
    names = {i: name for name, i in special.items()}
    return [names.get(i, TOKENIZER.piece(i)) for i in row["input_ids"]]


def test_a_mask_says_role_and_type_and_hides_the_words() -> None:
    example = Example(("w1", "w2", "w3", "w4", "w5"), (3, 5, "PERSON"), (0, 2, "CITY"))
    assert pieces(example, "mask") == ["[CLS]", "OBJ=CITY", "w3", "SUBJ=PERSON", "[SEP]"]


def test_markers_stand_around_the_words() -> None:
    example = Example(("w1", "w2", "w3"), (0, 1, None), (2, 3, None))
    marked = ["[CLS]", "SUBJ_START", "w1", "SUBJ_END", "w2", "OBJ_START", "w3", "OBJ_END", "[SEP]"]
    assert pieces(example, "markers") == marked


def test_a_type_that_training_did_not_have_is_its_role_alone() -> None:
    known = Example(("w1", "w2"), (0, 1, "PERSON"), (1, 2, "CITY"))
    example = Example(("w1", "w2"), (0, 1, "PLANET"), (1, 2, "CITY"))
    assert pieces(example, "mask", known=[known]) == ["[CLS]", "SUBJ", "OBJ=CITY", "[SEP]"]


def test_the_mapping_does_not_depend_on_the_order_of_the_data() -> None:
    examples = [Example(("w1", "w2"), (0, 1, kind), (1, 2, "CITY")) for kind in ("B", "A", "C")]
    maps = [assign_special(special_names(order, "mask"), TOKENIZER) for order in (examples, examples[::-1])]
    assert maps[0] == maps[1] and len(set(maps[0].values())) == len(maps[0]) == 6
    assert TOKENIZER.piece(maps[0]["SUBJ"]) == "[unused1]"


def test_a_sentencepiece_gives_bytes_that_no_text_has() -> None:
    tokenizer = train_sentencepiece([" ".join(WORDS)] * 5, "unigram", 327)
    special = assign_special(special_names([], "markers"), tokenizer)
    assert all(tokenizer.piece(i).startswith("<0x") for i in special.values())
    used = {i for ids in tokenizer.tokenize_batch(["é ü 漢字 \t\n \x7f 🙂"]) for i in ids}
    assert not used & set(special.values())


def test_an_added_piece_that_text_may_have_is_not_taken_for_an_entity() -> None:
    added = WordPieceSettings(added=(AddedPiece("[unused1]"),))
    tokenizer = Tokenizer("wordpiece", TOKENIZER.vocabulary, settings=added)
    special = assign_special(MARKERS, tokenizer)
    assert [tokenizer.piece(i) for i in special.values()] == [f"[unused{i}]" for i in (2, 3, 4, 5)]
    assert not set(special.values()) & set(tokenizer.tokenize("w1 [unused1] w2"))


def test_too_few_special_pieces_are_an_error_with_the_number() -> None:
    examples = [Example(("w1", "w2"), (0, 1, f"T{i}"), (1, 2, "X")) for i in range(20)]
    with pytest.raises(UserError, match=r"needs 23 special pieces.*has 11"):
        assign_special(special_names(examples, "mask"), TOKENIZER)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), count=st.integers(2, 40), length=st.integers(12, 30))
def test_both_entities_stay_in_a_row_that_is_never_too_long(data: st.DataObject, count: int, length: int) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, count), min_size=3, max_size=4)))
    first, second = (cuts[0], cuts[1]), (cuts[-2], cuts[-1])
    example = Example(tuple(WORDS[:count]), (*second, None), (*first, None))
    row = pieces(example, "markers", length)
    assert len(row) <= length and row[0] == "[CLS]" and row[-1] == "[SEP]"
    places = [row.index(marker) for marker in ("OBJ_START", "OBJ_END", "SUBJ_START", "SUBJ_END")]
    assert places == sorted(places) and all(row.count(marker) == 1 for marker in MARKERS)
    words = [WORDS.index(piece) for piece in row if piece in WORDS]
    assert words == sorted(words)
    for (start, end), (low, high) in ((first, places[:2]), (second, places[2:])):
        inside = row[low + 1 : high]
        assert inside[0] == WORDS[start] and set(inside) <= set(WORDS[start:end])
        if end - start + 2 <= (length - 2) // 2:
            assert inside == WORDS[start:end]
    if count + 6 <= length and max(first[1] - first[0], second[1] - second[0]) + 2 <= (length - 2) // 2:
        assert len(words) == count


def test_what_a_row_lacks_is_marked() -> None:
    for count, length, cut in ((20, 26, 0), (20, 25, 1)):
        example = Example(tuple(WORDS[:count]), (0, 1, None), (2, 3, None))
        special = assign_special(special_names([example], "markers"), TOKENIZER)
        ((row,),) = RelationRowMaker(TOKENIZER, length, ("no_relation",), special, "markers")([example])
        assert row["cut"] == cut
