"""Exported directories: transformers' Auto classes take them whole, and they come back as what they were."""

import argparse
import ast
import contextlib
import dataclasses
import inspect
import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from spanbert_jax.convert.export import DTYPES, Export, write_export
from spanbert_jax.convert.huggingface import named_views
from spanbert_jax.convert.names import Params
from spanbert_jax.convert.published_weights import open_published_weights
from spanbert_jax.errors import UserError
from spanbert_jax.model.parameters import parameter_shapes
from spanbert_jax.text.sentencepiece_training import train_sentencepiece
from spanbert_jax.text.tokenizer import Tokenizer, wordpiece_from_vocab
from tests.support.published import load, write_vocabulary
from tests.support.random_params import assert_same_bits, filled
from tests.support.synthetic import small_config
from tests.support.transformers_bert import CLASSES, random_bert

MODEL = small_config(model={"max_length": 64}).model  # SBO's table is narrower than the authors' 200
NAME = "tiny-spanbert"
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TRAINING = {
    "config": {"corpus.language": "en", "train.batch_size": 8, "corpus.files": "", "masking.scheme": "span"},
    "step": 1234,
    "evaluation": {"mlm_loss": 2.5, "sbo_loss": 3.25},
}


class Case(NamedTuple):
    """An export: its heads (as `shapes` takes them), its labels, and what loads it."""

    heads: dict[str, int]
    labels: tuple[str, ...]
    auto: str
    architecture: str
    encoder_only: bool = False


CASES = {
    "encoder": Case({"mlm": 0, "sbo": 15}, (), "AutoModel", "BertModel", encoder_only=True),
    "pooled": Case({"pooler": 0}, (), "AutoModel", "BertModel"),
    "pretraining": Case({"mlm": 0, "sbo": 15}, (), "AutoModelForMaskedLM", "BertForMaskedLM"),
    "next_sentence": Case(
        {"pooler": 0, "mlm": 0, "sbo": 15, "nsp": 0}, (), "AutoModelForPreTraining", "BertForPreTraining"
    ),
    "question_answering": Case({"qa_outputs": 0}, (), "AutoModelForQuestionAnswering", "BertForQuestionAnswering"),
    "sequence_classification": Case(
        {"pooler": 0, "classifier": 3},
        ("neg", "neu", "pos"),
        "AutoModelForSequenceClassification",
        "BertForSequenceClassification",
    ),
    "token_classification": Case(
        {"classifier": 5}, LABELS, "AutoModelForTokenClassification", "BertForTokenClassification"
    ),
}
# SentencePiece once with a head of pre-training and once with one of fine-tuning: heads do not see the vocabulary.
EXPORTS = [(name, "wordpiece") for name in CASES] + [
    (name, "unigram") for name in ("pretraining", "token_classification")
]


class Exported(NamedTuple):
    """A directory, and what was written into it."""

    case: Case
    params: Params
    tokenizer: Tokenizer
    directory: Path
    returned: tuple[str, tuple[str, ...]]

    @property
    def views(self) -> dict[str, np.ndarray]:
        return named_views(self.params, self.tokenizer.vocab_size)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    text = [line for thing in (argparse, contextlib, json, logging) for line in inspect.getsource(thing).split("\n")]
    vocab = write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocab.txt")
    return {
        "wordpiece": wordpiece_from_vocab(vocab, lowercase=False),
        "unigram": train_sentencepiece(text, "unigram", 500),
    }


def random_params(heads: dict[str, int], vocab_size: int) -> Params:
    rng = np.random.default_rng(8)
    tree = parameter_shapes(MODEL, vocab_size, heads)
    params = filled(tree, lambda shape: rng.normal(0, 0.3, shape).astype(np.float32))
    for table in [params["embeddings"]["word"], *(params[head]["bias"] for head in ("mlm", "sbo") if head in heads)]:
        table[vocab_size:] = 0
    return params


