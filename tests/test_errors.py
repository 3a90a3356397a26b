"""A message is one bounded line, whatever it quotes."""

import pickle
import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spanbert_jax.errors import MOST, UserError, listed, quoted, shortened

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.binary(max_size=100),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=9), inner, max_size=9),
    max_leaves=60,
)


@given(st.text(max_size=3 * MOST) | st.text("a\n\x1b\ud800", min_size=MOST))
def test_a_message_is_one_line_that_can_be_printed(text: str) -> None:
    message = str(UserError(text))
    assert message.isprintable() and len(message) <= MOST
    assert message == text or not (text.isprintable() and len(text) <= MOST)
    assert str(pickle.loads(pickle.dumps(UserError(text)))) == message  # as from a worker process


@given(VALUES)
def test_a_quoted_value_is_short_and_a_short_one_is_its_repr(value: Any) -> None:
    found = quoted(value)
    assert found.isascii() or found.isprintable()
    assert len(found) <= 60
    if not isinstance(value, list | dict) and len(repr(value)) <= 60:
        assert found == repr(value)


def test_both_ends_of_a_long_message_stay() -> None:
    message = str(UserError(f"a.txt, line 3: {'x' * 10**6}; repair it"))
    assert message.startswith("a.txt, line 3: xxx") and message.endswith("xxx; repair it") and " [...] " in message


def test_a_long_value_is_not_written_out_first() -> None:
    values = [0] * 10**6
    tracemalloc.start()
    assert len(quoted(values)) <= 60 and len(quoted("x" * 10**6)) == 60
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # the text itself has half of it
    assert quoted({"a": [1, [2, [3, [4]]]]}) == "{'a': [1, [2, [...]]]}"


def test_a_list_of_names_tells_how_many_are_left_out() -> None:
    assert listed(["a", "b"]) == "a, b" and listed([]) == ""
    assert listed({str(i): 0 for i in range(1200)}, 3) == "0, 1, 2 and 1,197 more"
    assert listed(["y" * 100]) == f"{'y' * 16} [...] {'y' * 7}"
    assert shortened("tab\there") == "tab\\there"
