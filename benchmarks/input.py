"""The input pipeline of pre-training on one core, compared with transformers' whole-word-mask collator.

Invariant: each side's process is pinned to one core before it imports anything, so its wall time is core time, however
many threads it starts. Both read the same blocks. Ours does all of corpus/masked_batches.py: permute, read from disk,
mask spans, find SBO's boundaries, hand over as jax arrays. Theirs does less: its blocks are padded lists in memory,
with word offsets and special-token masks made beforehand, and it neither draws spans nor looks for their boundaries.
"""

import contextlib
import dataclasses
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.corpus import corpus_config, prepared
from benchmarks.measure import Options, Result, Side, alternate, median, need, started
from benchmarks.worker import Handler, Json
from spanbert_jax.config import Config
from spanbert_jax.text.tokenizer import Tokenizer, word_starts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from spanbert_jax.corpus.blocks import Blocks

_BLOCKS = {"ours": 16_384, "theirs": 1024}  # that a round reads
_ROWS = {"ours": 256, "theirs": 32}  # of a batch; the memory of transformers' grows with the square of the length
_READY_BATCHES = 16  # not counted: at least as many as are made ahead when a round begins


def start(spec: Json) -> tuple[Json, Handler]:
    """spec: "side" ("ours" or "theirs"), "count" (blocks in a round), "blocks" (their directory), and the keys of
    `corpus_config`. A request is answered with the blocks and seconds of a round.
    """
    from spanbert_jax.corpus.blocks import open_blocks
    from spanbert_jax.corpus.build import tokenizer_from_file

    config = corpus_config(spec)
    tokenizer = tokenizer_from_file(config.tokenizer)
    assert tokenizer is not None
    blocks = open_blocks(Path(spec["blocks"]), "train")
    return {}, (_ours if spec["side"] == "ours" else _theirs)(spec, config, tokenizer, blocks)


def _ours(spec: Json, config: Config, tokenizer: Tokenizer, blocks: "Blocks") -> Handler:
    from spanbert_jax.corpus.masked_batches import train_batches
    from spanbert_jax.training import sharding

    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=_ROWS["ours"]))
    layout = sharding.batch_sharding(sharding.make_mesh(config.mesh))
    batches = train_batches(config, blocks, tokenizer, layout, 0, 10**9)

    def run(request: Json) -> Json:
        for _ in range(_READY_BATCHES):
            next(batches)
        count, began = 0, time.monotonic()
        while count < spec["count"]:
            count += int(np.count_nonzero(next(batches)["lengths"]))
        seconds = time.monotonic() - began
        time.sleep(0.5)  # gives the pipeline time to fill up before the other side's turn
        return {"blocks": count, "seconds": seconds}

    return run


def _theirs(spec: Json, config: Config, tokenizer: Tokenizer, blocks: "Blocks") -> Handler:
    from transformers import DataCollatorForLanguageModeling

    features = [feature_of(pieces, tokenizer, config.data.block_length) for pieces in _pieces_of(blocks, spec["count"])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns that it replaces whole words by [MASK] only
        collate = DataCollatorForLanguageModeling(stand_in(tokenizer), whole_word_mask=True)
    size = _ROWS["theirs"]

    def run(request: Json) -> Json:
        began = time.monotonic()
        for place in range(0, len(features), size):
            collate(features[place : place + size])
        return {"blocks": len(features), "seconds": time.monotonic() - began}

    run({})
    return run


def _pieces_of(blocks: "Blocks", count: int) -> list[list[int]]:
    from spanbert_jax.corpus.blocks import parse_records
    from spanbert_jax.text.packing import FEATURE

    wanted = np.random.default_rng(0).choice(len(blocks), min(count, len(blocks)), replace=False)
    return [row[row >= 0].tolist() for row in parse_records(blocks.read(wanted))[FEATURE].numpy()]


def feature_of(pieces: list[int], tokenizer: Tokenizer, length: int) -> dict[str, list]:
    """A block as transformers' collator reads it, padded to `length`, since the collator cannot pad offsets.

    The offsets of a word's pieces touch; before a piece that begins a word there is a gap of one character.
    """
    starts = np.cumsum(1 + word_starts(tokenizer, pieces)).tolist()
    padding = length - len(pieces) - 2
    return {
        "input_ids": [tokenizer.cls_id, *pieces, tokenizer.sep_id, *[tokenizer.pad_id] * padding],
        "attention_mask": [1] * (len(pieces) + 2) + [0] * padding,
        "special_tokens_mask": [1, *[0] * len(pieces), 1, *[1] * padding],
        "offset_mapping": [(0, 0), *((place, place + 1) for place in starts), *[(0, 0)] * (padding + 1)],
    }


def stand_in(tokenizer: Tokenizer) -> "PreTrainedTokenizerFast":
    """A tokenizer of transformers with our special pieces only, since the collator uses no others."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"[PAD]": tokenizer.pad_id, "[UNK]": tokenizer.unk_id, "[MASK]": tokenizer.mask_id}
    engine = tokenizers.Tokenizer(tokenizers.models.WordLevel(special, "[UNK]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=engine, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", model_max_length=10**6
    )


def run(options: Options) -> list[Result]:
    """The subject `input`."""
    need("torch")
    need("transformers")
    files = options.text / "enwiki2015" if (options.text / "enwiki2015").is_dir() else options.text
    blocks = prepared(files.name, files, options)
    core = options.cores[:1]
    spec = {"files": str(files), "vocab": str(options.vocab), "blocks": str(blocks)}
    with contextlib.ExitStack() as stack:
        env = {"JAX_PLATFORMS": "cpu"}
        sides = {
            name: stack.enter_context(Side("input", {**spec, "side": name, "count": count}, core, env))
            for name, count in _BLOCKS.items()
        }
        started(sides, "Input pipelines: starting")
        answers = alternate(sides, options.rounds, {}, "Input pipelines, one core")
    speeds = {name: [answer["blocks"] / answer["seconds"] for answer in found] for name, found in answers.items()}
    ours, theirs = median(speeds["ours"]), median(speeds["theirs"])
    everything = f"permute, read, mask, SBO rows, hand over as jax arrays; blocks of {files.name}, pinned to one core"
    return [
        Result(
            "input pipeline, one core",
            ours,
            "blocks/s",
            counted=f"{everything}, batches of the positions of {_ROWS['ours']} rows of 512",
            values={"ours": speeds["ours"]},
        ),
        Result(
            "input pipeline, one core, over transformers' collator",
            ours,
            "blocks/s",
            theirs,
            counted=f"{everything}; theirs: whole words, blocks in memory, offsets and padding made before, batches "
            f"of {_ROWS['theirs']}",
            values=speeds,
        ),
    ]
