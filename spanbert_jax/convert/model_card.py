"""The README.md of an exported model: front matter for the Hub, how to load it, how it was trained.

Invariant: the card says nothing that the export's own files do not hold.
"""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from spanbert_jax.convert.huggingface_config import MASKED_LM

_TITLES = {"bert": "BERT", "modernbert": "ModernBERT"}  # by model_type

# By the task of the model's class, `huggingface_config.Architecture.task`.
_PIPELINES = {
    "masked_lm": "fill-mask",
    "token_classification": "token-classification",
    "sequence_classification": "text-classification",
    "question_answering": "question-answering",
    "": "feature-extraction",
}

_USES = {
    "masked_lm": """from transformers import pipeline

print(pipeline("fill-mask", model="DIRECTORY")("Paris is the [MASK] of France."))""",
    "token_classification": """from transformers import pipeline

# A word has the label of its first piece, since training gives the other pieces none. Where the vocabulary is not
# WordPiece, transformers takes whatever stands between two spaces for a word, and warns of that.
words = pipeline("token-classification", model="DIRECTORY", aggregation_strategy="first")
print(words("Ada Lovelace lived in London ."))""",
    "sequence_classification": """from transformers import pipeline

print(pipeline("text-classification", model="DIRECTORY")("A film to see twice."))""",
    "question_answering": """import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
model = AutoModelForQuestionAnswering.from_pretrained("DIRECTORY").eval()
question, text = "Who lived in London?", "Ada Lovelace lived in London."
inputs = tokenizer(question, text, return_tensors="pt", return_offsets_mapping=True)
offsets = inputs.pop("offset_mapping")[0]
with torch.no_grad():
    scores = model(**inputs)
in_text = torch.tensor([part == 1 for part in inputs.sequence_ids(0)])
pairs = scores.start_logits[0, :, None] + scores.end_logits[0, None, :]  # [first, last]
allowed = torch.ones_like(pairs).triu().tril(29).bool() & in_text[:, None] & in_text[None, :]
first, last = divmod(int(pairs.where(allowed, torch.tensor(float("-inf"))).argmax()), pairs.shape[1])
print(text[offsets[first, 0] : offsets[last, 1]])""",
    "": """import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
model = AutoModel.from_pretrained("DIRECTORY").eval()
with torch.no_grad():
    print(model(**tokenizer("Paris is the capital of France.", return_tensors="pt")).last_hidden_state)""",
}

_SBO = """
`sbo_head.safetensors` is the span-boundary head (Joshi et al. 2020, section 3.2) under the names of the authors' code,
`cls.pair_target_predictions.*`. transformers has no class for it and ignores the file; training goes on with it in
spanbert_jax: `--config.init_from=DIRECTORY`.
"""

_ENCODER = {  # by model_type
    "bert": """
`AutoModel` loads the encoder alone from here. It reports that the head is left over, and that its pooler is newly
initialised, because span pre-training trains no pooler. spanbert_jax's tools/convert_to_pytorch.py writes a directory
that `AutoModel` loads without such a report: give it `--encoder-only`.
""",
    "modernbert": """
`AutoModel` loads the encoder alone from here, and reports that the head is left over. spanbert_jax's
tools/convert_to_pytorch.py writes a directory that `AutoModel` loads without such a report: give it `--encoder-only`.
""",
}

_ENCODER_WITH_POOLER = """
`AutoModel` loads the encoder and the pooler from here, and reports that the other heads are left over. spanbert_jax's
tools/convert_to_pytorch.py writes a directory that `AutoModel` loads without such a report: give it `--encoder-only`.
"""

_NSP = """
`BertForPreTraining` has the head of next-sentence prediction as well: `seq_relationship_logits` are scores that the
second text follows the first, and that it is of another document.
"""

_POOLER = """
There is no trained pooler, because span pre-training trains none. The pooler here is the identity, so `pooler_output`
is the tanh of the first hidden state.
"""


def model_card(
    name: str,
    task: str,
    fields: Mapping[str, Any],
    training: Mapping[str, Any],
    has_sbo: bool,
    has_pooler: bool,
    mask: str,
) -> str:
    """The card's text.

    name: the directory, or the model's name on the Hub. task: of the model's class, "" for an encoder. fields: those of
    config.json. training: those of spanbert_jax.json. has_pooler: whether a trained pooler was written. mask: the
    mask's name in text.
    """
    kind, title = fields["model_type"], _TITLES[fields["model_type"]]
    config: Mapping[str, Any] = training.get("config", {})
    if training.get("task", "pretraining") != "pretraining":  # Fine-tuning does not read these sections.
        config = {
            key: value for key, value in config.items() if key.split(".")[0] not in ("corpus", "masking", "tokenizer")
        }
    matter = {
        "language": config.get("corpus.language"),
        "library_name": "transformers",
        "pipeline_tag": _PIPELINES[task],
        "tags": [kind, "spanbert", "spanbert_jax"],
    }
    front = [f"{key}: {json.dumps(value)}" for key, value in matter.items() if value]
    code = _USES[task].replace("[MASK]", mask).replace('"DIRECTORY"', json.dumps(name, ensure_ascii=False))
    sizes = (
        f"{title} with {fields['num_hidden_layers']} layers of width {fields['hidden_size']}, "
        f"{fields['num_attention_heads']} attention heads, {fields['vocab_size']:,} rows in the word table, texts "
        f"of up to {fields['max_position_embeddings']} pieces"
    )
    lines = ["---", *front, "---", "", f"# {name}", "", f"{sizes}; trained with spanbert_jax.", ""]
    lines += ["```python", code, "```", ""]
    if not task and kind == "bert" and not has_pooler:
        lines.append(_POOLER.strip() + "\n")
    if task == MASKED_LM:
        lines.append((_ENCODER_WITH_POOLER if has_pooler else _ENCODER[kind]).strip() + "\n")
    if fields["architectures"] == ["BertForPreTraining"]:
        lines.append(_NSP.strip() + "\n")
    if has_sbo:
        lines.append(_SBO.strip().replace("DIRECTORY", shlex.quote(name)) + "\n")
    lines += ["## Training", "", f"Step {training.get('step', 0):,}. All fields: `spanbert_jax.json`.", ""]
    if training.get("evaluation"):
        lines += ["| held out | |", "|---|---|"]
        lines += [f"| {key} | {value:.4f} |" for key, value in training["evaluation"].items()] + [""]
    if config:
        lines += ["<details><summary>The run's configuration</summary>", "", "| field | value |", "|---|---|"]
        lines += [f"| `{key}` | {json.dumps(value)} |" for key, value in config.items() if value != ""]
        lines += ["", "</details>", ""]
    return "\n".join(lines)