def export(case: Case, tokenizer: Tokenizer, directory: Path, dtype: str = "float32") -> Exported:
    params = random_params(case.heads, tokenizer.vocab_size)
    what = Export(params, MODEL, tokenizer, case.labels, TRAINING, NAME)
    returned = write_export(what, directory, dtype, case.encoder_only)
    return Exported(case, params, tokenizer, directory, returned)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, Tokenizer]) -> dict[tuple[str, str], Exported]:
    return {(n, kind): export(CASES[n], tokenizers[kind], tmp_path_factory.mktemp(n)) for n, kind in EXPORTS}


@pytest.fixture(params=EXPORTS, ids="-".join)
def exported(request: pytest.FixtureRequest, made: dict[tuple[str, str], Exported]) -> Exported:
    return made[request.param]


@pytest.fixture
def pretraining(made: dict[tuple[str, str], Exported]) -> Exported:
    return made["pretraining", "wordpiece"]


def loaded(exported: Exported) -> tuple[Any, dict[str, Any]]:
    """The model by its Auto class, and transformers' report."""
    case = exported.case
    auto = getattr(transformers, case.auto)
    return auto.from_pretrained(exported.directory, output_loading_info=True)


def test_auto_classes_find_nothing_missing_unexpected_or_mismatched_and_our_values(exported: Exported) -> None:
    model, report = loaded(exported)
    assert {key: list(value) for key, value in report.items() if value} == {}  # missing, unexpected, mismatched, ...
    assert type(model).__name__ == exported.case.architecture == exported.returned[0] == model.config.architectures[0]
    groups = ("embeddings", "encoder", *(() if exported.case.encoder_only else exported.case.heads))
    assert set(exported.returned[1]) == set(groups)
    params = {group: exported.params[group] for group in groups}
    if exported.case.encoder_only:  # AutoModel always has a pooler, so an export of an encoder has the identity for it
        params["pooler"] = {"kernel": np.eye(MODEL.embed, dtype=np.float32), "bias": np.zeros(MODEL.embed, np.float32)}
    views = named_views(params, exported.tokenizer.vocab_size)
    found = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    prefix = "bert." if exported.case.architecture == "BertModel" else ""
    assert {prefix + name for name in found} == {name for name in views if "pair_target" not in name}
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, views[prefix + name], err_msg=name)


def test_the_exported_tokenizer_is_beside_the_model_and_gives_our_ids(exported: Exported) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(exported.directory)
    text = "Ada Lovelace lived in London, the capital of France."
    ids = exported.tokenizer.tokenize(text)
    assert theirs(text)["input_ids"] == [exported.tokenizer.cls_id, *ids, exported.tokenizer.sep_id]
    config = transformers.AutoConfig.from_pretrained(exported.directory)
    assert (config.vocab_size, config.pad_token_id) == (exported.tokenizer.vocab_size, theirs.pad_token_id)


def test_an_export_comes_back_bit_for_bit(exported: Exported) -> None:
    with open_published_weights(exported.directory) as published:
        again, report = load(published)
    assert_same_bits(again, {group: exported.params[group] for group in exported.returned[1]})
    assert report.left == () and set(report.taken) == set(exported.returned[1])
    assert published.labels == exported.case.labels
    assert published.tokenizer.fingerprint == exported.tokenizer.fingerprint
    narrow = MODEL if "sbo" in report.taken else dataclasses.replace(MODEL, span_offset_embed=200)  # in no other file
    assert published.model == narrow


