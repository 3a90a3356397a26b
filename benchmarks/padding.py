"""How much time length buckets save: the train step on rows in buckets, and on rows all padded to block_length.

Invariant: both sides read the same corpus through `masked_batches.train_batches`, with as many positions in a step, and
differ in config.data.lengths alone. A batch's padding is its positions from each row's length on; [CLS] and [SEP] are
not padding. "Share of what the padding saved allows" is the speed-up in real pieces a second, divided by the speed-up
that the smaller number of positions would bring by itself. It equals (positions a second in buckets) / (positions a
second padded).
"""

import contextlib
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.batches import make_config
from benchmarks.corpus import corpus_config, prepared
from benchmarks.measure import Options, Result, Side, alternate, median, need_text, started
from benchmarks.worker import Handler, Json
from configs import base
from spanbert_jax.config import Config
from spanbert_jax.files import written_aside

_WORDS = 250  # of each article, in the second corpus
_STEP = {"size": "small", "dropout": "both", "length": 512, "batch": 8}
_LENGTHS = base.get_config().data.lengths
_BATCHES = 8  # in a round: the first of an epoch, whose order is random


def start(spec: Json) -> tuple[Json, Handler]:
    """spec: the keys of `make_config` and `corpus_config`, "blocks" (their directory), "batches" (in a round) and
    "lengths" (config.data.lengths). Facts: the padding and the blocks of an epoch, and the shapes of a round's batches.
    A request is answered with the seconds, pieces and positions of a round.
    """
    import jax

    from spanbert_jax.corpus import blocks as block_data
    from spanbert_jax.corpus import masked_batches
    from spanbert_jax.corpus.build import tokenizer_from_file
    from spanbert_jax.model import pretraining_heads
    from spanbert_jax.tasks.pretraining_loss import objective
    from spanbert_jax.training import sharding
    from spanbert_jax.training.step import abstract_state, init_state, make_train_step

    config = step_config(spec)
    tokenizer = tokenizer_from_file(config.tokenizer)
    assert tokenizer is not None
    blocks = block_data.open_blocks(Path(spec["blocks"]), "train")
    mesh = sharding.mesh_of(config)
    batches: list[dict[str, jax.Array]] = []
    real, positions, rows = 0, 0, 0
    for batch in masked_batches.train_batches(config, blocks, tokenizer, sharding.batch_sharding(mesh), 0, 10**9):
        if len(batches) < spec["batches"]:
            batches.append(batch)
        lengths = np.asarray(batch["lengths"])
        real, positions = real + int(lengths.sum()), positions + batch["input_ids"].size
        rows += int(np.count_nonzero(lengths))
        if rows >= len(blocks):
            break
    model = pretraining_heads.pretraining_model(config, tokenizer.vocab_size, jax.default_backend())
    with jax.set_mesh(mesh):
        abstract = abstract_state(config, lambda key: pretraining_heads.init_params(model, key), mesh)
        state = init_state(config, lambda key: pretraining_heads.init_params(model, key), abstract)
    step = make_train_step(config, objective(model, 0), abstract)
    counted = {
        "pieces": sum(int(np.maximum(np.asarray(batch["lengths"]) - 2, 0).sum()) for batch in batches),
        "positions": sum(batch["input_ids"].size for batch in batches),
    }

    def take(batches: list[dict[str, jax.Array]]) -> float:
        nonlocal state
        began = time.monotonic()
        with jax.set_mesh(mesh):
            for batch in batches:
                state, _ = step(state, batch)
            jax.block_until_ready(state)
        return time.monotonic() - began

    shapes = {batch["input_ids"].shape: batch for batch in batches}
    take(list(shapes.values()))  # compiles every shape
    run = lambda request: {"seconds": take(batches), **counted}  # noqa: E731
    return {"padding": 1 - real / positions, "blocks": rows, "shapes": sorted(shapes)}, run


def step_config(spec: Json) -> Config:
    """The configuration of a step on a corpus."""
    step, corpus = make_config(spec), corpus_config(spec)
    data = dataclasses.replace(corpus.data, lengths=spec["lengths"])
    return dataclasses.replace(step, corpus=corpus.corpus, tokenizer=corpus.tokenizer, data=data)


def cut_articles(source: Path, target: Path, words: int) -> None:
    """Writes the documents of a directory, cut to their first `words` words, as JSON lines."""
    from spanbert_jax.text.documents import find_files, read_files

    target.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(target) as aside, aside.open("w", encoding="utf-8") as file:
        for document in read_files(find_files(str(source / "**" / "*")), "file"):
            file.write(json.dumps({"text": " ".join(document.text.split()[:words])}) + "\n")


def share_of_allowed(ours: Json, theirs: Json) -> float:
    """The speed-up in real pieces a second, divided by the speed-up that fewer positions a piece bring by
    themselves."""
    gain = (ours["pieces"] / ours["seconds"]) / (theirs["pieces"] / theirs["seconds"])
    return gain / ((theirs["positions"] / theirs["pieces"]) / (ours["positions"] / ours["pieces"]))


def run(options: Options, precision: str = "fp32") -> list[Result]:
    """The subject `padding`."""
    wiki = options.text / "enwiki2015" if (options.text / "enwiki2015").is_dir() else options.text
    need_text(wiki, "--text")
    short = options.work / f"{wiki.name}-{_WORDS}-words.jsonl"
    if not short.exists():
        cut_articles(wiki, short, _WORDS)
    results = []
    for name, files in ((wiki.name, wiki), (f"{wiki.name} cut to {_WORDS} words", short)):
        spec = {**_STEP, "batches": _BATCHES, "precision": precision, "files": str(files), "vocab": str(options.vocab)}
        spec["blocks"] = str(prepared(files.stem if files.is_file() else files.name, files, options))
        with contextlib.ExitStack() as stack:
            lengths = {"buckets": _LENGTHS, "padded": 1}
            sides = {
                side: stack.enter_context(Side("padding", {**spec, "lengths": count}, options.cores))
                for side, count in lengths.items()
            }
            started(sides, f"{name}: an epoch of batches, compiling")
            answers = alternate(sides, options.rounds, {}, f"{name}: buckets and padded rows")
            facts = {side: sides[side].facts for side in sides}
        results += corpus_results(name, facts, answers, lengths["buckets"])
    return results


def corpus_results(name: str, facts: dict[str, Json], answers: dict[str, list[Json]], lengths: int) -> list[Result]:
    """The two results of a corpus. lengths: config.data.lengths of the buckets."""
    shares = [100 * share_of_allowed(*pair) for pair in zip(answers["buckets"], answers["padded"], strict=True)]
    speeds = {side: [answer["pieces"] / answer["seconds"] for answer in found] for side, found in answers.items()}
    fast, slow = median(speeds["buckets"]), median(speeds["padded"])
    counted = (
        f"step of 4 x 256 on {_BATCHES} batches of {_STEP['batch']} x 512 positions: {fast:,.0f} real pieces/s in "
        f"{lengths} lengths, {slow:,.0f} padded ({fast / slow:.3f}x); as a share of what fewer positions a piece allow"
    )
    left = 100 * facts["buckets"]["padding"]
    before = 100 * facts["padded"]["padding"]
    return [
        Result(
            f"buckets, {name}: share of what the padding saved allows",
            median(shares),
            "%",
            counted=counted,
            values={"ours": shares, **speeds},
        ),
        Result(
            f"padding left, {name}",
            left,
            "%",
            counted=f"of all positions of an epoch, {facts['buckets']['blocks']:,} blocks; {before:.1f}% with every "
            "row padded to 512",
            details=facts,
        ),
    ]
