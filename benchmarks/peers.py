"""The PyTorch sides of the train step: transformers' BertForMaskedLM, and the fastest that we can write.

Invariant: both train on the batches of `batches.make_batch`, whose rows have no padding, with as many threads as our
side has cores. Both clip the gradient and update with fused AdamW. "transformers" does less than ours: it has no SBO.
"pytorch" does all that ours does: one product for queries, keys and values, PyTorch's own attention kernel, masked
positions gathered, one decoder product for MLM and SBO.
"""

import contextlib
import os
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.batches import VOCAB, make_batch, make_config
from benchmarks.worker import Handler, Json
from spanbert_jax.config import Config

_BATCHES = 4  # that the steps take in turn
_PADDED_VOCAB = -(-VOCAB // 128) * 128  # as in our model

Batch = dict[str, Tensor]


class Layer(nn.Module):
    """A post-LayerNorm transformer layer."""

    def __init__(self, config: Config):
        super().__init__()
        model = config.model
        self.heads, self.dropout, self.attention_dropout = model.heads, model.dropout, model.attention_dropout
        self.qkv = nn.Linear(model.embed, 3 * model.embed)
        self.output = nn.Linear(model.embed, model.embed)
        self.up, self.down = nn.Linear(model.embed, model.mlp), nn.Linear(model.mlp, model.embed)
        self.norm_1, self.norm_2 = (nn.LayerNorm(model.embed, model.layer_norm_eps) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, embed = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [batch, heads, length, head_dim] each
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=self.attention_dropout)
        mixed = self.output(mixed.transpose(1, 2).reshape(batch, length, embed))
        x = self.norm_1(x + F.dropout(mixed, self.dropout))
        return self.norm_2(x + F.dropout(self.down(F.gelu(self.up(x))), self.dropout))


class Best(nn.Module):
    """BERT with the heads MLM and SBO, as fast as we can write it in plain PyTorch."""

    def __init__(self, config: Config):
        super().__init__()
        model, self.config = config.model, config
        eps, width = model.layer_norm_eps, model.embed
        self.word = nn.Embedding(_PADDED_VOCAB, width)
        self.position = nn.Parameter(torch.randn(model.max_length, width) * model.init_std)
        self.token_type = nn.Parameter(torch.randn(width) * model.init_std)
        self.norm = nn.LayerNorm(width, eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(model.layers))
        self.mlm = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps))
        self.offset = nn.Embedding(config.masking.max_span_offset, model.span_offset_embed)
        self.sbo = nn.Sequential(
            nn.Linear(2 * width + model.span_offset_embed, width),
            nn.GELU(),
            nn.LayerNorm(width, eps),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps),
        )
        self.bias = nn.Parameter(torch.zeros(2, 1, _PADDED_VOCAB))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=model.init_std)

    def forward(self, batch: Batch) -> Tensor:
        x = self.norm(self.word(batch["input_ids"]) + self.position[: batch["input_ids"].shape[1]] + self.token_type)
        x = F.dropout(x, self.config.model.dropout)
        for layer in self.layers:
            x = layer(x)
        x = x.flatten(0, 1)
        masked, left, right = (x[batch[name]] for name in ("masked", "left", "right"))  # [pieces, embed]
        hidden = torch.stack([self.mlm(masked), self.sbo(torch.cat([left, right, self.offset(batch["offset"])], -1))])
        logits = F.linear(hidden, self.word.weight) + self.bias  # [2, pieces, vocab]
        return sum(
            (F.cross_entropy(part.float(), batch["labels"]) for part in logits), torch.zeros((), device=x.device)
        )


def flat(config: Config, seed: int, device: torch.device) -> Batch:
    """A batch for `Best`. "input_ids" is int64 [rows, length]. The other arrays are int64 [pieces], of the used slots:
    "masked", "left" and "right" count positions in the rows laid end to end; "offset" and "labels" do not."""
    batch = {name: torch.from_numpy(value) for name, value in make_batch(config, seed).items()}
    used = batch["masked_weights"] > 0
    start = torch.arange(len(used))[:, None] * config.data.block_length
    names = {"masked": "masked_positions", "left": "span_left", "right": "span_right"}
    out = {name: (batch[source] + start)[used] for name, source in names.items()}
    out |= {"offset": batch["span_offset"][used], "labels": batch["masked_ids"][used], "input_ids": batch["input_ids"]}
    return {name: value.long().to(device) for name, value in out.items()}


def transformers_side(config: Config, device: torch.device) -> tuple[nn.Module, list[Batch]]:
    """BertForMaskedLM with SDPA attention, and its batches, whose labels are -100 at positions that are not masked.

    Batches have no attention mask, since no row is padded. This is the model's fastest path.
    """
    from transformers import BertConfig, BertForMaskedLM

    model, batches = config.model, []
    for seed in range(_BATCHES):
        batch = {name: torch.from_numpy(value).long() for name, value in make_batch(config, seed).items()}
        labels = torch.full_like(batch["input_ids"], -100)
        row, slot = torch.nonzero(batch["masked_weights"], as_tuple=True)
        labels[row, batch["masked_positions"][row, slot]] = batch["masked_ids"][row, slot]
        batches.append({"input_ids": batch["input_ids"].to(device), "labels": labels.to(device)})
    theirs = BertConfig(
        vocab_size=VOCAB,
        hidden_size=model.embed,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=model.mlp,
        max_position_embeddings=model.max_length,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
    return BertForMaskedLM(theirs), batches


def start(spec: Json) -> tuple[Json, Handler]:
    """spec: the keys of `make_config`, "peer" ("transformers" or "pytorch") and "compile" (whether to torch.compile).

    A request {"steps": n} is answered with the seconds that n steps took, the last loss, and the peak of GPU memory.
    """
    config, cuda = make_config(spec), torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high" if spec["precision"] == "bf16" else "highest")
    model: nn.Module
    if spec["peer"] == "transformers":
        model, batches = transformers_side(config, device)
    else:
        model, batches = Best(config), [flat(config, seed, device) for seed in range(_BATCHES)]
    model.to(device).train()
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-5, eps=settings.eps, weight_decay=settings.weight_decay, fused=True
    )
    parameters = list(model.parameters())
    forward = torch.compile(model) if spec["compile"] else model
    narrow = torch.autocast(device.type, torch.bfloat16) if spec["precision"] == "bf16" else contextlib.nullcontext()

    def step(number: int) -> Tensor:
        with narrow:
            batch = batches[number % _BATCHES]
            loss: Tensor = forward(**batch).loss if spec["peer"] == "transformers" else forward(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def run(request: Json) -> Json:
        began = time.monotonic()
        for number in range(request["steps"]):
            loss = step(number)
        value = loss.item()  # waits for the device
        peak = torch.cuda.max_memory_allocated() if cuda else 0
        return {"seconds": time.monotonic() - began, "loss": value, "peak_bytes": peak}

    began = time.monotonic()
    run({"steps": 1 if device.type == "cpu" else 3})
    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "compile_seconds": time.monotonic() - began,
    }
    return facts, run
