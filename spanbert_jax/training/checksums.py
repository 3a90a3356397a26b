"""Checksums of arrays: by them a checkpoint's reader finds that an array is not the one that was saved.

Invariant: the checksum of an array depends on the array's elements, their type's size and their places alone. It is the
same on every mesh, on the host, and in NumPy. A change within one element of up to four bytes always changes it. Other
damage, such as swapped elements or a lost chunk, escapes with a probability of 2**-32.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spanbert_jax.training.sharding import path_name

_GOLDEN = 0x9E3779B1  # odd, near 2**32 divided by the golden ratio, so that the places' offsets are far apart
# The finaliser of MurmurHash3 (Austin Appleby, in the public domain), a bijection of 32-bit words: shifts and factors.
_FIRST, _SECOND = 0x85EBCA6B, 0xC2B2AE35
CHUNK = 2**18  # words that are hashed at a time on the host, so that the temporaries stay in the processor's cache


def checksums(tree: Any) -> dict[str, int]:
    """The checksum of every array in a pytree: the array's path, such as "params/encoder/layers", -> uint32.

    tree: its leaves are jax.Arrays, whose checksums are computed where they lie, or NumPy arrays. Where arrays are
    spread over several processes, every process must call this function with the same tree.
    """
    # Each sum is waited for: programs that exchange data must run in one order on all devices, and on CPUs programs
    # overlap that do not depend on each other.
    return {path_name(path): _checksum(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _checksum(leaf: Any) -> int:
    # Of an array on one CPU, NumPy reads the same memory, and needs no program that would have to be compiled.
    if isinstance(leaf, jax.Array) and [device.platform for device in leaf.devices()] != ["cpu"]:
        return int(on_devices(leaf))
    return _on_the_host(np.asarray(leaf))


def difference(saved: Mapping[str, int], tree: Any) -> str:
    """In words, which array of the tree does not have the checksum that was saved for it; "" where all have theirs.

    saved: the result of `checksums`, or empty, as an earlier version saved it; then nothing is compared. The tree may
    be a part of the one that was saved.
    """
    found = checksums(tree) if saved else {}
    changed = [name for name, value in found.items() if saved.get(name) != value]
    others = f" and {len(changed) - 1} more are" if len(changed) > 1 else " is"
    return f"array {changed[0]}{others} not as saved" if changed else ""


def _mixed(words: Any, places: Any) -> Any:
    """uint32 words, hashed with their places (uint32): for each place, a bijection of the words."""
    hashed = words + places * np.uint32(_GOLDEN)
    hashed = (hashed ^ (hashed >> 16)) * np.uint32(_FIRST)
    hashed = (hashed ^ (hashed >> 13)) * np.uint32(_SECOND)
    return hashed ^ (hashed >> 16)


@jax.jit
def on_devices(array: jax.Array) -> jax.Array:
    """The checksum, a uint32 scalar. The devices add up what they hold, and exchange nothing but their sums."""
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    bits = jnp.dtype(f"uint{8 * min(array.dtype.itemsize, 4)}")  # of 8 bytes: two words, in a further, last axis
    words = jax.lax.bitcast_convert_type(array, bits).astype(jnp.uint32)
    places, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):  # flattening the array would gather it from all devices
        places += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mixed(words, places), dtype=jnp.uint32)


def _on_the_host(array: np.ndarray) -> int:
    """The checksum of `on_devices`."""
    flat = np.ascontiguousarray(array).reshape(-1)
    words = flat.view(f"uint{8 * min(array.dtype.itemsize, 4)}")
    total = 0
    for start in range(0, len(words), CHUNK):
        chunk = words[start : start + CHUNK].astype(np.uint32)
        places = np.arange(start, start + len(chunk), dtype=np.uint64).astype(np.uint32)
        total += int(_mixed(chunk, places).sum(dtype=np.uint64))
    return total % 2**32
