"""transformers' ModernBERT and ours: the same values and gradients, and bitwise round trips in both directions."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers
import yaml
from hypothesis import Phase, given, settings
from safetensors.numpy import load_file, save_file

from spanbert_jax.config import Config, ModelConfig
from spanbert_jax.convert.export import Export, write_export
from spanbert_jax.convert.huggingface import named_views
from spanbert_jax.convert.names import Params
from spanbert_jax.convert.published_weights import PublishedWeights, open_published_weights
from spanbert_jax.errors import UserError
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.serving.functions import functions
from spanbert_jax.text.tokenizer import Tokenizer, wordpiece_from_vocab
from tests.support import other_tokenizers
from tests.support.published import load, write_vocabulary
from tests.support.random_params import assert_same_bits, filled
from tests.support.synthetic import VOCAB
from tests.support.transformers_modernbert import LABELS, PUBLISHED, drawn_models, random_modernbert

TOLERANCE = 2e-5
LENGTHS = np.array([40, 25, 1, 33], np.int32)
# One configuration of each class; a change of the test's text draws others.
drawn = settings(max_examples=2, deadline=None, derandomize=True, database=None, phases=[Phase.generate])


class Imported(NamedTuple):
    """A model of transformers, the directory it saved itself in, and our parameters from there."""

    theirs: Any
    directory: Path
    published: PublishedWeights
    params: Params

    @property
    def task(self) -> str:
        return self.published.task or Config().task


@contextlib.contextmanager
def imported(class_name: str, fields: dict[str, Any]) -> Iterator[Imported]:
    theirs = random_modernbert(class_name, **fields)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        theirs.save_pretrained(directory)
        write_vocabulary(directory / "vocab.txt")
        with open_published_weights(directory) as published:
            params, report = load(published)
        assert report.left == ()
        yield Imported(theirs, directory, published, params)


def their_gradient(
    model: Any, ids: np.ndarray, valid: np.ndarray, cotangent: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(outputs, gradient by parameter) where the loss is the sum of the logits, weighted with `cotangent`."""
    model.eval().zero_grad()
    output = model(torch.tensor(ids), torch.tensor(valid.astype(np.int64)), output_hidden_states=True)
    is_answer = "start_logits" in output
    logits = torch.stack([output.start_logits, output.end_logits], -1) if is_answer else output.logits
    outputs = {"encode": output.hidden_states[-1], "predict": logits}
    (logits * torch.tensor(cotangent)).sum().backward()
    gradient = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return {name: x.detach().numpy() for name, x in outputs.items()}, gradient


@drawn
@given(models=drawn_models())
def test_values_and_gradients_are_those_of_transformers_with_padding_and_beyond_the_window(
    models: dict[str, dict[str, Any]],
) -> None:
    for class_name, fields in models.items():
        with imported(class_name, fields) as model:
            assert_computes_what_transformers_does(model)


def assert_computes_what_transformers_does(imported: Imported) -> None:
    rng = np.random.default_rng(5)
    valid = np.arange(LENGTHS.max()) < LENGTHS[:, None]
    ids = np.where(valid, rng.integers(1, VOCAB, valid.shape), 0)
    types = np.zeros_like(ids)
    count = len(imported.published.labels)
    config = Config(model=imported.published.model, task=imported.task)
    computed = functions(config, imported.params, VOCAB, count)

    shape = jax.eval_shape(computed["predict"], imported.params, ids, LENGTHS, types).shape
    cotangent = rng.normal(0, 1 / LENGTHS.sum(), shape).astype(np.float32)
    if shape[:2] == valid.shape:
        cotangent = cotangent * valid[..., None]

    def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        outputs = {name: function(params, ids, LENGTHS, types) for name, function in computed.items()}
        return (outputs["predict"] * cotangent).sum(), outputs

    (_, ours), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(imported.params)
    gradient = named_views(jax.tree.map(np.array, gradient), VOCAB, "modern")
    for implementation in ("eager", "sdpa"):
        imported.theirs.set_attn_implementation(implementation)
        outputs, expected = their_gradient(imported.theirs, ids, valid, cotangent)
        for name, x in outputs.items():
            assert np.abs(x).max() > 1
            given = np.asarray(ours[name])
            a, b = (given[valid], x[valid]) if x.shape[:2] == valid.shape else (given, x)
            np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE, err_msg=f"{name}, {implementation}")
        assert gradient.keys() == expected.keys()
        for name, x in expected.items():
            assert np.abs(x).max() > 1e-3, name
            np.testing.assert_allclose(gradient[name], x, rtol=0, atol=TOLERANCE, err_msg=f"{name}, {implementation}")


