"""A second family of layers, which differs from BERT's in everything that a family may choose.

It has pre-LayerNorm, a table of cosines and no table of positions or token types, a gated feed-forward network, a
window in every second layer, and a final norm. `hidden_states` computes the same in NumPy, from this description and
not by the modules.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.config import ComputeConfig, Config, ModelConfig
from spanbert_jax.model import dropout as sites
from spanbert_jax.model.axes import constrain
from spanbert_jax.model.dropout import dropout
from spanbert_jax.model.layer_family import Context, Family
from spanbert_jax.model.layer_norm import LayerNorm
from spanbert_jax.model.linear import Dense, initializer
from tests.support.synthetic import small_config

EPS, WINDOW = 1e-5, 2


class ToyLayer(nn.Module):
    """x + the mean over the valid positions of a window of a linear map times the table, then a gated network."""

    model: ModelConfig
    compute: ComputeConfig
    dtype: jnp.dtype
    window: int

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, layer: jax.Array | int) -> jax.Array:
        model, length = self.model, x.shape[1]
        mapped = Dense((model.embed,), initializer(model), self.dtype, name="mix")(LayerNorm(EPS, name="norm_1")(x))
        mapped = mapped * context.tables.astype(self.dtype)  # [batch, length, embed]
        far = jnp.abs(jnp.arange(length)[:, None] - jnp.arange(length))
        seen = (far <= self.window) & (jnp.arange(length) < context.lengths[:, None, None])
        shares = seen / jnp.maximum(seen.sum(-1, keepdims=True), 1)  # [batch, length, length]
        x = x + jnp.einsum("bqk,bke->bqe", shares.astype(self.dtype), mapped)
        up = Dense((2, model.mlp), initializer(model), self.dtype, name="up")(LayerNorm(EPS, name="norm_2")(x))
        hidden = constrain(nn.sigmoid(up[:, :, 0]) * up[:, :, 1], "batch", "length", "mlp")
        out = Dense((model.embed,), initializer(model), self.dtype, name="down")(hidden)
        x = x + dropout(out, model.dropout, context.dropout, layer, sites.MLP_OUTPUT)
        return constrain(x, "batch", "length", "embed")


def _layers(model: ModelConfig) -> tuple[Any, ...]:
    def constructor(window: int) -> Any:
        return lambda *fields, parent: ToyLayer(*fields, window=window, parent=parent)

    return constructor(model.max_length), constructor(WINDOW)


def _tables(model: ModelConfig, length: int) -> jax.Array:
    return jnp.cos(jnp.arange(length)[:, None] * 0.1 * jnp.arange(model.embed))  # [length, embed]


TOY = Family(
    layers=_layers,
    tables=_tables,
    norm=lambda model: LayerNorm(EPS),
    final_norm=lambda model: True,
    position_table=False,
    token_types=False,
    transforms=False,
    axes=(
        (r"encoder/norm_[12]/(scale|bias)", (None, None)),
        (r"encoder/mix/kernel", (None, "embed", None)),
        (r"encoder/up/kernel", (None, "embed", None, "mlp")),
        (r"encoder/up/bias", (None, None, "mlp")),
        (r"encoder/down/kernel", (None, "mlp", "embed")),
        (r"encoder/(mix|down)/bias", (None, None)),
        (r"final_norm/(scale|bias)", (None,)),
    ),
    matrices=(
        (r"encoder/(mix|down)/kernel", "-io"),
        (r"encoder/up/kernel", "-i-o"),
    ),
    flops=lambda model, length: (
        model.layers * length * model.embed * (2 * model.embed + 2 * length + 6 * model.mlp)  # mix, the means, up, down
    ),
)


def toy_config(**sections: dict[str, Any]) -> Config:
    """The small configuration with three layers of the toy family: a scan over two of them, and one that is left."""
    model = {"layers": 3, "dropout": 0.0, **sections.pop("model", {})}
    config = small_config(model=model, **sections)
    return Config(**{**vars(config), "model": ModelConfig(**{**vars(config.model), "family": "toy"})})


def hidden_states(params: Any, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The encoder's hidden states, float64 [batch, length, embed]."""
    params = jax.tree.map(np.float64, params)
    encoder, count = params["encoder"], len(params["encoder"]["mix"]["bias"])
    length, embed = input_ids.shape[1], params["embeddings"]["word"].shape[1]
    places = np.arange(length)
    turned = np.cos(places[:, None] * 0.1 * np.arange(embed))

    def norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + EPS) * scale + bias

    rows = []
    for ids, valid in zip(input_ids, places < lengths[:, None], strict=True):
        x = norm(params["embeddings"]["word"][ids], **params["embeddings"]["norm"])
        for layer in range(count):
            of_layer = jax.tree.map(lambda leaf, layer=layer: leaf[layer], encoder)
            mixed = (norm(x, **of_layer["norm_1"]) @ of_layer["mix"]["kernel"] + of_layer["mix"]["bias"]) * turned
            windows = [valid & ((layer % 2 == 0) | (np.abs(places - place) <= WINDOW)) for place in places]
            x = x + np.stack([mixed[window].sum(0) / max(window.sum(), 1) for window in windows])
            up = np.einsum("le,egm->lgm", norm(x, **of_layer["norm_2"]), of_layer["up"]["kernel"])
            up = up + of_layer["up"]["bias"]
            x = x + (up[:, 1] / (1 + np.exp(-up[:, 0]))) @ of_layer["down"]["kernel"] + of_layer["down"]["bias"]
        rows.append(norm(x, **params["final_norm"]))
    return np.stack(rows)
