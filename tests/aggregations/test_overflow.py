"""An answer that does not fit is OVERFLOW, in whatever order it came about; never a wrapped number."""

from __future__ import annotations

from itertools import permutations
from random import Random
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill.aggregations as ta
from tests.strategies import NOW, decoded, examples
from tidemill.kernel import packed
from tidemill.kernel.buckets import QuantileTable
from tidemill.kernel.bundle import Bundle
from tidemill.kernel.digits import MAX_TERMS
from tidemill.kernel.fixed import Count
from tidemill.kernel.table import OVERFLOW, Records
from tidemill.kernel.tiles import span_of
from tidemill.online.base import Cell
from tidemill.testing import identical
from tidemill.times import DAY, HOUR, MINUTE
from tidemill.types import ColumnType

BIG = 2**63 - 1
WINDOWS = ["1h", "1d"]


def bundle(kind: str, *aggregations: ta.Aggregation) -> Bundle:
    schema = {"at": ColumnType("timestamp"), "k": ColumnType("str"), "x": ColumnType(kind)}
    return Bundle("b", schema=schema, event_id=None, keys=["k"], where=None, aggregations=aggregations)


def frame(view: Bundle, values: list[Any]) -> pl.DataFrame:
    return decoded([{"at": NOW - 1 - i % 3, "k": "a", "x": x} for i, x in enumerate(values)], view.schema)


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ([BIG, 1], OVERFLOW),
        ([BIG, 1, -1], BIG),
        ([BIG, BIG, -BIG], BIG),
        ([-BIG - 1, -1], OVERFLOW),
        ([-BIG - 1, -1, 1], -BIG - 1),
        ([-BIG - 1, BIG, BIG, -BIG], -1),
        ([BIG] * 5, OVERFLOW),
    ],
)
def test_a_sum_beyond_int64_is_overflow_in_any_order_and_back_within_it_a_number(values: list[int], total: Any) -> None:
    view = bundle("int", ta.sum("x", windows=WINDOWS), ta.mean("x", windows=WINDOWS))
    for ordered in set(permutations(values)):
        one = b"".join(view.deltas(frame(view, [x]), NOW, 0, 1)[0][0][2] for x in ordered)
        together = view.deltas(frame(view, list(ordered)), NOW, 0, 1)[0][0][2]
        (compacted,) = packed.compact(view.fixed, [one], view.ladder, NOW + 2 * MINUTE, {})
        for tail in (one, together, compacted):
            found = view.evaluate(NOW + 2 * MINUTE, {0: [Cell(0, b"", b"", tail)]})
            assert identical(found.values(view.aggregations[0], view.windows[0])[0], total)
            assert identical(found.values(view.aggregations[1], view.windows[0])[0], sum(values) / len(values)), "a mean still fits"


EVERY_SUM = (
    *(f("x", windows=WINDOWS) for f in (ta.sum, ta.mean, ta.variance, ta.stddev)),
    *(f("x", windows=WINDOWS, population=True) for f in (ta.variance, ta.stddev)),
)


@pytest.mark.parametrize("kind", ["int", "float", "bool"])
def test_more_terms_than_digits_can_hold_are_overflow(kind: str) -> None:
    view = bundle(kind, *EVERY_SUM, ta.count(windows=WINDOWS))
    value = {"int": 1, "float": 0.5, "bool": True}[kind]
    view_events = frame(view, [value])
    counted = view.fixed.at[Count("x", view.schema["x"])]
    for terms in (1, MAX_TERMS - 1, MAX_TERMS, MAX_TERMS + 1, 2**40):
        records = view.fixed.decode([view.deltas(view_events, NOW, 0, 1)[0][0][2]])
        body = records.body.copy()
        body[:, [0, counted]] = terms
        (tail,) = view.fixed.encode(Records(records.entity, records.span, records.tag, body), 1)
        found = view.evaluate(NOW, {0: [Cell(0, b"", b"", tail)]})
        for aggregation in EVERY_SUM:
            (answer,) = found.values(aggregation, view.windows[0])
            assert (answer is OVERFLOW) == (terms >= MAX_TERMS), (aggregation.label, terms)
        assert found.values(view.aggregations[-1], view.windows[0]) == [terms], "a count has room"


