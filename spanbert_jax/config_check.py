"""Refuses configurations with fields out of range, and with fields that do not fit together.

Invariant: every check that needs no data is made here, before anything else is done, and its message has the numbers.
"""

import math

from spanbert_jax.config import (
    ATTENTION_KERNELS,
    DROPPING_KERNELS,
    FAMILIES,
    FINETUNING,
    MESH_AXES,
    POINTWISE_KERNELS,
    Config,
    ModelConfig,
    OptimizerConfig,
    flatten,
    reads_spans,
    trained_groups,
)
from spanbert_jax.errors import UserError
from spanbert_jax.text.span_syntax import parse_rules

_CHOICES = {
    "corpus.document_break": ("blank_line", "file"),
    "corpus.sentences": ("sentencex", "none"),
    "tokenizer.kind": ("unigram", "bpe", "wordpiece", "tokenizer_json"),
    "masking.scheme": ("span", "whole_word", "subword", "unit"),
    "masking.unit_rest": ("whole_word", "span"),
    "masking.granularity": ("span", "piece"),
    "masking.boundaries": ("external", "internal"),
    "model.family": FAMILIES,
    "model.init": ("normal", "local", "truncated"),
    "model.pooling": ("cls", "mean"),
    "model.head_scales": ("none", "output", "full"),
    "model.context_encoder": ("none", "bilstm", "mingru"),
    "model.context_encoder_input": ("embeddings", "output"),
    "model.span_attention": ("none", "own", "row"),
    "compute.dtype": ("auto", "float32", "bfloat16"),
    "compute.attention": ("auto", *ATTENTION_KERNELS),
    "compute.pointwise": ("auto", *POINTWISE_KERNELS),
    "compute.remat": ("none", "dots", "full"),
    "mesh.reduce_dtype": ("float32", "bfloat16"),
    "classification.name": ("custom", "cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"),
    "tagging.head": ("token", "span"),
    "tagging.scheme": ("auto", "IOB1", "IOB2", "BILOU"),
    "relation.format": ("tacred", "semeval"),
    "relation.entities": ("mask", "markers"),
    "optimizer.name": ("adamw", "muon", "stable_adamw"),
    "optimizer.schedule": ("linear", "wsd"),
    "optimizer.decay_from": ("start", "warmup_end"),
    "optimizer.eps_placement": ("corrected", "uncorrected"),
    "optimizer.decay_scope": ("all", "matrices"),
}

_POSITIVE = (
    "tokenizer.sample_bytes",
    "masking.span_min",
    "masking.max_span_offset",
    "model.layers",
    "model.embed",
    "model.heads",
    "model.mlp",
    "model.max_length",
    "model.token_types",
    "model.span_offset_embed",
    "model.full_every",
    "model.span_kinds",
    "model.rope_theta",
    "model.local_rope_theta",
    "train.batch_size",
    "train.accumulation",
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "optimizer.eps",
    "optimizer.gradient_divisor",
    "optimizer.muon_rms",
    "finetuning.epochs",
    "trials",
    "data.lengths",
    "question_answering.stride",
    "question_answering.max_question",
    "question_answering.max_answer",
    "question_answering.n_best",
    "tagging.max_width",
)

_NOT_NEGATIVE = (
    "corpus.workers",
    "masking.rate_steps",
    "model.vocab_rows",
    "model.decoder_layers",
    "model.window",
    "model.attention_composition",
    "model.layer_norm_eps",
    "model.init_std",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "optimizer.decay_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "train.sbo_weight",
    "train.eval_blocks",
    "train.max_skipped",
    "train.stall_seconds",
    "train.nsp_weight",
    "finetuning.eval_every_epochs",
)

_SHARES = (
    "corpus.held_out",
    "masking.mask_share",
    "masking.random_share",
    "model.dropout",
    "model.attention_dropout",
    "optimizer.beta1",
    "optimizer.muon_momentum",
    "optimizer.beta2",
    "finetuning.warmup_share",
)

# Fields of the family "modern"; the family "bert" has their defaults.
_MODERN = (
    "pre_norm",
    "gated_mlp",
    "attention_bias",
    "mlp_bias",
    "norm_bias",
    "head_bias",
    "window",
    "full_every",
    "rope_theta",
    "local_rope_theta",
    "pooling",
)

_MOST_UNITS = 0.9  # share of the draws that draw a unit
_SMALLEST_VOCABULARY = 300  # 256 bytes, the special pieces and a few characters


