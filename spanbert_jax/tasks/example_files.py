"""What the readers of labelled data share: files line by line or as JSON, TFDS sets, counted warnings.

Invariant: every error names the file and the line, or the place in its JSON; nothing is downloaded.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from spanbert_jax.errors import UserError
from spanbert_jax.text.lines import read_lines

Role = Literal["train", "dev", "predict"]  # "predict" reads no labels, and needs none

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Warnings:
    """Counts what real data sets have wrong, by kind, and remembers where the first of each was."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, place: str) -> None:
        """One more of the kind."""
        count, first = self._kinds.get(kind, (0, place))
        self._kinds[kind] = count + 1, first

    def lines(self) -> list[str]:
        """A line a kind: "3 answer(s) are not at their offset; the first: FILE, question 17"."""
        return [f"{count:,} {kind}; the first: {first}" for kind, (count, first) in self._kinds.items()]


def find_file(path_or_name: str, tfds_names: Sequence[str]) -> Path | None:
    """The file, or None for a name of TFDS; raises UserError for what is neither.

    tfds_names: the TFDS sets, without their config, that the caller reads.
    """
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file in it")
    if path.exists():
        return path
    if path_or_name.partition(":")[0].partition("/")[0] in tfds_names:
        return None
    also = f", and no TFDS name that this task reads ({', '.join(tfds_names)})" if tfds_names else ""
    raise UserError(f"{path} does not exist{also}; give the path of a file (seen from {Path.cwd()})")


def read_json(path: Path) -> Any:
    """What a JSON file holds; raises UserError naming the line."""
    content = "".join(line for _, line in read_lines(path))
    if not content.strip():
        raise UserError(f"{path} is empty; give a file with examples")
    try:
        return json.loads(content)
    except ValueError as error:
        hint = "; JSON lines are read from a name in .jsonl" if "Extra data" in str(error) else ""
        raise UserError(f"{path}: not JSON ({error}){hint}") from error


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE, line N", object) of each line that is not blank; raises UserError for what is no object."""
    for number, line in read_lines(path):
        place = f"{path}, line {number}"
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{place}: not JSON ({error}); a .jsonl file has one object a line") from error
            if not isinstance(record, dict):
                raise UserError(f"{place}: a {type(record).__name__}; a .jsonl file has one object a line")
            yield place, record


def field(record: Any, name: str, kind: type | tuple[type, ...], place: str) -> Any:
    """record[name], of that kind; raises UserError naming place and what is there instead.

    Half characters, which JSON allows and UTF-8 doesn't, become U+FFFD: one character as before.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    value = record.get(name) if isinstance(record, dict) else None
    if isinstance(value, str) and str in kinds:
        return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds):
        return value
    if not isinstance(record, dict):
        found = f"{type(record).__name__} instead of an object with {name!r}"
    elif name in record:
        found = f"{name!r} is {json.dumps(value, default=str)[:60]}"
    else:
        found = f"no {name!r}, only {', '.join(map(repr, record))}"
    expected = " or ".join("text" if one is str else one.__name__ for one in kinds)
    raise UserError(f"{place}: {found}; {name!r} must be there, as {expected}")


def tfds_examples(name: str, role: Role) -> tuple[Any, Iterable[dict[str, Any]]]:
    """The TFDS builder of "name" or "name:split", and the split's examples as NumPy.

    Without a split it is "train", or else "validation" (matched, mismatched), "dev", "test", whichever is first there.
    Nothing is downloaded; raises UserError where the set is neither on this machine (TFDS's directory, or
    $TFDS_DATA_DIR) nor in TFDS's public bucket.
    """
    import tensorflow_datasets as tfds

    from spanbert_jax.corpus import tfds_source

    name, _, split = name.partition(":")
    builder = tfds_source.find_builder(
        name, "", f"{name} is no file", "Set TFDS_DATA_DIR to where it was prepared, or name a file"
    )
    splits = list(builder.info.splits)
    natural = (
        ("train",) if role == "train" else ("validation", "validation_matched", "validation_mismatched", "dev", "test")
    )
    split = split or next((one for one in natural if one in splits), "")
    if split.partition("[")[0] not in splits:
        raise UserError(f"the TFDS dataset {name} has no split {split or natural[0]!r}, only {', '.join(splits)}")
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:  # which has no as_dataset
        return builder, iter(builder.as_data_source(split))
    return builder, iter(tfds.as_numpy(builder.as_dataset(split=split)))


def to_text(value: str | bytes) -> str:
    """A text of TFDS, which gives bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
