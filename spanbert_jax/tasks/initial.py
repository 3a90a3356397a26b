"""What a run starts with when `config.init_from` names trained weights.

Invariant: the encoder's sizes and the vocabulary are those of the weights, always; what the weights lack is freshly
initialised and said to be.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from spanbert_jax.config import Config, check, from_dict
from spanbert_jax.errors import UserError
from spanbert_jax.tasks.weights import open_weights
from spanbert_jax.training.sharding import path_name

_OWN = ("dropout", "attention_dropout", "init_std", "span_offset_embed")  # of ModelConfig: the run's, not the weights'


def adopt(config: Config, workdir: Path) -> Config:
    """The configuration with the encoder's sizes and the vocabulary of `init_from`; itself where there is none.

    A run that goes on takes them from its own workdir, so the weights it began with may be gone by then.
    Raises UserError where they cannot be read, or do not fit the rest of the configuration.
    """
    if not config.init_from:
        return config
    saved = workdir / "config.json"
    known = from_dict(json.loads(saved.read_text())) if saved.exists() else None
    if known is None or known.init_from != config.init_from:
        with open_weights(Path(config.init_from)) as weights:
            known = weights.config
            if jax.process_index() == 0:
                model, vocabulary = known.model, weights.tokenizer
                print(
                    f"Starting from {config.init_from}, {weights.kind}: {model.layers} layers x {model.embed}, "
                    f"{vocabulary.kind} vocabulary of {vocabulary.vocab_size:,} pieces"
                )
    own = {name: getattr(config.model, name) for name in _OWN}
    names = ("kind", "lowercase", "vocab_size")
    tokenizer = dataclasses.replace(config.tokenizer, **{name: getattr(known.tokenizer, name) for name in names})
    adopted = dataclasses.replace(config, model=dataclasses.replace(known.model, **own), tokenizer=tokenizer)
    check(adopted)
    return adopted


def initial_params(config: Config, init: Callable[[], Any], labels: tuple[str, ...] = ()) -> Callable[[], Any] | None:
    """Reads those of the weights in `init_from` that a model made by `init` has; None where there is no `init_from`.

    A classifier is taken where its labels are `labels`. The reader raises UserError where a head has other sizes there
    than here.
    """
    if not config.init_from:
        return None

    def read() -> dict[str, Any]:
        with open_weights(Path(config.init_from)) as weights:
            params, _ = weights.load()
        wanted = jax.eval_shape(init)
        other = {"classifier"} if weights.labels != labels else set()
        params = {group: tree for group, tree in params.items() if group in wanted and group not in other}
        shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(wanted)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if shapes[path_name(path)] != leaf.shape:
                raise UserError(
                    f"{config.init_from}: its {path_name(path)} has shape {leaf.shape}, and this configuration's "
                    f"{shapes[path_name(path)]}; set config.masking.max_span_offset and config.model.span_offset_embed "
                    "to what it has"
                )
        if jax.process_index() == 0:
            fresh = [group for group in wanted if group not in params]
            print(f"Taken: {', '.join(params)}; freshly initialised: {', '.join(fresh) or 'nothing'}")
        return params

    return read
