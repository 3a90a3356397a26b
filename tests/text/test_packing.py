"""Blocks hold every piece, in order, as many as fit; records are what TensorFlow writes."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_jax.text.packing import pack, serialize


def lengths(sentences: list[int], limit: int = 10) -> list[int]:
    return [len(block) for block in pack([[1] * length for length in sentences], limit)]


@pytest.mark.parametrize(
    ("sentences", "blocks"),
    [
        ([4, 4, 4], [8, 4]),  # the reference, without a blank line at the end: no block at all
        ([3, 3], [6]),
        ([4, 11, 4], [4, 10, 5]),  # the reference drops the 11, and its end would not take up the next sentence
        ([4, 4, 11], [8, 10, 1]),  # the reference loses the first two as well
        ([4, 4, 4, 4, 9, 10, 1], [8, 8, 9, 10, 1]),  # as the reference
        ([], []),
        ([0, 0], []),
        ([0, 10, 0], [10]),
        ([31], [10, 10, 10, 1]),
    ],
)
def test_the_references_cases_with_nothing_lost(sentences: list[int], blocks: list[int]) -> None:
    assert lengths(sentences) == blocks


documents = st.lists(st.lists(st.integers(0, 30_000), max_size=40), max_size=30)


@settings(deadline=None)
@given(documents, st.integers(1, 25))
def test_blocks_are_the_documents_pieces_in_order(document: list[list[int]], limit: int) -> None:
    blocks = list(pack(document, limit))
    assert list(chain.from_iterable(blocks)) == list(chain.from_iterable(document))
    assert all(1 <= len(block) <= limit for block in blocks)


@settings(deadline=None)
@given(documents, st.integers(1, 25))
def test_a_block_ends_only_where_the_next_sentence_or_part_does_not_fit(document: list[list[int]], limit: int) -> None:
    parts = [s[i : i + limit] for s in document for i in range(0, len(s), limit)]
    ends = set(np.cumsum([0, *map(len, parts)]).tolist())
    sizes = dict(zip(np.cumsum([0, *map(len, parts)]).tolist(), map(len, parts), strict=False))
    position = 0
    for block, following in pairwise([*pack(document, limit), None]):
        assert block is not None
        position += len(block)
        assert position in ends
        if following is not None:
            assert len(block) + sizes[position] > limit


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**28 - 1), max_size=300), st.lists(st.integers(0, 300), max_size=3))
def test_a_record_is_the_example_that_tensorflow_reads(ids: list[int], further: list[int]) -> None:
    from tensorflow.core.example import example_pb2  # the protocol alone

    for features in ({"input_ids": ids}, {"input_ids": ids, "numbers": further}):
        example = example_pb2.Example.FromString(serialize(features))
        read = {name: list(feature.int64_list.value) for name, feature in example.features.feature.items()}
        assert read == features
        if ids and further:
            arrays = {name: np.array(numbers) for name, numbers in features.items()}
            assert example.SerializeToString(deterministic=True) == serialize(arrays)
