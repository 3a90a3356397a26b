"""A model that is exported for serving elsewhere: its functions, the parameters that they use, tokenizer and labels.

Invariant: the exported functions are those of serving/functions.py, so they compute in float32 on every device.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from spanbert_jax.convert.huggingface_config import architecture
from spanbert_jax.convert.names import ENCODER
from spanbert_jax.errors import UserError
from spanbert_jax.serving.functions import functions
from spanbert_jax.serving.real_text import rows_of_lines
from spanbert_jax.serving.weights import Weights
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.sharding import path_name

PLATFORMS = ("cpu", "cuda", "tpu")
OUTPUTS = {"encode": "hidden_states", "predict": "logits", "next_sentence": "next_sentence_logits"}
_TOLERANCE = 1e-4  # of the largest value; float32 rounding stays under a tenth of it
_ROW = 128  # pieces in the longest row that is compared

Call = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to export. Each of `functions` takes (params, input_ids, lengths, token_type_ids) as its namesake in
    serving/functions.py does, but params is a flat {"a/b/c": array}."""

    task: str  # as `huggingface_config.Architecture` has it: "" for the encoder alone
    functions: dict[str, Call]
    params: dict[str, np.ndarray]
    tokenizer: Tokenizer
    max_length: int  # pieces in the longest row
    token_types: int  # rows of their table; 0 in an encoder without one
    labels: tuple[str, ...]


def read_model(weights: Weights) -> Model:
    """The weights as a `Model`, with only those parameters that its functions use."""
    params, _ = weights.load()
    config, tokenizer = weights.config, weights.tokenizer
    _, task, heads = architecture(params, config.model.family, config.task)
    computed = functions(config, params, tokenizer.vocab_size, len(weights.labels))
    encoder = (group for group in ENCODER if group in params)
    used = (*encoder, *(heads if "predict" in computed else ()))
    leaves, structure = jax.tree_util.tree_flatten_with_path({group: params[group] for group in used})
    flat = {path_name(path): np.ascontiguousarray(leaf) for path, leaf in leaves}

    def from_flat(function: Call) -> Call:
        def call(params: dict[str, jax.Array], *inputs: jax.Array) -> jax.Array:
            return function(jax.tree.unflatten(structure, [params[name] for name in flat]), *inputs)

        return call

    calls = {what: from_flat(function) for what, function in computed.items()}
    labels = weights.labels if "classifier" in heads else ()
    token_types = len(params["embeddings"].get("token_type", ()))
    return Model(task, calls, flat, tokenizer, config.model.max_length, token_types, labels)


def compare(model: Model, calls: Mapping[str, Call], lines: list[str]) -> str:
    """Compares `calls`, the exported functions loaded again, with the model's own on 8 rows of the real text `lines`.

    Returns the line to print. Raises UserError where outputs differ by more than 1e-4 of the largest value.
    """
    ids, lengths = rows_of_lines(model.tokenizer, lines, min(_ROW, model.max_length))
    second = (np.arange(ids.shape[1]) >= lengths[:, None] // 2) & (model.token_types > 1)
    inputs = (ids, lengths, second.astype(np.int32))
    said = []
    for name, function in model.functions.items():
        ours = np.asarray(jax.jit(function)(model.params, *inputs))
        difference, largest = float(np.abs(np.asarray(calls[name](*inputs)) - ours).max()), float(np.abs(ours).max())
        if not difference <= _TOLERANCE * largest:
            raise UserError(
                f"{name}: the exported function, loaded again, differs by {difference:.1e} from the model, whose "
                f"values go up to {largest:.3g}; nothing was written; please report this with your version of jax"
            )
        said.append(f"{OUTPUTS[name].replace('_', ' ')} {difference:.1e} (values up to {largest:.3g})")
    return f"Loaded again, on {len(ids)} rows of real text, largest difference: {', '.join(said)}"
