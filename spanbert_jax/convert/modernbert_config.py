"""Hugging Face's config.json of a ModernBERT, to and from our `ModelConfig` of the family "modern".

Invariant: a configuration that our encoder does not compute (another activation, rope type or order of layers) is
refused, never approximated. A configuration that is written holds the fields of transformers 5 and those of
transformers 4, which name rotary positions and windowed layers differently.

The rates of dropout are the exception, since the two encoders drop at different places. Ours has `dropout` after the
embeddings, after both halves of a layer and before a head's last map, and `attention_dropout` on the probabilities.
ModernBERT's attention_dropout is also the rate after the attention, and its mlp_dropout acts inside the MLP. An export
writes `dropout` as embedding_dropout, mlp_dropout and classifier_dropout. An import takes the largest of these three.
"""

from typing import Any

from spanbert_jax.config import ModelConfig
from spanbert_jax.convert.config_fields import Fields, SpecialIds, check_fixed, check_heads, number, size, sizes
from spanbert_jax.errors import UserError, quoted

# Ours -> Hugging Face's, of the fields that both have.
_SIZES = {
    "layers": "num_hidden_layers",
    "embed": "hidden_size",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "max_length": "max_position_embeddings",
}
_RATES = {"attention_dropout": "attention_dropout", "layer_norm_eps": "norm_eps", "init_std": "initializer_range"}
_BIASES = {
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "norm_bias": "norm_bias",
    "head_bias": "classifier_bias",
}
_DROPOUTS = ("embedding_dropout", "mlp_dropout", "classifier_dropout")

# transformers' default of a field that is missing (configuration_modernbert.py:79-111).
_DEFAULTS = {"attention_dropout": 0.0, "norm_eps": 1e-5, "initializer_range": 0.02}
_EVERY, _LOCAL = 3, 128
_THETAS = {"rope_theta": 160_000.0, "local_rope_theta": 10_000.0}

_MOST_POSITIONS = 2**24  # float32, in which the angles of positions are computed, has no larger odd number
_FULL, _SLIDING = "full_attention", "sliding_attention"
# Our field -> the kind of layers in rope_parameters, and the field of transformers 4.
_ROPE = {"rope_theta": (_FULL, "global_rope_theta"), "local_rope_theta": (_SLIDING, "local_rope_theta")}

# The values that our encoder computes, transformers' default first. "gelu_python" is another name of the exact GELU.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu", "gelu_python"),
    "classifier_activation": ("gelu", "gelu_python"),
    "classifier_pooling": ("cls", "mean"),
    **{theirs: (False, True) for theirs in _BIASES.values()},
    "decoder_bias": (True,),
    "tie_word_embeddings": (True,),
}

# Fields of ours that ModernBERT has at one value alone.
_NEEDED: dict[str, Any] = {"pre_norm": True, "gated_mlp": True}


def to_model_config(fields: Fields, source: str) -> ModelConfig:
    """The ModelConfig of a config.json's fields, of transformers 5 or 4; those that are missing take transformers'
    defaults, except the sizes.

    Raises UserError where our encoder does not compute the model, or a size is missing or no number.
    """
    check_fixed(fields, _FIXED, "ModernBERT", source)
    values: dict[str, Any] = dict(sizes(fields, _SIZES, source))
    for ours, theirs in _RATES.items():
        values[ours] = number(fields.get(theirs, _DEFAULTS[theirs]), theirs, source)
    values["dropout"] = max(number(fields.get(name, 0.0), name, source) for name in _DROPOUTS)
    for ours, theirs in _BIASES.items():
        values[ours] = bool(fields.get(theirs, False))
    for ours in _ROPE:
        values[ours] = _theta(fields, ours, source)
    size(values["max_length"], _SIZES["max_length"], source, _MOST_POSITIONS)
    layers, embed, heads = values["layers"], values["embed"], values["heads"]
    check_heads(embed, heads, source)
    if embed // heads % 2:
        raise UserError(
            f"{source}: hidden_size {embed} / num_attention_heads {heads} is {embed // heads}; rotary positions turn "
            "pairs of numbers, so a head needs an even width"
        )
    every = _full_every(fields, layers, source)
    if every > 1 and layers > 1:
        values |= {"window": _window(fields, source), "full_every": every}
    return ModelConfig(
        family="modern", init="truncated", pooling=fields.get("classifier_pooling", "cls"), **_NEEDED, **values
    )


