"""Starts a run from the trained weights that `config.init_from` names.

Invariant: the encoder's sizes and the vocabulary are always those of the weights. Parameters that the weights lack are
initialised anew, and a line says which. A run opens the weights at most once.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from spanbert_jax.config import Config, is_trained, reads_spans
from spanbert_jax.config_check import check
from spanbert_jax.convert.names import Params
from spanbert_jax.errors import UserError
from spanbert_jax.model import extensions
from spanbert_jax.serving.weights import Weights, open_weights
from spanbert_jax.training.sharding import path_name
from spanbert_jax.training.workdir import read_config

# Fields of ModelConfig that a run takes from its own configuration, and not from the weights.
_OWN = ("dropout", "attention_dropout", "init_std", "span_offset_embed", "decoder_layers")


class StartingWeights(contextlib.AbstractContextManager["StartingWeights"]):
    """The weights in `config.init_from`, which are opened when they are first needed and kept open until `release`.

    Opening may unpack an archive, or load a whole pickle, which then stays in memory.
    """

    def __init__(self, config: Config):
        self._path, self._stack = Path(config.init_from), contextlib.ExitStack()
        self._weights: Weights | None = None

    def open(self) -> Weights:
        """The weights; raises UserError where they cannot be read."""
        if self._weights is None:
            self._weights = self._stack.enter_context(open_weights(self._path))
        return self._weights

    def release(self) -> None:
        """Closes the weights, which frees their memory and deletes the files of an unpacked archive."""
        self._weights = None
        self._stack.close()

    def __exit__(self, *_: object) -> None:
        self.release()


def adopt(config: Config, workdir: epath.Path, start: StartingWeights) -> Config:
    """The configuration with the encoder's sizes and the vocabulary of the weights; unchanged without `init_from`. An
    extension that the weights lack is that of the configuration. Rows are pooled by their mean where either says so.

    A run that goes on takes both from its own workdir, so the weights may be gone by then. Raises UserError where the
    weights cannot be read, or do not fit the rest of the configuration.
    """
    if not config.init_from:
        return config
    saved = workdir / "config.json"
    known = read_config(saved) if saved.exists() else None
    if known is None or known.init_from != config.init_from:
        weights = start.open()
        known = weights.config
        _check_span_boundary(config, weights.span_boundary)
        if jax.process_index() == 0:
            model, vocabulary = known.model, weights.tokenizer
            print(
                f"Starting from {config.init_from}, {weights.kind}: {model.layers} layers x {model.embed}, "
                f"{vocabulary.kind} vocabulary of {vocabulary.vocab_size:,} pieces",
                *weights.notes,
                sep="\n",
            )
    own = {name: getattr(config.model, name) for name in _OWN}
    own["pooling"] = "mean" if "mean" in (config.model.pooling, known.model.pooling) else "cls"
    own |= extensions.adopted(config.model, known.model, config.init_from)
    corpus = config.corpus
    if reads_spans(known.model):  # the rules decide what the numbers of the kinds mean
        if corpus.spans not in ("", known.corpus.spans):
            raise UserError(
                f"config.corpus.spans is {corpus.spans!r}, and the weights in {config.init_from} were trained with "
                f"{known.corpus.spans!r}; leave it out"
            )
        corpus = dataclasses.replace(corpus, spans=known.corpus.spans)
    names = ("kind", "lowercase", "vocab_size")
    tokenizer = dataclasses.replace(config.tokenizer, **{name: getattr(known.tokenizer, name) for name in names})
    model = dataclasses.replace(known.model, **own)
    adopted = dataclasses.replace(config, model=model, tokenizer=tokenizer, corpus=corpus)
    check(adopted)
    return adopted


def _check_span_boundary(config: Config, there: tuple[int, int] | None) -> None:
    here = (config.masking.max_span_offset, config.model.span_offset_embed)
    if config.task == "pretraining" and config.train.sbo_weight and there is not None and there != here:
        raise UserError(
            f"{config.init_from}: its span-boundary head has {there[0]} offsets of width {there[1]}, and this "
            f"configuration {here[0]} of {here[1]}; set --config.masking.max_span_offset={there[0]} "
            f"--config.model.span_offset_embed={there[1]}"
        )


def _check_finite(params: Params, source: str) -> None:
    """Raises UserError, naming the parameter, where a value is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if bad := int(np.count_nonzero(~np.isfinite(leaf))):
            raise UserError(
                f"{source}: {path_name(path)} has {bad:,} values that are not finite; name a checkpoint "
                "from before they arose"
            )


def initial_params(
    config: Config,
    start: StartingWeights,
    init: Callable[[], Any],
    labels: tuple[str, ...] = (),
    release: bool = True,
) -> Callable[[], Any] | None:
    """A function that reads the parameters which a run takes from the weights; None without `init_from`.

    The function returns those groups of the weights' parameters whose shapes are those of `init`'s. A classifier must
    also have the labels `labels`. init: makes the model's parameters; only its shapes are used. release: whether to
    close the weights afterwards.
    """
    if not config.init_from:
        return None

    def read() -> dict[str, Any]:
        weights = start.open()
        params, _ = weights.load()
        wanted = jax.eval_shape(init)
        inherited = "transform" in wanted and "transform" not in params and "mlm" in params
        if inherited:  # as in ModernBERT, whose task heads begin with the masked language model's layer
            params["transform"] = {part: params["mlm"][part] for part in ("dense", "norm")}
        other = {"classifier"} if weights.labels != labels else set()
        if release:
            del weights
            start.release()
        here, there = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (wanted, params))
        added = extensions.missing(config.model, params)
        here = extensions.stripped(here, added)
        params = {group: params[group] for group in params if here.get(group) == there[group] and group not in other}
        _check_finite(params, config.init_from)
        random = [group for group in here if group not in params and not is_trained(config.train, group)]
        if random:
            raise UserError(
                f"config.train.only is {config.train.only!r}, and the weights in {config.init_from} have no "
                f"{random[0]!r} of this configuration's shapes, which would stay random; add it to config.train.only"
            )
        if jax.process_index() == 0:
            fresh = [group for group in here if group not in params] + list(added)
            taken = [f"{group} (mlm's)" if group == "transform" and inherited else group for group in params]
            print(f"Taken: {', '.join(taken)}; freshly initialised: {', '.join(fresh) or 'nothing'}")
        return params

    return read
