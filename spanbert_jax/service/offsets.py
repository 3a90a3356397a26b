"""Offsets in a text as clients count them: in characters (code points), or in UTF-16 units as JavaScript does.

Invariant: inside the program offsets are characters. An offset inside of a character is refused, never rounded.
"""

from itertools import accumulate
from typing import Literal

from spanbert_jax.errors import UserError

Unit = Literal["characters", "utf16"]
Span = tuple[int, int]


class Offsets:
    """Translates the offsets of one text."""

    def __init__(self, text: str, unit: Unit):
        self._length = len(text)
        self._units: list[int] | None = None  # by the character: its offset in UTF-16 units
        if unit == "utf16" and not text.isascii():
            self._units = list(accumulate((1 + (char > "\uffff") for char in text), initial=0))
            self._characters = {unit: place for place, unit in enumerate(self._units)}

    def read(self, span: Span, field: str) -> Span:
        """A client's span in characters. Raises UserError, naming the field, where the span is empty, outside of the
        text, or begins or ends inside of a character."""
        first, last = span
        if self._units is not None:
            if first not in self._characters or last not in self._characters:
                most = self._units[-1]
                raise UserError(
                    f"{field} is [{first}, {last}]; expected offsets between characters, from 0 to {most:,} UTF-16 "
                    "units"
                )
            first, last = self._characters[first], self._characters[last]
        if not 0 <= first < last <= self._length:
            raise UserError(
                f"{field} is [{span[0]}, {span[1]}]; expected [start, end] with 0 <= start < end within the text, "
                f"which has {self._length:,} characters"
            )
        return first, last

    def show(self, span: Span) -> Span:
        """A span of characters in the client's unit."""
        return span if self._units is None else (self._units[span[0]], self._units[span[1]])
