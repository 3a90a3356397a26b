"""Weights as others publish them: every layout gives every value, and what cannot be used says why."""

import gzip
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from spanbert_jax.convert.huggingface import Coverage, named_views, to_tensors
from spanbert_jax.convert.names import SBO, Params
from spanbert_jax.convert.published_weights import PublishedWeights, open_published_weights
from spanbert_jax.errors import UserError
from spanbert_jax.model.encoder import table_rows
from spanbert_jax.text.tokenizer import SPECIALS
from tests.support.fairseq_checkpoint import DECODERS, original_tensors, saved
from tests.support.published import LETTERS, load, write_vocabulary
from tests.support.random_params import COMBINATIONS, MODEL, assert_same_bits, random_bits
from tests.support.synthetic import VOCAB
from tests.support.transformers_bert import random_bert

WORD = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model as transformers saves it, and a cased vocabulary."""
    folder = tmp_path_factory.mktemp("hub")
    random_bert("BertForMaskedLM", pad_token_id=0).save_pretrained(folder)
    write_vocabulary(folder / "vocab.txt")
    return folder


@pytest.fixture(scope="module")
def original(hub: Path) -> dict[str, np.ndarray]:
    return load_file(hub / "model.safetensors")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go in this test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def opened(path: Path, vocab: Path | None = None) -> tuple[PublishedWeights, dict[str, np.ndarray], Coverage]:
    """(published, its tensors under transformers' names, report)."""
    with open_published_weights(path, vocab) as published:
        params, report = load(published)
    assert len(params["embeddings"]["word"]) == table_rows(published.model, published.tokenizer.vocab_size)
    return published, named_views(params, published.model.vocab_rows or published.tokenizer.vocab_size), report


def assert_values(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], tensor.astype(np.float32), err_msg=name)