def check(config: Config) -> None:
    """Raises UserError where a field is out of range or two fields do not fit together."""
    flat = flatten(config)
    for name, choices in {"task": ("pretraining", *FINETUNING), **_CHOICES}.items():
        if flat[name] not in choices:
            raise UserError(f"config.{name} is {flat[name]!r}; it must be one of {', '.join(map(repr, choices))}")
    for name, value in flat.items():
        if isinstance(value, float) and math.isinf(value):
            raise UserError(f"config.{name} is {value}; it must be finite")
    for name in _POSITIVE:
        if not flat[name] > 0:  # also refuses NaN
            raise UserError(f"config.{name} is {flat[name]}; it must be greater than 0")
    for name in _NOT_NEGATIVE:
        if not flat[name] >= 0:
            raise UserError(f"config.{name} is {flat[name]}; it must not be negative")
    for name in _SHARES:
        may_be_all = name.startswith("masking.")
        if not (0 <= flat[name] < 1 or (may_be_all and flat[name] == 1)):
            limit = "1" if may_be_all else "less than 1"
            raise UserError(f"config.{name} is {flat[name]}; it is a share, from 0 to {limit}")
    _check_model(config)
    _check_tokenizer(config)
    _check_train(config)
    _check_optimizer(config)
    if config.task == "pretraining":
        _check_masking(config)
        _check_pretraining(config)
    else:
        _check_finetuning(config)


def _check_masking(config: Config) -> None:
    masking = config.masking
    for name in ("rate", "final_rate"):
        if not 0 < getattr(masking, name) < 1:
            raise UserError(f"config.masking.{name} is {getattr(masking, name)}; it must lie between 0 and 1")
    if masking.mask_share + masking.random_share > 1:
        raise UserError(
            f"config.masking.mask_share {masking.mask_share} and random_share {masking.random_share} add up to "
            f"{masking.mask_share + masking.random_share:g}; their sum must be at most 1: lower one of them"
        )
    if not 0 < masking.span_p < 1:
        raise UserError(f"config.masking.span_p is {masking.span_p}; it must lie between 0 and 1")
    if masking.span_max < masking.span_min:
        raise UserError(f"config.masking.span_max {masking.span_max} is under span_min {masking.span_min}; raise it")
    if not 0 < masking.unit_share <= _MOST_UNITS:
        raise UserError(
            f"config.masking.unit_share is {masking.unit_share}; it must be greater than 0, and at most {_MOST_UNITS}, "
            "so that rows with few units get their other pieces soon"
        )
    if masking.scheme == "unit" and not config.corpus.spans:
        raise UserError(
            "config.masking.scheme is 'unit', and config.corpus.spans has no rules that find units; set it, for "
            "example to 'capitals'"
        )
    if masking.scheme != "unit" and masking.units:
        raise UserError(
            f"config.masking.units is {masking.units!r}, and config.masking.scheme {masking.scheme!r} masks no units; "
            "set config.masking.scheme=unit"
        )
    if masking.scheme == "subword" and config.train.sbo_weight:
        raise UserError(
            "config.masking.scheme is 'subword', which has no spans for the span-boundary objective; "
            "set config.train.sbo_weight=0, or another scheme"
        )
    if masking.collapse_spans:
        _check_collapsed(config)


def _check_collapsed(config: Config) -> None:
    masking = config.masking
    if not config.model.decoder_layers:
        raise UserError(
            "config.masking.collapse_spans is True, and config.model.decoder_layers is 0, so no head reads such rows; "
            "set config.model.decoder_layers=2, or config.masking.collapse_spans=False"
        )
    if masking.scheme == "subword":
        raise UserError(
            "config.masking.collapse_spans is True, and config.masking.scheme is 'subword', which has no spans; set "
            "another scheme, or config.masking.collapse_spans=False"
        )
    if masking.boundaries != "external":
        raise UserError(
            f"config.masking.boundaries is {masking.boundaries!r}, and config.masking.collapse_spans leaves no piece "
            "inside of a span to be its boundary; set config.masking.boundaries=external"
        )


