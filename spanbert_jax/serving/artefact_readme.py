"""The README.md of an exported model: its inputs and outputs, and lines of Python that load and call the model.

Invariant: the lines run as they stand, in the directory above the export, without this project.
"""

import string
from pathlib import Path
from typing import Any

import jax
import tokenizers

from spanbert_jax.convert.tokenizer_export import TOKENIZER_FILE
from spanbert_jax.serving.artefact import PLATFORMS, Model
from spanbert_jax.serving.saved_model import tensorflow_version

# By the task of the model's class, `huggingface_config.Architecture.task`.
LOGITS = {
    "masked_lm": "[batch, length, pieces], a score of each piece of the vocabulary for each position",
    "question_answering": "[batch, length, 2], for each piece its scores as the answer's first and last piece",
    "token_classification": "[batch, length, labels], a score of each label for each piece",
    "sequence_classification": "[batch, labels], a score of each label for the row",
}
TEXTS: dict[str, list[Any]] = {
    "masked_lm": ["Paris is the [MASK] of France.", "Hello!"],
    "question_answering": [("Who lived in London?", "Ada Lovelace lived in London.")],
}
OTHER_TEXTS = ["Ada Lovelace lived in London.", "Hello!"]

# The Python lines of the README; `lines_of_python` fills in the $names.
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
encodings = tokenizer.encode_batch(texts)
inputs = (
    np.array([encoding.ids for encoding in encodings], np.int32),
    np.array([sum(encoding.attention_mask) for encoding in encodings], np.int32),
    np.array([encoding.type_ids for encoding in encodings], np.int32),
)
hidden_states = np.asarray(functions["encode"](params, *inputs))
print(hidden_states.shape)
"""
STABLEHLO_PREDICT = 'logits = np.asarray(functions["predict"](params, *inputs))\n'
STABLEHLO_ANSWER = {
    "masked_lm": """row, position = np.argwhere(inputs[0] == tokenizer.token_to_id($mask))[0]
print(tokenizer.id_to_token(int(logits[row, position].argmax())))
""",
    "question_answering": """scores = logits[0, :, 0][:, None] + logits[0, :, 1][None, :]  # [first, last]
in_text = np.array([part == 1 for part in encodings[0].sequence_ids])
allowed = np.tril(np.triu(np.ones_like(scores, bool)), 29) & in_text[:, None] & in_text[None, :]
first, last = np.unravel_index(np.where(allowed, scores, -np.inf).argmax(), scores.shape)
print(texts[0][1][encodings[0].offsets[first][0] : encodings[0].offsets[last][1]])
""",
    "token_classification": """labels = $labels
print([(piece, labels[label]) for piece, label in zip(encodings[0].tokens, logits[0].argmax(-1))])
""",
    "sequence_classification": """labels = $labels
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
    """Python that loads and calls the export. directory: where it lies now; name: its directory's later name."""
    mask = model.tokenizer.piece(model.tokenizer.mask_id)
    texts = [
        text.replace("[MASK]", mask) if isinstance(text, str) else text for text in TEXTS.get(model.task, OTHER_TEXTS)
    ]
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    tokenizer.enable_truncation(model.max_length)
    tokenizer.enable_padding(pad_id=model.tokenizer.pad_id)
    encodings = tokenizer.encode_batch(texts)
    values = {
        "name": name,
        "mask": mask,
        "max_length": model.max_length,
        "pad_id": model.tokenizer.pad_id,
        "texts": texts,
        "labels": list(model.labels),
        "input_ids": [encoding.ids for encoding in encodings],
        "lengths": [sum(encoding.attention_mask) for encoding in encodings],
        "token_type_ids": [encoding.type_ids for encoding in encodings],
    }
    code = STABLEHLO if kind == "stablehlo" else SAVED_MODEL
    if "predict" in model.functions:
        predict = STABLEHLO_PREDICT + STABLEHLO_ANSWER[model.task]
        code += predict if kind == "stablehlo" else SAVED_MODEL_PREDICT
    return string.Template(code).substitute({key: repr(value) for key, value in values.items()})


def readme(model: Model, kind: str, directory: Path, name: str) -> str:
    """The README.md of the export. directory: where it lies now; name: its directory's later name."""
    width = model.params["embeddings/word"].shape[1]
    outputs = [f"- `encode`: hidden states, float32 [batch, length, {width}]"]
    if "predict" in model.functions:
        outputs.append(f"- `predict`: logits, float32 {LOGITS[model.task]}")
    if model.labels:
        outputs[-1] += f"; the labels, in order: {', '.join(f'`{label}`' for label in model.labels)}"
    if "next_sentence" in model.functions:
        said = "scores that the second text of the row follows the first, and that it is of another document"
        outputs.append(f"- `next_sentence`: logits, float32 [batch, 2], {said}")
    if kind == "stablehlo":
        what = "a text encoder as StableHLO, for JAX"
        # docs.jax.dev/en/latest/export/export.html#compatibility-guarantees
        needs = (
            f"Needs `pip install jax=={jax.__version__} safetensors tokenizers`; runs on {', '.join(PLATFORMS)}. JAX "
            "promises to read such\nfiles for six months: keep the checkpoint, to export it again."
        )
        parameters = "The first argument of every function is a flat dict of the tensors in `params.safetensors`."
    else:
        what = "a text encoder as a TensorFlow SavedModel"
        needs = f"Needs only TensorFlow; checked with {tensorflow_version()}. Runs on {', '.join(PLATFORMS)}."
        parameters = "Hugging Face's tokenizers library reads `tokenizer.json`, which turns text into these ids."
    types = ("any; this encoder has no token types", "0", "1 in the second text of a pair, 0 elsewhere")[
        min(model.token_types, 2)
    ]
    lines = lines_of_python(model, kind, directory, name)
    functions_list = "\n".join(outputs)
    return f"""# {name}: {what}

```python
{lines}```

{needs}

Inputs, int32, for any batch and any length up to {model.max_length} (a longer one fails with an error about shapes):

- `input_ids` [batch, length]: [CLS], pieces, [SEP], then padding, which may be any ids of the vocabulary
- `lengths` [batch]: the number of ids before the padding in each row, at least 1
- `token_type_ids` [batch, length]: {types}

Outputs, which mean nothing at the padding:

{functions_list}

{parameters} Everything is computed in float32.
The first call with a new shape compiles, so pad to a few lengths in serving.
"""