def _theta(fields: Fields, ours: str, source: str) -> float:
    """The base of the wavelengths of our field `ours`, a key of _ROPE."""
    layers, legacy = _ROPE[ours]
    rope = fields.get("rope_parameters") or {}
    described = (rope.get(layers) or {}) if isinstance(rope, dict) else rope
    places = {f"rope_parameters.{layers}": described, "rope_parameters": rope}
    for place, given in (places | {"rope_scaling": fields.get("rope_scaling") or {}}).items():
        if not isinstance(given, dict):
            raise UserError(f"{source}: {place} is {quoted(given)}; expected an object with rope_type and rope_theta")
        kind = given.get("rope_type", given.get("type", "default"))
        if kind != "default":
            raise UserError(
                f"{source}: the rope_type of {place} is {quoted(kind)}; only 'default' is supported: ModernBERT"
            )
        if place == "rope_scaling" and "rope_theta" in given:
            raise UserError(
                f"{source}: rope_scaling has a rope_theta, {quoted(given['rope_theta'])}; only one in "
                f"rope_parameters.{layers} is supported"
            )
    value = described.get("rope_theta", fields.get(legacy, _THETAS[ours]))
    theta = number(value, f"rope_theta of {layers}" if "rope_theta" in described else legacy, source)
    if not theta > 0:
        raise UserError(f"{source}: the rope_theta of {layers} is {theta}; expected a number greater than 0")
    return theta


def _full_every(fields: Fields, layers: int, source: str) -> int:
    """n where layers 0, n, 2 n, ... see all keys and the others are windowed; 1 where all layers see all keys."""
    kinds = fields.get("layer_types")
    if kinds is None:
        every = size(fields.get("global_attn_every_n_layers", _EVERY), "global_attn_every_n_layers", source)
        return min(every, layers)
    kinds = kinds if isinstance(kinds, list) else [kinds]
    every = kinds.index(_FULL, 1) if _FULL in kinds[1:] else max(len(kinds), 1)
    if len(kinds) != layers or kinds != _layer_types(layers, every):
        raise UserError(
            f"{source}: layer_types is {quoted(kinds)}; only {_FULL!r} for layers 0, n, 2 n, ... and {_SLIDING!r} for "
            f"the others of {layers} layers is supported: ModernBERT"
        )
    return every


def _layer_types(layers: int, every: int) -> list[str]:
    return [_SLIDING if layer % every else _FULL for layer in range(layers)]


def _window(fields: Fields, source: str) -> int:
    """The keys on each side that a query of a windowed layer sees: half of local_attention."""
    both = fields.get("local_attention", _LOCAL)
    if not isinstance(both, int) or both < 2 or both % 2 or both > _MOST_POSITIONS:
        raise UserError(
            f"{source}: local_attention is {quoted(both)}; expected an even whole number, twice the keys on each side"
        )
    return both // 2


def to_fields(model: ModelConfig, specials: SpecialIds) -> dict[str, Any]:
    """The fields that are ModernBERT's own. Raises UserError where ModernBERT has no counterpart of a field of ours."""
    for name, value in _NEEDED.items():
        if getattr(model, name) != value:
            raise UserError(
                f"model.{name} is {getattr(model, name)}: transformers' ModernBERT has {value} alone; export such a "
                "model with tools/export_serving.py"
            )
    every = model.full_every if model.window else 1
    thetas = {ours: float(getattr(model, ours)) for ours in _ROPE}
    return {
        "model_type": "modernbert",
        **{theirs: getattr(model, ours) for ours, theirs in (_SIZES | _RATES | _BIASES).items()},
        **dict.fromkeys(_DROPOUTS, model.dropout),
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "classifier_pooling": model.pooling,
        "decoder_bias": True,
        "initializer_cutoff_factor": 2.0,
        "layer_types": _layer_types(model.layers, every),
        "local_attention": 2 * model.window or _LOCAL,
        "rope_parameters": {
            layers: {"rope_type": "default", "rope_theta": thetas[ours]} for ours, (layers, _) in _ROPE.items()
        },
        "global_attn_every_n_layers": every,  # this field and the next two are for readers of transformers 4
        **{legacy: thetas[ours] for ours, (_, legacy) in _ROPE.items()},
        "pad_token_id": specials.pad,
        "bos_token_id": specials.cls,
        "eos_token_id": specials.sep,
        "cls_token_id": specials.cls,
        "sep_token_id": specials.sep,
        "sparse_prediction": False,
        "sparse_pred_ignore_index": -100,
        "deterministic_flash_attn": False,
    }
