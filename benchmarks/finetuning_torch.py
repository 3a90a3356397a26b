"""The PyTorch side of finetuning_peer.py: a plain training loop over transformers' BERT.

Invariant: nothing of the computation is this project's: the models are transformers' Bert classes, the loss is torch's
cross-entropy, the optimizer torch's AdamW, the schedule a LambdaLR. The span head has no class in transformers; `Spans`
computes the same scores in PyTorch. Only two things are not as a Bert class computes its own loss: padding is no
possible end of an answer, and empty rows, which fill up a last batch here, are left out.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from benchmarks.finetuning_material import Material, Trained
from spanbert_jax.batch import NumpyBatch
from spanbert_jax.config import Config
from spanbert_jax.convert.huggingface import to_tensors
from spanbert_jax.errors import UserError
from spanbert_jax.tasks.finetuning import Prediction

Batch = dict[str, Tensor]
_NEVER = -1e9  # score of a piece outside a word, of a word outside a span, and of padding as an answer's end


class Classifier(nn.Module):
    """A label for each row. The `outputs` of every module here are arrays as the task's `decode` takes them."""

    def __init__(self, config: BertConfig, _: Config):
        super().__init__()
        self.model = BertForSequenceClassification(config)

    def forward(self, batch: Batch) -> Tensor:
        """Scores [batch, labels]."""
        return self.model(**encoder_inputs(batch)).logits

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(scores, batch["label"])

    def outputs(self, scores: Tensor, batch: Batch) -> Batch:
        return {"scores": scores.softmax(-1)}


class Tagger(nn.Module):
    """A label for each word, at the word's first piece."""

    def __init__(self, config: BertConfig, _: Config):
        super().__init__()
        self.model = BertForTokenClassification(config)

    def forward(self, batch: Batch) -> Tensor:
        """Scores [batch, length, labels]."""
        return self.model(**encoder_inputs(batch)).logits

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(scores.flatten(0, 1), batch["label"].flatten(), ignore_index=-1)

    def outputs(self, scores: Tensor, batch: Batch) -> Batch:
        return _best(scores)


class Answerer(nn.Module):
    """The ends of an answer."""

    def __init__(self, config: BertConfig, _: Config):
        super().__init__()
        self.model = BertForQuestionAnswering(config)

    def forward(self, batch: Batch) -> Tensor:
        """Scores [batch, length, 2] of each position as the first and the last of the answer."""
        found = self.model(**encoder_inputs(batch))
        return torch.stack([found.start_logits, found.end_logits], dim=-1)

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        scores = scores.masked_fill(~_inside(batch)[..., None], _NEVER)
        ends = (F.cross_entropy(scores[..., end], batch[f"answer_{name}"]) for end, name in enumerate(("start", "end")))
        return sum(ends, torch.zeros(())) / 2

    def outputs(self, scores: Tensor, batch: Batch) -> Batch:
        return {"start": scores[..., 0], "end": scores[..., 1]}


class Spans(nn.Module):
    """A label, or none, for each span of up to `max_width` words (spanbert_jax/model/span_head.py says how)."""

    def __init__(self, config: BertConfig, ours: Config):
        super().__init__()
        embed, self.max_width = ours.model.embed, ours.tagging.max_width
        self.model = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.project = nn.Linear(embed, 3 * embed, bias=False)
        self.width = nn.Parameter(torch.empty(self.max_width, embed))
        self.attention = nn.Parameter(torch.empty(embed))
        self.norm = nn.LayerNorm(embed, config.layer_norm_eps)
        self.classifier = nn.Linear(embed, config.num_labels)  # type: ignore[arg-type]  # never None

    def forward(self, batch: Batch) -> Tensor:
        """Scores [spans, labels] of the spans of `valid`, in its order."""
        hidden = self.dropout(self.model(**encoder_inputs(batch)).last_hidden_state)
        begins, ends, projected = self.project(hidden).chunk(3, dim=-1)  # [batch, length, embed] each
        first, last = batch["first"][..., None], batch["last"][..., None]  # [batch, words, 1]
        position = torch.arange(hidden.shape[1])
        scores = (hidden @ self.attention)[:, None].masked_fill((position < first) | (position > last), _NEVER)
        word = scores.logsumexp(-1)  # [batch, words]
        pooled = scores.softmax(-1) @ projected  # [batch, words, embed]: of each word's pieces
        begins, ends = (
            side.gather(1, place.clamp(min=0).expand(-1, -1, side.shape[-1]))
            for side, place in ((begins, first), (ends, last))
        )
        within = torch.ones(self.max_width, self.max_width, dtype=torch.bool).tril()
        shares = self._window(word)[:, :, None].masked_fill(~within, _NEVER).softmax(-1)  # [.., width, word in span]
        x = begins[:, :, None] + self._window(ends) + shares @ self._window(pooled) + self.width
        return self.classifier(self.norm(F.gelu(x[self.valid(batch)])))

    def valid(self, batch: Batch) -> Tensor:
        """bool [batch, words, max_width]: whether a span is in the row, and to be scored in this row."""
        begins = torch.arange(batch["first"].shape[1]) < batch["starts"][:, None]
        return begins[..., None] & self._window(batch["first"] >= 0)

    def _window(self, x: Tensor) -> Tensor:
        """[batch, words, ...] -> [batch, words, max_width, ...]: of a word and those after it; 0 beyond the last."""
        padded = torch.cat([x, x.new_zeros(x.shape[0], self.max_width - 1, *x.shape[2:])], dim=1)
        return padded.unfold(1, self.max_width, 1).movedim(-1, 2)

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        labels = torch.stack([batch[f"span_{width}"] for width in range(1, self.max_width + 1)], dim=-1)
        return F.cross_entropy(scores, labels[self.valid(batch)])

    def outputs(self, scores: Tensor, batch: Batch) -> Batch:
        valid = self.valid(batch)
        return {
            name: value.new_zeros(valid.shape).masked_scatter(valid, value) for name, value in _best(scores).items()
        }


