"""Writes a checkpoint for serving without this project: StableHLO for JAX, or a TensorFlow SavedModel.

    python tools/export_serving.py --checkpoint runs/tiny --output serving/ --format stablehlo

Invariant: one artefact takes every batch and every length up to the model's, computes in float32 whatever the device,
and the directory appears only when what was written, loaded again, gave what our own functions give on real text.
"""

import dataclasses
import importlib.util
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import tokenizers
from jax import export
from safetensors.numpy import load_file, save_file

from spanbert_jax import cli
from spanbert_jax.convert.huggingface_config import architecture
from spanbert_jax.convert.tokenizer_files import TOKENIZER_FILE, write_tokenizer
from spanbert_jax.errors import UserError
from spanbert_jax.files import new_directory
from spanbert_jax.serving.functions import functions
from spanbert_jax.serving.weights import Weights, open_weights
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.progress import Stage
from spanbert_jax.training.sharding import path_name
from tools.convert_to_pytorch import real_lines, rows_of

PLATFORMS = ("cpu", "cuda", "tpu")
OUTPUTS = {"encode": "hidden_states", "predict": "logits"}
TOLERANCE = 1e-4  # of the largest value; float32 rounding stays under a tenth of it
ROW = 128  # pieces in the longest row that is compared

Call = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Model:
    """What is exported: `functions` take (params, input_ids, lengths, token_type_ids), as those of serving/functions.py
    do, but parameters as a flat {"a/b/c": array}."""

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


def write_stablehlo(model: Model, directory: Path) -> None:
    """A .stablehlo file a function, for PLATFORMS, and their parameters in one params.safetensors."""
    batch, length = export.symbolic_shape("batch, length", constraints=[f"length <= {model.max_length}"])
    matrix, vector = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((batch, length), (batch,)))
    params = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in model.params.items()}
    for name, function in model.functions.items():
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(params, matrix, vector, matrix)
        (directory / f"{name}.stablehlo").write_bytes(exported.serialize())
    save_file(model.params, directory / "params.safetensors")


def read_stablehlo(directory: Path) -> dict[str, Call]:
    """The functions of a directory that `write_stablehlo` wrote, with their parameters."""
    params = jax.device_put(load_file(directory / "params.safetensors"))

    def load(path: Path) -> Call:
        call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
        return lambda *inputs: call(params, *inputs)

    return {path.stem: load(path) for path in directory.glob("*.stablehlo")}


def write_saved_model(model: Model, directory: Path) -> None:
    """A SavedModel with a signature a function, and the parameters as variables that the signatures share."""
    importlib.import_module("spanbert_jax.tensorflow_settings")  # before TensorFlow is imported
    import tensorflow as tf
    from jax.experimental import jax2tf

    module = tf.Module()
    module.params = {name: tf.Variable(value, trainable=False, name=name) for name, value in model.params.items()}
    shapes = {"input_ids": [None, None], "lengths": [None], "token_type_ids": [None, None]}
    specs = [tf.TensorSpec(shape, tf.int32, name) for name, shape in shapes.items()]

    def signature(name: str, function: Call) -> Any:
        converted = jax2tf.convert(
            function,
            polymorphic_shapes=[None, "batch, length", "batch", "batch, length"],
            polymorphic_constraints=[f"length <= {model.max_length}"],
            with_gradient=False,
            native_serialization_platforms=PLATFORMS,
        )

        @tf.function(input_signature=specs, autograph=False)
        def call(input_ids: Any, lengths: Any, token_type_ids: Any) -> dict[str, Any]:
            return {OUTPUTS[name]: converted(module.params, input_ids, lengths, token_type_ids)}

        return call

    signatures = {name: signature(name, function) for name, function in model.functions.items()}
    # JAX writes erf as a composite, and TensorFlow 2.21 infers no symbolic shapes in one; it writes erfc out.
    with mock.patch.object(jax.lax, "erf", lambda x: 1 - jax.lax.erfc(x)):
        tf.saved_model.save(module, str(directory), signatures)


