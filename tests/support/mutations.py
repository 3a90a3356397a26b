"""Changes of a file's bytes as an attacker, a broken disk or another program would make them.

Invariant: `mutated` is a pure function of the bytes and the random generator.
"""

import json
import random
import re
from collections.abc import Callable
from typing import Any

_Change = Callable[[bytes, random.Random], bytes]

_BYTES = (
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\x1a",
    b"\x1b[31m",
    b'"',
    b"\\",
    b"\t",
)
_BYTES += (
    b"[[",
    b"{",
    b"]}",
    b",",
    b"\xe2\x80\xa8",
    "\u0301".encode(),
    "İ".encode(),
    "中".encode(),
    b"a" * 3000,
    b" " * 3000,
)
_NUMBERS = (
    b"0",
    b"-1",
    b"1.5",
    b"2147483648",
    b"9223372036854775808",
    b"1e999",
    b"NaN",
    b"",
    b"9" * 30,
    b"9" * 400,
    b"9" * 5000,
)
# What stands in the place of such a text in JSON, which json.dumps would not write.
_RAW = {
    "@deep list": "[" * 5000 + "]" * 5000,
    "@deep object": '{"a":' * 5000 + "1" + "}" * 5000,
    "@open": "[" * 5000,
    "@nested": "[" * 80 + "]" * 80,
    "@huge": "9" * 400,
    "@longer": "9" * 5000,
    "@infinite": "1e999",
    "@nan": "NaN",
}
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 10**18, 1.5, 1e308),
    *("", " ", "\n", "0", "null", "\ud800", "a\u0301", "x" * 3000, "[MASK]", "../../etc/passwd", "\x1b[31m", "\0"),
    *([], {}, [[]], [{}], [None], {"": None}, {"a": {"b": []}}, list(range(50)), ["x"] * 50, [["x", 1]] * 30),
    *_RAW,
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes after one to four changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choices(_CHANGES, _WEIGHTS)[0](data, rng)
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _chunk(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 8, 64, len(data))))


def _cut(data: bytes, rng: random.Random) -> bytes:
    start, end = _chunk(data, rng)
    return data[:start] if rng.random() < 0.3 else data[:start] + data[end:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = _chunk(data, rng)
    return data[:start] + data[start:end] * min(rng.choice((2, 3, 100)), 1 + 20_000 // (end - start + 1)) + data[end:]


def _swap(data: bytes, rng: random.Random) -> bytes:
    first, second, third, fourth = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    return data[:first] + data[third:fourth] + data[second:third] + data[first:second] + data[fourth:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    start, end = _chunk(data, rng)
    return data[:start] + rng.choice(_BYTES) + data[start if rng.random() < 0.6 else end :]


def _lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines) + 1)
    one = lines[at : at + 1]
    others = lines[:at] + lines[at + 1 :]
    kept = rng.choice(
        (others, [*others, *one], one + lines, [line.strip() + b"\r\n" for line in lines], [b" ".join(lines)])
    )
    return b"".join(kept)


def _number(data: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if not found:
        return _insert(data, rng)
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(_NUMBERS) + data[one.end() :]


def _json(data: bytes, rng: random.Random) -> bytes:
    """A change of a value inside JSON, or of one line of JSON lines; another change where there is no JSON."""
    lines = [data, *data.splitlines(keepends=True)]
    at = 0
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        at = rng.randrange(len(lines))
        try:
            value = json.loads(lines[at])
        except (ValueError, RecursionError):
            return _number(data, rng)
    text = json.dumps(_changed(value, rng), ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 1)))
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    new = text.encode("utf-8", "surrogatepass")
    return new if at == 0 else b"".join([*lines[1:at], new, b"\n", *lines[at + 1 :]])


def _changed(value: Any, rng: random.Random) -> Any:
    """The value with one of its parts, found by a random walk, replaced, removed, doubled, renamed or moved."""
    parts: list[tuple[Any, Any]] = []
    inside = value
    while isinstance(inside, dict | list) and inside and (not parts or rng.random() < 0.75):
        key = rng.choice(list(inside)) if isinstance(inside, dict) else rng.randrange(len(inside))
        parts.append((inside, key))
        inside = inside[key]
    if not parts or rng.random() < 0.05:
        return rng.choice((*_VALUES, [value], {"data": value}))
    container, key = parts[-1]
    action = rng.random()
    if action < 0.6:
        container[key] = rng.choice(_VALUES)
    elif action < 0.75:
        del container[key]
    elif action < 0.85:
        container[key] = [inside] if rng.random() < 0.5 else {"a": inside}
    elif isinstance(container, dict):
        container[rng.choice((f"{key}2", *container, "x" * 2000, "\ud800"))] = container.pop(key)
    else:
        container.insert(key, rng.choice((inside, rng.choice(_VALUES))))
    return value


_CHANGES: tuple[_Change, ...] = (_flip, _cut, _repeat, _swap, _insert, _lines, _number, _json)
_WEIGHTS = (2, 2, 1, 1, 2, 2, 2, 6)
