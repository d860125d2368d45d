"""Sketches keep the errors that they state."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import tidemill.aggregations as ta
from tests.strategies import HUGE, NOW, decoded, examples, floats, ints
from tidemill.errors import DefinitionError
from tidemill.kernel.buckets import bucket_middles, buckets_of
from tidemill.kernel.bundle import Bundle
from tidemill.kernel.registers import PRECISION, RegisterTable, estimate, stable_hashes
from tidemill.online.base import Cell
from tidemill.types import ColumnType

NORMAL = 2.0**-1022
numbers = floats().filter(lambda x: x == x)
SCHEMA = {"at": ColumnType("timestamp"), "k": ColumnType("str"), "x": ColumnType("float")}

# ---- quantiles ------------------------------------------------------------------------------------------------------------------


def middle(x: float) -> float:
    return float(bucket_middles(buckets_of(np.array([x])))[0])


@examples(200)
@given(x=numbers | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_within_its_bucket_s_error(x: float) -> None:
    if abs(x) < NORMAL:
        assert middle(x) == 0.0
    else:
        assert abs(Fraction(middle(x)) - Fraction(x)) <= abs(Fraction(x)) / 2**7


@examples(60)
@given(xs=st.lists(numbers))
def test_buckets_are_ordered_as_numbers_are_and_mirrored(xs: list[float]) -> None:
    ordered = np.sort(np.array(xs, dtype=np.float64))
    buckets = buckets_of(ordered)
    assert (np.diff(buckets) >= 0).all()
    assert (buckets_of(-ordered) == -buckets).all()
    assert (np.sign(bucket_middles(buckets)) == np.sign(buckets)).all()


@pytest.mark.parametrize("x", [1.0, 1.5, NORMAL, 2.0**63, HUGE])
def test_a_bucket_ends_where_the_next_begins(x: float) -> None:
    (bucket,) = buckets_of(np.array([x])).tolist()
    low, high = (int(b) << 46 for b in (bucket, bucket + 1))
    first, after = np.array([low, high]).view(np.float64)
    assert buckets_of(np.array([np.nextafter(first, 0), first, np.nextafter(after, 0), after])).tolist() == [
        0 if first == NORMAL else bucket - 1,
        bucket,
        bucket,
        bucket + 1,
    ]


@examples(60)
@given(values=st.lists(numbers, min_size=1, max_size=60), q=st.sampled_from(("0", "0.5", "0.9", "0.99", "0.999999", "1", "0.1", "0.3")))
def test_a_quantile_is_the_value_of_its_rank(values: list[float], q: str) -> None:
    aggregation = ta.quantile("x", float(q), windows=["1h"])
    view = Bundle("b", schema=SCHEMA, event_id=None, keys=["k"], where=None, aggregations=[aggregation])
    events = decoded([{"at": NOW - i, "k": "a", "x": x} for i, x in enumerate(values)], SCHEMA)
    tails = {table: tail for table, _, tail in view.deltas(events, NOW, 0, 1)[0]}
    (found,) = view.evaluate(NOW + 1, {i: [Cell(0, b"", b"", tails[t])] for i, t in enumerate(view.table_ids)}).values(
        aggregation, view.windows[0]
    )
    exact = sorted(values)[floor(Fraction(q) * (len(values) - 1))]
    assert found == middle(exact)


@pytest.mark.parametrize("q", [-0.1, 1.1, True, "0.9", float("nan"), float("inf"), 0.1234567, 1e-7, 1e-300, None])
def test_a_q_that_is_none_is_refused(q: object) -> None:
    with pytest.raises(DefinitionError, match="q is from 0 to 1"):
        ta.quantile("x", q, windows=["1h"])  # what users pass, whatever the annotation says


@pytest.mark.parametrize(
    ("q", "name"), [(0, "x_p0"), (1, "x_p100"), (0.5, "x_p50"), (0.999, "x_p99_9"), (1e-6, "x_p0_0001"), (0.000015, "x_p0_0015")]
)
def test_a_quantile_is_named_by_its_percentage(q: float, name: str) -> None:
    assert ta.quantile("x", q, windows=["1h"]).label == name


# ---- distinct counts ------------------------------------------------------------------------------------------------------------


def distinct(values: pl.Series) -> int:
    """The estimate of one tile that holds all of these."""
    register, rank = RegisterTable("x", ColumnType("int"), None).cells(values)
    registers = np.zeros(1 << PRECISION, dtype=np.int64)
    np.maximum.at(registers, register, rank)
    return estimate(np.bincount(registers, minlength=64 - PRECISION + 2).tolist())


@pytest.mark.parametrize("n", [10, 100, 1_000, 10_000, 100_000, 1_000_000])
def test_a_distinct_count_is_within_five_standard_errors(n: int) -> None:
    assert abs(distinct(pl.Series(np.arange(n) * 7919 - n)) - n) <= 5 * 1.04 / 2 ** (PRECISION / 2) * n


@pytest.mark.parametrize("n", range(8))
def test_a_few_values_are_counted_exactly(n: int) -> None:
    assert distinct(pl.Series([f"value {i}" for i in range(n)] * 3, dtype=pl.String)) == n


def test_every_register_may_be_full() -> None:
    histogram = [0] * (64 - PRECISION + 2)
    assert estimate(histogram) == 0
    histogram[-2] = 2**PRECISION
    assert estimate(histogram) > 2**60
    histogram[-2:] = [2**PRECISION - 1, 1]
    assert estimate(histogram) > 2**60
    histogram[-2:] = [0, 1]
    assert estimate(histogram) == 1


@examples(60)
@given(values=st.lists(ints() | st.none()))
def test_hashes_are_of_the_values_bytes_alone(values: list[int | None]) -> None:
    some = [v for v in values if v is not None]
    want = [xxhash.xxh3_64_intdigest(v.to_bytes(8, "little", signed=True)) for v in some]
    assert stable_hashes(pl.Series(some, dtype=pl.Int64)).tolist() == want


def test_hashes_stay_what_they_are_for_ever() -> None:
    assert stable_hashes(pl.Series(["", "JFK", "\U0001f30a"])).tolist() == [
        xxhash.xxh3_64_intdigest(s.encode()) for s in ("", "JFK", "\U0001f30a")
    ]
    assert stable_hashes(pl.Series([""])).tolist() == [3244421341483603138]
    assert stable_hashes(pl.Series([0, 1])).tolist() == stable_hashes(pl.Series([False, True])).tolist()
    instants = pl.Series([1]).cast(pl.Datetime("us", "UTC"))
    assert stable_hashes(instants).tolist() == stable_hashes(pl.Series([1])).tolist()
