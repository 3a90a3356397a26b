"""The part of a configuration that a task's rows depend on.

Invariant: rows are made from declared settings alone, since reading any other field through `declared` fails. So the
key of a cache, which is made from `values`, never lacks a setting.
"""

from collections.abc import Sequence
from typing import Any, cast

from spanbert_jax.config import Config, flatten


def declared(config: Config, names: Sequence[str]) -> Config:
    """A view of the configuration in which only `names` can be read: fields ("data.block_length") or whole sections.

    Reading another field raises AttributeError, which names the field.
    """
    return cast(Config, _View(config, "", tuple(names)))


def values(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """The fields that `declared` lets a task read, as {"data.block_length": 512, ...}; raises KeyError where a name is
    neither a field nor a section."""
    flat = flatten(config)
    chosen: dict[str, Any] = {}
    for name in names:
        found = {field: value for field, value in flat.items() if field == name or field.startswith(f"{name}.")}
        if not found:
            raise KeyError(f"no config field or section {name}")
        chosen |= found
    return chosen


class _View:
    def __init__(self, node: Any, prefix: str, names: tuple[str, ...]):
        self._node, self._prefix, self._names = node, prefix, names

    def __getattr__(self, name: str) -> Any:
        path = f"{self._prefix}{name}"
        if path in self._names:
            return getattr(self._node, name)
        if any(one.startswith(f"{path}.") for one in self._names):
            return _View(getattr(self._node, name), f"{path}.", self._names)
        raise AttributeError(
            f"config.{path} is not among the settings that the task's rows may depend on ({', '.join(self._names)}); "
            "add it to `settings` of the task's class"
        )