@pytest.mark.parametrize("largest", [2.0**64 - 2048, -(2.0**64) + 2048])
def test_the_largest_values_add_up_in_any_number_that_is_answered(largest: float) -> None:
    view = bundle("float", *EVERY_SUM)
    (_, _, blob), *_ = view.deltas(frame(view, [largest] * 3), NOW, 0, 1)[0]
    records = view.fixed.decode([blob])
    body = records.body
    for _ in range(20):  # three times 2**20 and more of them, each doubling carried
        body = body + body
        view.fixed._carry(body)
    (tail,) = view.fixed.encode(Records(records.entity, records.span, records.tag, body), 1)
    found = view.evaluate(NOW, {0: [Cell(0, b"", b"", tail)]})
    assert found.values(EVERY_SUM[0], view.windows[0]) == [largest * 3 * 2**20]
    assert [found.values(a, view.windows[0])[0] for a in EVERY_SUM[1:]] == [largest, 0.0, 0.0, 0.0, 0.0]


# ---- the counters of quantiles --------------------------------------------------------------------------------------------------

FULL = 2**46 - 1
MEDIAN = ta.quantile("x", 0.5, windows=WINDOWS)


def counters(table: QuantileTable, start: int, buckets: dict[int, int]) -> bytes:
    """Records of one tile, made by hand: counts per bucket, perhaps more than a counter holds."""
    rows = pl.DataFrame({"_bucket": list(buckets), "_count": list(buckets.values())}, schema={"_bucket": pl.Int32, "_count": pl.Int64})
    spans, tags = np.full(len(buckets), span_of(start, 3)), np.zeros(len(buckets), dtype=np.int64)
    return table.encode(Records(np.zeros(len(buckets), dtype=np.int64), spans, tags, table.pack(rows)), 1)[0]


@examples(100)
@given(
    counts=st.lists(
        st.tuples(
            st.sampled_from((0, 2, 90)), st.integers(0, 5), st.sampled_from((1, 2**16, 2**45, 2**45 - 1, FULL - 1, FULL, FULL + 1, 2**50))
        ),
        min_size=1,
        max_size=6,
    ),
    rng=st.randoms(use_true_random=True),
)
def test_a_full_counter_is_overflow_however_its_tiles_were_merged(counts: list[tuple[int, int, int]], rng: Random) -> None:
    view = bundle("float", MEDIAN)
    table = view.tables[1]
    assert isinstance(table, QuantileTable)
    minute = NOW // MINUTE * MINUTE
    tiles = [(minute - (age + 1) * MINUTE, {65472 + bucket: n}) for age, bucket, n in counts]
    rng.shuffle(tiles)
    tail = b"".join(counters(table, *tile) for tile in tiles)
    horizon = minute + rng.choice((0, MINUTE, HOUR, 20 * HOUR))
    (compacted,) = packed.compact(table, [tail], view.ladder, horizon, {})
    (begun,) = packed.compact(table, [halves(tail)[0]], view.ladder, minute, {})
    (in_pieces,) = packed.compact(table, [begun + halves(tail)[1]], view.ladder, horizon, {})
    for window in view.windows:
        answers = []
        for records in (tail, compacted, in_pieces):
            published, rest = halves(records)
            cells = Cell(0, b"", b"", records), Cell(1, b"", published, in_segment(table, rest, 2))
            answers += [view.evaluate(horizon, {0: [None], 1: [cell]}).values(MEDIAN, window)[0] for cell in cells]
        edge = (horizon - (window.length or 0)) // window.hop * window.hop
        totals: dict[int, int] = {}
        for start, buckets in tiles:
            for bucket, n in buckets.items() if start >= edge else ():
                totals[bucket] = totals.get(bucket, 0) + n
        assert (answers[0] is OVERFLOW) == any(n >= FULL for n in totals.values())
        assert (answers[0] is None) == (not totals)
        assert all(identical(a, answers[0]) for a in answers), answers


def halves(blob: bytes) -> tuple[bytes, bytes]:
    """About as many whole records, of 24 bytes each, in both."""
    middle = len(blob) // 48 * 24
    return blob[:middle], blob[middle:]


def in_segment(table: QuantileTable, blob: bytes, k: int) -> bytes:
    """The same records as if they came from segment k."""
    records = table.decode([blob])
    return table.encode(Records(records.entity, records.span, np.full_like(records.tag, -k), records.body), 1)[0]


def test_counters_of_different_buckets_do_not_fill_one_another() -> None:
    view = bundle("float", MEDIAN)
    table = view.tables[1]
    assert isinstance(table, QuantileTable)
    tail = counters(table, NOW // DAY * DAY, {65472: FULL - 1, 65473: FULL - 1})
    found = view.evaluate(NOW, {0: [None], 1: [Cell(0, b"", b"", tail)]})
    assert found.values(MEDIAN, view.windows[1]) == [1.0078125]
