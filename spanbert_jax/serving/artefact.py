"""A model as it is exported for serving elsewhere: functions, the parameters they use, and what describes them.

Invariant: the exported functions are those of serving/functions.py, so they compute in float32 whatever the device.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from spanbert_jax.convert.huggingface_config import architecture
from spanbert_jax.errors import UserError
from spanbert_jax.serving.functions import functions
from spanbert_jax.serving.real_text import rows_of_lines
from spanbert_jax.serving.weights import Weights
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.sharding import path_name

PLATFORMS = ("cpu", "cuda", "tpu")
OUTPUTS = {"encode": "hidden_states", "predict": "logits"}
_TOLERANCE = 1e-4  # of the largest value; float32 rounding stays under a tenth of it
_ROW = 128  # pieces in the longest row that is compared

Call = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Model:
    """What is exported. Each of `functions` takes (params, input_ids, lengths, token_type_ids) like its namesake in
    serving/functions.py, but takes the parameters as a flat {"a/b/c": array}."""

    architecture: str  # transformers' name for the encoder with this head
    functions: dict[str, Call]
    params: dict[str, np.ndarray]
    tokenizer: Tokenizer
    max_length: int
    token_types: int
    labels: tuple[str, ...]


def read_model(weights: Weights) -> Model:
    """The weights' functions, and of the parameters those that they use."""
    params, _ = weights.load()
    config, tokenizer = weights.config, weights.tokenizer
    name, heads = architecture(params)
    computed = functions(config, params, tokenizer.vocab_size, len(weights.labels))
    used = ("embeddings", "encoder", *(heads if "predict" in computed else ()))
    leaves, structure = jax.tree_util.tree_flatten_with_path({group: params[group] for group in used})
    flat = {path_name(path): np.ascontiguousarray(leaf) for path, leaf in leaves}

    def from_flat(function: Call) -> Call:
        def call(params: dict[str, jax.Array], *inputs: jax.Array) -> jax.Array:
            return function(jax.tree.unflatten(structure, [params[name] for name in flat]), *inputs)

        return call

    calls = {what: from_flat(function) for what, function in computed.items()}
    labels = weights.labels if "classifier" in heads else ()
    return Model(name, calls, flat, tokenizer, config.model.max_length, config.model.token_types, labels)


def compare(model: Model, calls: Mapping[str, Call], lines: list[str]) -> str:
    """What to print of loaded functions against ours on real text; raises UserError where they do not agree."""
    ids, lengths = rows_of_lines(model.tokenizer, lines, min(_ROW, model.max_length))
    second = (np.arange(ids.shape[1]) >= lengths[:, None] // 2) & (model.token_types > 1)
    inputs = (ids, lengths, second.astype(np.int32))
    said = []
    for name, function in model.functions.items():
        ours = np.asarray(jax.jit(function)(model.params, *inputs))
        difference, largest = float(np.abs(np.asarray(calls[name](*inputs)) - ours).max()), float(np.abs(ours).max())
        if not difference <= _TOLERANCE * largest:
            raise UserError(
                f"{name}: what was exported, loaded again, differs by {difference:.1e} from what was to be exported, "
                f"where values go up to {largest:.3g}; nothing was written; report it, with the versions of jax"
            )
        said.append(f"{OUTPUTS[name].replace('_', ' ')} {difference:.1e} (values up to {largest:.3g})")
    return f"Loaded again, on {len(ids)} rows of real text, largest difference: {', '.join(said)}"
