"""The JSON beside a checkpoint's arrays, and a workdir's config.json: their fields and their format.

Invariant: no other module writes or reads the text of these two files. Each file names the version of spanbert_jax that
wrote it. A file of an earlier version opens with the fields that it has. A file that cannot be opened is refused with
its name, the version that wrote it, this version, and the cure.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from spanbert_jax import json_files
from spanbert_jax.config import Config, flatten, from_saved
from spanbert_jax.errors import UserError, quoted, shortened
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
    versions: Mapping[str, str] = dataclasses.field(default_factory=_library_versions)
    written_by: str = VERSION
    format: int = FORMAT

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints that a resumed run must find unchanged."""
        return {name: getattr(self, name) for name in ("data_fingerprint", "tokenizer_fingerprint")}

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON; the configuration flat, {"model.layers": 12, ...}."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {
            "config": flatten(self.config),
            "labels": list(self.labels),
            "left_alone": list(self.left_alone),
        }


def from_json(fields: Any, source: str) -> Metadata:
    """The metadata whose JSON is `fields`, written by this version or an earlier one.

    source: the checkpoint, for the message. Raises UserError where the format is newer than FORMAT, a field that every
    checkpoint has is missing, or a field is not as it was written.
    """
    if not isinstance(fields, Mapping):
        raise UserError(f"{source}: its metadata is not a JSON object but {type(fields).__name__}; name another one")
    writer, number = str(fields.get("written_by", "")), fields.get("format", 1)
    if not isinstance(number, int) or number > FORMAT:
        cure = "install that version, or a later one"
        _refuse(source, writer, f"it has format {quoted(number)}, and the newest known here is {FORMAT}", cure)
    known = {field.name: fields[field.name] for field in dataclasses.fields(Metadata) if field.name in fields}
    known |= {"written_by": writer, "format": number, "versions": fields.get("versions", {})}
    try:
        known["config"] = from_saved(fields["config"])
        for name in ("labels", "left_alone"):
            known[name] = tuple(fields.get(name, ()))
        special = dict(fields.get("special", {}))
        nested = special.pop("nested", 0)  # where format 1 had it
        known |= {"special": special, "nested": bool(fields.get("nested", nested))}
        _check_types(known)
        return Metadata(**known)
    except json_files.OTHER_SHAPE as error:
        _refuse(
            source,
            writer,
            f"its metadata is not as it was written: {shortened(repr(error))}",
            "restore it, or name another one",
        )
    except UserError as error:
        _refuse(source, writer, str(error), "open it with the version that wrote it")


def _check_types(known: Mapping[str, Any]) -> None:
    """Raises TypeError where a field has another type than it is written with."""
    texts = ("task", "tokenizer_fingerprint", "data_fingerprint", "imported_from")
    wrong = [name for name in texts if not isinstance(known.get(name, ""), str)]
    wrong += [name for name in ("step", "vocab_size") if type(known.get(name, 0)) is not int]
    wrong += [name for name in ("labels", "left_alone") if not all(isinstance(one, str) for one in known[name])]
    for name, kind in (("special", int), ("evaluation", int | float)):
        wrong += [] if all(isinstance(one, kind) for one in known.get(name, {}).values()) else [name]
    if wrong:
        raise TypeError(f"{wrong[0]} is {quoted(known[wrong[0]])}")


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
