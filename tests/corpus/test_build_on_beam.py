"""Blocks that Beam builds are the local build's, byte for byte; a mistake ends in one line and in no blocks.

Beam runs in an environment of its own (requirements-beam.txt), by its local runner; what it makes is compared here.
"""

import dataclasses
import gzip
import json
import pickle
import subprocess
from pathlib import Path

import pytest

from spanbert_jax.config import Config, CorpusConfig, DataConfig, TokenizerConfig
from spanbert_jax.corpus import build as building
from spanbert_jax.text.tokenizer import load_tokenizer, wordpiece_from_vocab
from tests.support.prose_tfds import write_tfds
from tests.support.small_corpus import PIECES, document, files_of

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-beam" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="no .venv-beam: run `make .venv-beam/requirements-beam` to test building on Beam"
)

MANY = """
import importlib.util, pickle, sys
from spanbert_jax.corpus import build as build_blocks
from spanbert_jax.corpus.build_on_beam import build_with_beam
assert not importlib.util.find_spec("tensorflow") and not importlib.util.find_spec("jax")
build_blocks.SHARD_RECORDS, build_blocks.TASK_CHARS = 37, 2000
build_with_beam(pickle.load(sys.stdin.buffer), ["--direct_num_workers=2", "--direct_running_mode=multi_threading"])
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (tmp_path / "a.txt").write_text("\n\n".join(map(document, range(50))))
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("\n\n".join(map(document, range(50, 60))))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": document(i)}) + "\n" for i in range(60, 100)))
    return Config(
        corpus=CorpusConfig(files=f"{tmp_path}/*.txt.gz,{tmp_path}/[ac].*", sentences="none", held_out=0.2, workers=1),
        tokenizer=TokenizerConfig(kind="wordpiece", vocab_file=str(tmp_path / "vocab.txt")),
        data=DataConfig(dir=str(tmp_path / "beam"), block_length=20),
    )


def local_files(config: Config, directory: Path) -> dict[str, bytes]:
    building.build_blocks(config, wordpiece_from_vocab(config.tokenizer.vocab_file, False), directory)
    return files_of(directory)


def by_tool(config: Config, *more: str) -> subprocess.CompletedProcess[str]:
    corpus = {"files": config.corpus.files, "name": config.corpus.name, "tfds_data_dir": config.corpus.tfds_data_dir}
    fields = [f"--config.corpus.{name}={value}" for name, value in corpus.items()] + [
        "--config.corpus.sentences=none",
        f"--config.corpus.held_out={config.corpus.held_out}",
        f"--config.data.block_length={config.data.block_length}",
        "--config.tokenizer.kind=wordpiece",
        f"--config.tokenizer.vocab_file={config.tokenizer.vocab_file}",
    ]
    command = [PYTHON, "tools/build_blocks.py", "--config", "configs/base.py", "--data-dir", config.data.dir, *fields]
    return subprocess.run([*map(str, command), *more], cwd=ROOT, capture_output=True, text=True, timeout=900)


def test_many_tasks_and_shards_give_the_local_builds_bytes_without_tensorflow_or_jax(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "animals.txt").write_text("cat\nold cat\n")
    spans = f"gazetteer:{tmp_path}/animals.txt; sentence"
    config = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, spans=spans))
    monkeypatch.setattr(building, "SHARD_RECORDS", 37)
    expected = local_files(config, tmp_path / "local")
    assert json.loads(expected["metadata.json"])["spans"]["counts"]["animals"] > 50
    assert len([name for name in expected if "train.array_record" in name]) > 5
    done = subprocess.run([PYTHON, "-c", MANY], cwd=ROOT, input=pickle.dumps(config), capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr.decode()
    assert files_of(tmp_path / "beam" / "blocks") == expected
    given = wordpiece_from_vocab(config.tokenizer.vocab_file, False)
    assert load_tokenizer(tmp_path / "beam" / "tokenizer").fingerprint == given.fingerprint


@pytest.mark.parametrize(("file_format", "mode"), [("tfrecord", "multi_processing"), ("array_record", "in_memory")])
def test_a_tfds_dataset_of_several_files_gives_the_local_builds_bytes(
    config: Config, tmp_path: Path, file_format: str, mode: str
) -> None:
    write_tfds(tmp_path / "tfds" / "prose" / "1.0.0", file_format)
    corpus = dataclasses.replace(config.corpus, files="", name="prose", tfds_data_dir=str(tmp_path / "tfds"))
    config = dataclasses.replace(config, corpus=corpus)
    expected = local_files(config, tmp_path / "local")
    done = by_tool(config, "--runner=DirectRunner", "--direct_num_workers=2", f"--direct_running_mode={mode}")
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "beam" / "blocks") == expected


def test_what_a_stopped_pipeline_left_is_replaced_and_other_things_are_not(config: Config, tmp_path: Path) -> None:
    expected = local_files(config, tmp_path / "local")
    blocks = tmp_path / "beam" / "blocks"
    blocks.mkdir(parents=True)
    for name in ("spanbert_blocks-train.array_record-00000-of-00009", "lengths-train.npy.0a1b.partial"):
        (blocks / name).write_bytes(b"half")
    assert by_tool(config).returncode == 0
    assert files_of(blocks) == expected
    again = by_tool(config)
    assert again.returncode == 1 and "these blocks are complete" in again.stderr
    (blocks / "metadata.json").unlink()
    (blocks / "thesis.tex").write_text("years of work")
    refused = by_tool(config)
    assert refused.returncode == 1 and "holds other files" in refused.stderr and "thesis.tex" in refused.stderr
    assert (blocks / "thesis.tex").exists() and (blocks / "features.json").exists()


def test_a_file_of_spans_is_compared_with_the_corpus_before_the_build(config: Config, tmp_path: Path) -> None:
    (tmp_path / "spans.jsonl").write_text('{"key": "0011223344556677", "spans": [[0, 3, "NAME"]]}\n')
    done = by_tool(config, f"--config.corpus.spans=file:{tmp_path}/spans.jsonl")
    assert done.returncode == 1 and "spans.jsonl, line 1: the corpus has no document with the key" in done.stderr


def test_a_mistake_that_a_worker_finds_ends_in_its_line_and_no_blocks(config: Config, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_bytes(b"fine\n\xff\n")
    corpus = dataclasses.replace(config.corpus, files=f"{tmp_path}/[ad].txt")
    done = by_tool(dataclasses.replace(config, corpus=corpus))
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and lines[-1].startswith(f"error: {tmp_path}/d.txt, line 2: byte 5 (0xff)")
    assert "Traceback" not in done.stderr and "while running" not in done.stderr
    assert not (tmp_path / "beam" / "blocks" / "metadata.json").exists()
    no_vocabulary = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(tmp_path / "other")))
    no_vocabulary = dataclasses.replace(no_vocabulary, tokenizer=TokenizerConfig())
    done = by_tool(no_vocabulary, "--config.tokenizer.kind=unigram")
    assert done.returncode == 1 and "holds no vocabulary, and Beam trains none" in done.stderr
