"""Rows of sentences with two entities, each replaced by a special piece (mask) or put between two (markers).

Invariant: both entities are in the row. A sentence that is too long loses the words farthest from the entities, then
the words between them; an entity that takes over half of a row loses its middle. The two ways are the feature modes
"ner" (mask) and "text" (markers) of SpanBERT's run_tacred.py.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from spanbert_jax.errors import UserError
from spanbert_jax.tasks.relations.files import RelationSentence
from spanbert_jax.tasks.rows import Row, widen
from spanbert_jax.text.tokenizer import Tokenizer

MARKERS = ("SUBJ_START", "SUBJ_END", "OBJ_START", "OBJ_END")
# Control characters, which text never has; control characters that are white space are left out.
_CONTROL_BYTES = [byte for byte in range(1, 32) if byte not in range(9, 14) and byte not in range(28, 32)]


def special_names(examples: Sequence[RelationSentence], entities: str) -> list[str]:
    """The names that need a special piece. entities: "markers", with four names, or "mask", with "ROLE=TYPE" for every
    role and type in the examples, and "SUBJ" and "OBJ" for unseen types."""
    if entities == "markers":
        return list(MARKERS)
    types = {("SUBJ", example.subject[2]) for example in examples} | {
        ("OBJ", example.object[2]) for example in examples
    }
    return ["SUBJ", "OBJ", *sorted(f"{role}={kind}" for role, kind in types if kind)]


def assign_special(names: Sequence[str], tokenizer: Tokenizer) -> dict[str, int]:
    """Name -> the id of a piece that no text has: [unused1], [unused2], ... of WordPiece, unless the tokenizer's author
    added such a piece to be found in text; control bytes of SentencePiece and of byte-level BPE.

    Raises UserError where the vocabulary has too few such pieces.
    """
    ids = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    unused = sorted(
        (int(m[1]), i)
        for piece, i in ids.items()
        if (m := re.fullmatch(r"\[unused(\d+)\]", piece)) and m[1] != "0" and i not in tokenizer.tokenize(piece)
    )
    free = [i for _, i in unused] or [ids[piece] for piece in map("<0x{:02X}>".format, _CONTROL_BYTES) if piece in ids]
    if not free:
        surfaces = {tokenizer.surface(i): i for i in ids.values()}
        free = [surfaces[char] for char in map(chr, _CONTROL_BYTES) if char in surfaces]
    if len(free) < len(names):
        raise UserError(
            f"the data needs {len(names)} special pieces ({', '.join(names[:3])}, ...), and the vocabulary has "
            f"{len(free)} that no text uses ([unusedN], or byte pieces); use --config.relation.entities=markers, which "
            "needs 4"
        )
    return dict(zip(names, free, strict=False))


@dataclasses.dataclass(frozen=True)
class RelationRowMaker:
    """Makes one row of each example. A label that is None becomes 0."""

    tokenizer: Tokenizer
    length: int  # pieces, [CLS] and [SEP] included
    labels: tuple[str, ...]  # in the classifier's order
    special: Mapping[str, int]  # of `assign_special`
    entities: str  # "mask" or "markers"

    def __call__(self, examples: Sequence[RelationSentence]) -> list[list[Row]]:
        """The rows of each example."""
        words = [word for example in examples for word in example.words]
        pieces = iter(self.tokenizer.tokenize_batch(words))
        return [[self._row(example, [next(pieces) for _ in example.words])] for example in examples]

    def _row(self, example: RelationSentence, words: list[list[int]]) -> Row:
        chunks: list[list[int]] = []  # the pieces of a word, or of a masked or marked entity
        entity_chunks = []
        entities = sorted([("SUBJ", *example.subject), ("OBJ", *example.object)], key=lambda entity: entity[1])
        place = 0
        for role, start, end, kind in entities:
            chunks += words[place:start]
            entity_chunks.append(len(chunks))
            chunks.append(self._entity(role, kind, words[start:end]))
            place = end
        chunks += words[place:]
        ids = _window(chunks, entity_chunks[0], entity_chunks[1], self.length - 2)
        whole = sum(map(len, words)) if self.entities == "markers" else sum(map(len, chunks)) - 4
        cut = len(ids) < whole + 4
        label = 0 if example.label is None else self.labels.index(example.label)
        ids = [self.tokenizer.cls_id, *ids, self.tokenizer.sep_id]
        return {"input_ids": ids, "token_type_ids": [0] * len(ids), "label": label, "cut": int(cut)}

    def _entity(self, role: str, kind: str | None, words: list[list[int]]) -> list[int]:
        if self.entities == "mask":
            return [self.special.get(f"{role}={kind}", self.special[role])]
        inside = [piece for word in words for piece in word]
        room = (self.length - 2) // 2 - 2  # so that both entities fit with their markers
        if len(inside) > room:
            inside = inside[: room - room // 2] + inside[len(inside) - room // 2 :]
        return [self.special[f"{role}_START"], *inside, self.special[f"{role}_END"]]


def _window(chunks: list[list[int]], first: int, second: int, room: int) -> list[int]:
    """The pieces of the chunks from `first` to `second`, and of as many chunks on both sides as `room` pieces allow."""
    start, end = widen([len(chunk) for chunk in chunks], first, second + 1, room)
    pieces = [piece for chunk in chunks[start:end] for piece in chunk]
    over = len(pieces) - room
    if over > 0:  # too much between the entities: cut there
        low = len(chunks[first]) + (len(pieces) - len(chunks[first]) - len(chunks[second]) - over) // 2
        pieces = pieces[:low] + pieces[low + over :]
    return pieces
