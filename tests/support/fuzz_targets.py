"""The readers that tests/fuzz/ feeds with damaged files: a small sound input for each, and the call that reads it.

Invariant: a reader of files that a user or a stranger gives has a row of `TARGETS`. A target takes milliseconds.
"""

import functools
import gzip
import io
import json
import string
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spanbert_jax.text.tokenizer import SPECIALS
from tests.support.fuzzing import Target

_PROSE = "The old cat sat on a mat in 1984.\n\nTwo dogs ran past it; nobody's dog barked.\n"
_QUESTION = {"question": "Who sat?", "context": "The cat sat.", "id": "q1"}
_ANSWERS = {"text": ["cat"], "answer_start": [4]}
_PIECES = [*SPECIALS, *string.ascii_letters, *string.punctuation, *(f"##{letter}" for letter in string.ascii_letters)]
_VOCABULARY = "\n".join(_PIECES).encode()


def _lines(*records: Any) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _read_examples(module: str, role: str, **options: Any) -> Callable[[], object]:
    """Reads labelled data from the one file `data`, `data.txt` or `data.json`."""
    import importlib

    files = importlib.import_module(f"spanbert_jax.tasks.{module}.files")
    return lambda: files.read(str(next(Path().glob("data*"))), role, **options)


def _corpus(name: str, content: bytes) -> Target:
    from spanbert_jax.text.documents import read_files

    return Target({name: content}, lambda: list(read_files([Path(name)], "blank_line")))


def _corpora() -> dict[str, Callable[[], Target]]:
    wiki = (
        f'<doc id="1" url="" title="Cats">\nCats\n\n{_PROSE}</doc>\n<doc id="2" url="" title="B">\nB\nA dog.\n</doc>\n'
    )
    records = [{"id": 1, "text": _PROSE, "meta": {"a": [1, 2]}}, {"text": "A dog."}]
    contents = {
        "plain": ("a.txt", _PROSE.encode()),
        "json lines": ("a.jsonl", _lines(*records)),
        "json list": ("a.json", json.dumps(records, indent=1).encode()),
        "json list in a line": ("a.json", json.dumps(records).encode()),
        "wiki": ("a", wiki.encode()),
        "gzip": ("a.gz", gzip.compress(_lines(*records), mtime=0)),
    }
    return {f"corpus, {name}": functools.partial(_corpus, *of) for name, of in contents.items()}


