"""transformers' ModernBERT with random weights, at drawn configurations of every field that an import follows."""

from typing import Any

from hypothesis import strategies as st

from tests.support.synthetic import VOCAB

LABELS = 5
# transformers' classes, and the fields that a class needs.
CLASSES: dict[str, dict[str, Any]] = {
    "ModernBertForMaskedLM": {},
    "ModernBertForSequenceClassification": {"num_labels": LABELS},
    "ModernBertForTokenClassification": {"num_labels": LABELS},
    "ModernBertForQuestionAnswering": {},
}
# Small sizes. The other fields have transformers' defaults, which are those of the published ModernBERT.
PUBLISHED = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
_BIASES = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")
_DEFAULT_WINDOW = 128  # transformers' local_attention


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of transformers' ModernBertConfig: layers of which all, some or one see all keys, and windows of 3 to 31
    pieces."""
    layers, heads = draw(st.integers(2, 3)), draw(st.integers(2, 5))
    every = draw(st.integers(1, 3))
    thetas = {kind: draw(st.sampled_from([160_000.0, 10_000.0, 50.0])) for kind in ("full", "sliding")}
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": heads * 2 * draw(st.integers(3, 6)),
        "intermediate_size": draw(st.integers(11, 48)),
        "global_attn_every_n_layers": every,
        "local_attention": draw(st.sampled_from([2, 8, 30])) if every > 1 else _DEFAULT_WINDOW,
        "norm_eps": draw(st.sampled_from([1e-5, 1e-3])),
        "classifier_pooling": draw(st.sampled_from(["cls", "mean"])),
        "rope_parameters": {
            f"{kind}_attention": {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()
        },
        **{bias: draw(st.booleans()) for bias in _BIASES},
    }


def drawn_models() -> st.SearchStrategy[dict[str, dict[str, Any]]]:
    """The fields of a configuration for each of CLASSES. Hypothesis begins with the simplest example, an empty one."""
    return st.just({}) | st.fixed_dictionaries(dict.fromkeys(CLASSES, configurations()))


def random_modernbert(class_name: str, seed: int = 3, **fields: Any) -> Any:
    """The class with random parameters, biases and norms too, whose gradients are large beside a float's rounding."""
    import torch
    import transformers

    special = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    defaults = {"vocab_size": VOCAB, "local_attention": 8, "max_position_embeddings": 64, **CLASSES.get(class_name, {})}
    config = transformers.ModernBertConfig(**{**special, **defaults, **fields})
    model = getattr(transformers, class_name)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm.weight" in name), 0.2, generator=generator)
    return model
