"""Blocks, segments and tags: against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import examples, following_block
from tidemill.blocks import MAX_PARTITION, block_start, block_starts, block_tags, relabel, segment_tag, vector_of
from tidemill.kernel.windowed import counted

#: Where block sizes change, and some beyond the last change.
_STEPS = [2**bits for bits in range(10, 24)] + [2**30, 2**43]
offsets = st.sampled_from([o + d for o in _STEPS for d in (-1025, -1024, -1, 0, 1, 1023, 1024)]) | st.integers(0, 2**44 - 1)
offsets = offsets.filter(lambda o: o >= 0)
partitions = st.sampled_from((0, 1, 2, 7, MAX_PARTITION))
#: Few enough that cuts often fall just where a block begins.
_near = st.sampled_from((0, 1023, 1024, 2048, 131_072, 131_073, 133_120))
places = st.lists(st.tuples(st.just(0) | partitions, _near | offsets), max_size=10)
vectors = st.dictionaries(st.just(0) | partitions.filter(lambda p: p < 100), (_near | offsets).map(block_start), max_size=3)


@st.composite
def cuts(draw: st.DrawFn) -> dict[int, dict[int, int]]:
    """Cuts 1, 2, ..., never decreasing, of which some may have been lost sight of."""
    out: dict[int, dict[int, int]] = {}
    before: dict[int, int] = {}
    for k, vector in enumerate(draw(st.lists(vectors, max_size=4)), start=1):
        before = {p: max(before.get(p, 0), vector.get(p, 0)) for p in {*before, *vector}}
        out[k] = before
    return out


def tag_of(partition: int, offset: int) -> int:
    return int(block_tags(partition, np.array([offset]))[0])


@examples(300)
@given(offset=offsets)
def test_an_offset_lies_in_one_block_that_starts_where_it_says(offset: int) -> None:
    start, end = block_start(offset), following_block(offset)
    assert start <= offset < end
    size = end - start
    assert size & (size - 1) == 0
    assert 1024 <= size <= 65536
    assert start % size == 0, "a block is aligned to its size"
    assert size == 1024 or size <= start // 64, "never more than a sixty-fourth of what came before"
    inside = np.array([start, (start + end) // 2, end - 1, end])
    assert block_starts(inside).tolist() == [start, start, start, end]
    assert [block_start(int(o)) for o in inside] == [start, start, start, end]


@examples(100)
@given(pairs=st.lists(st.tuples(offsets, offsets), max_size=10))
def test_block_starts_never_decrease_with_the_offset(pairs: list[tuple[int, int]]) -> None:
    assert all(block_start(min(pair)) <= block_start(max(pair)) for pair in pairs)


@examples(100)
@given(partition=partitions, offset=offsets, other=partitions, another=offsets)
def test_a_tag_is_a_function_of_the_block_alone(partition: int, offset: int, other: int, another: int) -> None:
    same = (partition, block_start(offset)) == (other, block_start(another))
    assert (tag_of(partition, offset) == tag_of(other, another)) == same
    assert 0 <= tag_of(partition, offset) < 2**62


@examples(200)
@given(places=places, segments=st.lists(st.integers(1, 6)), k=st.integers(0, 5), vector=vectors)
def test_what_counts_is_what_lies_beyond_the_published_vector(
    places: list[tuple[int, int]], segments: list[int], k: int, vector: dict[int, int]
) -> None:
    tags = np.array([tag_of(*place) for place in places] + [segment_tag(s) for s in segments], dtype=np.int64)
    want = [k == 0 or o >= vector.get(p, 0) for p, o in places] + [s > k for s in segments]
    assert counted(tags, k, vector_of(vector)).tolist() == want


@examples(200)
@given(places=places, segments=st.lists(st.integers(1, 6)), cuts=cuts())
def test_the_first_cut_that_covers_a_block_is_its_segment(
    places: list[tuple[int, int]], segments: list[int], cuts: dict[int, dict[int, int]]
) -> None:
    tags = np.array([tag_of(*place) for place in places] + [segment_tag(s) for s in segments], dtype=np.int64)
    want = [next((-k for k, v in cuts.items() if o < v.get(p, 0)), tag_of(p, o)) for p, o in places] + [-s for s in segments]
    before = tags.copy()
    found = relabel(tags, {k: vector_of(v) for k, v in cuts.items()})
    assert found.tolist() == want
    assert (tags == before).all()
    assert relabel(found, {k: vector_of(v) for k, v in cuts.items()}).tolist() == want
    for k, v in cuts.items():
        assert (counted(found, k, vector_of(v)) == counted(tags, k, vector_of(v)))[: len(places)].all(), "a label tells what the block told"


@pytest.mark.parametrize("positions", [{}, {0: 5}, {3: 1, 1: 2}])
def test_a_vector_is_dense_and_what_it_does_not_name_is_at_zero(positions: dict[int, int]) -> None:
    vector = vector_of(positions)
    assert {p: o for p, o in enumerate(vector.tolist()) if o} == positions
    assert vector.dtype == np.int64