def _examples() -> dict[str, Callable[[], Target]]:
    paragraph = {
        "context": "The cat sat.",
        "qas": [{"id": 1, "question": "Who?", "answers": [{"text": "cat", "answer_start": 4}]}],
    }
    squad = {"version": "v2.0", "data": [{"title": "Cats", "paragraphs": [paragraph]}]}
    paragraph["qas"].append({"id": "b", "question": "Who?", "is_impossible": True, "answers": []})  # type: ignore[union-attr, attr-defined]
    detected = {"text": "cat", "char_spans": [[4, 6]], "token_spans": [[1, 1]]}
    mrqa = {
        "context": "The cat sat.",
        "qas": [{"qid": "a", "question": "Who?", "answers": ["cat"], "detected_answers": [detected]}],
    }
    glue = "sentence\tlabel\nA good film.\t1\nA bad film.\t0\n"
    pairs = 'id,one,two,kind\n1,"a, b",c,yes\n2,"d ""e""",f,no\n'
    cola = "gj04\t1\t\tThey sat.\ngj04\t0\t*\tThey sits.\n"
    scores = "index\tsentence1\tsentence2\tscore\n0\ta b\tc\t4.5\n1\td\te\t0.0\n"
    conll = "-DOCSTART- -X- O\n\nAnna NNP B-PER\nsings VB O\n\nIn IN O\nNew NNP B-LOC\nYork NNP I-LOC\n# NN O\n"
    words = {"id": "a", "words": ["New", "York", "sings"], "entities": [[0, 2, "LOC"], [0, 1, "ADJ"]]}
    tacred = {
        "id": "a",
        "docid": "d",
        "relation": "per:x",
        "token": ["Anna", "of", "-LRB-", "Rome"],
        "stanford_pos": ["A"],
    }
    tacred |= {"subj_start": 0, "subj_end": 0, "obj_start": 3, "obj_end": 3, "subj_type": "PERSON", "obj_type": "CITY"}
    semeval = '1\t"The <e1>fire</e1> was caused by <e2>heat</e2>."\nCause-Effect(e2,e1)\nComment:\n\n'
    semeval += '2\t"<e2>A</e2> <e1>b</e1>"\nOther\n'
    scored = _lines({"sentence1": "a", "sentence2": "b", "score": 4})
    labelled = _lines({"id": 7, "text": "a", "label": "x"}, {"text": "b", "label": 2})
    rows: dict[str, tuple[str, str, bytes, dict[str, Any]]] = {
        "SQuAD": ("question_answering", "dev", json.dumps(squad).encode(), {}),
        "SQuAD in gzip": ("question_answering", "train", gzip.compress(json.dumps(squad).encode(), mtime=0), {}),
        "MRQA": ("question_answering", "train", _lines({"header": {"dataset": "x"}}, mrqa), {}),
        "questions": ("question_answering", "predict", _lines(_QUESTION, {**_QUESTION, "id": 3, "title": "T"}), {}),
        "answers": ("question_answering", "train", _lines({**_QUESTION, "answers": _ANSWERS}), {}),
        "GLUE": ("text_classification", "train", glue.encode(), {"task": "sst2"}),
        "CSV": ("text_classification", "train", pairs.encode(), {"text": "one", "second": "two", "label": "kind"}),
        "CoLA": ("text_classification", "train", cola.encode(), {"task": "cola"}),
        "scores": ("text_classification", "dev", scores.encode(), {"task": "stsb"}),
        "scores, JSON": ("text_classification", "dev", scored, {"task": "stsb"}),
        "labels, JSON": ("text_classification", "train", labelled, {}),
        "CoNLL": ("entities", "train", conll.encode(), {"context": 3}),
        "CoNLL, BILOU": ("entities", "train", b"a\tU-X\nb\tB-Y\nc\tL-Y\n\nd\tO\n", {"scheme": "BILOU"}),
        "words": ("entities", "train", _lines(words, {"words": ["a"], "entities": []}), {}),
        "words in a list": ("entities", "predict", json.dumps([words, {"text": "Anna sings."}]).encode(), {}),
        "TACRED": ("relations", "train", json.dumps([tacred]).encode(), {}),
        "SemEval": ("relations", "train", semeval.encode(), {"format": "semeval"}),
        "SemEval to predict": ("relations", "predict", b"A <e1>b</e1> c <e2>d</e2> .\n", {}),
    }  # fmt: skip

    def make(module: str, role: str, data: bytes, options: dict[str, Any]) -> Target:
        return Target({"data": data}, _read_examples(module, role, **options))

    def make_text(module: str, options: dict[str, Any]) -> Target:
        return Target({"data.txt": _PROSE.encode()}, _read_examples(module, "predict", **options))

    found: dict[str, Callable[[], Target]] = {
        f"examples, {name}": functools.partial(make, *of) for name, of in rows.items()
    }
    found["examples, plain text"] = functools.partial(make_text, "text_classification", {})
    found["examples, plain text to tag"] = functools.partial(make_text, "entities", {"style": _word_style()})
    return found


def _word_style() -> Any:
    from spanbert_jax.tasks.entities.words import WordStyle

    return WordStyle(apart="-", leading="@", repeated=".", endings=("'s", "n't"), unspaced=("中文",))


def _predictions() -> Target:
    from spanbert_jax.serving.prediction_files import read_predictions
    from spanbert_jax.tasks.question_answering.files import Question

    examples = [Question(name, "Who?", "The cat sat.") for name in ("a", "b")]

    def read() -> None:
        read_predictions(Path("lines.jsonl"), examples, True)
        read_predictions(Path("map.json"), examples, False)

    return Target(
        {"lines.jsonl": _lines({"id": "a", "text": "x"}, {"id": "b"}), "map.json": b'{"a": "x", "b": ""}'}, read
    )


def _rows() -> Target:
    """Rows that a run has kept; damaged ones are made again, and nothing is said."""
    from spanbert_jax.errors import UserError
    from spanbert_jax.tasks.rows import load_rows, make_rows, save_rows

    save_rows(make_rows([[{"input_ids": [5, 6], "label": 1}], [{"input_ids": [7], "label": 0}]]), Path("rows.npz"))

    def read() -> None:
        if load_rows(Path("rows.npz")) is None:
            raise UserError("made again")

    return Target({"rows.npz": Path("rows.npz").read_bytes()}, read)