def read_saved_model(directory: Path) -> dict[str, Call]:
    """The functions of a directory that `write_saved_model` wrote, with their parameters."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(directory))

    def call(name: str) -> Call:
        names = ("input_ids", "lengths", "token_type_ids")
        return lambda *inputs: loaded.signatures[name](**dict(zip(names, inputs, strict=True)))[OUTPUTS[name]]

    return {name: call(name) for name in loaded.signatures}


FORMATS = {"stablehlo": (write_stablehlo, read_stablehlo), "saved_model": (write_saved_model, read_saved_model)}


def compare(model: Model, calls: dict[str, Call], lines: list[str]) -> str:
    """What to print of loaded functions against ours on real text; raises UserError where they do not agree."""
    ids, lengths = rows_of(model.tokenizer, lines, min(ROW, model.max_length))
    second = (np.arange(ids.shape[1]) >= lengths[:, None] // 2) & (model.token_types > 1)
    inputs = (ids, lengths, second.astype(np.int32))
    said = []
    for name, function in model.functions.items():
        ours = np.asarray(jax.jit(function)(model.params, *inputs))
        difference, largest = float(np.abs(np.asarray(calls[name](*inputs)) - ours).max()), float(np.abs(ours).max())
        if not difference <= TOLERANCE * largest:
            raise UserError(
                f"{name}: what was exported, loaded again, differs by {difference:.1e} from what was to be exported, "
                f"where values go up to {largest:.3g}; nothing was written; report it, with the versions of jax"
            )
        said.append(f"{OUTPUTS[name].replace('_', ' ')} {difference:.1e} (values up to {largest:.3g})")
    return f"Loaded again, on {len(ids)} rows of real text, largest difference: {', '.join(said)}"


LOGITS = {
    "BertForMaskedLM": "[batch, length, pieces], scores of every piece to stand there",
    "BertForQuestionAnswering": "[batch, length, 2], scores to be the answer's first piece, and its last",
    "BertForTokenClassification": "[batch, length, labels], scores of every label for each piece",
    "BertForSequenceClassification": "[batch, labels], scores of every label for the row",
}
TEXTS: dict[str, list[Any]] = {
    "BertForMaskedLM": ["Paris is the [MASK] of France.", "Hello!"],
    "BertForQuestionAnswering": [("Who lived in London?", "Ada Lovelace lived in London.")],
}
OTHER_TEXTS = ["Ada Lovelace lived in London.", "Hello!"]

# What the README shows, with $names to fill in.
STABLEHLO = """from pathlib import Path

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file
from tokenizers import Tokenizer

directory = Path($name)
params = jax.device_put(load_file(directory / "params.safetensors"))
functions = {
    path.stem: jax.jit(export.deserialize(bytearray(path.read_bytes())).call) for path in directory.glob("*.stablehlo")
}
tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
tokenizer.enable_truncation($max_length)
tokenizer.enable_padding(pad_id=$pad_id)

texts = $texts
rows = tokenizer.encode_batch(texts)
inputs = (
    np.array([row.ids for row in rows], np.int32),
    np.array([sum(row.attention_mask) for row in rows], np.int32),
    np.array([row.type_ids for row in rows], np.int32),
)
hidden_states = np.asarray(functions["encode"](params, *inputs))
print(hidden_states.shape)
"""
STABLEHLO_PREDICT = 'logits = np.asarray(functions["predict"](params, *inputs))\n'
STABLEHLO_ANSWER = {
    "BertForMaskedLM": """row, position = np.argwhere(inputs[0] == tokenizer.token_to_id("[MASK]"))[0]
print(tokenizer.id_to_token(int(logits[row, position].argmax())))
""",
    "BertForQuestionAnswering": """scores = logits[0, :, 0][:, None] + logits[0, :, 1][None, :]  # [first, last]
in_text = np.array([part == 1 for part in rows[0].sequence_ids])
allowed = np.tril(np.triu(np.ones_like(scores, bool)), 29) & in_text[:, None] & in_text[None, :]
first, last = np.unravel_index(np.where(allowed, scores, -np.inf).argmax(), scores.shape)
print(texts[0][1][rows[0].offsets[first][0] : rows[0].offsets[last][1]])
""",
    "BertForTokenClassification": """labels = $labels
print([(piece, labels[label]) for piece, label in zip(rows[0].tokens, logits[0].argmax(-1))])
""",
    "BertForSequenceClassification": """labels = $labels
print([labels[label] for label in logits.argmax(-1)])
""",
}
SAVED_MODEL = """import tensorflow as tf

