"""transformers' ModernBERT with random weights, at configurations that mix biases, windows, sizes and poolings."""

from typing import Any

from tests.support.synthetic import VOCAB

LABELS = 5
_ROPE = {"rope_type": "default"}

# transformers' class, and the fields of its configuration that differ from the defaults.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "as_published": (
        "ModernBertForMaskedLM",
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24},
    ),
    "mean_without_windows": (
        "ModernBertForSequenceClassification",
        {
            "hidden_size": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "intermediate_size": 48,
            "layer_types": ["full_attention"] * 2,
            "local_attention": 128,
            "num_labels": LABELS,
            "classifier_pooling": "mean",
            **dict.fromkeys(("attention_bias", "classifier_bias"), True),
        },
    ),
    "tokens": (
        "ModernBertForTokenClassification",
        {
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "local_attention": 2,
            "num_labels": LABELS,
            "rope_parameters": {
                "full_attention": {**_ROPE, "rope_theta": 500.0},
                "sliding_attention": {**_ROPE, "rope_theta": 50.0},
            },
            **dict.fromkeys(("mlp_bias", "norm_bias"), True),
        },
    ),
    "answers_with_all_biases": (
        "ModernBertForQuestionAnswering",
        {
            "hidden_size": 30,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "intermediate_size": 37,
            "local_attention": 6,
            "global_attn_every_n_layers": 2,
            "norm_eps": 1e-3,
            **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True),
        },
    ),
}


def random_modernbert(class_name: str, seed: int = 3, **fields: Any) -> Any:
    """The class with random parameters, biases and norms too, whose gradients are large beside a float's rounding."""
    import torch
    import transformers

    special = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    defaults = {"vocab_size": VOCAB, "local_attention": 8, "max_position_embeddings": 64}
    config = transformers.ModernBertConfig(**{**special, **defaults, **fields})
    model = getattr(transformers, class_name)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm.weight" in name), 0.2, generator=generator)
    return model
