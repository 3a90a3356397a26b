"""Tokenizers of Hugging Face's library, trained on given lines: the directories of models that others publish."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

BERTS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTAS = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
ADDED = [
    AddedToken("covid-19"),
    AddedToken("<ent>", lstrip=True, rstrip=True, normalized=False),
    AddedToken("the old", single_word=True),
    AddedToken("|||PHONE|||", special=True),
    AddedToken("   ", normalized=False),
]


def write_all(lines: Sequence[str], folder: Path) -> None:
    """Writes a directory for each name in NAMES. lines: what the tokenizers are trained on."""
    for name in NAMES:
        (folder / name).mkdir()
        write(name, lines, folder / name)


def write(name: str, lines: Sequence[str], folder: Path) -> None:
    """Writes the tokenizer `name`, one of NAMES, into an existing directory."""
    _MAKERS[name](lines, folder)


def save(engine: tokenizers.Tokenizer, folder: Path, names: Sequence[str], **config: Any) -> None:
    """Writes tokenizer.json, and a tokenizer_config.json with the special pieces' names."""
    engine.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **dict(zip(ROLES, names, strict=True)), **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def trained(
    lines: Sequence[str], model: Any, normalizer: Any, pre_tokenizer: Any, special: Sequence[str], size: int = 800
) -> tokenizers.Tokenizer:
    engine = tokenizers.Tokenizer(model)
    if normalizer is not None:
        engine.normalizer = normalizer
    engine.pre_tokenizer = pre_tokenizer
    settings: dict[str, Any] = {"vocab_size": size, "special_tokens": list(special), "show_progress": False}
    if isinstance(model, models.WordPiece):
        settings["continuing_subword_prefix"] = model.continuing_subword_prefix
        trainer: Any = trainers.WordPieceTrainer(**settings)
    elif isinstance(model, models.BPE):
        trainer = trainers.BpeTrainer(**settings, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    else:
        trainer = trainers.UnigramTrainer(**settings, unk_token=special[1])
    engine.train_from_iterator(lines, trainer)
    return engine


def _nfkc(lines: Sequence[str], folder: Path) -> None:
    """WordPiece with a sequence of normalizers."""
    steps = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.NFKC()]
    model = models.WordPiece(unk_token="[UNK]")
    save(trained(lines, model, normalizers.Sequence(steps), pre_tokenizers.BertPreTokenizer(), BERTS), folder, BERTS)


def _prefix(lines: Sequence[str], folder: Path) -> None:
    """WordPiece with another prefix, capitals, stripped accents, no Chinese handling; pre-tokenised by a regex."""
    normalizer = normalizers.BertNormalizer(handle_chinese_chars=False, strip_accents=True, lowercase=False)
    model = models.WordPiece(unk_token="<unk>", continuing_subword_prefix="@@")
    save(trained(lines, model, normalizer, pre_tokenizers.Whitespace(), ROBERTAS), folder, ROBERTAS)


def _spaces(lines: Sequence[str], folder: Path) -> None:
    """WordPiece that cuts at spaces alone, so that "[MASK]" in text reaches the model as a word."""
    model = models.WordPiece(unk_token="[UNK]")
    save(trained(lines, model, normalizers.NFC(), pre_tokenizers.WhitespaceSplit(), BERTS), folder, BERTS)


def _modern(lines: Sequence[str], folder: Path) -> None:
    """Byte-level BPE as ModernBERT's: special and added pieces follow the model's own, spaces among them."""
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine = trained(lines, models.BPE(), normalizers.NFC(), pre_tokenizer, [])
    engine.decoder = decoders.ByteLevel()
    engine.add_tokens(ADDED)
    engine.add_special_tokens([AddedToken(name, lstrip=name == "[MASK]", normalized=False) for name in BERTS])
    cls, sep = ((name, engine.token_to_id(name)) for name in ("[CLS]", "[SEP]"))
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[cls, sep]
    )
    save(engine, folder, BERTS, model_max_length=8192)


def _roberta(lines: Sequence[str], folder: Path) -> None:
    """Byte-level BPE with a prefix space, as transformers' RobertaTokenizer saves it."""
    import transformers

    engine = trained(lines, models.BPE(), None, pre_tokenizers.ByteLevel(add_prefix_space=True), ROBERTAS)
    model = json.loads(engine.to_str())["model"]
    made = transformers.RobertaTokenizer(model["vocab"], list(map(tuple, model["merges"])), add_prefix_space=True)
    made.add_tokens(ADDED)
    made.save_pretrained(folder)


def _xlm_roberta(lines: Sequence[str], folder: Path) -> None:
    """Unigram as transformers' XLMRobertaTokenizer saves it, with the special pieces in the model's vocabulary."""
    import transformers

    pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<s>", "<unk>", "</s>", "<pad>", "<mask>"]
    engine = trained(lines, models.Unigram(), normalizers.NFKC(), pre_tokenizer, special)
    scores = dict(json.loads(engine.to_str())["model"]["vocab"])
    order = ["<s>", "<pad>", "</s>", "<unk>", *(piece for piece in scores if piece not in special), "<mask>"]
    made = transformers.XLMRobertaTokenizer([(piece, scores[piece]) for piece in order])
    made.save_pretrained(folder)


def _bytes(lines: Sequence[str], folder: Path) -> None:
    """BPE with "▁" from a normalizer, byte fallback and no pre-tokenizer, and names in added_tokens alone."""
    engine = _with_byte_fallback(lines, [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    engine.save(str(folder / "tokenizer.json"))


def _gemma(lines: Sequence[str], folder: Path) -> None:
    """BPE as mmBERT's, which is Gemma's: "▁" for every space, and none before the text."""
    engine = _with_byte_fallback(lines, [normalizers.Replace(" ", "▁")])
    engine.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    engine.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    save(engine, folder, BERTS)


def _with_byte_fallback(lines: Sequence[str], steps: list[Any]) -> tokenizers.Tokenizer:
    """BPE with these normalizers, byte fallback and no pre-tokenizer."""
    pieces = [*BERTS, *(f"<0x{byte:02X}>" for byte in range(256))]
    counted = trained(lines, models.BPE(), None, pre_tokenizers.Metaspace(), [], 1200)
    learnt = json.loads(counted.to_str())["model"]
    pieces += [piece for piece in learnt["vocab"] if piece not in pieces]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = list(map(tuple, learnt["merges"]))
    engine = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="[UNK]", byte_fallback=True, fuse_unk=True))
    engine.normalizer = normalizers.Sequence(steps)
    engine.add_special_tokens(BERTS)
    return engine


_MAKERS = {
    "nfkc": _nfkc,
    "prefix": _prefix,
    "spaces": _spaces,
    "modern": _modern,
    "roberta": _roberta,
    "xlm_roberta": _xlm_roberta,
    "bytes": _bytes,
    "gemma": _gemma,
}
NAMES = tuple(_MAKERS)