def refused(path: Path, *parts: str, vocab: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        opened(path, vocab)
    message = str(error.value)
    assert all(part in message for part in parts), message
    return message


def archive(path: Path, members: dict[str, Path]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, file in members.items():
            tar.add(file, name)
    return path


def lay_out(layout: str, hub: Path, tensors: dict[str, np.ndarray], folder: Path) -> Path:
    """The same weights as other files; returns what a user would name."""
    for name in ("config.json", "vocab.txt"):
        shutil.copyfile(hub / name, folder / name)
    if layout.startswith("shards"):
        random_bert("BertForMaskedLM").save_pretrained(folder, max_shard_size="10KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
        return folder if layout == "shards" else folder / "model.safetensors.index.json"
    if layout.startswith("pickle"):
        state = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=layout != "pickle_legacy")
        return folder / "pytorch_model.bin" if layout == "pickle_file" else folder
    shutil.copyfile(hub / "model.safetensors", folder / "model.safetensors")
    return folder if layout == "safetensors" else folder / "model.safetensors"


@pytest.mark.parametrize(
    "layout",
    ["safetensors", "safetensors_file", "shards", "shards_index", "pickle", "pickle_legacy", "pickle_file"],
)
def test_every_layout_of_a_hugging_face_directory_gives_the_same_values(
    layout: str, hub: Path, original: dict[str, np.ndarray], tmp_path: Path
) -> None:
    published, found, report = opened(lay_out(layout, hub, original, tmp_path))
    assert_values(found, original)
    assert report == Coverage(("embeddings", "encoder", "mlm"), ("sbo",), ())
    assert published.kind == "a Hugging Face BERT" and published.labels == ()
    sizes = (published.model.layers, published.model.embed, published.model.heads, published.model.mlp)
    assert sizes == (MODEL.layers, MODEL.embed, MODEL.heads, MODEL.mlp)
    assert published.model.max_length == MODEL.max_length


@pytest.mark.parametrize("folder", ["", "./", "spanbert_hf_base/"])
def test_a_released_archive_needs_a_vocabulary_and_gives_the_encoder_of_its_half_precision(
    folder: str, hub: Path, original: dict[str, np.ndarray], tmp_path: Path, temporary: Path
) -> None:
    """Laid out like spanbert_hf_base.tar.gz: config.json and pytorch_model.bin, fp16, nothing else."""
    half = {name: tensor.astype(np.float16) for name, tensor in original.items() if not name.startswith("cls.")}
    torch.save({name: torch.tensor(tensor) for name, tensor in half.items()}, tmp_path / "pytorch_model.bin")
    fields = json.loads((hub / "config.json").read_text())
    del fields["architectures"], fields["model_type"]  # it has neither
    (tmp_path / "config.json").write_text(json.dumps(fields | {"directionality": "bidi"}))
    members = {folder + name: tmp_path / name for name in ("config.json", "pytorch_model.bin")}
    path = archive(tmp_path / "spanbert_hf_base.tar.gz", members)
    refused(path, "vocabulary", "--vocab")
    published, found, report = opened(path, hub / "vocab.txt")
    assert_values(found, half)
    assert report == Coverage(("embeddings", "encoder"), ("mlm", "sbo"), ())
    assert published.source == path and published.notes[0].startswith("Text: cased")
    assert list(temporary.iterdir()) == []


def test_an_archive_with_heads_gives_both_of_them(tmp_path: Path, temporary: Path) -> None:
    """Laid out like spanbert_large_with_head.tar.gz: model.pt, in the authors' names, and no configuration."""
    tensors = original_tensors()
    path = archive(tmp_path / "with_head.tar.gz", {"model.pt": saved(tensors, tmp_path / "model.pt", False)})
    refused(path, "vocabulary", "--vocab")
    vocab = write_vocabulary(tmp_path / "vocab.txt", len(tensors[DECODERS[0]]))
    published, found, report = opened(path, vocab)
    expected = {
        name.removeprefix("decoder.").replace("gamma", "weight").replace("beta", "bias"): tensor
        for name, tensor in tensors.items()
        if name not in DECODERS
    }
    assert_values(found, expected)
    assert set(report.taken) == {"embeddings", "encoder", "mlm", "sbo"} and report.missing == ()
    assert set(report.left) == set(DECODERS)
    assert published.kind == "a fairseq SpanBERT" and published.model.heads == 2  # 128 / 64
    assert list(temporary.iterdir()) == []


def test_a_tensorflow_checkpoint_is_taken_whole(shared_data: Path) -> None:
    import tensorflow as tf

    folder = shared_data / "checkpoints/tiny_bert_tf1"
    reader = tf.train.load_checkpoint(str(folder / "bert_model.ckpt"))
    names = set(reader.get_variable_to_shape_map())
    slots = {name for name in names if name.endswith(("/adam_m", "/adam_v"))}
    tensor = reader.get_tensor("bert/encoder/layer_1/attention/self/value/kernel")
    for name in ("", "bert_model.ckpt", "bert_model.ckpt.index"):
        published, found, report = opened(folder / name)
        assert published.kind == "a TensorFlow-1 BERT" and published.tokenizer.vocab_size == 15
        assert set(report.taken) == {"embeddings", "encoder", "pooler", "mlm", "nsp"}
        assert set(report.left) == slots | {"global_step"} and report.missing == ("sbo",)
        assert len(found) == len(names - slots) - 1
        np.testing.assert_array_equal(found["bert.encoder.layer.1.attention.self.value.weight"], tensor.T)


def test_a_tensorflow_directory_of_a_run_opens_at_its_newest_step(shared_data: Path, tmp_path: Path) -> None:
    """As run_pretraining.py of google-research/bert leaves it, with bert_config.json and vocab.txt copied there."""
    source = shared_data / "checkpoints/tiny_bert_tf1"
    for name in ("bert_config.json", "vocab.txt"):
        shutil.copy(source / name, tmp_path / name)

    def step(number: str) -> None:
        for part in ("index", "data-00000-of-00001"):
            shutil.copy(source / f"bert_model.ckpt.{part}", tmp_path / f"model.ckpt{number}.{part}")

    step("-1000000")
    assert opened(tmp_path)[0].notes[1:] == ()
    step("-900000")
    published, found, report = opened(tmp_path)
    assert published.notes[-1] == "Checkpoint: model.ckpt-1000000, the newest of the directory's"
    assert_values(found, opened(source)[1])
    for part in ("", ".index", ".data-00000-of-00001"):
        assert opened(tmp_path / f"model.ckpt-900000{part}")[2] == report
    step("")
    refused(tmp_path, "3 TensorFlow checkpoints there (model.ckpt-1000000, model.ckpt-900000, model.ckpt); name one")


@pytest.mark.parametrize("rows", [VOCAB + 1, VOCAB + 1023, VOCAB + 5000])
def test_far_more_rows_than_pieces_need_a_vocabulary_beside_the_weights(
    rows: int, hub: Path, original: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """A vocabulary that was given may be another model's: BERT's cased and uncased ones differ by 1,526 pieces."""
    folder, vocab = Path(shutil.copytree(hub, tmp_path / "model")), hub / "vocab.txt"
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"vocab_size": rows}))
    more = {
        name: np.concatenate([tensor, np.ones((rows - VOCAB, *tensor.shape[1:]), tensor.dtype)])
        for name, tensor in original.items()
        if name in (WORD, "cls.predictions.bias")
    }
    save_file(original | more, folder / "model.safetensors")
    with open_published_weights(folder) as published:
        assert published.model.vocab_rows == rows and f"Rows: {rows:,} in the word table" in published.notes[-1]
    if rows - VOCAB < 1024:
        opened(folder, vocab)
    else:
        refused(folder, f"{rows:,} rows", f"{VOCAB:,} pieces", "copy it into the directory", vocab=vocab)