def _check_model(config: Config) -> None:
    model, data = config.model, config.data
    if model.embed % model.heads:
        raise UserError(
            f"config.model.embed {model.embed} is not divisible by config.model.heads {model.heads}; "
            f"use {model.embed // model.heads * model.heads or model.heads} or another number of heads"
        )
    _check_family(model)
    _check_extensions(config)
    if config.compute.attention not in ("auto", *DROPPING_KERNELS) and model.attention_dropout:
        raise UserError(
            f"config.compute.attention is {config.compute.attention!r}, which has no attention dropout, and "
            f"config.model.attention_dropout is {model.attention_dropout}; set config.model.attention_dropout=0, or "
            "config.compute.attention=xla (triton on an NVIDIA GPU)"
        )
    if data.block_length < 8:
        raise UserError(f"config.data.block_length is {data.block_length}; it must be at least 8")
    if data.block_length > model.max_length:
        rows = model.max_length
        limit = f"position table's {rows} rows" if model.family == "bert" else f"model's longest row of {rows} pieces"
        raise UserError(
            f"config.data.block_length {data.block_length} is over the {limit}; lower it, or raise "
            "config.model.max_length"
        )


def _check_extensions(config: Config) -> None:
    model = config.model
    if model.attention_composition and config.compute.attention not in ("auto", "xla"):
        raise UserError(
            f"config.model.attention_composition is {model.attention_composition}, which mixes the heads' scores, "
            f"and config.compute.attention is {config.compute.attention!r}, which never holds them; set "
            "config.compute.attention=xla"
        )
    if reads_spans(model) and not config.corpus.spans:
        raise UserError(
            f"config.model.span_embedding is {model.span_embedding} and span_attention {model.span_attention!r}, and "
            "config.corpus.spans has no rules that find spans; set it, for example to 'capitals'"
        )
    if model.context_encoder == "none" and model.context_encoder_input != "embeddings":
        raise UserError(
            f"config.model.context_encoder_input is {model.context_encoder_input!r}, and there is no context encoder; "
            "leave it out, or set config.model.context_encoder"
        )
    if model.context_encoder != "none" and model.embed % 2:
        raise UserError(
            f"config.model.embed is {model.embed}, and each direction of config.model.context_encoder has half of it; "
            "use an even number"
        )


def _check_tokenizer(config: Config) -> None:
    if config.init_from and config.tokenizer.vocab_file:
        raise UserError(
            f"config.init_from brings its own vocabulary, and config.tokenizer.vocab_file is "
            f"{config.tokenizer.vocab_file!r}; leave the vocab_file out"
        )
    files = {"wordpiece": "vocab.txt", "tokenizer_json": "tokenizer.json"}
    kind = config.tokenizer.kind
    if kind in files and not config.tokenizer.vocab_file and not config.init_from:
        raise UserError(
            f"config.tokenizer.kind is {kind!r} without a vocabulary; give one with "
            f"--config.tokenizer.vocab_file={files[kind]}, or train one with --config.tokenizer.kind=unigram"
        )
    if config.tokenizer.lowercase and config.tokenizer.kind != "wordpiece":
        raise UserError(
            f"config.tokenizer.lowercase is for 'wordpiece', and config.tokenizer.kind is {config.tokenizer.kind!r}; "
            "leave lowercase False"
        )


def _check_family(model: ModelConfig) -> None:
    other = {"bert": "truncated", "modern": "local"}.get(model.family)
    if model.init == other:
        raise UserError(
            f"config.model.init is {other!r}, which config.model.family {model.family!r} does not have; set "
            "config.model.init=normal"
        )
    if model.init == "local" and model.embed % 2:
        raise UserError(f"config.model.embed is {model.embed}; config.model.init 'local' needs an even number")
    if model.family == "bert":
        for name in _MODERN:
            value, default = getattr(model, name), getattr(ModelConfig, name)
            if value != default:
                raise UserError(
                    f"config.model.{name} is {value!r}, and config.model.family 'bert' has {default!r} alone; "
                    "set config.model.family=modern"
                )
    elif model.embed // model.heads % 2:
        raise UserError(
            f"config.model.embed / config.model.heads is {model.embed // model.heads}; rotary positions turn pairs of "
            "numbers, so a head needs an even width"
        )


def _check_pretraining(config: Config) -> None:
    if config.tokenizer.vocab_size < _SMALLEST_VOCABULARY and not config.init_from:
        raise UserError(
            f"config.tokenizer.vocab_size is {config.tokenizer.vocab_size}; it must be at least {_SMALLEST_VOCABULARY}"
        )
    _check_schedule(config.optimizer, config.train.steps)
    _check_pairs(config)
    if config.corpus.held_out <= 0:
        raise UserError("config.corpus.held_out is 0; evaluation needs a share of the documents, such as 0.005")
    if not config.corpus.files and not config.corpus.name:
        raise UserError("config.corpus has neither files nor a name; give --config.corpus.files='data/*.txt'")
    if config.corpus.spans:
        try:
            parse_rules(config.corpus.spans)
        except UserError as error:
            raise UserError(f"config.corpus.spans: {error}") from error


