"""The configuration: a ConfigDict at the edge, frozen dataclasses inside.

Invariant: the dataclasses below are the only list of fields and defaults. The defaults are the paper's, for the base
model. "Paper" is Joshi et al. 2020 (arXiv:1907.10529), "code" the authors' release at commit 0670d8b.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spanbert_jax.errors import UserError, quoted, shortened

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Where raw text comes from, and how it is cut into documents and sentences."""

    name: str = "wikipedia/20230601.en"  # a TFDS dataset with a `text` feature, or "docstrings"
    tfds_data_dir: str = ""  # where TFDS looks for the dataset; "" tries the local default, then the public bucket
    files: str = ""  # globs, comma-separated; when given, they replace `name`
    document_break: str = "blank_line"  # sets documents apart in plain text files: "blank_line" or "file"
    sentences: str = "sentencex"  # sentence splitter; "none" when there is one sentence a line
    language: str = "en"  # for the sentence splitter
    held_out: float = 0.005  # share of the documents kept for evaluation
    workers: int = 0  # processes that read, split and tokenise; 0: one a core
    # Rules that find spans, which are stored with the blocks: "capitals; pos:NP=D?[AC]*N+" (docs/spans.md); "": none
    spans: str = ""
    # A row is a pair of texts, as next-sentence prediction needs it: the second one follows the first in its document,
    # or is of another document (text/pairs.py). False: a row is one text.
    pairs: bool = False


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The vocabulary: WordPiece or any tokenizer.json from a file, or SentencePiece trained on the corpus."""

    kind: str = "unigram"  # "unigram" or "bpe" (SentencePiece), "wordpiece" (BERT), or "tokenizer_json" (any other)
    # wordpiece: vocab.txt, and tokenizer_json: tokenizer.json, required; SentencePiece: a .model, instead of training
    vocab_file: str = ""
    lowercase: bool = False  # wordpiece only; SpanBERT is cased
    vocab_size: int = 28_996  # pieces of a SentencePiece to train, as many as BERT's cased vocabulary has
    sample_bytes: int = 100_000_000  # of text that a SentencePiece is trained on
    # Tasks whose examples are lists of words (entities, relations): a tokenizer.json reads each word with the space
    # that words have inside a text. Other tasks read text as the tokenizer does.
    add_prefix_space: bool = True


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Blocks on disk; for fine-tuning, labelled files."""

    dir: str = ""  # where the blocks are, or will be built; "" is <workdir>/data
    cache_dir: str = ""  # this host's copies of blocks in a bucket; "" is ~/.cache/spanbert_jax
    block_length: int = 512  # pieces in a row, [CLS] and [SEP] included (paper section 4.2)
    lengths: int = 8  # rows are padded to so many lengths, those that pad training's rows least; 1: to block_length
    train: str = ""  # fine-tuning: a file, or a TFDS name such as "squad"
    dev: str = ""  # fine-tuning: the same, for evaluation


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Which pieces are masked and what replaces them (paper section 3.1; code: corpus/masking.py)."""

    # "span" (SpanBERT), "whole_word", "subword" (BERT), or "unit": spans that config.corpus.spans finds, such as names
    scheme: str = "span"
    rate: float = 0.15
    final_rate: float = 0.15  # the rate goes from `rate` to `final_rate` in a straight line ...
    rate_steps: int = 0  # ... over this many steps; 0: constant
    span_p: float = 0.2  # of the geometric law, renormalised on [span_min, span_max] words
    span_min: int = 1
    span_max: int = 10
    mask_share: float = 0.8  # share of the masked spans whose pieces become [MASK] ...
    random_share: float = 0.1  # ... and of those whose pieces become random ones; the other spans are kept
    granularity: str = "span"  # this is drawn for each merged "span" or each "piece"; scheme "subword": each piece
    boundaries: str = "external"  # SBO predicts from the pieces just outside ("external") or inside the span
    max_span_offset: int = 15  # pieces of a merged span that SBO predicts (code README; its default is 20)
    # Scheme "unit" (paper section 4.3; code: ner_span). The other draws are of a "whole_word" (paper) or "span" (code).
    unit_share: float = 0.5  # of the draws that draw a unit
    unit_rest: str = "whole_word"
    units: str = ""  # the kinds of spans that are units, comma-separated; "": all
    # One [MASK] stands for a whole merged span, so that the row does not show how many pieces the span has. Such rows
    # train the span decoder (model.decoder_layers), and neither MLM nor SBO.
    collapse_spans: bool = False


@dataclasses.dataclass(frozen=True)
class FinetuningConfig:
    """The fields of all fine-tuning tasks. Defaults are the paper's (appendix B) and the code's."""

    epochs: float = 4.0  # code: 4 for question answering, 10 for classification and relations
    warmup_share: float = 0.1  # of all steps
    eval_every_epochs: float = 0.1  # epochs between evaluations; 0: they come every config.train.eval_every steps


@dataclasses.dataclass(frozen=True)
class QuestionAnsweringConfig:
    """Windows and answers (code: run_squad.py)."""

    stride: int = 128  # pieces from the beginning of one window of a long text to that of the next
    max_question: int = 64  # pieces; the rest of a question is cut
    max_answer: int = 30  # pieces
    n_best: int = 20  # how many of the best spans are listed beside the answer
    unanswerable: bool = False  # SQuAD 2.0: "" may be the answer


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """One or two texts to a label or a number."""

    name: str = "sst2"  # a GLUE task, which fixes columns and metrics, or "custom"
    text: str = "text"  # custom: names of columns, or JSON fields
    second: str = ""
    label: str = "label"


@dataclasses.dataclass(frozen=True)
class TaggingConfig:
    """Named entities."""

    head: str = "token"  # "token": a tag for each word; "span": a type for each span, which may nest
    scheme: str = "auto"  # of the files: "IOB1", "IOB2", "BILOU" or "auto"
    delimiter: str = ""  # between columns; "": white space
    word_column: int = 0
    tag_column: int = -1  # the last one
    max_width: int = 10  # span head: words in an entity
    document_context: bool = False  # fill a row with the sentences around the tagged one


@dataclasses.dataclass(frozen=True)
class RelationConfig:
    """The relation between two entities of a sentence."""

    format: str = "tacred"  # "tacred" (JSON) or "semeval" (SemEval-2010 Task 8's text)
    entities: str = "mask"  # "mask": a piece for role and type stands for each entity; "markers": pieces around it


FAMILIES = ("bert", "modern")  # of transformer layers; model/families.py has a row for each


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder and its heads. Defaults are BERT-base."""

    family: str = "bert"  # the kind of the transformer layers, one of FAMILIES
    layers: int = 12
    embed: int = 768
    heads: int = 12
    mlp: int = 3072
    max_length: int = 512  # pieces in the longest row; bert: rows of the position table
    token_types: int = 2
    vocab_rows: int = 0  # rows of the word table of `init_from` where it has more rows than pieces; otherwise 0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    init_std: float = 0.02
    # Fresh parameters. "normal"; "local": heads begin by looking near their own position (bert; model/local_init.py);
    # "truncated": at 2 std, and outputs of a layer's halves are smaller by sqrt(2 layers) (modern).
    init: str = "normal"
    span_offset_embed: int = 200  # width of SBO's position table (paper section 4.2)
    decoder_layers: int = 0  # of the decoder that writes a masked span piece by piece (model/span_decoder.py); 0: none
    # The family "modern" has rotary positions and no token types. The following fields choose its other parts. In the
    # family "bert" they have their defaults. The values of ModernBERT (Warner et al. 2024, arXiv:2412.13663) are in
    # configs/modern_base.py.
    pre_norm: bool = False  # LayerNorm before each half of a layer and after the last layer; False: after each half
    gated_mlp: bool = False  # gelu(x A) * (x B) in the place of gelu(x A)
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True  # of every LayerNorm
    head_bias: bool = True  # of the layers between the encoder and a head's last one
    window: int = 0  # keys on each side that a query of a windowed layer sees; 0: all layers see all keys
    full_every: int = 3  # with a window: layers 0, full_every, 2 full_every, ... see all keys
    rope_theta: float = 10_000.0  # base of the rotary positions' wavelengths, in layers that see all keys
    local_rope_theta: float = 10_000.0  # the same in windowed layers
    pooling: str = "cls"  # a row is classified by the state of [CLS] ("cls"), or by the mean of the states ("mean")
    # Extensions beyond the paper (docs/extensions.md). A fresh extension changes no hidden state at step 0, so any
    # weights go on with it.
    # Scales of each head at each position, from the input there: "none", of the results ("output"), or of queries,
    # keys, values and results ("full").
    head_scales: str = "none"
    attention_composition: int = 0  # rank of the mixing of heads' scores and probabilities; 0: none
    context_encoder: str = "none"  # a recurrence beside the layers: "none", "bilstm" or "mingru"
    context_encoder_input: str = "embeddings"  # the recurrence reads the "embeddings" or the last layer's "output"
    span_embedding: bool = False  # embeddings of the kind of a piece's span (corpus.spans) and of the place in the span
    span_kinds: int = 16  # kinds of spans that the table of span_embedding has room for
    # Spans attend to pieces and write back to their own: "none", to their "own" pieces, or to all of the "row".
    span_attention: str = "none"