@pytest.mark.parametrize("class_name", [name for name in CLASSES if name != "BertForMultipleChoice"])
def test_a_model_of_transformers_imported_and_exported_is_the_same_file_again(class_name: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    random_bert(class_name, pad_token_id=0).save_pretrained(first)
    write_vocabulary(first / "vocab.txt")
    second.mkdir()
    with open_published_weights(first) as published:
        params, _ = load(published)
        what = Export(params, published.model, published.tokenizer, published.labels, {}, NAME)
        assert write_export(what, second, "float32", encoder_only=False)[0] == class_name
    assert_same_bits(load_file(second / "model.safetensors"), load_file(first / "model.safetensors"))
    configs = [transformers.AutoConfig.from_pretrained(folder).to_dict() for folder in (first, second)]
    own = {"transformers_version", "_name_or_path", "position_embedding_type"}
    first_config, second_config = ({k: v for k, v in config.items() if k not in own} for config in configs)
    assert first_config == second_config


def test_a_token_classifier_with_a_pooler_stays_a_token_classifier(tmp_path: Path) -> None:
    """As transformers before 4.0 wrote BertForTokenClassification, and many files on the Hub still are."""
    first, second = tmp_path / "first", tmp_path / "second"
    random_bert("BertForTokenClassification", pad_token_id=0, num_labels=3).save_pretrained(first)
    write_vocabulary(first / "vocab.txt")
    tensors = load_file(first / "model.safetensors")
    width = len(tensors["bert.embeddings.LayerNorm.bias"])
    pooler = {"weight": np.ones((width, width), np.float32), "bias": np.ones(width, np.float32)}
    more = {f"bert.pooler.dense.{name}": tensor for name, tensor in pooler.items()}
    save_file(tensors | more, first / "model.safetensors", metadata={"format": "pt"})
    second.mkdir()
    with open_published_weights(first) as published:
        params, _ = load(published)
    assert published.task == "token_classification" and "pooler" in params
    what = Export(params, published.model, published.tokenizer, published.labels, {}, NAME, published.task)
    assert write_export(what, second, "float32", encoder_only=False)[0] == "BertForTokenClassification"
    assert_same_bits(load_file(second / "model.safetensors"), tensors)


def test_a_regression_gives_its_number_in_transformers_pipeline_and_comes_back_as_one(
    tmp_path: Path, tokenizers: dict[str, Tokenizer]
) -> None:
    case = Case({"pooler": 0, "classifier": 1}, ("score",), "AutoModelForSequenceClassification", "")
    first = export(case, tokenizers["wordpiece"], tmp_path)
    pipe = transformers.pipeline("text-classification", model=str(tmp_path))
    with torch.no_grad():
        expected = pipe.model(**pipe.tokenizer("Ada", return_tensors="pt")).logits.item()
    assert pipe("Ada")[0] == {"label": "score", "score": pytest.approx(expected, rel=1e-6)}
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"id2label": {"0": "LABEL_0"}}))
    with open_published_weights(first.directory) as published:
        assert published.labels == ("score",)


def test_labels_are_kept(made: dict[tuple[str, str], Exported]) -> None:
    for name in ("sequence_classification", "token_classification"):
        exported = made[name, "wordpiece"]
        config = transformers.AutoConfig.from_pretrained(exported.directory)
        assert config.id2label == dict(enumerate(exported.case.labels)) and config.num_labels == len(config.id2label)
        assert config.label2id == {label: i for i, label in enumerate(exported.case.labels)}