def _check_pairs(config: Config) -> None:
    model, weight = config.model, config.train.nsp_weight
    if weight and not config.corpus.pairs:
        raise UserError(
            f"config.train.nsp_weight is {weight:g}, and config.corpus.pairs is False, so no row has a second text to "
            "predict; set --config.corpus.pairs=True, or --config.train.nsp_weight=0"
        )
    if config.corpus.pairs and model.family == "bert" and model.token_types < 2:
        raise UserError(
            f"config.corpus.pairs is True, and config.model.token_types is {model.token_types}, and pairs need 2, one "
            "for each text of a row; set --config.corpus.pairs=False, or more token types"
        )


def _check_schedule(optimizer: OptimizerConfig, steps: int) -> None:
    if optimizer.warmup_steps > steps:
        raise UserError(
            f"config.optimizer.warmup_steps {optimizer.warmup_steps} is over config.train.steps {steps}; "
            "the learning rate would never reach its peak: lower it"
        )
    if optimizer.warmup_steps + optimizer.decay_steps > steps:
        raise UserError(
            f"config.optimizer.warmup_steps {optimizer.warmup_steps} and decay_steps {optimizer.decay_steps} add up to "
            f"{optimizer.warmup_steps + optimizer.decay_steps}, over config.train.steps {steps}; lower one of them"
        )


def _check_finetuning(config: Config) -> None:
    for role in ("train", "dev"):
        if not getattr(config.data, role):
            raise UserError(f"config.data.{role} is empty; give a file, or a TFDS name: --config.data.{role}=FILE")
    if not config.init_from and not config.tokenizer.vocab_file:
        raise UserError(
            "config.init_from is empty, and so is config.tokenizer.vocab_file; name the weights to fine-tune with "
            "--config.init_from=DIRECTORY, or, to start from nothing, a vocabulary"
        )
    if config.optimizer.schedule == "wsd":
        raise UserError(
            "config.optimizer.schedule is 'wsd', which counts steps, and the steps of fine-tuning follow from "
            "config.finetuning.epochs; use 'linear'"
        )
    qa = config.question_answering
    if config.task == "question_answering" and qa.max_question + 3 + qa.stride > config.data.block_length:
        raise UserError(
            f"config.data.block_length {config.data.block_length} is under max_question {qa.max_question} + 3 special "
            f"pieces + stride {qa.stride}, so windows would leave out parts of a text; raise block_length, or lower "
            "one of the others"
        )


def _check_train(config: Config) -> None:
    train = config.train
    if not 0 <= train.seed < 2**31:
        raise UserError(f"config.train.seed is {train.seed}; it must lie between 0 and {2**31 - 1}")
    if train.only and not trained_groups(train):
        raise UserError(
            f"config.train.only is {train.only!r}, and names no group of parameters; name one, or leave it empty"
        )
    if train.only and not config.init_from:
        raise UserError(
            f"config.train.only is {train.only!r}, and config.init_from is empty, so all other parameters would stay "
            "random; name trained weights with --config.init_from=DIRECTORY, or leave config.train.only empty"
        )
    axes = {name: getattr(config.mesh, name) for name in MESH_AXES}
    if sum(size == -1 for size in axes.values()) > 1 or any(size < 1 and size != -1 for size in axes.values()):
        raise UserError(f"config.mesh is {axes}; sizes are at least 1, and at most one of them is -1")


def _check_optimizer(config: Config) -> None:
    optimizer = config.optimizer
    if optimizer.decay_steps and optimizer.schedule != "wsd":
        raise UserError(
            f"config.optimizer.decay_steps is {optimizer.decay_steps}, and config.optimizer.schedule is "
            f"{optimizer.schedule!r}, which decays over all steps; leave decay_steps 0, or set schedule='wsd'"
        )
    if optimizer.decay_from != "start" and optimizer.schedule == "wsd":
        raise UserError(
            f"config.optimizer.decay_from {optimizer.decay_from!r} is for the schedule 'linear'; the schedule 'wsd' "
            "decays over the last decay_steps steps: leave decay_from 'start'"
        )
    if optimizer.name == "stable_adamw" and (not optimizer.bias_correction or optimizer.eps_placement != "corrected"):
        raise UserError(
            f"config.optimizer.bias_correction is {optimizer.bias_correction} and eps_placement "
            f"{optimizer.eps_placement!r}; 'stable_adamw' has True and 'corrected' alone"
        )