def _span_rules() -> Target:
    from spanbert_jax.text.spans import SpanFinder, spans_of_text

    def read() -> None:
        text = Path("text.txt").read_text(encoding="utf-8", errors="replace")
        for rules in (Path("rules").read_text(errors="replace"), "gazetteer:names.txt"):
            spans_of_text(text, SpanFinder(rules), "en", "sentencex")

    rules = b"regex:YEAR=[0-9]{4}; sentence; regex:NAME=[A-Z]\\w+(?: [A-Z]\\w+)*"
    return Target({"rules": rules, "names.txt": b"old cat\ndogs\nthe cat's mat\n", "text.txt": _PROSE.encode()}, read)


def _span_file() -> Target:
    from spanbert_jax.text.documents import hash_text
    from spanbert_jax.text.spans import SpanFinder, spans_of_text

    key = hash_text(_PROSE).hex()
    spans = _lines({"key": key, "spans": [[4, 11, "CAT"], [19, 24, "MAT"]]}, {"key": "00", "spans": []})
    return Target({"spans.jsonl": spans}, lambda: spans_of_text(_PROSE, SpanFinder("file:spans.jsonl"), "en", "none"))


def _gaps() -> Target:
    from spanbert_jax.serving.gaps import piece_classes, read_gaps
    from tests.support.tuned import WORDPIECE

    classes = piece_classes(WORDPIECE)

    def read() -> None:
        read_gaps(Path("text").read_text(errors="replace"), None, (1, 3), WORDPIECE, classes)

    return Target({"text": b"The [MASK] [MASK] sat on the ___ , and ____."}, read)


def _saved_tokenizer() -> Target:
    from spanbert_jax.text.tokenizer import Tokenizer, load_tokenizer

    folder = Path("saved")
    Tokenizer("wordpiece", _VOCABULARY, True).save(folder)
    files = {str(path): path.read_bytes() for path in folder.iterdir()}
    return Target(files, lambda: load_tokenizer(folder).tokenize("The cat's [MASK]."))


def _hugging_face_tokenizer(kind: str) -> Target:
    """A tokenizer.json with the files beside it."""
    from spanbert_jax.convert.tokenizer_import import read_tokenizer
    from tests.support.other_tokenizers import write

    folder = Path(kind)
    folder.mkdir()
    write(kind, [_PROSE, "The cat and the mat."], folder)
    extra = {"added_tokens.json": {"covid-19": 9999}, "special_tokens_map.json": {"cls_token": {"content": "[CLS]"}}}
    for name, content in extra.items() if kind == "nfkc" else ():
        (folder / name).write_text(json.dumps(content))
    if kind == "nfkc":
        engine_size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
        (folder / "added_tokens.json").write_text(json.dumps({"covid-19": engine_size}))
    files = {str(path): path.read_bytes() for path in folder.iterdir()}
    return Target(files, lambda: read_tokenizer(folder)[0].tokenize("The cat's covid-19 [MASK]."))


def _bert_tokenizer() -> Target:
    """BERT's vocab.txt with the files beside it."""
    from spanbert_jax.convert.tokenizer_import import read_tokenizer

    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": False,
        "strip_accents": None,
        "never_split": ["[MASK]"],
    }
    config |= {"added_tokens_decoder": {str(len(_PIECES)): {"content": "<ent>", "lstrip": True, "special": False}}}
    files = {
        "bert/vocab.txt": _VOCABULARY,
        "bert/tokenizer_config.json": json.dumps(config).encode(),
        "bert/config.json": b'{"model_type": "bert", "tokenizer_class": null}',
    }
    return Target(files, lambda: read_tokenizer(Path("bert"))[0].tokenize("The cat's <ent> [MASK]."))


def _sentencepiece() -> Target:
    from spanbert_jax.text.tokenizer import sentencepiece_from_model
    from tests.support.sentencepiece_models import other_model

    model = other_model([_PROSE] * 3, "unigram").vocabulary
    return Target({"a.model": model}, lambda: sentencepiece_from_model("a.model").tokenize("The cat's [MASK]."))