@contextlib.contextmanager
def nothing_said() -> Iterator[None]:
    """Fails where transformers logs a warning."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert said == []


def assert_loads_whole(directory: Path, class_name: str) -> Any:
    """The model by its class and by its Auto class, without a report or a warning."""
    auto = class_name.replace("ModernBert", "AutoModel").replace("ModelModel", "Model")
    for loader in (class_name, auto):
        with nothing_said():
            model, report = getattr(transformers, loader).from_pretrained(directory, output_loading_info=True)
        assert {key: list(value) for key, value in report.items() if value} == {}
        assert type(model).__name__ == class_name == model.config.architectures[0]
    return model


@drawn
@given(models=drawn_models())
def test_a_model_of_transformers_imported_and_exported_is_the_same_file_again_and_loads_whole(
    models: dict[str, dict[str, Any]],
) -> None:
    for class_name, fields in models.items():
        with imported(class_name, fields) as model, tempfile.TemporaryDirectory() as folder:
            assert_comes_back_the_same_and_loads_whole(model, Path(folder))


def assert_comes_back_the_same_and_loads_whole(imported: Imported, tmp_path: Path) -> None:
    published, class_name = imported.published, type(imported.theirs).__name__
    what = Export(imported.params, published.model, published.tokenizer, published.labels, {}, "x", imported.task)
    name, groups = write_export(what, tmp_path, "float32", encoder_only=False)
    assert name == class_name and set(groups) == set(imported.params)
    assert_same_bits(load_file(tmp_path / "model.safetensors"), load_file(imported.directory / "model.safetensors"))
    assert_loads_whole(tmp_path, class_name)
    own = {"transformers_version", "_name_or_path", "global_attn_every_n_layers"}
    first, second = (transformers.AutoConfig.from_pretrained(x).to_dict() for x in (imported.directory, tmp_path))
    assert {k: v for k, v in first.items() if k not in own} == {k: v for k, v in second.items() if k not in own}
    with open_published_weights(tmp_path) as again:
        assert (again.model, again.labels, again.task) == (published.model, published.labels, published.task)


def test_a_directory_with_byte_level_bpe_goes_there_and_back_with_its_rows_and_special_pieces(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    other_tokenizers.write("modern", inspect.getsource(contextlib).splitlines(), first)
    before = transformers.AutoTokenizer.from_pretrained(first)
    special = {
        "pad_token_id": before.pad_token_id,
        **dict.fromkeys(("bos_token_id", "cls_token_id"), before.cls_token_id),
    }
    special |= dict.fromkeys(("eos_token_id", "sep_token_id"), before.sep_token_id)
    rows = len(before) + 9  # as in ModernBERT, more than pieces
    random_modernbert("ModernBertForMaskedLM", **PUBLISHED, **special, vocab_size=rows).save_pretrained(first)
    with open_published_weights(first) as published:
        params, report = load(published)
    assert report.left == () and (published.tokenizer.vocab_size, published.model.vocab_rows) == (len(before), rows)
    what = Export(params, published.model, published.tokenizer, (), {}, "x")
    write_export(what, second, "float32", encoder_only=False)
    assert_same_bits(load_file(second / "model.safetensors"), load_file(first / "model.safetensors"))
    assert_loads_whole(second, "ModernBertForMaskedLM")
    after, config = (x.from_pretrained(second) for x in (transformers.AutoTokenizer, transformers.AutoConfig))
    assert {name: getattr(config, name) for name in special} == special
    text = "Paris is the [MASK] of   France."
    assert after(text).keys() == {"input_ids", "attention_mask"}  # ModernBERT has no token types
    assert after(text)["input_ids"] == before(text)["input_ids"]


HEADS: dict[str, tuple[dict[str, int], str, str]] = {
    "encoder": ({}, "", "ModernBertModel"),
    "pretraining": ({"mlm": 0, "sbo": 7}, "pretraining", "ModernBertForMaskedLM"),
    "question_answering": (
        {"transform": 0, "qa_outputs": 0},
        "question_answering",
        "ModernBertForQuestionAnswering",
    ),
    "sequence_classification": (
        {"transform": 0, "classifier": LABELS},
        "sequence_classification",
        "ModernBertForSequenceClassification",
    ),
    "relation_extraction": (
        {"transform": 0, "classifier": LABELS},
        "relation_extraction",
        "ModernBertForSequenceClassification",
    ),
    "token_classification": (
        {"transform": 0, "classifier": LABELS},
        "token_classification",
        "ModernBertForTokenClassification",
    ),
}
MODEL = ModelConfig(
    family="modern",
    layers=3,
    embed=20,
    heads=2,
    mlp=12,
    max_length=48,
    span_offset_embed=6,
    pre_norm=True,
    gated_mlp=True,
    window=5,
    init="truncated",
    pooling="mean",
    attention_dropout=0.25,
)
BIASES = ("attention_bias", "mlp_bias", "norm_bias", "head_bias")
MODELS = {"biases": MODEL, "no_biases": dataclasses.replace(MODEL, **dict.fromkeys(BIASES, False))}


@functools.cache
def shapes(model: ModelConfig, heads: tuple[tuple[str, int], ...]) -> Any:
    return parameter_shapes(model, VOCAB, dict(heads))


def random_bits(model: ModelConfig, heads: dict[str, int]) -> Params:
    """Parameters of any finite float32. The rows that pad the vocabulary are 0, and the norm before the first layer's
    attention is that of a fresh model."""
    rng = np.random.default_rng(7)

    def fill(shape: tuple[int, ...]) -> np.ndarray:
        x = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
        return np.where(np.isfinite(x), x, np.float32(-0.0))

    params = filled(shapes(model, tuple(heads.items())), fill)
    for table in (params["embeddings"]["word"], *(params[head]["bias"] for head in ("mlm", "sbo") if head in heads)):
        table[VOCAB:] = 0
    norm = params["encoder"]["attention"]["norm"]
    norm["scale"][0] = 1
    if "bias" in norm:
        norm["bias"][0] = 0
    return params


def tokenizer_in(directory: Path) -> Tokenizer:
    return wordpiece_from_vocab(write_vocabulary(directory / "pieces.txt"), lowercase=False)


@pytest.mark.parametrize(("kind", "biases"), [*((kind, "biases") for kind in HEADS), ("pretraining", "no_biases")])
def test_an_export_of_ours_comes_back_bit_for_bit(kind: str, biases: str, tmp_path: Path) -> None:
    (heads, task, class_name), model = HEADS[kind], MODELS[biases]
    params, tokenizer = random_bits(model, heads), tokenizer_in(tmp_path)
    labels = tuple(f"label {i}" for i in range(heads.get("classifier", 0)))
    name, groups = write_export(
        Export(params, model, tokenizer, labels, {}, "x", task), tmp_path, "float32", encoder_only=False
    )
    assert name == class_name and set(groups) == set(params)
    assert (tmp_path / "sbo_head.safetensors").exists() == ("sbo" in heads)
    with open_published_weights(tmp_path) as published:
        again, report = load(published)
    assert_same_bits(again, params)
    assert report.left == () and set(report.missing) == {"mlm", "sbo"} - heads.keys()
    assert (published.kind, published.labels) == ("a Hugging Face ModernBERT", labels)
    width = {} if "sbo" in heads else {"span_offset_embed": ModelConfig.span_offset_embed}  # in no other file
    assert published.model == dataclasses.replace(model, **width)


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[Export, Path]:
    """An export with both heads of pre-training, and its directory."""
    params = random_bits(MODEL, {"mlm": 0, "sbo": 7})
    return Export(params, MODEL, tokenizer_in(tmp_path), (), {}, "x"), tmp_path / "export"


def test_an_encoder_alone_loads_whole_and_rows_without_pieces_are_kept(pretrained: tuple[Export, Path]) -> None:
    export, directory = pretrained
    directory.mkdir()
    rows = 160  # of 256 in the padded table
    model = dataclasses.replace(MODEL, vocab_rows=rows)
    params = random_bits(model, {"mlm": 0})
    params["embeddings"]["word"][VOCAB:rows] = 0.5
    write_export(dataclasses.replace(export, params=params, model=model), directory, "float32", encoder_only=True)
    loaded = assert_loads_whole(directory, "ModernBertModel")
    assert loaded.embeddings.tok_embeddings.weight.shape[0] == rows
    with open_published_weights(directory) as published:
        again, _ = load(published)
    assert published.model.vocab_rows == rows and any("without a piece" in note for note in published.notes)
    assert_same_bits(again, {group: params[group] for group in again})


def test_the_heads_of_a_class_without_counterpart_are_left_alone_and_named(tmp_path: Path) -> None:
    random_modernbert("ModernBertForMultipleChoice", **PUBLISHED).save_pretrained(tmp_path)
    write_vocabulary(tmp_path / "vocab.txt")
    with open_published_weights(tmp_path) as published:
        params, report = load(published)
    assert set(params) == {"embeddings", "encoder", "final_norm"} and published.labels == ()
    assert report.left == ("classifier.bias", "classifier.weight", "head.dense.weight", "head.norm.weight")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("decoder.weight", lambda x: x["model.embeddings.tok_embeddings.weight"] + 1, "decoder.weight differs from"),
        ("decoder.bias", None, "1 tensors are missing, decoder.bias"),
        ("model.layers.3.mlp.Wi.weight", lambda x: x["model.layers.2.mlp.Wi.weight"], "not in the ModernBERT of 3 lay"),
        ("model.layers.1.attn.Wqkv.weight", lambda x: np.full((60, 20), np.nan, np.float32), "not finite"),
        ("model.layers.1.mlp.Wi.weight", lambda x: np.zeros((12, 20), np.float32), r"\(12, 20\); expected \(24, 20\)"),
    ],
)
def test_tensors_that_do_not_fit_are_one_line_that_names_them(
    name: str, change: Callable[[dict[str, Any]], Any] | None, message: str, pretrained: tuple[Export, Path]
) -> None:
    export, directory = pretrained
    directory.mkdir()
    write_export(export, directory, "float32", encoder_only=False)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    if change is None:  # a decoder without its bias
        tensors["decoder.weight"] = tensors["model.embeddings.tok_embeddings.weight"]
        del tensors[name]
    else:
        tensors[name] = change(tensors)
    save_file(tensors, path)
    with open_published_weights(directory) as published, pytest.raises(UserError, match=message) as error:
        load(published)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["encoder", "pretraining", "question_answering"])
def test_the_cards_python_runs_and_names_the_architecture(kind: str, tmp_path: Path) -> None:
    (heads, task, _), model = HEADS[kind], MODELS["biases"]
    params = jax.tree.map(np.sign, random_bits(model, heads))
    write_export(Export(params, model, tokenizer_in(tmp_path), (), {}, "x", task), tmp_path, "float32", False)
    _, matter, text = (tmp_path / "README.md").read_text("utf-8").split("---\n", 2)
    assert "modernbert" in yaml.safe_load(matter)["tags"] and "ModernBERT with 3 layers of width 20" in text
    assert "pooler" not in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.parse(code.replace('"x"', json.dumps(str(tmp_path)))), "README.md", "exec"), {})
    assert printed.getvalue().strip()