# The fields of ModelConfig that turn an extension on -> the fields that only the extension reads. model/extensions.py
# has a row for each.
EXTENSIONS: dict[str, tuple[str, ...]] = {
    "head_scales": (),
    "attention_composition": (),
    "context_encoder": ("context_encoder_input",),
    "span_embedding": ("span_kinds",),
    "span_attention": (),
}


def reads_spans(model: ModelConfig) -> bool:
    """Whether the encoder reads the span tags of a row's pieces."""
    return model.span_embedding or model.span_attention != "none"


# Kernels. "auto" takes the first that runs on the machine: model/kernels/choice.py.
ATTENTION_KERNELS = ("splash", "triton", "cudnn", "xla")
DROPPING_KERNELS = ("triton", "xla")  # the attention kernels that have attention dropout
WINDOW_KERNELS = ("splash", "xla")  # the attention kernels that have sliding windows
POINTWISE_KERNELS = ("triton", "xla")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the model is computed. Only rounding depends on these fields."""

    dtype: str = "auto"  # "float32", "bfloat16", or "auto": bfloat16 on GPU and TPU
    # "xla" (anywhere), "triton", "cudnn" (NVIDIA GPU), "splash" (TPU), or "auto": the fastest that runs there. All but
    # "xla" are faster and hold no [length, length] array; "cudnn" and "splash" have no attention dropout. "triton" and
    # "cudnn" have no sliding windows, so "xla" computes the layers with a window.
    attention: str = "auto"
    # LayerNorm with the dropout and the sum before it, and GELU: "xla" (anywhere), "triton" (NVIDIA GPU) or "auto".
    pointwise: str = "auto"
    unroll: bool = False  # unroll the layers (faster steps) instead of scanning them (faster compilation)
    remat: str = "none"  # "none", "dots" (keep matrix products) or "full" (keep layer inputs)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer. The default is AdamW with the values of paper section 4.2. For the base model, the authors used 8
    times the paper's batch, 300k steps and a learning rate of 5e-4 (issue 6 of facebookresearch/SpanBERT)."""

    # "adamw"; "muon": Muon for hidden matrices, AdamW for the rest (training/muon.py); "stable_adamw": AdamW with a
    # learning rate for each tensor, which falls where the gradient jumps, in the place of clipping
    name: str = "adamw"
    muon_momentum: float = 0.95
    muon_rms: float = 0.2  # root mean square of Muon's update before the learning rate; 0.2 is about that of Adam's
    learning_rate: float = 5e-4
    warmup_steps: int = 10_000
    schedule: str = "linear"  # after the warm-up: "linear" decay, or "wsd": constant, then 1 - sqrt over decay_steps
    decay_steps: int = 0  # wsd: steps of the decay, the run's last ones; another run may do them, from a checkpoint
    decay_from: str = "start"  # linear: the decay counts steps from the "start" (code) or from "warmup_end"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    eps_placement: str = "corrected"  # added to the bias-corrected root (PyTorch, optax), or "uncorrected" (code)
    bias_correction: bool = True  # of Adam's moments; the code's fine-tuning has none
    weight_decay: float = 0.1  # paper; the code's README says 0.01
    decay_scope: str = "all"  # "all" parameters (code), or "matrices": no biases, no LayerNorm
    clip_norm: float = 1.0  # of the global gradient norm (code); 0: none
    gradient_divisor: float = 1.0  # before clipping; the code divides a mean gradient by about 616 once more


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Batches, steps, and the intervals at which a run logs, evaluates and saves, in steps."""

    batch_size: int = 2048  # rows over all devices and microbatches
    accumulation: int = 1  # microbatches a step
    steps: int = 300_000
    seed: int = 1
    sbo_weight: float = 1.0  # loss = MLM + sbo_weight * SBO
    log_every: int = 100
    eval_every: int = 5_000
    eval_blocks: int = 0  # held-out blocks that an evaluation visits; 0: all
    checkpoint_every: int = 2_000
    keep_checkpoints: int = 3
    # A step whose loss or gradient is not finite changes no parameter. More such steps in a row than this stop the run.
    max_skipped: int = 10
    # A step that takes longer, apart from compilation, stops the run with exit status 76, such as one that waits for
    # another process or for a file system that hangs; 0: no step does.
    stall_seconds: float = 0.0
    nsp_weight: float = 0.0  # of next-sentence prediction in the loss, with corpus.pairs (code: 1; paper: none)
    # The groups of parameters that are trained, comma-separated, such as "decoder"; the others keep the values that
    # `init_from` gives them. "": all are trained.
    only: str = ""


def is_trained(train: TrainConfig, group: str) -> bool:
    """Whether a run trains the parameters of this group."""
    return not train.only or group in trained_groups(train)


def trained_groups(train: TrainConfig) -> list[str]:
    """The names in `train.only`."""
    return [name.strip() for name in train.only.split(",") if name.strip()]


MESH_AXES = ("data", "fsdp", "model")  # in the order of the mesh


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each axis (-1, for one axis: all that are left), and what goes over the data axis."""

    data: int = -1
    fsdp: int = 1
    model: int = 1
    reduce_dtype: str = "float32"  # dtype of the gradients that are summed; "bfloat16": half the traffic, coarser sums
    shard_optimizer: bool = False  # divide the moments over the data axis too (ZeRO, stage 1): less memory


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment."""

    task: str = "pretraining"
    trials: int = 1  # fine-tuning: runs with seeds train.seed, train.seed + 1, ...
    init_from: str = ""  # weights, sizes and vocabulary to start with: a run, or others' weights (serving/weights.py)
    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    masking: MaskingConfig = MaskingConfig()
    model: ModelConfig = ModelConfig()
    compute: ComputeConfig = ComputeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    finetuning: FinetuningConfig = FinetuningConfig()
    question_answering: QuestionAnsweringConfig = QuestionAnsweringConfig()
    classification: ClassificationConfig = ClassificationConfig()
    tagging: TaggingConfig = TaggingConfig()
    relation: RelationConfig = RelationConfig()


# The fine-tuning tasks: the value of `task` -> the module whose `task_class(config)` is the task's class.
FINETUNING = {
    "question_answering": "spanbert_jax.tasks.question_answering.task",
    "sequence_classification": "spanbert_jax.tasks.text_classification.task",
    "token_classification": "spanbert_jax.tasks.entities.task",
    "relation_extraction": "spanbert_jax.tasks.relations.task",
}

# Fields that may differ when a run goes on. They change where, how fast or how long a run computes, but not the result
# of a step.
MAY_CHANGE = (
    "trials",
    "finetuning.eval_every_epochs",
    "corpus.workers",
    "corpus.tfds_data_dir",
    "tokenizer.vocab_file",  # its content is compared
    "data.dir",
    "data.cache_dir",
    "compute.attention",
    "compute.pointwise",
    "compute.unroll",
    "compute.remat",
    "train.accumulation",
    "train.log_every",
    "train.eval_every",
    "train.eval_blocks",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_skipped",
    "train.stall_seconds",
    "mesh.data",
    "mesh.fsdp",
    "mesh.model",
    "mesh.shard_optimizer",
)
# Fields that may differ too while the learning rates of all steps so far stay the same (training/workdir.py).
MAY_CHANGE_BEFORE_THE_DECAY = ("train.steps", "optimizer.decay_steps")


# Configurations that earlier versions saved have other fields. Renamed ones: old name -> new name.
RENAMED = {
    "finetuning.lengths": "data.lengths",
    "finetuning.trials": "trials",
}
# Removed ones: old name -> what holds now, for which a saved value is not needed.
REMOVED: dict[str, str] = {
    "masking.max_masked": "a row has slots for the largest budget, padded to a multiple of 8 (batch.slots)",
}


def default_config() -> "ConfigDict":
    """The defaults as a ConfigDict, for a file in configs/ to change and return."""
    from ml_collections import ConfigDict  # only the edge needs it: the step also runs where it is not installed

    return ConfigDict(dataclasses.asdict(Config()))


def from_dict(fields: Mapping[str, Any]) -> Config:
    """Builds a Config from nested plain dicts. Raises UserError for an unknown field, with a renamed one's new name,
    and for a value of another type than the field's. An integer may stand for a float."""

    def build(cls: Any, values: Any, prefix: str) -> Any:
        kinds, is_field = (int, float) if cls is float else (cls,), not hasattr(cls, "__dataclass_fields__")
        if is_field:
            if isinstance(values, kinds) and not (isinstance(values, bool) and cls is not bool):
                return values
            raise UserError(f"config: {prefix[:-1]} is {quoted(values)}; expected a value of type {cls.__name__}")
        if not isinstance(values, Mapping):
            raise UserError(f"config: {prefix[:-1] or 'it'} is {quoted(values)}; expected fields with values")
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(values) - set(known)))
        if unknown:
            path = f"{prefix}{shortened(unknown[0])}"
            raise UserError(f"config: unknown field {path}; {renamed(path) or 'known here: ' + ', '.join(known)}")
        return cls(**{name: build(known[name].type, value, f"{prefix}{name}.") for name, value in values.items()})

    return build(Config, fields, "")


def renamed(field: str) -> str:
    """Says in words what became of a field that earlier versions had; "" for any other field."""
    if field in RENAMED:
        return f"its name is {RENAMED[field]} now"
    return f"it is gone: {REMOVED[field]}" if field in REMOVED else ""


def from_saved(fields: Mapping[str, Any]) -> Config:
    """The Config that this version or an earlier one saved, as nested dicts or as `flatten` makes them.

    Raises UserError for a field that neither this version nor an earlier one had, and for a value of another type.
    """
    flat = _flat(fields)
    if flat.get("task") == "pretraining" and "data.lengths" not in flat:
        flat = flat | {"data.lengths": 1}  # versions without this field padded all rows of pre-training to block_length
        flat.pop("finetuning.lengths", None)
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        if path in REMOVED:
            continue
        section, _, name = RENAMED.get(path, path).rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return from_dict(nested)


def flatten(config: Config) -> dict[str, Any]:
    """Every field under its path: {"model.layers": 12, ...}."""
    return _flat(dataclasses.asdict(config))


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat
