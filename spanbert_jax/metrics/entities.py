"""Precision, recall and F1 of entities, as seqeval gives them, and tags read as entities.

Invariant: an entity is (first word, word after the last, type), and counts only if all three are right. Scores are
shares, 0 to 1, and 0 where the denominator is 0. `spans` and `strict_spans` agree on tags that keep to the rules of
their scheme.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Span = tuple[int, int, str]
_Tag = tuple[str, str]  # (letter, type); BILOU's letters L and U are kept as E and S
_OUTSIDE: _Tag = ("O", "_")


class _Scheme(NamedTuple):
    """The letters of a tagging scheme."""

    letters: str  # all, without O
    first: str  # of an entity of several words
    last: str  # of an entity of several words
    only: str  # of an entity of one word


_SCHEMES = {
    "IOB1": _Scheme("BI", "I", "I", "I"),
    "IOB2": _Scheme("BI", "B", "I", "B"),
    "IOBES": _Scheme("BIES", "B", "E", "S"),
    "BILOU": _Scheme("BILU", "B", "L", "U"),
}


class TagError(ValueError):
    """A string that is no tag of its scheme; `position` is its index in the sentence."""

    def __init__(self, position: int, tag: str, why: str) -> None:
        super().__init__(f"tag {position + 1} of the sentence, {tag!r}, {why}")
        self.position = position


def evaluate(golds: Sequence[Collection[Span]], predictions: Sequence[Collection[Span]]) -> dict[str, float]:
    """Scores of the entities of sentences, each a set of spans, which may overlap and nest.

    Returns the micro averages "precision", "recall", "f1" and "support" (the number of gold entities); the means over
    types, plain as "macro_f1" and so on, weighted by support as "weighted_f1" and so on; and the scores of each type
    that occurs, as "PER/f1" and so on. Raises ValueError if the numbers of sentences differ.
    """
    if len(golds) != len(predictions):
        raise ValueError(f"{len(golds)} gold sentences and {len(predictions)} predicted ones; expected equal numbers")
    present: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for gold, prediction in zip(golds, predictions, strict=True):
        present.update(name for _, _, name in set(gold))
        predicted.update(name for _, _, name in set(prediction))
        correct.update(name for _, _, name in set(gold) & set(prediction))
    types = sorted(present | predicted)
    by_type = [_scores(correct[name], predicted[name], present[name]) for name in types]
    metrics = _scores(correct.total(), predicted.total(), present.total())
    support = [scores["support"] for scores in by_type]
    for score in ("precision", "recall", "f1"):
        values = [scores[score] for scores in by_type]
        metrics[f"macro_{score}"] = float(np.average(values)) if values else 0.0
        metrics[f"weighted_{score}"] = float(np.average(values, weights=support)) if any(support) else 0.0
    for name, scores in zip(types, by_type, strict=True):
        metrics |= {f"{name}/{score}": value for score, value in scores.items()}
    return metrics


def spans(tags: Sequence[str]) -> list[Span]:
    """Every entity that the tags of a sentence can be read as, whatever their scheme: seqeval's default mode.

    An entity starts at B, S, U, after an entity's end and where the type changes; it ends before the next entity or O.
    (L and U mean E and S here; seqeval's default mode knows no BILOU.) A tag without a type has type "_". Raises
    TagError for a string that is no tag.
    """
    return _spans(_parse(tags, "BIESLU"))


def strict_spans(tags: Sequence[str], scheme: str) -> list[Span]:
    """The entities that are whole by a scheme's own rules; all other tags are ignored: seqeval's strict mode.

    In IOB1, as in seqeval's patterns, a B that is not directly after an entity of its type starts nothing, and a single
    B directly before a B of another type is no entity. Raises TagError for a string that is no tag of the scheme, and
    ValueError for an unknown scheme.
    """
    parsed = [_OUTSIDE, *_parse(tags, _scheme(scheme).letters), _OUTSIDE]
    found = []
    start = 1
    while start <= len(tags):
        end = start + 1
        if not _starts(parsed[start - 1], parsed[start], scheme):
            start = end
            continue
        while _continues(parsed[end - 1], parsed[end]):
            end += 1
        if _is_whole(parsed[end - 1], parsed[end], scheme):
            found.append((start - 1, end - 1, parsed[start][1]))
        start = end
    return found


def tags_from_spans(found: Iterable[Span], length: int, scheme: str) -> list[str]:
    """The tags of a sentence of `length` words, from which `strict_spans` reads the same spans.

    Raises ValueError for spans that overlap, are empty or leave the sentence, and for an unknown scheme.
    """
    _, first, last, only = _scheme(scheme)
    tags = ["O"] * length
    before: Span = (0, 0, "")
    for start, end, name in sorted(found):
        if not before[1] <= start < end <= length:
            raise ValueError(f"entity ({start}, {end}, {name}) overlaps another or the sentence's end")
        inside = [first, *"I" * (end - start - 2), last] if end - start > 1 else [only]
        if scheme == "IOB1" and (start, name) == before[1:]:
            inside[0] = "B"
        tags[start:end] = [f"{letter}-{name}" for letter in inside]
        before = (start, end, name)
    return tags


def _parse(tags: Sequence[str], letters: str) -> list[_Tag]:
    parsed = []
    for position, tag in enumerate(tags):
        if tag == "O":
            parsed.append(_OUTSIDE)
        elif tag[:1] in set(letters) and tag[1:2] in ("", "-"):
            parsed.append((tag[0].translate({ord("L"): "E", ord("U"): "S"}), tag[2:] or "_"))
        else:
            raise TagError(
                position, tag, f'is no tag; expected "O", or one of {", ".join(letters)} with "-" and a type'
            )
    return parsed


def _spans(parsed: Sequence[_Tag]) -> list[Span]:
    found: list[Span] = []
    for position, (before, (letter, name)) in enumerate(pairwise([_OUTSIDE, *parsed])):
        if letter == "O":
            continue
        if letter in "BS" or before[0] in "OES" or before[1] != name:
            found.append((position, position + 1, name))
        else:
            found[-1] = (found[-1][0], position + 1, name)
    return found


def _starts(before: _Tag, tag: _Tag, scheme: str) -> bool:
    if scheme == "IOB1":
        joined = before[0] in "BI" and before[1] == tag[1]
        return joined if tag[0] == "B" else tag[0] == "I" and not (joined and before[0] == "I")
    return tag[0] in "BS"


def _continues(before: _Tag, tag: _Tag) -> bool:
    return tag[0] in "IE" and before[0] in "BI" and before[1] == tag[1]


def _is_whole(last: _Tag, after: _Tag, scheme: str) -> bool:
    if scheme == "IOB1":
        return not (last[0] == after[0] == "B" and last[1] != after[1])
    return scheme == "IOB2" or last[0] in "ES"


def _scheme(name: str) -> _Scheme:
    if name not in _SCHEMES:
        raise ValueError(f"unknown tag scheme {name!r}; there are {', '.join(_SCHEMES)}")
    return _SCHEMES[name]


def _scores(correct: int, predicted: int, present: int) -> dict[str, float]:
    precision = correct / predicted if predicted else 0.0
    recall = correct / present if present else 0.0
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": present}