def test_bfloat16_holds_our_values_rounded_to_the_nearest(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    assert set(DTYPES) == {"float32", "bfloat16"}
    exported = export(CASES["pretraining"], tokenizers["wordpiece"], tmp_path, "bfloat16")
    model, _ = loaded(exported)
    assert model.dtype == model.config.dtype == torch.bfloat16
    views = exported.views
    for name, parameter in model.named_parameters():
        expected = torch.tensor(views[name]).bfloat16()  # torch's rounding
        assert torch.equal(parameter.view(torch.int16), expected.view(torch.int16)), name
    sbo = load_file(tmp_path / "sbo_head.safetensors")
    assert {tensor.dtype for tensor in sbo.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_the_span_boundary_head_has_the_original_names_and_values(pretraining: Exported) -> None:
    head, sbo = load_file(pretraining.directory / "sbo_head.safetensors"), pretraining.params["sbo"]
    prefix = "cls.pair_target_predictions"
    expected = {
        f"{prefix}.position_embeddings.weight": sbo["offset"],
        f"{prefix}.mlp_layer_norm.linear1.weight": sbo["dense_1"]["kernel"].T,
        f"{prefix}.mlp_layer_norm.linear1.bias": sbo["dense_1"]["bias"],
        f"{prefix}.mlp_layer_norm.layer_norm1.gamma": sbo["norm_1"]["scale"],
        f"{prefix}.mlp_layer_norm.layer_norm1.beta": sbo["norm_1"]["bias"],
        f"{prefix}.mlp_layer_norm.linear2.weight": sbo["dense_2"]["kernel"].T,
        f"{prefix}.mlp_layer_norm.linear2.bias": sbo["dense_2"]["bias"],
        f"{prefix}.mlp_layer_norm.layer_norm2.gamma": sbo["norm_2"]["scale"],
        f"{prefix}.mlp_layer_norm.layer_norm2.beta": sbo["norm_2"]["bias"],
        f"{prefix}.bias": sbo["bias"][: pretraining.tokenizer.vocab_size],
    }
    assert_same_bits(head, expected)


def test_what_was_not_exported_is_in_no_file(made: dict[tuple[str, str], Exported]) -> None:
    encoder = made["encoder", "wordpiece"].directory
    assert not (encoder / "sbo_head.safetensors").exists()
    assert not any("cls" in name for name in load_file(encoder / "model.safetensors"))
    main = load_file(made["pretraining", "wordpiece"].directory / "model.safetensors")
    assert not any("pair_target" in name or "decoder" in name for name in main)  # a decoder is the word embeddings


@contextlib.contextmanager
def everything_said(capfd: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    """What transformers logs at any level, and what is printed."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger, level = logging.getLogger("transformers"), logging.getLogger("transformers").level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    capfd.readouterr()
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        said.extend(capfd.readouterr())


def test_transformers_does_not_mention_the_span_boundary_heads_file(
    pretraining: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with everything_said(capfd) as said:
        transformers.AutoModelForMaskedLM.from_pretrained(pretraining.directory)
    assert said and not re.search("sbo|pair_target|UNEXPECTED", " ".join(said))
    folder = Path(shutil.copytree(pretraining.directory, tmp_path / "together"))
    head = load_file(folder / "sbo_head.safetensors")
    main = load_file(folder / "model.safetensors")
    save_file(main | head, folder / "model.safetensors", metadata={"format": "pt"})
    with everything_said(capfd) as said:  # in the main file it would be mentioned
        transformers.AutoModelForMaskedLM.from_pretrained(folder)
    assert "pair_target" in " ".join(said)


def test_files_are_marked_as_pytorchs_and_readable_by_all(pretraining: Exported) -> None:
    for name in ("model.safetensors", "sbo_head.safetensors"):
        with safe_open(pretraining.directory / name, "np") as file:
            assert file.metadata() == {"format": "pt"}
        assert (pretraining.directory / name).stat().st_mode & 0o444 == 0o444


def test_the_training_configuration_and_step_are_in_it(exported: Exported) -> None:
    said = json.loads((exported.directory / "spanbert_jax.json").read_text())
    assert said == TRAINING | {"tokenizer_fingerprint": exported.tokenizer.fingerprint}


PIPELINES = {
    "BertModel": "feature-extraction",
    "BertForMaskedLM": "fill-mask",
    "BertForPreTraining": "fill-mask",
    "BertForQuestionAnswering": "question-answering",
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
}


def test_the_cards_front_matter_is_yaml_that_names_the_task_and_its_text_the_step(exported: Exported) -> None:
    card = (exported.directory / "README.md").read_text("utf-8")
    _, matter, text = card.split("---\n", 2)
    fields = yaml.safe_load(matter)
    assert fields["pipeline_tag"] == PIPELINES[exported.case.architecture]
    assert (fields["library_name"], fields["language"]) == ("transformers", "en") and "spanbert" in fields["tags"]
    assert text.lstrip().startswith(f"# {NAME}\n") and "Step 1,234." in text and "| mlm_loss | 2.5000 |" in text
    assert ("sbo_head.safetensors" in text) == (exported.directory / "sbo_head.safetensors").exists()
    assert "| `masking.scheme` |" in text


# Of Unigram and BPE transformers' pipeline knows no words, and says that it goes by the spaces, as the card does.
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_the_cards_python_runs(exported: Exported) -> None:
    card = (exported.directory / "README.md").read_text("utf-8")
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 1
    for snippet in snippets:
        assert f'"{NAME}"' in snippet
        code = snippet.replace(f'"{NAME}"', repr(str(exported.directory)))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.parse(code), "README.md", "exec"), {})
        assert bool(printed.getvalue().strip()) == ("print" in snippet)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_the_cards_entities_are_whole_words(kind: str, made: dict[tuple[str, str], Exported]) -> None:
    exported = made["token_classification", kind]
    card = (exported.directory / "README.md").read_text("utf-8")
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace(f'"{NAME}"', repr(str(exported.directory)))
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    text, words = re.findall(r'"(Ada[^"]*)"', code)[0], names["words"]
    found = [text[one["start"] : one["end"]].split() for one in words(text)]
    assert found and all(set(entity) <= set(text.split()) for entity in found)
    assert any(len(words.tokenizer.tokenize(word)) > 1 for entity in found for word in entity)


def test_the_cards_answer_is_the_best_span_of_the_text(made: dict[tuple[str, str], Exported]) -> None:
    exported = made["question_answering", "wordpiece"]
    card = (exported.directory / "README.md").read_text("utf-8")
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace(f'"{NAME}"', repr(str(exported.directory)))
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    start, end = (names["scores"][key][0].numpy() for key in ("start_logits", "end_logits"))
    text, offsets = names["text"], names["offsets"].tolist()
    first_of_text = names["inputs"].sequence_ids(0).index(1)
    inside = range(first_of_text, len(start) - 1)
    pairs = [(i, j) for i in inside for j in inside if i <= j < i + 30]
    first, last = max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]])
    assert printed.getvalue() == text[offsets[first][0] : offsets[last][1]] + "\n"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "toy"}, r"model\.family is 'toy'; an export holds layers of 'bert' or 'modern'"),
        ({"family": "modern", "gated_mlp": True}, r"model\.pre_norm is False: transformers' ModernBERT has True alone"),
        ({"family": "modern", "pre_norm": True}, r"model\.gated_mlp is False: transformers' ModernBERT has True alone"),
    ],
)
def test_layers_that_transformers_lacks_are_refused_by_their_field_and_nothing_is_written(
    fields: dict[str, Any], message: str, tmp_path: Path, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers["wordpiece"]
    params = random_params({"mlm": 0}, tokenizer.vocab_size)
    model = dataclasses.replace(MODEL, **fields)
    for encoder_only in (False, True):
        with pytest.raises(UserError, match=message):
            write_export(Export(params, model, tokenizer, (), TRAINING, NAME), tmp_path, "float32", encoder_only)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_an_error_that_names_them_and_nothing_is_written(
    tmp_path: Path, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers["wordpiece"]
    params = random_params({"mlm": 0, "sbo": 15}, tokenizer.vocab_size)
    params["sbo"]["dense_2"]["kernel"][0, 0] = np.inf
    what = Export(params, MODEL, tokenizer, (), TRAINING, NAME)
    with pytest.raises(UserError, match=r"pair_target_predictions\.mlp_layer_norm\.linear2\.weight .*not finite"):
        write_export(what, tmp_path, "float32", encoder_only=False)
    assert list(tmp_path.iterdir()) == []
