"""Blocks in memory, each of which spells its number; a tokenizer and a configuration for them, and one device."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spanbert_jax.config import Config, DataConfig, MaskingConfig, TrainConfig
from spanbert_jax.text.tokenizer import Tokenizer

LENGTH = 32
TOKENIZER = Tokenizer(
    "wordpiece",
    "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{i}" for i in range(10))]).encode(),
)


class FakeBlocks:
    """Stands for corpus.blocks.Blocks; block i has `LENGTH - 2` pieces or fewer, and spells i in its first four."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(count)
        self.reads: list[int] = []
        self.records = []
        for i in range(count):
            pieces = rng.integers(5, TOKENIZER.vocab_size, rng.integers(12, LENGTH - 1))
            pieces[:4] = [5 + i // 10**digit % 10 for digit in range(4)]
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=pieces))
            example = tf.train.Example(features=tf.train.Features(feature={"input_ids": feature}))
            self.records.append(example.SerializeToString())
        self.lengths = np.array([_pieces(record) for record in self.records], np.int32)
        self.metadata = SimpleNamespace(
            piece_counts=np.arange(TOKENIZER.vocab_size) * (np.arange(25) >= 5), fingerprint=str(count), kinds=[]
        )

    def __len__(self) -> int:
        return len(self.records)

    def read(self, indices: np.ndarray) -> list[bytes]:
        self.reads.extend(indices.tolist())
        return [self.records[i] for i in indices]


def _pieces(record: bytes) -> int:
    return len(tf.train.Example.FromString(record).features.feature["input_ids"].int64_list.value)


def make_config(batch_size: int = 8, seed: int = 1, lengths: int = 1, **masking: Any) -> Config:
    return Config(
        data=DataConfig(block_length=LENGTH, lengths=lengths),
        train=TrainConfig(batch_size=batch_size, seed=seed),
        masking=MaskingConfig(**masking),
    )


def one_device() -> NamedSharding:
    return NamedSharding(
        Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp")), PartitionSpec(("data", "fsdp"))
    )


def block_ids(batch: dict[str, np.ndarray]) -> list[int]:
    """The number of the block in each row that is not empty, read from its pieces once the masked ones are put back."""
    ids = batch["input_ids"].copy()
    used = batch["masked_weights"] > 0
    rows = np.broadcast_to(np.arange(len(ids))[:, None], used.shape)[used]
    ids[rows, batch["masked_positions"][used]] = batch["masked_ids"][used]
    return [int((row[1:5] - 5) @ [1, 10, 100, 1000]) for row in ids[batch["lengths"] > 0]]