Peer = Classifier | Tagger | Answerer | Spans


def encoder_inputs(batch: Batch) -> Batch:
    """The arguments of transformers' Bert classes."""
    mask = _inside(batch).long()
    return {"input_ids": batch["input_ids"], "token_type_ids": batch["token_type_ids"], "attention_mask": mask}


def _inside(batch: Batch) -> Tensor:
    return torch.arange(batch["input_ids"].shape[1]) < batch["lengths"][:, None]


def _best(scores: Tensor) -> Batch:
    probability, label = scores.softmax(-1).max(-1)
    return {"label": label, "score": probability}


def peer_of(material: Material) -> Peer:
    """The task's module, with the parameters of `material`, all of them taken; raises UserError for layers that are not
    BERT's."""
    config, task = material.config, material.task
    if config.model.family != "bert":
        raise UserError(
            f"model.family is {config.model.family!r}, and the PyTorch side has BERT alone; add --sides=ours"
        )
    kinds: dict[str, Callable[[BertConfig, Config], Peer]] = {
        "question_answering": Answerer,
        "token_classification": Spans if config.tagging.head == "span" else Tagger,
    }
    model = config.model
    theirs = BertConfig(
        vocab_size=max(task.tokenizer.vocab_size, model.vocab_rows),
        hidden_size=model.embed,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=model.mlp,
        max_position_embeddings=model.max_length,
        type_vocab_size=model.token_types,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        layer_norm_eps=model.layer_norm_eps,
        num_labels=len(task.learnt.labels) or 2,  # type: ignore[call-arg]
    )
    peer = kinds.get(task.task, Classifier)(theirs, config)
    state = {name: torch.from_numpy(np.array(array)) for name, array in tensors(material, material.params).items()}
    peer.load_state_dict(state)  # strictly: every weight, of the same shape
    return peer


def tensors(material: Material, params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Our parameters under the names of the task's module."""
    config = material.config
    named = to_tensors(params, max(material.task.tokenizer.vocab_size, config.model.vocab_rows), np.dtype(np.float32))
    if "spans" not in params:
        return {f"model.{name}": tensor for name, tensor in named.items()}
    named = {name.removeprefix("classifier."): tensor for name, tensor in named.items()}
    found = {
        f"model.{name.removeprefix('bert.')}" if name.startswith("bert.") else f"classifier.{name}": tensor
        for name, tensor in named.items()
    }
    spans, embed = params["spans"], config.model.embed
    return found | {
        "project.weight": np.asarray(spans["kernel"]).reshape(embed, -1).T,
        "width": spans["width"],
        "attention": spans["attention"],
        "norm.weight": spans["norm"]["scale"],
        "norm.bias": spans["norm"]["bias"],
    }


def present(batch: NumpyBatch) -> Batch:
    """The rows of a batch that are not empty. Integers become int64, as torch's losses and lookups want them."""
    rows = batch["lengths"] > 0
    found = {name: torch.from_numpy(array[rows]) for name, array in batch.items()}
    return {name: array if array.is_floating_point() else array.long() for name, array in found.items()}


def optimizer_of(peer: Peer, config: Config) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW without decay of biases and LayerNorms, and linear warm-up and decay. The n-th update of the warm-up has
    n / warmup_steps of the peak, where transformers' own schedule begins with an update of 0."""
    wanted, steps = config.optimizer, config.train.steps
    decayed: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in peer.named_parameters():
        decayed[not name.endswith(("bias", "LayerNorm.weight", "norm.weight"))].append(parameter)
    groups = [
        {"params": decayed[True], "weight_decay": wanted.weight_decay},
        {"params": decayed[False], "weight_decay": 0.0},
    ]
    betas = (wanted.beta1, wanted.beta2)
    optimizer = torch.optim.AdamW(groups, lr=wanted.learning_rate, betas=betas, eps=wanted.eps, fused=True)

    def share(done: int) -> float:
        warm = wanted.warmup_steps
        return (done + 1) / warm if done < warm else (steps - done) / max(steps - warm, 1)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def train(material: Material) -> Trained:
    """Trains and returns the losses, CPU seconds and the trained module."""
    config = material.config
    torch.manual_seed(config.train.seed)
    peer = peer_of(material).train()
    optimizer, schedule = optimizer_of(peer, config)
    losses = []
    began = time.process_time()
    for number in range(config.train.steps):
        batch = present(material.batches.batch(number))
        loss = peer.loss(peer(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    seconds = time.process_time() - began
    return Trained(losses, 0.0, seconds, peer, lambda: predictions(material, peer.eval()))


@torch.inference_mode()
def predictions(material: Material, peer: Peer) -> list[Prediction]:
    """The predictions for the examples of dev, decoded by the task."""
    found: list[Mapping[str, np.ndarray]] = [{} for _ in range(len(material.dev))]
    for indices, rows in material.task.eval_batches(material.dev, 1):
        batch = present(rows)
        outputs = {name: value.numpy() for name, value in peer.outputs(peer(batch), batch).items()}
        for place, row in enumerate(indices[indices >= 0]):
            found[row] = {name: value[place] for name, value in outputs.items()}
    return material.task.decode(material.examples, material.dev, found, {})
