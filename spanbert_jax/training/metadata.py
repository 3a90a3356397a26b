"""The JSON beside a checkpoint's arrays, and a workdir's config.json: their fields and their format.

Invariant: no other module writes or reads the text of these two files. Each file names the version of spanbert_jax that
wrote it. A file of an earlier version opens with the fields that it has. A file that cannot be opened is refused with
its name, the version that wrote it, this version, and the cure. A checkpoint's JSON that is not as it was written is
damage, which a run survives.
"""

import collections.abc
import dataclasses
import importlib.metadata
import json
import typing
from collections.abc import Mapping
from typing import Any, NoReturn

from spanbert_jax import json_files
from spanbert_jax.config import Config, flatten, from_saved
from spanbert_jax.errors import UserError, quoted, reason, shortened
from spanbert_jax.files import DIGEST, has_its_digest, json_digest
from spanbert_jax.version import VERSION

FORMAT = (
    2  # of the metadata. Format 1, up to version 0.1.0, has no number, no version, and fields as each run named them
)

_WRITER = "written_by"  # the field of config.json that holds the version


def _library_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The description of a checkpoint's arrays. Fields with a default may be absent from a file."""

    task: str  # config.task of the run, or "imported"
    step: int  # updates of the parameters so far
    config: Config
    vocab_size: int = 0  # pieces; 0: not known
    tokenizer_fingerprint: str = ""
    data_fingerprint: str = ""  # of the blocks, or of the labelled files
    labels: tuple[str, ...] = ()  # of a classifier, in its order
    special: Mapping[str, int] = dataclasses.field(default_factory=dict)  # relations: name of a mark -> its piece's id
    nested: bool = False  # span head: entities of the training data lie within others, so predicted ones may too
    words: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # entities: how plain text is cut into words
    evaluation: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of a best one: "held_out/NAME" -> value
    window: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # `Window.state` at this step
    evaluation_is_due: bool = False  # the evaluation of this step was cut off, and the run begins with it
    imported_from: str = ""  # the path of the published weights that were imported
    left_alone: tuple[str, ...] = ()  # tensors of those weights that were not taken
    checksums: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of the arrays (training/checksums.py)
    versions: Mapping[str, str] = dataclasses.field(default_factory=_library_versions)
    written_by: str = VERSION
    format: int = FORMAT

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints that a resumed run must find unchanged."""
        return {name: getattr(self, name) for name in ("data_fingerprint", "tokenizer_fingerprint")}

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON, with a digest of them; the configuration flat, {"model.layers": 12, ...}."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {
            "config": flatten(self.config),
            "labels": list(self.labels),
            "left_alone": list(self.left_alone),
        }
        return fields | {DIGEST: json_digest(fields)}


class Damaged(UserError):
    """A file of a checkpoint is missing, cut off, or not as it was written. why: this in one line."""

    def __init__(self, checkpoint: str, why: str):
        super().__init__(f"{checkpoint}: this checkpoint is damaged ({why}); name another, or move it away")
        self.why = why


def from_json(fields: Any, source: str) -> Metadata:
    """The metadata whose JSON is `fields`, written by this version or an earlier one.

    source: the checkpoint, for the message. Raises Damaged where the JSON is not as it was written, as its digest or,
    in what an earlier version wrote, a missing field or a type shows. Raises UserError where the format is newer than
    FORMAT, and where a later version wrote a field of this format in another way.
    """
    if not isinstance(fields, Mapping):
        raise Damaged(source, f"its metadata is not a JSON object but {type(fields).__name__}")
    if not has_its_digest(fields):
        raise Damaged(source, "its metadata is not as it was written, by its digest")
    writer, number = str(fields.get("written_by", "")), fields.get("format", 1)
    if isinstance(number, int) and number > FORMAT:
        cure = "install that version, or a later one"
        _refuse(source, writer, f"it has format {quoted(number)}, and the newest known here is {FORMAT}", cure)
    known = {field.name: fields[field.name] for field in dataclasses.fields(Metadata) if field.name in fields}
    known |= {"written_by": writer, "format": number, "versions": fields.get("versions", {})}
    try:
        for name, hint in typing.get_type_hints(Metadata).items():
            if name in known and not _is(known[name], hint):
                raise TypeError(f"{name} is {quoted(known[name])}")
        special = dict(fields.get("special", {}))
        nested = special.pop("nested", 0)  # where format 1 had it
        known |= {"special": special, "nested": bool(fields.get("nested", nested))}
        known |= {name: tuple(fields.get(name, ())) for name in ("labels", "left_alone")}
        return Metadata(**known | {"config": from_saved(fields["config"])})
    except json_files.OTHER_SHAPE as error:
        if DIGEST not in fields:
            raise Damaged(source, f"its metadata is not as it was written: {reason(error)}") from error
        why = f"it has fields of another kind: {reason(error)}"
        _refuse(source, writer, why, "open it with the version that wrote it")
    except UserError as error:
        _refuse(source, writer, str(error), "open it with the version that wrote it")


def _is(value: Any, hint: Any) -> bool:
    """Whether a value that JSON holds is of a type that a field of `Metadata` declares."""
    kind, inside = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Any:
        return True
    stored: dict[Any, Any] = {tuple: list, collections.abc.Mapping: dict, Config: dict, float: (int, float)}
    in_json = stored.get(kind, kind)
    if not isinstance(value, in_json) or (isinstance(value, bool) and kind is not bool):
        return False
    if kind is tuple:
        return all(_is(part, inside[0]) for part in value)
    return kind is not collections.abc.Mapping or all(_is(part, inside[1]) for part in value.values())


def config_to_json(config: Config) -> str:
    """The text of a workdir's config.json."""
    fields = {_WRITER: VERSION, **dataclasses.asdict(config)}
    return json.dumps(fields, indent=2) + "\n"


def config_from_json(text: str | bytes, source: str) -> Config:
    """The configuration in the text of a config.json of this version or an earlier one.

    source: the file, for the message. Raises UserError where the text holds no configuration that can be read.
    """
    try:
        fields = dict(json_files.parse(text))
    except json_files.OTHER_SHAPE as error:
        raise UserError(
            f"{source}: not a configuration ({shortened(error)}); delete it or choose another --workdir"
        ) from error
    writer = str(fields.pop(_WRITER, ""))
    try:
        return from_saved(fields)
    except (TypeError, UserError) as error:
        _refuse(source, writer, str(error), "use the version that wrote it, or choose another --workdir")


def _refuse(source: str, writer: str, why: str, cure: str) -> NoReturn:
    here = VERSION
    raise UserError(
        f"{source}: written by spanbert_jax {shortened(writer, 40) or 'before 0.2.0'}, and spanbert_jax {here} cannot "
        f"open it ({why}); {cure}"
    )
