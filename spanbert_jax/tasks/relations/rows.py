"""Rows of sentences with two entities, which special pieces stand for or stand around.

Invariant: both entities are in the row. Of a sentence that is too long, the words farthest from them are cut, then what
lies between them; of an entity that takes over half of a row, its middle. Facts: SpanBERT's run_tacred.py, feature
modes "ner" (mask) and "text" (markers).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from spanbert_jax.errors import UserError
from spanbert_jax.tasks.relations.files import RelationSentence
from spanbert_jax.tasks.rows import Row, widen
from spanbert_jax.text.tokenizer import Tokenizer

MARKERS = ("SUBJ_START", "SUBJ_END", "OBJ_START", "OBJ_END")
# Bytes that text never has: control characters, without the white space among them.
_CONTROL_BYTES = [f"<0x{byte:02X}>" for byte in range(1, 32) if byte not in range(9, 14) and byte not in range(28, 32)]


def special_names(examples: Sequence[RelationSentence], entities: str) -> list[str]:
    """What needs a special piece: the markers, or every role with every type, "SUBJ" and "OBJ" for unseen types."""
    if entities == "markers":
        return list(MARKERS)
    types = {("SUBJ", example.subject[2]) for example in examples} | {
        ("OBJ", example.object[2]) for example in examples
    }
    return ["SUBJ", "OBJ", *sorted(f"{role}={kind}" for role, kind in types if kind)]


def assign_special(names: Sequence[str], tokenizer: Tokenizer) -> dict[str, int]:
    """Name -> an id that no text gets: [unused1], [unused2], ... of a WordPiece, control bytes of a SentencePiece.

    Raises UserError where the vocabulary has too few.
    """
    ids = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    unused = sorted(
        (int(m[1]), i) for piece, i in ids.items() if (m := re.fullmatch(r"\[unused(\d+)\]", piece)) and m[1] != "0"
    )
    free = [i for _, i in unused] or [ids[piece] for piece in _CONTROL_BYTES if piece in ids]
    if len(free) < len(names):
        raise UserError(
            f"the data needs {len(names)} special pieces ({', '.join(names[:3])}, ...), and the vocabulary has "
            f"{len(free)} that no text uses ([unusedN], or byte pieces); use --config.relation.entities=markers: 4"
        )
    return dict(zip(names, free, strict=False))


@dataclasses.dataclass(frozen=True)
class RelationRows:
    """Makes the row of each example; a label that is None gives 0."""

    tokenizer: Tokenizer
    length: int  # pieces, [CLS] and [SEP] included
    labels: tuple[str, ...]
    special: Mapping[str, int]
    entities: str  # "mask" or "markers"

    def __call__(self, examples: Sequence[RelationSentence]) -> list[list[Row]]:
        """The rows of each example."""
        words = [word for example in examples for word in example.words]
        pieces = iter(self.tokenizer.encode_batch(words))
        return [[self._row(example, [next(pieces) for _ in example.words])] for example in examples]

    def _row(self, example: RelationSentence, words: list[list[int]]) -> Row:
        chunks: list[list[int]] = []  # a word's pieces, or an entity with what stands for it
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
    """The pieces of chunks first .. second with as many around them, on both sides alike, as there is room for."""
    start, end = widen([len(chunk) for chunk in chunks], first, second + 1, room)
    pieces = [piece for chunk in chunks[start:end] for piece in chunk]
    over = len(pieces) - room
    if over > 0:  # too much between the entities: cut there
        low = len(chunks[first]) + (len(pieces) - len(chunks[first]) - len(chunks[second]) - over) // 2
        pieces = pieces[:low] + pieces[low + over :]
    return pieces
