"""Finalising rounds once: the answers are the floats nearest to the exact ones."""

from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill.aggregations as ta
from tests.strategies import NOW, decoded, examples, floats, ints
from tidemill.aggregations.sums import fraction_sqrt
from tidemill.kernel.bundle import Bundle
from tidemill.online.base import Cell
from tidemill.types import ColumnType

large = st.integers(0, 2**200) | st.integers(0, 1000) | st.integers(0, 400).map(lambda n: 2**n)


def root(a: int, b: int) -> float:
    """The square root to 400 digits, then rounded once."""
    context = Context(prec=400)
    return float(context.sqrt(context.divide(Decimal(a), Decimal(b))))


@examples(300)
@given(a=large, b=large.filter(bool))
def test_a_root_is_the_nearest_float(a: int, b: int) -> None:
    assert fraction_sqrt(a, b) == root(a, b)


@examples(300)
@given(
    mantissa=st.integers(2**52, 2**53 - 1), exponent=st.integers(-60, 60), beside=st.sampled_from((-1, 0, 1)), scale=st.integers(1, 2**60)
)
def test_a_root_beside_a_tie_goes_the_right_way(mantissa: int, exponent: int, beside: int, scale: int) -> None:
    half = Fraction(2 * mantissa + 1) * Fraction(2) ** exponent  # between two neighbouring floats
    square = half**2 + Fraction(beside, 2**400)
    assert fraction_sqrt(square.numerator * scale, square.denominator * scale) == root(square.numerator, square.denominator)


@pytest.mark.parametrize(("a", "b", "want"), [(0, 1, 0.0), (1, 4, 0.5), (2, 1, 2**0.5), (10**400, 1, 1e200), (1, 10**400, 1e-200)])
def test_a_root_of_a_square_is_exact(a: int, b: int, want: float) -> None:
    assert fraction_sqrt(a, b) == want


def answer(aggregation: ta.Aggregation, kind: str, values: list[float]) -> float:
    schema = {"at": ColumnType("timestamp"), "k": ColumnType("str"), "x": ColumnType(kind)}
    view = Bundle("b", schema=schema, event_id=None, keys=["k"], where=None, aggregations=[aggregation])
    events = decoded([{"at": NOW, "k": "a", "x": x} for x in values], schema)
    tail = view.deltas(events, NOW, 0, 1)[0][0][2]
    found: float = view.evaluate(NOW + 1, {0: [Cell(0, b"", b"", tail)]}).values(aggregation, view.windows[0])[0]
    return found


@examples(40)
@given(values=st.lists(ints(), min_size=2))
def test_means_and_variances_of_integers_are_the_nearest_floats(values: list[int]) -> None:
    n = len(values)
    mean = Fraction(sum(values), n)
    variance = sum((x - mean) ** 2 for x in values) / (n - 1)
    assert answer(ta.mean("x", windows=["1h"]), "int", values) == float(mean)
    assert answer(ta.variance("x", windows=["1h"]), "int", values) == float(variance)
    assert answer(ta.stddev("x", windows=["1h"]), "int", values) == root(variance.numerator, variance.denominator)


@examples(40)
@given(values=st.lists(floats().filter(lambda x: abs(x) >= 2.0**-7), min_size=1))
def test_a_sum_of_floats_that_the_grid_holds_is_the_nearest_float(values: list[float]) -> None:
    assert answer(ta.sum("x", windows=["1h"]), "float", values) == float(sum(map(Fraction, values)))
    assert answer(ta.mean("x", windows=["1h"]), "float", values) == float(sum(map(Fraction, values)) / len(values))


def test_a_large_mean_does_not_drown_the_variance() -> None:
    values = [1e8 + 0.1, 1e8 + 0.2]
    want = float((Fraction(values[1]) - Fraction(values[0])) ** 2 / 2)
    assert answer(ta.variance("x", windows=["1h"]), "float", values) == pytest.approx(want, rel=1e-7)  # the grid is 2**-30
    assert answer(ta.variance("x", windows=["1h"]), "float", [2.0**64 - 2048] * 3) == 0.0
