"""Offsets as clients count them."""

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from spanbert_jax.errors import UserError
from spanbert_jax.service.offsets import Offsets


@seed(0)
@settings(max_examples=60, deadline=None, database=None)
@given(st.text(min_size=1, max_size=12), st.data())
def test_utf16_offsets_are_those_of_python_s_own_codec(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    units = tuple(len(text[:place].encode("utf-16-le", "surrogatepass")) // 2 for place in (start, end))
    offsets = Offsets(text, "utf16")
    assert offsets.show((start, end)) == units and offsets.read(units, "span") == (start, end)  # type: ignore[arg-type]
    assert Offsets(text, "characters").read((start, end), "span") == (start, end)


@pytest.mark.parametrize("span", [(0, 0), (2, 1), (-1, 1), (0, 5), (5, 6)])
@pytest.mark.parametrize("text", ["abcd", "ab😀"])
def test_spans_outside_of_the_text_or_empty_are_refused(text: str, span: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"inputs\[0\] is \["):
        Offsets(text, "utf16").read(span, "inputs[0]")


def test_an_offset_inside_of_a_character_is_refused() -> None:
    with pytest.raises(UserError, match=r"span is \[0, 3\]; expected offsets between characters, from 0 to 4 UTF-16"):
        Offsets("ab😀", "utf16").read((0, 3), "span")
