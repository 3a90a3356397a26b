"""SpanBERT's own checkpoints: every name, the decoders' copies, and both heads' logits against NumPy in float64."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from spanbert_jax.config import Config, ModelConfig
from spanbert_jax.convert import fairseq
from spanbert_jax.convert.huggingface import from_tensors
from spanbert_jax.convert.tensor_files import read_tensors
from spanbert_jax.errors import UserError
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.model.pretraining_heads import apply, pretraining_model
from tests.support.fairseq_checkpoint import (
    DECODERS,
    HEADS,
    LAYERS,
    LENGTH,
    MLP,
    SBO,
    TARGETS,
    TYPES,
    VOCAB,
    WIDTH,
    WORD,
    original_tensors,
    saved,
)
from tests.support.published import lazy


class Reference:
    """The authors' model in float64, from the original names, a row at a time and without padding."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.tensors[f"decoder.{name}.weight"].T + self.tensors[f"decoder.{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * self.tensors[f"decoder.{name}.gamma"] + self.tensors[f"decoder.{name}.beta"]

    def gelu(self, x: np.ndarray) -> np.ndarray:
        from scipy.special import erf

        return x / 2 * (1 + erf(x / np.sqrt(2)))

    def attend(self, layer: str, x: np.ndarray) -> np.ndarray:
        query, key, value = (
            self.linear(f"{layer}.self.{part}", x).reshape(len(x), HEADS, WIDTH // HEADS).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )  # [heads, length, head_dim]
        scores = query @ key.swapaxes(1, 2) / np.sqrt(WIDTH // HEADS)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True) @ value).swapaxes(0, 1).reshape(len(x), WIDTH)
        return self.linear(f"{layer}.output.dense", mixed)

    def hidden(self, ids: np.ndarray) -> np.ndarray:
        """int [length] -> [length, width]; all token types are 0, as in training."""
        word, position, token_type = (
            self.tensors[f"decoder.bert.embeddings.{kind}_embeddings.weight"]
            for kind in ("word", "position", "token_type")
        )
        x = self.norm("bert.embeddings.LayerNorm", word[ids] + position[: len(ids)] + token_type[0])
        for index in range(LAYERS):
            layer = f"bert.encoder.layer.{index}"
            x = self.norm(f"{layer}.attention.output.LayerNorm", x + self.attend(f"{layer}.attention", x))
            up = self.gelu(self.linear(f"{layer}.intermediate.dense", x))
            x = self.norm(f"{layer}.output.LayerNorm", x + self.linear(f"{layer}.output.dense", up))
        return x

    def mlm(self, state: np.ndarray) -> np.ndarray:
        """[width] -> logits [vocab]."""
        transform = "cls.predictions.transform"
        x = self.norm(f"{transform}.LayerNorm", self.gelu(self.linear(f"{transform}.dense", state)))
        return x @ self.tensors[DECODERS[0]].T + self.tensors["decoder.cls.predictions.bias"]

    def sbo(self, left: np.ndarray, right: np.ndarray, offset: int) -> np.ndarray:
        """The states on a span's two sides, [width] each, and an offset inside it -> logits [vocab]."""
        x = np.concatenate([left, right, self.tensors[f"{SBO}.position_embeddings.weight"][offset]])
        for number in (1, 2):
            name = "cls.pair_target_predictions.mlp_layer_norm"
            x = self.norm(f"{name}.layer_norm{number}", self.gelu(self.linear(f"{name}.linear{number}", x)))
        return x @ self.tensors[DECODERS[1]].T + self.tensors[f"{SBO}.bias"]


@pytest.mark.parametrize("as_training_checkpoint", [False, True])
def test_an_imported_file_gives_the_mlm_and_sbo_logits_of_the_original(
    tmp_path: Path, as_training_checkpoint: bool
) -> None:
    tensors = original_tensors()
    read = read_tensors(saved(tensors, tmp_path / "model.pt", as_training_checkpoint))
    assert fairseq.is_fairseq(read)
    translated, _ = fairseq.translate(read)
    fields = fairseq.config_fields(translated)
    model = ModelConfig(
        layers=fields["num_hidden_layers"],
        embed=fields["hidden_size"],
        heads=fields["num_attention_heads"],
        mlp=fields["intermediate_size"],
        max_length=fields["max_position_embeddings"],
        token_types=fields["type_vocab_size"],
        layer_norm_eps=fields["layer_norm_eps"],
    )
    vocab_size = fields["vocab_size"]
    shapes = functools.partial(parameter_shapes, model, vocab_size)
    params, report = from_tensors(translated, model, vocab_size, shapes, "model.pt")
    assert report.missing == report.left == ()

    rng = np.random.default_rng(1)
    lengths, slots = np.array([LENGTH, 23, 5], np.int32), 9
    positions = rng.integers(1, lengths[:, None] - 1, (3, slots)).astype(np.int32)
    batch = {
        "input_ids": rng.integers(0, VOCAB, (3, LENGTH)).astype(np.int32),
        "lengths": lengths,
        "masked_positions": positions,
        "span_left": rng.integers(0, positions).astype(np.int32),
        "span_right": rng.integers(positions + 1, lengths[:, None]).astype(np.int32),
        "span_offset": rng.integers(0, TARGETS, (3, slots)).astype(np.int32),
    }
    logits = jax.jit(apply, static_argnums=0)(pretraining_model(Config(model=model), vocab_size, "cpu"), params, batch)
    reference = Reference(tensors)
    for row, length in enumerate(lengths):
        hidden = reference.hidden(batch["input_ids"][row, :length])
        for slot in range(slots):
            position, left, right, offset = (
                batch[name][row, slot] for name in ("masked_positions", "span_left", "span_right", "span_offset")
            )
            mlm, sbo = reference.mlm(hidden[position]), reference.sbo(hidden[left], hidden[right], offset)
            assert min(mlm.std(), sbo.std()) > 0.5  # so that the tolerance is small beside what it judges
            np.testing.assert_allclose(logits["mlm"][row, slot, :VOCAB], mlm, rtol=0, atol=2e-5)
            np.testing.assert_allclose(logits["sbo"][row, slot, :VOCAB], sbo, rtol=0, atol=2e-5)


def test_every_name_is_translated_but_the_two_copies_of_the_word_embeddings_and_strangers() -> None:
    from transformers import BertConfig, BertForMaskedLM

    tensors = original_tensors()
    strangers = {"decoder.bar.weight": np.zeros(3), "criterion.scale": np.ones(1)}
    translated, left = fairseq.translate(lazy(tensors | strangers))
    assert left == sorted([*DECODERS, *strangers])

    # Sizes do not change names.
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=LAYERS, num_attention_heads=2)
    expected = {name for name in BertForMaskedLM(config).state_dict() if ".decoder." not in name}
    head = "cls.pair_target_predictions"
    expected |= {f"{head}.position_embeddings.weight", f"{head}.bias"}
    for part in ("linear1", "layer_norm1", "linear2", "layer_norm2"):
        expected |= {f"{head}.mlp_layer_norm.{part}.{leaf}" for leaf in ("weight", "bias")}
    assert {name.replace("gamma", "weight").replace("beta", "bias") for name in translated} == expected
    for name, read in translated.items():
        np.testing.assert_array_equal(read(), tensors[f"decoder.{name}"])


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_that_is_no_copy_of_the_word_embeddings_is_an_error_that_names_it(decoder: str) -> None:
    tensors = original_tensors()
    changed = tensors[decoder].copy()
    changed[-1, -1] += np.float16(1)
    with pytest.raises(UserError, match=f"^{decoder} .*differs from {WORD}"):
        fairseq.translate(lazy(tensors | {decoder: changed}))
    with pytest.raises(UserError, match=decoder):
        fairseq.translate(lazy(tensors | {decoder: tensors[WORD][:-1]}))


def test_only_the_word_embeddings_and_their_copies_are_read_before_they_are_asked_for() -> None:
    read: list[str] = []
    tensors = original_tensors()

    def reading(name: str) -> np.ndarray:
        read.append(name)
        return tensors[name]

    translated, _ = fairseq.translate({name: functools.partial(reading, name) for name in tensors})
    assert set(read) == {WORD, *DECODERS}
    translated["cls.predictions.bias"]()
    assert read[-1] == "decoder.cls.predictions.bias"


def test_the_configuration_comes_from_shapes() -> None:
    translated, _ = fairseq.translate(lazy(original_tensors()))
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": MLP,
        "max_position_embeddings": LENGTH,
        "type_vocab_size": TYPES,
    }
    fields = fairseq.config_fields(translated)
    assert fields.items() >= sizes.items() and all(type(fields[name]) is int for name in sizes)
    assert (fields["hidden_act"], fields["layer_norm_eps"], fields["hidden_dropout_prob"]) == ("gelu", 1e-12, 0.1)


@pytest.mark.parametrize(
    "name", ["embeddings.word_embeddings", "embeddings.position_embeddings", "encoder.layer.0.intermediate.dense"]
)
def test_a_missing_table_or_one_that_is_no_matrix_is_an_error_that_names_it(name: str) -> None:
    tensors = original_tensors()
    original = f"decoder.bert.{name}.weight"
    for rest in ({}, {original: np.zeros(3)}):
        broken = {key: tensor for key, tensor in tensors.items() if key != original and key not in DECODERS}
        translated, _ = fairseq.translate(lazy(broken | rest))
        with pytest.raises(UserError, match=original):
            fairseq.config_fields(translated)


def test_a_width_that_does_not_tell_the_number_of_heads_is_an_error_with_the_width() -> None:
    tensors = {name.removeprefix("decoder."): x[..., :60] for name, x in original_tensors().items()}
    with pytest.raises(UserError, match="width 60 is no multiple of 64"):
        fairseq.config_fields(lazy(tensors))


def test_other_layouts_are_not_taken_for_spanberts() -> None:
    assert fairseq.is_fairseq(lazy(original_tensors()))
    others = ("bert.pooler.dense.bias", "decoder.sentence_encoder.embed_tokens.weight", "encoder.decoder.bert.x")
    assert not fairseq.is_fairseq(lazy(dict.fromkeys(others, np.zeros(1))))
