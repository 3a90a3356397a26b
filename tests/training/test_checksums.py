"""Checksums of arrays: the same wherever an array lies, and another one after any damage that a test can do."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spanbert_jax.training import checksums as module
from spanbert_jax.training.checksums import checksums, difference, on_devices


def in_plain_integers(array: np.ndarray) -> int:
    """The definition, an element of up to four bytes after the other."""
    total = 0
    size = min(array.dtype.itemsize, 4)
    data = array.tobytes()
    for place in range(len(data) // size):
        word = int.from_bytes(data[place * size : (place + 1) * size], "little")
        hashed = (word + place * 0x9E3779B1) % 2**32
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            hashed = (hashed ^ (hashed >> shift)) * factor % 2**32
        total += hashed ^ (hashed >> 16)
    return total % 2**32


def random_array(dtype: Any, *shape: int) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=shape) * 100
    return np.asarray(values > 0 if dtype is bool else values).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, ml_dtypes.bfloat16, np.int8, bool])
@pytest.mark.parametrize("shape", [(), (3, 5, 4)])
def test_the_checksum_is_the_same_in_plain_integers_on_the_host_and_on_a_device(
    dtype: Any, shape: tuple[int, ...]
) -> None:
    array = random_array(dtype, *shape)
    expected = {"a/b": in_plain_integers(array)}
    assert checksums({"a": {"b": array}}) == expected == checksums({"a": {"b": jnp.asarray(array)}})
    assert int(on_devices(jnp.asarray(array))) == expected["a/b"]


def test_an_array_of_8_byte_elements_counts_as_two_words_each() -> None:
    array = random_array(np.float64, 7)
    assert checksums({"a": array}) == {"a": in_plain_integers(array)}


def test_an_array_is_hashed_in_pieces_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    array = random_array(np.float32, 10, 10)
    monkeypatch.setattr(module, "CHUNK", 7)
    assert checksums([array.T]) == {"0": in_plain_integers(np.ascontiguousarray(array.T))}
    assert checksums([np.zeros((0, 3), np.float32)]) == {"0": 0}


def test_every_flipped_bit_every_swap_and_every_shift_changes_the_checksum() -> None:
    """The values have bits that are 0 in all of them, as bfloat16 values in float32 have: sums of plain products of
    bits and places would not see some swaps of them."""
    array = random_array(ml_dtypes.bfloat16, 48).astype(np.float32)
    whole = checksums([array])["0"]
    damaged = []
    for place, bit in itertools.product(range(len(array)), range(32)):
        words = array.view(np.uint32).copy()
        words[place] ^= np.uint32(1 << bit)
        damaged.append(words.view(np.float32))
    for one, other in itertools.combinations(range(len(array)), 2):
        swapped = array.copy()
        swapped[[one, other]] = array[[other, one]]
        if (swapped != array).any():
            damaged.append(swapped)
    damaged += [np.roll(array, by) for by in range(1, len(array))]
    assert len(damaged) > 2500 and all(checksums([other])["0"] != whole for other in damaged)


def test_the_difference_names_the_first_array_that_changed_and_counts_the_others() -> None:
    params = {"a": np.ones(3), "b": np.ones((2, 2)), "c": np.zeros(2)}
    saved = checksums({"params": params, "step": np.int32(7)})
    assert difference(saved, {"params": params}) == "" and difference({}, {"params": {"a": np.zeros(3)}}) == ""
    changed = {"params": {"a": np.ones(3), "b": np.zeros((2, 2)), "c": np.ones(2)}}
    assert difference(saved, changed) == "array params/b and 1 more are not as saved"
    assert difference(saved, {"params": {"d": np.ones(3)}}) == "array params/d is not as saved"
    assert difference(saved, jax.tree.map(jnp.asarray, {"step": np.int32(8)})) == "array step is not as saved"