_BERT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": 131,
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "hidden_act": "gelu",
    "id2label": {"0": "no", "1": "yes"},
}
_MODERN = {
    **_BERT,
    "model_type": "modernbert",
    "layer_types": ["full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "local_attention": 8,
    "norm_eps": 1e-5,
    "classifier_pooling": "mean",
}


def _model_config(fields: Mapping[str, Any]) -> Target:
    from spanbert_jax.convert import huggingface_config

    def read() -> None:
        found = huggingface_config.read_config(Path("config.json"))
        huggingface_config.to_model_config(found, "config.json")
        huggingface_config.task_of(huggingface_config.class_of(found))
        huggingface_config.labels_of(found, 2, "config.json")

    return Target({"config.json": json.dumps(fields).encode()}, read)


def _google_config() -> Target:
    from spanbert_jax.convert import google_bert, huggingface_config

    def read() -> None:
        fields = google_bert.config_fields(Path("bert_config.json"))
        huggingface_config.to_model_config(fields, "bert_config.json")

    return Target({"bert_config.json": json.dumps(_BERT).encode()}, read)


def _tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "layer.weight": rng.normal(size=(7, 5)).astype(np.float32),
        "layer.bias": rng.normal(size=5).astype(np.float16),
    }


def _read_all(name: str) -> None:
    from spanbert_jax.convert.tensor_files import read_tensors

    for read in read_tensors(Path(name)).values():
        read()


def _safetensors() -> Target:
    from safetensors.numpy import save

    files = {f"{i}.safetensors": save({name: tensor}) for i, (name, tensor) in enumerate(_tensors().items())}
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {name: f"{i}.safetensors" for i, name in enumerate(_tensors())},
    }
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return Target(files, lambda: _read_all("model.safetensors.index.json"))


def _pickle(is_new: bool) -> Target:
    import torch

    file = io.BytesIO()
    state = {name: torch.from_numpy(tensor) for name, tensor in _tensors().items()}
    torch.save({"model": state, "epoch": 3}, file, _use_new_zipfile_serialization=is_new)
    return Target({"model.pt": file.getvalue()}, lambda: _read_all("model.pt"))


def _tensorflow() -> Target:
    import tensorflow as tf

    from spanbert_jax.convert.tensorflow_checkpoint import read_checkpoint

    names = list(_tensors())
    values = [tf.constant(tensor) for tensor in _tensors().values()]
    tf.raw_ops.SaveV2(prefix="bert.ckpt", tensor_names=names, shape_and_slices=["", ""], tensors=values)

    def read() -> None:
        for tensor in read_checkpoint(Path("bert.ckpt")).values():
            tensor()

    return Target({path.name: path.read_bytes() for path in Path().glob("bert.ckpt*")}, read)