model = tf.saved_model.load($name)
inputs = {  # $texts
    "input_ids": tf.constant($input_ids),
    "lengths": tf.constant($lengths),
    "token_type_ids": tf.constant($token_type_ids),
}
hidden_states = model.signatures["encode"](**inputs)["hidden_states"]
print(hidden_states.shape)
"""
SAVED_MODEL_PREDICT = """logits = model.signatures["predict"](**inputs)["logits"]
print(logits.shape)
"""


def lines_of_python(model: Model, kind: str, directory: Path, name: str) -> str:
    """What loads and calls the export in `directory` once that is called `name`."""
    texts = TEXTS.get(model.architecture, OTHER_TEXTS)
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    tokenizer.enable_truncation(model.max_length)
    tokenizer.enable_padding(pad_id=model.tokenizer.pad_id)
    rows = tokenizer.encode_batch(texts)
    values = {
        "name": name,
        "max_length": model.max_length,
        "pad_id": model.tokenizer.pad_id,
        "texts": texts,
        "labels": list(model.labels),
        "input_ids": [row.ids for row in rows],
        "lengths": [sum(row.attention_mask) for row in rows],
        "token_type_ids": [row.type_ids for row in rows],
    }
    code = STABLEHLO if kind == "stablehlo" else SAVED_MODEL
    if "predict" in model.functions:
        predict = STABLEHLO_PREDICT + STABLEHLO_ANSWER[model.architecture]
        code += predict if kind == "stablehlo" else SAVED_MODEL_PREDICT
    return string.Template(code).substitute({key: repr(value) for key, value in values.items()})


def readme(model: Model, kind: str, directory: Path, name: str) -> str:
    """The README.md of the export in `directory` once that is called `name`."""
    width = model.params["embeddings/position"].shape[1]
    outputs = [f"- `encode`: hidden states, float32 [batch, length, {width}]"]
    if "predict" in model.functions:
        outputs.append(f"- `predict`: logits, float32 {LOGITS[model.architecture]}")
    if model.labels:
        outputs[-1] += f"; the labels, in order: {', '.join(f'`{label}`' for label in model.labels)}"
    if kind == "stablehlo":
        what = "a BERT encoder as StableHLO, for JAX"
        # docs.jax.dev/en/latest/export/export.html#compatibility-guarantees
        needs = (
            f"Needs `pip install jax=={jax.__version__} safetensors tokenizers`; for {', '.join(PLATFORMS)}. JAX "
            "promises to read such\nfiles for six months: keep the checkpoint, to export it again."
        )
        parameters = "Parameters: one flat dict, the tensors of `params.safetensors`, which every function takes first."
    else:
        import tensorflow as tf

        what = "a BERT encoder as a TensorFlow SavedModel"
        needs = f"Needs TensorFlow alone; checked with {tf.__version__}. For {', '.join(PLATFORMS)}."
        parameters = "`tokenizer.json`, of Hugging Face's tokenizers library, makes such ids of text."
    lines = lines_of_python(model, kind, directory, name)
    functions_list = "\n".join(outputs)
    return f"""# {name}: {what}

```python
{lines}```

{needs}

Inputs, int32, for any batch and any length up to {model.max_length} (more is an error of refining shapes):

- `input_ids` [batch, length]: [CLS], pieces, [SEP], and padding: any ids of the vocabulary
- `lengths` [batch]: ids in each row before the padding, at least 1; what the padding is changes nothing
- `token_type_ids` [batch, length]: 0, and 1 in the second text of a pair

Outputs; at padding they mean nothing:

{functions_list}

{parameters} Everything is computed in float32.
The first call with a new shape compiles: pad to a few lengths in serving.
"""


def export_weights(checkpoint: Path, output: Path, kind: str) -> None:
    """Exports, compares, and says what it did."""
    if kind == "saved_model" and not importlib.util.find_spec("tensorflow"):
        raise UserError("--format saved_model needs TensorFlow: pip install -r requirements.txt")
    write, read = FORMATS[kind]
    jax.config.update("jax_traceback_in_locations_limit", 0)  # else the artefacts name this machine's directories
    with open_weights(checkpoint) as weights, new_directory(output, "--output") as directory:
        with Stage(f"Reading {weights.source}"):
            model = read_model(weights)
        with Stage(f"Writing {output}"):
            write(model, directory)
            write_tokenizer(model.tokenizer, directory, model.max_length)
            (directory / "README.md").write_text(readme(model, kind, directory, output.name), encoding="utf-8")
        with Stage("Loading it again and comparing"):
            said = compare(model, read(directory), real_lines(None))
    for file in sorted(path for path in output.rglob("*") if path.is_file()):
        print(f"  {file.relative_to(output)!s:40}{file.stat().st_size:>14,} bytes")
    print(said)


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a workdir (its best or newest checkpoint), or checkpoints/STEP"
    )
    parser.add_argument("--output", type=Path, required=True, help="a directory to make")
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="what serves it: JAX, or TensorFlow")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: export_weights(arguments.checkpoint, arguments.output, arguments.format))


if __name__ == "__main__":
    sys.exit(main())