def test_a_span_boundary_head_beside_the_weights_is_taken(tmp_path: Path, hub: Path) -> None:
    params = random_bits({"sbo": 9})
    params["sbo"] |= {"offset": np.ones((9, 200), np.float32), "dense_1": {"kernel": np.ones((248, 24), np.float32)}}
    params["sbo"]["dense_1"]["bias"] = np.ones(24, np.float32)
    tensors = to_tensors(params, VOCAB, np.dtype(np.float32))
    for name in ("config.json", "vocab.txt"):
        shutil.copyfile(hub / name, tmp_path / name)
    save_file({k: x for k, x in tensors.items() if not k.startswith(SBO)}, tmp_path / "model.safetensors")
    assert opened(tmp_path)[2].missing == ("mlm", "sbo")
    save_file({k: x for k, x in tensors.items() if k.startswith(SBO)}, tmp_path / "sbo_head.safetensors")
    _, found, report = opened(tmp_path)
    assert_values(found, tensors)
    assert report.missing == ("mlm",) and "sbo" in report.taken


def test_a_classifiers_labels_come_with_it(tmp_path: Path) -> None:
    names = {0: "O", 1: "B-LOC", 2: "I-LOC"}
    model = random_bert("BertForTokenClassification", id2label=names, label2id={v: k for k, v in names.items()})
    model.save_pretrained(tmp_path)
    write_vocabulary(tmp_path / "vocab.txt")
    published, _, report = opened(tmp_path)
    assert published.labels == ("O", "B-LOC", "I-LOC") and "classifier" in report.taken


def test_a_classifier_whose_labels_do_not_exclude_each_other_is_left_alone(tmp_path: Path) -> None:
    model = random_bert("BertForSequenceClassification", num_labels=3, problem_type="multi_label_classification")
    model.save_pretrained(tmp_path)
    write_vocabulary(tmp_path / "vocab.txt")
    published, params, report = opened(tmp_path)
    assert published.labels == () and published.task == "" and "classifier" not in params
    assert {"classifier.bias", "classifier.weight"} <= set(report.left)
    assert "problem_type is 'multi_label_classification' with 3 outputs" in published.notes[-1]


@pytest.mark.parametrize("said", [None, True], ids=["nothing_said", "said_to_lowercase"])
def test_a_cased_vocabulary_tokenises_cased_whatever_is_said(said: bool | None, hub: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(hub, tmp_path / "model"))
    if said is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": said}))
    published, _, _ = opened(folder)
    assert not published.tokenizer.lowercase and published.notes[0].startswith("Text: cased")
    ids = published.tokenizer.tokenize("aB")
    assert [published.tokenizer.piece(id) for id in ids] == ["a", "##B"]


def test_an_uncased_vocabulary_tokenises_lowercased(hub: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(hub, tmp_path / "model"))
    pieces = [*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    pieces += [f"word{i}" for i in range(VOCAB - len(pieces))]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    published, _, _ = opened(folder)
    assert published.notes[0].startswith("Text: lowercased")
    assert [published.tokenizer.piece(id) for id in published.tokenizer.tokenize("aB")] == ["a", "##b"]


def test_a_vocabulary_of_another_size_is_an_error_with_both_sizes(hub: Path, tmp_path: Path) -> None:
    vocab = write_vocabulary(tmp_path / "vocab.txt", VOCAB + 1)
    refused(hub, str(hub), str(vocab), f"{VOCAB} rows", f"{VOCAB + 1} pieces", vocab=vocab)
    folder = Path(shutil.copytree(hub, tmp_path / "model"))
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"vocab_size": VOCAB + 1}))  # agrees with the vocabulary
    refused(folder, "model.safetensors", WORD, f"({VOCAB}, ", f"expected ({VOCAB + 1}, ", vocab=vocab)


