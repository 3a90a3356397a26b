"""Building a corpus with two workers: reading, splitting into sentences, tokenising, packing and writing.

Invariant: the time is that of `build_blocks`, from the raw files to complete blocks on disk, with the workers' start.
MB are 10^6 bytes of the raw files.
"""

import shutil
import time
from pathlib import Path

from benchmarks.measure import Options, Result, Side, median, need_text
from benchmarks.worker import Handler, Json
from spanbert_jax.config import Config, CorpusConfig, DataConfig, TokenizerConfig
from spanbert_jax.errors import UserError
from spanbert_jax.training.progress import Stage

_WORKERS = 2


def kind_of(vocab: str | Path) -> str:
    """The `tokenizer.kind` of a vocabulary's file, by the ending of its name."""
    return {".model": "unigram", ".json": "tokenizer_json"}.get(Path(vocab).suffix, "wordpiece")


def corpus_config(spec: Json) -> Config:
    """The configuration of a corpus. spec: "files" (a file or a directory of files), "vocab" (a vocab.txt, a
    SentencePiece .model or a tokenizer.json), and optionally "length" (pieces in a block)."""
    files = Path(spec["files"])
    pattern = str(files / "**" / "*") if files.is_dir() else str(files)
    return Config(
        corpus=CorpusConfig(files=pattern, document_break="file", held_out=0.01, workers=_WORKERS),
        tokenizer=TokenizerConfig(kind=kind_of(spec["vocab"]), vocab_file=spec["vocab"]),
        data=DataConfig(block_length=spec.get("length", 512)),
    )


def start(spec: Json) -> tuple[Json, Handler]:
    """spec: as for `corpus_config`. A request {"directory": path, "again": bool} builds blocks there, or finds them
    unless "again" is true, and is answered with seconds, bytes and counts."""
    from spanbert_jax.corpus import blocks
    from spanbert_jax.corpus.build import build_blocks, tokenizer_from_file
    from spanbert_jax.text.documents import find_files

    config = corpus_config(spec)
    tokenizer = tokenizer_from_file(config.tokenizer)
    assert tokenizer is not None
    size = sum(path.stat().st_size for path in find_files(config.corpus.files))

    def is_there(directory: Path) -> bool:
        try:
            blocks.check_blocks(blocks.read_metadata(directory), config, tokenizer)
        except UserError:
            return False
        return True

    def run(request: Json) -> Json:
        directory = Path(request["directory"])
        seconds = 0.0
        if request["again"] or not is_there(directory):
            shutil.rmtree(directory, ignore_errors=True)
            directory.parent.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            build_blocks(config, tokenizer, directory)
            seconds = time.monotonic() - began
        counts = blocks.read_metadata(directory).counts
        return {"seconds": seconds, "bytes": size, "counts": counts}

    return {"bytes": size}, run


def prepared(name: str, files: Path, options: Options) -> Path:
    """The directory of the blocks of `files` under options.work. The first call that needs them builds them."""
    need_text(files, "--text")
    need_text(options.vocab, "--vocab")
    directory = options.work / name / "blocks"
    spec = {"files": str(files), "vocab": str(options.vocab)}
    with Stage(f"Blocks of {name}") as stage, Side("corpus", spec, options.cores) as side:
        side.ready(lambda: stage.update(None, "starting"))
        answer = side.ask({"directory": str(directory), "again": False}, lambda: stage.update(None, "building"))
        stage.update(1.0, f"{answer['counts']['train']['blocks']:,} blocks")
    return directory


def run(options: Options) -> list[Result]:
    """The subject `corpus`."""
    need_text(options.text, "--text")
    need_text(options.vocab, "--vocab")
    spec, directory = {"files": str(options.text), "vocab": str(options.vocab)}, options.work / "timed" / "blocks"
    cores, seconds = options.cores[:_WORKERS], []
    with Stage(f"Building the corpus of {options.text}") as stage, Side("corpus", spec, cores) as side:
        facts = side.ready(lambda: stage.update(None, "starting")).facts
        for number in range(options.rounds):
            show = lambda n=number: stage.update(n / options.rounds, f"round {n + 1} of {options.rounds}")  # noqa: E731
            show()
            answer = side.ask({"directory": str(directory), "again": True}, show)
            seconds.append(answer["seconds"])
    shutil.rmtree(directory.parent, ignore_errors=True)
    speeds = [facts["bytes"] / 1e6 / value for value in seconds]
    pieces = sum(split["pieces"] for split in answer["counts"].values())
    counted = (
        f"read, split, tokenise ({options.vocab.name}), pack and write {facts['bytes'] / 1e6:.1f} MB of raw text, "
        f"{pieces:,} pieces, on {len(cores)} cores with {_WORKERS} workers, their start included"
    )
    return [
        Result(
            f"corpus building, {len(cores)} cores",
            median(speeds),
            "MB/s",
            counted=counted,
            values={"ours": speeds},
        )
    ]
