"""Building a corpus with two workers: reading, splitting into sentences, tokenising, packing and writing.

--spans RULES builds in turn with these rules (config.corpus.spans) and without, and compares the two.

Invariant: the time is that of `build_blocks`, from the raw files to complete blocks on disk, with the workers' start.
MB are 10^6 bytes of the raw files.
"""

import contextlib
import shutil
import time
from pathlib import Path

from benchmarks.measure import Options, Result, Side, alternate, median, need_text, started
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
    SentencePiece .model or a tokenizer.json), and optionally "length" (pieces in a block) and "spans" (rules)."""
    files = Path(spec["files"])
    pattern = str(files / "**" / "*") if files.is_dir() else str(files)
    return Config(
        corpus=CorpusConfig(
            files=pattern, document_break="file", held_out=0.01, workers=_WORKERS, spans=spec.get("spans", "")
        ),
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
    spec = {"files": str(options.text), "vocab": str(options.vocab)}
    cores = options.cores[:_WORKERS]
    request = {"directory": str(options.work / "timed" / "blocks"), "again": True}
    with contextlib.ExitStack() as stack:
        rules = {"ours": {"spans": options.spans}, "without": {}} if options.spans else {"ours": {}}
        sides = {name: stack.enter_context(Side("corpus", {**spec, **of}, cores)) for name, of in rules.items()}
        started(sides, f"Building the corpus of {options.text}: starting")
        answers = alternate(sides, options.rounds, request, f"Building the corpus of {options.text}")
        size = sides["ours"].facts["bytes"]
    shutil.rmtree(options.work / "timed", ignore_errors=True)
    speeds = {name: [size / 1e6 / answer["seconds"] for answer in of] for name, of in answers.items()}
    pieces = sum(split["pieces"] for split in answers["ours"][-1]["counts"].values())
    searched = f", search for spans ({options.spans})" if options.spans else ""
    counted = (
        f"read, split, tokenise ({options.vocab.name}){searched}, pack and write {size / 1e6:.1f} MB of raw text, "
        f"{pieces:,} pieces, on {len(cores)} cores with {_WORKERS} workers, their start included"
    )
    return [
        Result(
            f"corpus building{', with spans over without' if options.spans else ''}, {len(cores)} cores",
            median(speeds["ours"]),
            "MB/s",
            median(speeds["without"]) if options.spans else None,
            counted=counted,
            values=speeds,
        )
    ]