@pytest.mark.parametrize("name", ["Roberta", "DistilBert"])
def test_another_architecture_is_refused_by_name_whatever_vocabulary_it_has(name: str, tmp_path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = getattr(transformers, f"{name}Config")(**sizes, vocab_size=VOCAB)
    getattr(transformers, f"{name}ForMaskedLM")(config).save_pretrained(tmp_path)
    refused(tmp_path, str(tmp_path), f"'{name.lower()}'", "only 'bert'")  # its byte-level BPE is not its fault
    write_vocabulary(tmp_path / "vocab.txt")
    refused(tmp_path, str(tmp_path), f"'{name.lower()}'", "only 'bert'")


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda x: x[:-1], "has shape"),
        (lambda x: np.where(np.arange(x.size) == 3, np.nan, x).astype(np.float32), "not finite"),
        (None, "missing"),
    ],
    ids=["shape", "nan", "missing"],
)
def test_a_spoilt_tensor_is_an_error_with_the_file_and_its_name(
    spoil: Any, part: str, hub: Path, original: dict[str, np.ndarray], tmp_path: Path
) -> None:
    folder, name = Path(shutil.copytree(hub, tmp_path / "model")), "bert.encoder.layer.1.output.LayerNorm.bias"
    tensors = {key: tensor for key, tensor in original.items() if key != name}
    save_file(tensors if spoil is None else tensors | {name: spoil(original[name])}, folder / "model.safetensors")
    refused(folder, str(folder / "model.safetensors"), name, part)


WHOLE = ("config.json", "vocab.txt", "model.safetensors")  # what is damaged last is the weights


def damaged(data: bytes, how: str, place: float) -> bytes:
    position = int(place * len(data))
    return {
        "junk": b"<html>404: Not Found</html>" * 9,
        "gzip_of_junk": gzip.compress(b"junk" * 999),
        "cut": data[:position],
        "changed": data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :],
    }[how]


@pytest.mark.parametrize("how", ["junk", "gzip_of_junk", "cut", "changed"])
def test_a_damaged_archive_is_an_error_that_names_it_and_leaves_nothing(
    how: str, hub: Path, tmp_path: Path, temporary: Path
) -> None:
    path = archive(tmp_path / "model.tar.gz", {name: hub / name for name in WHOLE})
    opened(path)
    data = path.read_bytes()
    for place in (0, 0.02, 0.05, 0.3, 0.6, 0.9):
        path.write_bytes(damaged(data, how, place))
        refused(path, str(path), "fetch it again")
        assert list(temporary.iterdir()) == []


def test_an_archive_cannot_write_outside_of_its_place(hub: Path, tmp_path: Path, temporary: Path) -> None:
    path = archive(tmp_path / "model.tar.gz", {"../../evil": hub / "vocab.txt", "vocab.txt": hub / "vocab.txt"})
    refused(path, str(path))
    assert not list(tmp_path.rglob("evil")) and list(temporary.iterdir()) == []


def test_temporary_files_last_as_long_as_the_release(hub: Path, tmp_path: Path, temporary: Path) -> None:
    path = archive(tmp_path / "model.tar.gz", {name: hub / name for name in WHOLE})
    with open_published_weights(path) as published:
        assert len(list(temporary.iterdir())) == 1
        load(published)
    assert list(temporary.iterdir()) == []
    with pytest.raises(KeyError), open_published_weights(path):
        raise KeyError("the caller's")
    assert list(temporary.iterdir()) == []


def test_places_without_weights_are_errors_that_name_them(hub: Path, tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", str(tmp_path / "empty"), "model.safetensors", "pytorch_model.bin")
    refused(tmp_path / "nowhere", str(tmp_path / "nowhere"))
    refused(tmp_path / "nowhere.tar.gz", str(tmp_path / "nowhere.tar.gz"))
    only_words = archive(tmp_path / "words.tar.gz", {"vocab.txt": hub / "vocab.txt"})
    refused(only_words, str(only_words), "model.safetensors", "model.pt")
    folder = Path(shutil.copytree(hub, tmp_path / "model"))
    (folder / "config.json").unlink()
    refused(folder, str(folder / "config.json"))
    assert list(temporary.iterdir()) == []


def test_the_same_weights_under_older_names_in_a_pickle_are_the_same_parameters(hub: Path, tmp_path: Path) -> None:
    """Names and tied copies as Google's bert-base-cased on the Hub has them."""
    params: Params = random_bits(COMBINATIONS["next_sentence"])
    tensors = to_tensors(params, VOCAB, np.dtype(np.float32))
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): torch.tensor(x)
        for name, x in tensors.items()
    }
    state["cls.predictions.decoder.weight"] = state[WORD]
    state["not.in.bert"] = torch.ones(2, MODEL.embed)
    for name in ("config.json", "vocab.txt"):
        shutil.copyfile(hub / name, tmp_path / name)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with open_published_weights(tmp_path) as published:
        again, report = load(published)
    assert_same_bits(again, params)
    assert report.left == ("not.in.bert",)
