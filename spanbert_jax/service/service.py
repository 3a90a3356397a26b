"""The checkpoints that a process serves, with the engine that they share.

Invariant: one engine, and so one queue for the device, serves every checkpoint. The first checkpoint answers requests
that name none.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spanbert_jax.errors import UserError
from spanbert_jax.service.aside import Aside
from spanbert_jax.service.problems import Problem
from spanbert_jax.serving.counters import Counters
from spanbert_jax.serving.engine import Answered, Engine
from spanbert_jax.serving.loaded import Loaded
from spanbert_jax.serving.scheduler import Limits, NotServing
from spanbert_jax.serving.served_models import ServedModels
from spanbert_jax.serving.task_model import TaskModel
from spanbert_jax.version import VERSION


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line decides."""

    max_body_bytes: int = 2_000_000
    max_inputs: int = 32  # in a request
    max_input_pieces: int = 512  # of a text to embed; a task's rows are as long as in training
    deadline: float = 30.0  # seconds from a request's first byte to its answer
    truncate: bool = True  # whether texts that are too long are cut where a request does not say
    deterministic: bool = False
    dtype: str = "float32"  # in which texts are encoded
    workers: int = 2  # threads that tokenise
    limits: Limits = Limits()
    keys: tuple[bytes, ...] = ()


class Checkpoint(NamedTuple):
    """A checkpoint that is served."""

    name: str
    loaded: Loaded
    models: ServedModels

    def check_dimensions(self, dimensions: int | None) -> None:
        """Raises Problem where vectors of another size than the model's are asked for."""
        size = self.loaded.config.model.embed
        if dimensions not in (None, size):
            raise Problem("invalid", f"dimensions is {dimensions}; this model's vectors have {size}", "dimensions")


class Service:
    """What handlers of requests work with."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint], settings: Settings):
        self.checkpoints, self.settings = dict(checkpoints), settings
        self.counters = Counters()
        models = [model for one in checkpoints.values() for model in one.models if model is not None]
        self.engine = Engine(models, settings.limits, settings.workers, self.counters)
        self.finding, self.filling = Aside("find spans"), Aside("fill gaps")
        self._is_closed = False
        for name, one in checkpoints.items():
            fingerprint = one.loaded.tokenizer.fingerprint[:16]
            labels = {
                "checkpoint": name,
                "task": one.loaded.task,
                "tokenizer": fingerprint,
                "version": VERSION,
                "dtype": settings.dtype,
            }
            self.counters.set("spanbert_model_info", 1, **labels)

    def checkpoint(self, name: str | None) -> Checkpoint:
        """The checkpoint of this name, or the first one; raises Problem where there is none of the name."""
        if name is None:
            return next(iter(self.checkpoints.values()))
        if name not in self.checkpoints:
            names = ", ".join(self.checkpoints)
            raise Problem("no_model", f"no checkpoint named {name[:60]!r} is served, only {names}", "model")
        return self.checkpoints[name]

    def able(self, name: str | None, route: str, can: Callable[[Checkpoint], object], needs: str) -> Checkpoint:
        """The checkpoint of this name, or, where no name is given, the first that can answer a route. Raises Problem
        where it cannot. needs: the words for a checkpoint that can."""
        able = [one for one in self.checkpoints.values() if can(one)]
        one = able[0] if name is None and able else self.checkpoint(name)
        if not can(one):
            has = f"was fine-tuned for {one.loaded.task}" if one.loaded.task else "was not fine-tuned"
            raise Problem("no_head", f"the checkpoint {one.name} {has}; {route} needs {needs}", "model")
        return one

    def task(self, name: str | None, route: str, task: str) -> TaskModel:
        """The model of a checkpoint that was fine-tuned for the task, as of `able`."""
        model = self.able(name, route, lambda one: one.loaded.task == task, f"one for {task}").models.task
        assert model is not None
        return model

    def truncates(self, given: bool | None) -> bool:
        """Whether texts that are too long are cut: as the request says, or else as the server was started."""
        return self.settings.truncate if given is None else given

    def check_count(self, items: Sequence[Any]) -> None:
        """Raises Problem where the items are more than a request may have."""
        most = self.settings.max_inputs
        if len(items) > most:
            raise Problem("too_large", f"the request has {len(items):,} inputs; {most:,} are the most")

    def check_cut(self, cut: Sequence[int], given: bool | None = None) -> None:
        """Raises Problem where inputs were cut and may not be. cut: their indices. given: as for `truncates`."""
        if cut and not self.truncates(given):
            raise Problem(
                "invalid",
                f"inputs[{cut[0]}] is longer than a row, and texts are not cut; give less text, or set truncate where "
                "the route has it",
            )

    async def answer(self, model: Any, items: Sequence[Any], seconds: float) -> Answered:
        """The engine's answers; raises Problem where the items are none, or more than a request may have."""
        if not items:
            raise Problem("invalid", "there is no input; give one at least")
        self.check_count(items)
        return await asyncio.wrap_future(self.engine.submit(model, items, seconds))

    def warm_up(self, everything: bool, failed: Callable[[Exception], None]) -> None:
        """Compiles programs, as `Engine.warm_up`; those of the heads that predict pieces are the last ones."""
        self.engine.warm_up(everything, self._warm_up_filling, failed)

    def _warm_up_filling(self) -> None:
        def go_on(_: float) -> None:
            if self._is_closed:
                raise NotServing("closed")

        with contextlib.suppress(NotServing):
            for one in self.checkpoints.values():
                if one.loaded.piece_heads:
                    one.loaded.infiller.warm_up(go_on)

    def close(self) -> None:
        """Ends the engine and the threads. A program that is being compiled is waited for."""
        self._is_closed = True
        self.finding.close()
        self.filling.close()
        self.engine.close()


def open_service(sources: Mapping[str, Path], settings: Settings) -> Service:
    """Opens the checkpoints, by name; raises UserError where one is missing, damaged, or cannot be served."""
    found = {}
    for name, path in sources.items():
        try:
            loaded = Loaded(path)
            models = loaded.served(name, settings.max_input_pieces, settings.deterministic, settings.dtype)
            if loaded.piece_heads:  # otherwise a damaged infilling.json would be found only while programs are compiled
                _ = loaded.infiller
        except UserError as error:
            raise UserError(f"--checkpoint {name}={path}: {error}") from error
        found[name] = Checkpoint(name, loaded, models)
    return Service(found, settings)
