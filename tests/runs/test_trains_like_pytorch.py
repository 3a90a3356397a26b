"""From the same weights, on the same real text, our step learns what PyTorch does."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from spanbert_jax.config import Config
from spanbert_jax.corpus.blocks import open_blocks
from spanbert_jax.corpus.build import build_blocks
from spanbert_jax.corpus.masked_batches import train_batches
from spanbert_jax.model import pretraining_heads
from spanbert_jax.tasks.pretraining_loss import objective
from spanbert_jax.text.tokenizer import sentencepiece_from_model
from spanbert_jax.training import sharding
from spanbert_jax.training.step import abstract_state, init_state, make_train_step
from tests.support.synthetic import small_config
from tests.support.transformers_bert import transformers_mlm

STEPS = 50


def our_losses(config: Config, vocab_size: int, batches: list[dict]) -> tuple[list[float], dict[str, Any]]:
    """The MLM loss at each step, and the parameters before the first."""
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        model = pretraining_heads.pretraining_model(config, vocab_size, "cpu")
        init = lambda key: pretraining_heads.init_params(model, key)  # noqa: E731
        abstract = abstract_state(config, init, mesh)
        state = init_state(config, init, abstract)
        before = jax.tree.map(np.array, state["params"])
        step = make_train_step(config, objective(model, 0), abstract)
        losses = []
        for batch in batches:
            state, sums = step(state, batch)
            losses.append(float(sums["mlm_loss"] / sums["mlm_count"]))
    return losses, before


def torch_losses(config: Config, vocab_size: int, params: dict[str, Any], batches: list[dict]) -> list[float]:
    """The same with transformers' BertForMaskedLM and torch's AdamW, in eager mode."""
    optimizer_config = config.optimizer
    model = transformers_mlm(params, config.model, vocab_size, attn_implementation="eager")
    assert model.training
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.0, eps=optimizer_config.eps, weight_decay=optimizer_config.weight_decay
    )
    losses = []
    for number, batch in enumerate(batches):
        batch = {name: torch.tensor(np.asarray(value)) for name, value in batch.items()}
        valid = torch.arange(config.data.block_length)[None] < batch["lengths"][:, None]
        logits = model(input_ids=batch["input_ids"].long(), attention_mask=valid.long()).logits
        chosen = batch["masked_weights"] > 0
        rows = torch.arange(len(chosen))[:, None].expand_as(chosen)[chosen]
        scores = logits[rows, batch["masked_positions"][chosen].long()]
        loss = torch.nn.functional.cross_entropy(scores, batch["masked_ids"][chosen].long())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer_config.clip_norm)
        warm = optimizer_config.warmup_steps
        rate = (number + 1) / warm if number < warm else 1 - number / config.train.steps
        optimizer.param_groups[0]["lr"] = optimizer_config.learning_rate * rate
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_fifty_steps_on_real_text_give_torch_s_losses(
    shared_data: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    config = small_config(
        corpus={"files": str(shared_data / "text/enwiki2015/wiki_00"), "held_out": 0.1, "workers": 1},
        tokenizer={"kind": "unigram", "vocab_file": str(finished[0] / "tokenizer/spiece.model")},
        data={"block_length": 64, "lengths": 1},
        model={"embed": 48, "heads": 3, "mlp": 96, "max_length": 64, "dropout": 0.0, "attention_dropout": 0.0},
        optimizer={"learning_rate": 1e-3, "warmup_steps": 10},
        train={"batch_size": 8, "steps": STEPS, "sbo_weight": 0.0},
    )
    tokenizer = sentencepiece_from_model(config.tokenizer.vocab_file)
    build_blocks(config, tokenizer, tmp_path / "blocks")
    blocks = open_blocks(tmp_path / "blocks", "train")
    layout = sharding.batch_sharding(sharding.make_mesh(config.mesh))
    batches = list(train_batches(config, blocks, tokenizer, layout, 0, STEPS))
    ours, params = our_losses(config, tokenizer.vocab_size, batches)
    theirs = torch_losses(config, tokenizer.vocab_size, params, batches)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.mean(ours[-5:]) < np.mean(ours[:5]) - 0.5  # and it learned


def test_the_comparison_notices_another_weight_decay() -> None:
    """A guard on the test above: what it compares is sensitive to the optimizer."""
    from tests.support.synthetic import VOCAB, random_batch

    config = small_config(
        model={"dropout": 0.0, "attention_dropout": 0.0}, optimizer={"weight_decay": 0.5}, train={"sbo_weight": 0.0}
    )
    batches = [random_batch(config, seed) for seed in range(8)]
    ours, params = our_losses(config, VOCAB, batches)
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, weight_decay=0.0))
    np.testing.assert_allclose(ours, torch_losses(config, VOCAB, params, batches), atol=1e-4)
    assert np.max(np.abs(np.array(ours) - torch_losses(other, VOCAB, params, batches))) > 1e-3
