"""Where a record counts, as readers are compiled: against the plain forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.test_blocks import places, tag_of, vectors
from tests.strategies import examples
from tidemill.blocks import segment_tag, vector_of
from tidemill.kernel import windowed
from tidemill.kernel.buckets import QuantileTable
from tidemill.kernel.packed import stored
from tidemill.kernel.registers import RegisterTable
from tidemill.kernel.table import Reach
from tidemill.kernel.tiles import LIFETIME, span_of
from tidemill.online.base import Cell
from tidemill.types import ColumnType


def narrowest(spans: list[int], tags: list[int], published: int, k: int, vector: dict[int, int], edges: list[int], t: int) -> list[int]:
    """`windowed.narrowest` of one entity, whose first `published` records are published."""
    versions = stored([Cell(k, vector_of(vector).astype("<i8").tobytes(), b"", b"")]).versions
    out = np.empty(len(spans), dtype=np.int64)
    ends = np.array([published, len(spans)])
    windowed.narrowest(np.array(spans, dtype=np.int64), np.array(tags, dtype=np.int64), ends, *versions, np.array(edges), t, out)
    return out.tolist()


@examples(300)
@given(places=places, segments=st.lists(st.integers(1, 6)), k=st.integers(0, 5), vector=vectors)
def test_a_tail_s_record_is_held_where_it_does_not_count(
    places: list[tuple[int, int]], segments: list[int], k: int, vector: dict[int, int]
) -> None:
    tags = [tag_of(*place) for place in places] + [segment_tag(s) for s in segments]
    found = narrowest([span_of(5, 0)] * len(tags), tags, 0, k, vector, [0], 10)
    assert [w == 0 for w in found] == windowed.counted(np.array(tags, dtype=np.int64), k, vector_of(vector)).tolist()
    assert narrowest([span_of(5, 0)] * len(tags), tags, len(tags), k, vector, [0], 10) == [0] * len(tags)


@examples(300)
@given(
    starts=st.lists(st.integers(-20, 20)),
    edges=st.lists(st.integers(-15, 10), min_size=1, max_size=4).map(sorted),
    t=st.integers(10, 18),
)
def test_a_record_counts_in_the_narrowest_window_that_its_start_lies_in(starts: list[int], edges: list[int], t: int) -> None:
    inside = [[i for i, edge in enumerate(edges) if edge <= start < t] for start in starts]
    found = narrowest([span_of(start, 3) for start in starts], [0] * len(starts), 0, 0, {}, edges, t)
    assert found == [max(some, default=-1) for some in inside]


def test_the_lifetime_tile_lies_only_in_a_window_without_an_edge() -> None:
    assert narrowest([LIFETIME], [0], 1, 0, {}, [LIFETIME >> 4, 0], 10) == [0]
    assert narrowest([LIFETIME], [0], 1, 0, {}, [0], 10) == [-1]


@pytest.mark.parametrize("table", [QuantileTable("x", ColumnType("float"), None), RegisterTable("x", ColumnType("float"), None)])
def test_bytes_that_are_no_records_are_an_error(table: QuantileTable | RegisterTable) -> None:
    with pytest.raises(ValueError, match="size"):
        table.states(stored([Cell(0, b"", b"", b"1234567")]), Reach(np.array([0]), 10))


def test_registers_that_do_not_exist_are_an_error() -> None:
    table = RegisterTable("x", ColumnType("float"), None)
    record = np.array([span_of(5, 0), 0, 128, 0, 0, 0, 0], dtype="<i8").tobytes()
    with pytest.raises(ValueError, match="registers that do not exist"):
        table.states(stored([Cell(0, b"", b"", record)]), Reach(np.array([0]), 10))


@examples(200)
@given(values=st.lists(st.integers(-4, 4) | st.integers(-(2**62), 2**62), max_size=40))
def test_distinct_values_come_to_the_front_in_order(values: list[int]) -> None:
    given_ = np.array(values, dtype=np.int64)
    assert given_[: windowed._distinct(given_)].tolist() == sorted(set(values))
