"""The one place that reads JSON: bytes or text to a value, whoever wrote them.

Invariant: a text is a value, or a ValueError says in a short line why not. Arrays and objects within one another are
`MOST_NESTED` deep at most, so that whatever walks or prints a value can recurse. A file has `MOST_BYTES` at most.
"""

import codecs
import json
import os
import re
import sys
from typing import Any

from etils import epath

MOST_NESTED = 100  # arrays and objects within one another; SQuAD's files have 7, a tokenizer.json about 10
MOST_BYTES = 2**28  # of a file; the largest tokenizer.json of a published model has 34 MB
# What code that takes a value apart raises where the value has another shape than the code expects.
OTHER_SHAPE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)

_DECODER = json.JSONDecoder()
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a character beyond U+FFFF, in an escape


class NotWhole(ValueError):
    """The text ends inside of a value, or is no JSON."""


def parse(text: str | bytes) -> Any:
    """The value of a JSON text, which is in UTF-8, with or without a byte order mark.

    Raises json.JSONDecodeError, a ValueError, where the text breaks JSON's grammar, and another ValueError where the
    value is nested too deeply, a number has too many digits, or bytes are not UTF-8.
    """
    if isinstance(text, bytes):
        text = text.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise _refused(error) from error
    _check_depth(value, text.count("[") + text.count("{"))
    return value


def parse_first(text: str, start: int) -> tuple[Any, int]:
    """(the JSON value that begins at the character `start`, the character after it).

    Raises NotWhole where more text could complete the value, and ValueError as `parse`.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise NotWhole(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _refused(error) from error
    _check_depth(value, text.count("[", start, end) + text.count("{", start, end))
    return value, end


def read(path: str | os.PathLike[str]) -> Any:
    """The value in a file, also in a bucket; its texts can be encoded. Raises OSError where the file cannot be read,
    and ValueError as `parse`, for lone surrogates and for a file of more than `MOST_BYTES`."""
    data = bytearray()
    with epath.Path(path).open("rb") as file:
        while part := file.read(2**20):
            data += part
            if len(data) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    value = parse(bytes(data))
    if _HALF.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text in it has half of a character (a lone surrogate)") from error
    return value


def _check_depth(value: Any, brackets: int) -> None:
    """Raises ValueError where containers are nested too deeply. brackets: as many as the text has at least."""
    level, depth = [value], 0
    while level and brackets > MOST_NESTED:
        if depth == MOST_NESTED:
            raise _refused(RecursionError())
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
            if isinstance(inner, dict | list)
        ]
        depth += 1


def _refused(error: Exception) -> ValueError:
    if isinstance(error, RecursionError):
        return ValueError(f"arrays and objects are nested more than {MOST_NESTED} deep")
    return ValueError(f"a number has more than {sys.get_int_max_str_digits():,} digits")
