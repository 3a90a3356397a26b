"""The families of transformer layers, by the name that `config.model.family` gives them.

Invariant: the names are those of `config.FAMILIES`, which the check of a configuration reads without importing JAX.
"""

from spanbert_jax.config import ModelConfig
from spanbert_jax.model import layer_bert, layer_modern
from spanbert_jax.model.layer_family import Family

FAMILIES: dict[str, Family] = {"bert": layer_bert.FAMILY, "modern": layer_modern.FAMILY}


def family_of(model: ModelConfig) -> Family:
    """The family that the configuration names."""
    return FAMILIES[model.family]
