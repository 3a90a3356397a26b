"""The one exception for a user's mistake, and how its message quotes values that come from files.

Invariant: the message alone is enough to act on (what was found, what was expected, what to do), because `main` and the
tools print it without a traceback and exit with a status other than 0. It is one line of printable characters and has
at most `MOST` of them, whatever a file holds.
"""

import itertools
import reprlib
from collections.abc import Collection

MOST = 2000  # characters of a message
_QUOTED = 60  # characters of a value in a message
_LEFT_OUT = " [...] "


class UserError(Exception):
    """Bad input, a bad configuration or a missing file; the message names it and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message, MOST))


def shortened(value: object, most: int = 2 * _QUOTED) -> str:
    """`str` of a value in at most `most` characters: its middle is left out, and a character that cannot be printed
    becomes an escape such as \\n."""
    text = _cut(str(value), most)
    if not text.isprintable():
        escaped = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
        text = _cut("".join(escaped), most)
    return text


def reason(error: Exception) -> str:
    """What an error of Python or a library says, shortened. A KeyError says its key alone, and gets a verb here."""
    return f"{shortened(error)} is missing" if isinstance(error, KeyError) else shortened(error)


def quoted(value: object, most: int = _QUOTED) -> str:
    """`repr` of a value in about `most` characters, without computing the whole of a long one."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = most
    short.maxlevel = 3
    return _cut(short.repr(value), most)


def listed(values: Collection[object], most: int = 10) -> str:
    """The first `most` of the values with commas, each shortened, and the number of the others."""
    more = f" and {len(values) - most:,} more" if len(values) > most else ""
    return ", ".join(shortened(value, _QUOTED // 2) for value in itertools.islice(values, most)) + more


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    kept = most - len(_LEFT_OUT)
    return text[: kept - kept // 3] + _LEFT_OUT + text[len(text) - kept // 3 :]
