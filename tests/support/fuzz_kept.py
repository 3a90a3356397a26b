"""Damaged files on which a reader failed once: with another exception than UserError, with a message without an end, or
by taking memory without an end.

Invariant: each case stands for a kind of failure, and its target is a row of `fuzz_targets.TARGETS`.
"""

import json
from collections.abc import Callable

Damage = bytes | Callable[[bytes], bytes]  # the file, or a function of the sound one

_LONG, _DIGITS = "x" * 3000, b"9" * 400
_NPY = b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, 'shape': %s, }"


def _with(**fields: object) -> Callable[[bytes], bytes]:
    """The JSON object with other fields."""
    return lambda sound: json.dumps(json.loads(sound) | fields).encode()


def _piece_with_id(number: int) -> Callable[[bytes], bytes]:
    def change(sound: bytes) -> bytes:
        spec = json.loads(sound)
        spec["model"]["vocab"]["far"] = number
        return json.dumps(spec).encode()

    return change


def _prefix(sound: bytes) -> bytes:
    spec = json.loads(sound)
    return json.dumps(spec | {"model": spec["model"] | {"continuing_subword_prefix": _LONG}}).encode()


# (target, what is wrong) -> (file, its damage)
KEPT: dict[tuple[str, str], tuple[str, Damage]] = {
    ("corpus, json lines", "a long field"): ("a.jsonl", json.dumps({_LONG: 1}).encode()),
    ("examples, CSV", "a bare CR in the header"): ("data", b"id,one\rtwo,kind\n1,a,b\n"),
    ("examples, scores, JSON", "400 digits"): ("data", b'{"sentence1": "a", "sentence2": "b", "score": %s}' % _DIGITS),
    ("examples, GLUE", "a long id"): ("data", f"sentence\tlabel\tid\na\t1\t{_LONG}\nb\t1\t{_LONG}\n".encode()),
    ("examples, CoNLL", "a long tag"): ("data", f"-DOCSTART- O\n\nAnna {_LONG}\n".encode()),
    ("examples, CoNLL, BILOU", "a long type"): ("data", f"a\tU-X\nb\tI-{_LONG}\n".encode()),
    ("examples, words", "a long entity"): ("data", json.dumps({"words": ["a"], "entities": [[_LONG]]}).encode()),
    ("examples, TACRED", "many keys"): ("data", json.dumps([{f"k{i}": 1 for i in range(999)}]).encode()),
    ("predictions", "a long id"): ("lines.jsonl", f'{{"id": "{_LONG}"}}\n'.encode() * 2),
    ("span rules", "a long rule"): ("rules", _LONG.encode()),
    ("tokenizer, ours", "a number as a file"): ("saved/spanbert_tokenizer.json", _with(vocabulary=3)),
    ("tokenizer, ours", "a number as a setting"): ("saved/spanbert_tokenizer.json", _with(lowercase=1.5)),
    ("tokenizer, BERT's", "a number as pieces"): ("bert/tokenizer_config.json", b'{"extra_special_tokens": 1.5}'),
    ("tokenizer, BERT's", "a number as words"): ("bert/tokenizer_config.json", b'{"never_split": 1.5}'),
    ("tokenizer, BERT's", "long words"): ("bert/tokenizer_config.json", json.dumps({"never_split": [_LONG]}).encode()),
    ("tokenizer.json, BPE", "an id of 2 to the 31"): ("modern/tokenizer.json", _piece_with_id(2**31)),
    ("tokenizer.json, WordPiece", "no content"): ("nfkc/special_tokens_map.json", b'{"cls_token": {}}'),
    ("tokenizer.json, WordPiece", "half a character"): ("nfkc/added_tokens.json", b'{"\\ud800": 900}'),
    ("tokenizer.json, BPE", "a panic of the library"): ("modern/tokenizer.json", _prefix),
    ("config.json, BERT", "400 digits"): ("config.json", lambda sound: sound.replace(b"1e-12", _DIGITS)),
    ("config.json, ModernBERT", "a long type"): ("config.json", _with(model_type=_LONG)),
    ("config.json, ModernBERT", "many layers"): ("config.json", _with(layer_types=["full_attention"] * 10**5)),
    ("safetensors", "a long file name"): ("model.safetensors.index.json", _with(weight_map={"a": _LONG})),
    ("checkpoint's metadata", "another field of words"): ("metadata", _with(words={"apart\u2028": "-"})),
    ("checkpoint's metadata", "an object as a format"): ("metadata", _with(format={_LONG: 1})),
    ("checkpoint's metadata", "a number as words"): ("metadata", _with(words={"apart": 1})),
    ("workdir's config.json", "another encoding"): ("config.json", b'{"task": "\xa2"}'),
    ("workdir's config.json", "a long field"): ("config.json", _with(**{_LONG: 1})),
    ("workdir's config.json", "a text as a number"): ("config.json", _with(trials="many")),
    ("blocks", "no literal as a header"): ("lengths-train.npy", (_NPY % b"]} (1,)").ljust(127) + b"\n\x08\0\0\0"),
    ("blocks", "a header that asks for memory"): ("lengths-train.npy", (_NPY % b"(99999999999,)").ljust(127) + b"\n"),
    ("blocks", "no counts of a split"): ("metadata.json", lambda sound: sound.replace(b"held_out", b"other")),
    ("infilling.json", "a list as its purpose"): ("infilling.json", _with(made_for=["a"])),
    ("binary tensor", "5,000 digits"): ("size", b"9" * 5000),
    ("request, /tokenize", "a long field"): ("body", json.dumps({_LONG: 1}).encode()),
}