def _bert_tensors() -> dict[str, np.ndarray]:
    """Every tensor of the classifier that `_BERT` describes, with the vocabulary `_PIECES`."""
    width, mlp = _BERT["hidden_size"], _BERT["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for table, rows in (("word", len(_PIECES)), ("position", 24), ("token_type", 2)):
        shapes[f"bert.embeddings.{table}_embeddings.weight"] = (rows, width)
    norms, dense = ["bert.embeddings.LayerNorm"], {"bert.pooler.dense": (width, width), "classifier": (2, width)}
    for number in range(_BERT["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            dense[f"{layer}.attention.{part}"] = (width, width)
        dense |= {f"{layer}.intermediate.dense": (mlp, width), f"{layer}.output.dense": (width, mlp)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    shapes |= {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}
    shapes |= {f"{name}.weight": shape for name, shape in dense.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in dense.items()}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def _model_files() -> dict[str, bytes]:
    """The files of a model of others."""
    from safetensors.numpy import save

    config = json.dumps({**_BERT, "vocab_size": len(_PIECES)}).encode()
    return {"model.safetensors": save(_bert_tensors()), "config.json": config, "vocab.txt": _VOCABULARY}


def _model_directory() -> Target:
    from spanbert_jax.convert.published_weights import open_published_weights

    def read() -> None:
        with open_published_weights(Path("model")):
            pass

    return Target({f"model/{name}": data for name, data in _model_files().items()}, read)


def _archive(is_gzip: bool) -> Target:
    from spanbert_jax.convert.archive import take_out

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz" if is_gzip else "w") as tar:
        for name, data in _model_files().items():
            member = tarfile.TarInfo(f"bert/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

    def read() -> None:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            take_out(Path("model.tar"), Path(folder))

    return Target({"model.tar": file.getvalue()}, read)


def _tfds(file_format: str) -> Target:
    from spanbert_jax.corpus import tfds_source
    from tests.support.prose_tfds import write_tfds

    folder = Path("tfds/prose/1.0.0")
    write_tfds(folder, file_format)
    files = {str(path): path.read_bytes() for path in folder.iterdir()}
    return Target(files, lambda: list(tfds_source.read_tfds("prose", "tfds")))


def _checkpoint_metadata() -> Target:
    from spanbert_jax.errors import UserError
    from spanbert_jax.tasks.finetuning import Learnt
    from spanbert_jax.training.metadata import Metadata, from_json
    from tests.support.synthetic import small_config

    words = {"apart": "-", "endings": ["'s"]}
    saved = Metadata("token_classification", 7, small_config(), 131, "a", "b", ("x", "y"), {"SUBJ": 5}, True, words)
    content = json.dumps(saved.to_json()).encode()

    def read() -> None:
        try:
            fields = json.loads(Path("metadata").read_bytes())  # by Orbax in a run
        except (ValueError, RecursionError) as error:
            raise UserError("not JSON") from error
        Learnt.from_metadata(from_json(fields, "run"))

    return Target({"metadata": content}, read)


def _workdir_config() -> Target:
    from etils import epath

    from spanbert_jax.config import flatten
    from spanbert_jax.training.metadata import config_to_json
    from spanbert_jax.training.workdir import read_config
    from tests.support.synthetic import small_config

    content = config_to_json(small_config()).encode()
    return Target({"config.json": content}, lambda: flatten(read_config(epath.Path("config.json"))))


def _metrics() -> Target:
    from etils import epath

    from spanbert_jax.training.progress import metric_records
    from tools.plot_metrics import draw, read

    records = [{"step": i, "train/mlm_loss": 3.5 - i, "held_out/mlm_loss": float("nan")} for i in range(3)]

    def use() -> None:
        assert all(isinstance(record["step"], int) for _, record in metric_records(epath.Path("metrics.jsonl")))
        read(Path("metrics.jsonl"))

    del draw
    return Target({"metrics.jsonl": _lines(*records)}, use)


def _blocks() -> Target:
    from array_record.python.array_record_module import ArrayRecordWriter

    from spanbert_jax.corpus import blocks

    for split in blocks.SPLITS:
        writer = ArrayRecordWriter(f"{blocks.DATASET}-{split}.array_record-00000-of-00001", "group_size:1")
        writer.write(b"a record")
        writer.close()
        np.save(blocks.lengths_file(split), np.array([8], np.int32))
    counts = {split: {"documents": 1, "sentences": 1, "pieces": 8, "blocks": 1} for split in blocks.SPLITS}
    metadata = {
        "format": 2,
        "version": "0.2.0",
        "tokenizer_fingerprint": "a",
        "block_length": 16,
        "corpus": {"files": "a"},
    }
    metadata |= {"sources": [], "counts": counts, "piece_counts": [3, 5], "fingerprint": "b", "spans": None}
    names = [path.name for path in Path().iterdir()]
    beside = {name: Path(name).read_bytes() for name in names if "array_record" in name}
    files = {name: Path(name).read_bytes() for name in names if name.endswith(".npy")}
    files[blocks.METADATA_FILE] = json.dumps(metadata).encode()

    def read() -> None:
        for split in blocks.SPLITS:
            found = blocks.open_blocks(Path(), split)
            found.read(np.arange(len(found)))
            assert isinstance(found.metadata.kinds, list)

    return Target(files, read, beside)


def _mixture() -> Target:
    from spanbert_jax.config import MaskingConfig
    from spanbert_jax.serving import mixture

    made_for = {"step": 3, "tokenizer": "a"}
    mixture.write_mixture(mixture.default_mixture(MaskingConfig()), ".", made_for, {"nats": 3.5})
    return Target({mixture.FILE: Path(mixture.FILE).read_bytes()}, lambda: mixture.read_mixture(".", made_for))


_REQUESTS: dict[str, Any] = {
    "/v1/embeddings": {"input": ["a cat", "b"], "model": "fake", "encoding_format": "float"},
    "/spans/find": {"text": _PROSE, "rules": ["sentence", "regex:YEAR=[0-9]{4}"], "offsets": "utf16"},
    "/tokenize": {"inputs": ["a cat", "b"]},
    "/v2/models/{model}/infer": {
        "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}],
        "outputs": [{"name": "embedding", "parameters": {"binary_data": True}}],
    },
}


def _request(path: str) -> Target:
    import asyncio
    import atexit

    import msgspec

    from spanbert_jax.errors import UserError
    from spanbert_jax.service.app import ROUTES
    from spanbert_jax.service.problems import problem_of
    from spanbert_jax.service.routes import Call
    from spanbert_jax.service.service import Settings
    from tests.support.fake_service import fake_service

    service, _ = fake_service(Settings(max_inputs=60))
    atexit.register(service.close)
    runner = asyncio.Runner()
    atexit.register(runner.close)
    route = next(route for route in ROUTES if route.path == path and route.method == "POST")
    decode = msgspec.json.Decoder(route.request).decode

    def read() -> None:
        try:
            body = decode(Path("body").read_bytes())
            call = Call(service, {"model": "fake"}, 1e18)
            reply: Any = runner.run(route.handler(call, body))  # type: ignore[arg-type]
            reply.content()
        except Exception as error:
            problem = problem_of(error)
            if problem.status >= 500:
                raise
            assert len(problem.message) <= 500 and len(problem.param or "") <= 500, problem.message
            raise UserError(problem.message) from error

    return Target({"body": json.dumps(_REQUESTS[path]).encode()}, read)


def _relation_request() -> Target:
    import msgspec

    from spanbert_jax.errors import UserError
    from spanbert_jax.service.own import RelationRequest, record_of

    decode = msgspec.json.Decoder(RelationRequest).decode

    def read() -> None:
        try:
            record_of(decode(Path("body").read_bytes()))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # rows of service/problems.py
            raise UserError("refused by msgspec") from error

    body = {
        "text": "😀 Anna of Rome",
        "subject": [3, 7],
        "object": [11, 15],
        "subject_type": "PERSON",
        "offsets": "utf16",
    }
    return Target({"body": json.dumps(body).encode()}, read)


def _binary_tensor() -> Target:
    from spanbert_jax.errors import UserError
    from spanbert_jax.service.binary_tensors import read_texts, split_body, write_tensor
    from spanbert_jax.service.problems import Problem

    def read() -> None:
        try:
            read_texts(split_body(Path("body").read_bytes(), Path("size").read_text("latin-1"))[1])
        except Problem as error:
            raise UserError(error.message) from error

    return Target({"body": b"{}" + write_tensor("BYTES", ["a cat", "中"]), "size": b"2"}, read)


TARGETS: dict[str, Callable[[], Target]] = {
    **_corpora(),
    **_examples(),
    "predictions": _predictions,
    "rows": _rows,
    "span rules": _span_rules,
    "span file": _span_file,
    "gaps": _gaps,
    "tokenizer, ours": _saved_tokenizer,
    "tokenizer, BERT's": _bert_tokenizer,
    "tokenizer.json, WordPiece": functools.partial(_hugging_face_tokenizer, "nfkc"),
    "tokenizer.json, BPE": functools.partial(_hugging_face_tokenizer, "modern"),
    "tokenizer.json, bytes": functools.partial(_hugging_face_tokenizer, "bytes"),
    "SentencePiece": _sentencepiece,
    "config.json, BERT": functools.partial(_model_config, _BERT),
    "config.json, ModernBERT": functools.partial(_model_config, _MODERN),
    "bert_config.json": _google_config,
    "safetensors": _safetensors,
    "pickle": functools.partial(_pickle, True),
    "pickle, legacy": functools.partial(_pickle, False),
    "TensorFlow checkpoint": _tensorflow,
    "a model's directory": _model_directory,
    "archive": functools.partial(_archive, False),
    "archive, gzip": functools.partial(_archive, True),
    "TFDS, tfrecord": functools.partial(_tfds, "tfrecord"),
    "TFDS, array_record": functools.partial(_tfds, "array_record"),
    "checkpoint's metadata": _checkpoint_metadata,
    "workdir's config.json": _workdir_config,
    "metrics.jsonl": _metrics,
    "blocks": _blocks,
    "infilling.json": _mixture,
    "binary tensor": _binary_tensor,
    "request, /relation": _relation_request,
    **{f"request, {path}": functools.partial(_request, path) for path in _REQUESTS},
}
