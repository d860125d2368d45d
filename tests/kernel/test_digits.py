"""Digits against Python's own integers and fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import FLOATS, INTS, examples, floats, ints
from tidemill.kernel import digits

GRIDS = ((digits.SUM_BITS, digits.SUM_DIGITS), (digits.MOMENT_BITS, digits.MOMENT_DIGITS))
numbers = floats().filter(lambda x: x == x)  # what is left after NaN


def on_grid(x: float, bits: int) -> int:
    """The multiple of 2**-bits nearest to x, ties to even, counted in units of 2**-bits."""
    return round(Fraction(x) * 2**bits)


def dense(columns: list[digits.Digit]) -> np.ndarray:
    """Shape (n, digits): what is 0 for all was left out."""
    n = next(len(c) for c in columns if c is not None)
    return np.stack([np.zeros(n, dtype=np.int64) if c is None else c for c in columns], axis=1)


def integers(columns: list[digits.Digit]) -> list[int]:
    return [digits.to_int(row) for row in dense(columns).tolist()]


def squares(xs: Sequence[float]) -> list[digits.Digit]:
    return digits.float_squares(np.array(xs), digits.MOMENT_BITS, digits.SQUARE_DIGITS)


@pytest.mark.parametrize(("bits", "width"), GRIDS)
@examples(150)
@given(xs=st.lists(numbers, min_size=1))
def test_a_float_is_put_on_the_grid_exactly_with_ties_to_even(bits: int, width: int, xs: list[float]) -> None:
    found = digits.float_digits(np.array(xs), bits, width)
    assert integers(found) == [on_grid(x, bits) for x in xs]
    assert len(found) == width
    assert (np.abs(dense(found)) <= 2**32).all(), "2**31 of them could overflow"
    assert ((dense(found) == 0) | (np.sign(dense(found)) == np.sign(xs)[:, None])).all()


@pytest.mark.parametrize(("bits", "width"), GRIDS)
def test_every_awkward_float_is_put_on_the_grid_exactly(bits: int, width: int) -> None:
    xs = [x for x in FLOATS if x == x] + [n * 2.0 ** -(bits + 1) for n in range(-9, 10)]
    xs += [sign * (2.0**e - 2.0 ** (e - 53)) for e in range(-70, 65) for sign in (1, -1)]  # the float below each power of two
    assert integers(digits.float_digits(np.array(xs), bits, width)) == [on_grid(x, bits) for x in xs]
    for x in xs:  # alone, so that no other decides which digits are left out
        alone = digits.float_digits(np.array([x]), bits, width)
        assert integers(alone) == [on_grid(x, bits)]
        assert (np.abs(dense(alone)) <= 2**32).all()
        assert integers(squares([x])) == [on_grid(x, digits.MOMENT_BITS) ** 2]


def test_rounding_may_fill_the_lowest_digit_and_the_square_is_still_exact() -> None:
    xs = [2.0**2 - 2.0**-51, -(2.0**2) + 2.0**-51]  # their lowest digit rounds up to 2**32
    assert np.abs(dense(digits.float_digits(np.array(xs), 30, 3))).tolist() == [[2**32, 0, 0]] * 2
    assert integers(squares(xs)) == [2**64] * 2
    assert integers(squares([*xs, 2.0**60])) == [2**64, 2**64, 2**180], "beside a number of more digits too"


@examples(150)
@given(xs=st.lists(ints(), min_size=1))
def test_integers_and_their_squares_are_exact(xs: list[int]) -> None:
    values = np.array(xs, dtype=np.int64)
    assert integers(digits.int_digits(values)) == xs
    found = digits.int_squares(values)
    assert len(found) == digits.INT_SQUARE_DIGITS
    assert integers(found) == [x * x for x in xs]
    assert ((dense(found) >= 0) & (dense(found) < 2**32)).all()


@examples(150)
@given(xs=st.lists(numbers, min_size=1))
def test_squares_of_floats_are_exact(xs: list[float]) -> None:
    found = squares(xs)
    assert len(found) == digits.SQUARE_DIGITS
    assert integers(found) == [on_grid(x, digits.MOMENT_BITS) ** 2 for x in xs]
    assert ((dense(found) >= 0) & (dense(found) < 2**32)).all()


@pytest.mark.parametrize("scale", [2.0**-60, 1.0, 2.0**31, 2.0**32, 2.0**40])
def test_many_numbers_are_as_exact_as_few(scale: float) -> None:
    xs = np.random.default_rng(7).normal(size=40_000) * scale
    for bits, width in GRIDS:
        found = dense(digits.float_digits(xs, bits, width))
        parts = [dense(digits.float_digits(xs[i : i + 9_999], bits, width)) for i in range(0, len(xs), 9_999)]
        assert (found == np.concatenate(parts)).all()
        assert [digits.to_int(row) for row in found[::997].tolist()] == [on_grid(x, bits) for x in xs[::997].tolist()]
    assert [digits.to_int(row) for row in dense(squares(xs))[::997].tolist()] == [on_grid(x, 30) ** 2 for x in xs[::997].tolist()]
    whole = np.trunc(xs).astype(np.int64)
    assert integers(digits.int_squares(whole))[::997] == [x * x for x in whole[::997].tolist()]


@examples(60)
@given(xs=st.lists(numbers, min_size=1, max_size=30), rng=st.randoms(use_true_random=True))
def test_carrying_at_any_place_of_a_sum_changes_nothing(xs: list[float], rng: Random) -> None:
    terms = dense(digits.float_digits(np.array(xs), digits.SUM_BITS, digits.SUM_DIGITS))
    want = sum(on_grid(x, digits.SUM_BITS) for x in xs)
    piles = [terms[i : i + 1].copy() for i in rng.sample(range(len(xs)), len(xs))]
    while len(piles) > 1:
        if rng.random() < 0.5:
            digits.carry(piles[0])
        a, b = piles.pop(0), piles.pop(rng.randrange(len(piles)))
        piles.append(a + b)
    assert digits.to_int(piles[0][0].tolist()) == want
    digits.carry(piles[0])
    carried = piles[0][0].tolist()
    assert digits.to_int(carried) == want
    assert all(0 <= d < 2**32 for d in carried[:-1])
    again = piles[0].copy()
    digits.carry(again)
    assert again.tolist() == piles[0].tolist(), "an accumulator has one form"


@pytest.mark.parametrize("x", [2.0**64 - 2048, -(2.0**64) + 2048, 2.0**-60, 4 - 2.0**-51])
def test_the_most_floats_that_are_answered_cannot_overflow_a_digit(x: float) -> None:
    for columns in (squares([x]), *(digits.float_digits(np.array([x]), bits, width) for bits, width in GRIDS)):
        assert all(abs(d) * (digits.MAX_TERMS - 1) < 2**63 for d in dense(columns)[0].tolist())


@pytest.mark.parametrize("x", INTS)
def test_the_most_integers_that_are_answered_cannot_overflow_a_digit(x: int) -> None:
    for columns in (digits.int_digits(np.array([x])), digits.int_squares(np.array([x]))):
        assert all(-(2**63) <= d * (digits.MAX_TERMS - 1) < 2**63 for d in dense(columns)[0].tolist())


def test_nothing_has_digits_too() -> None:
    assert dense(squares([])).shape == (0, digits.SQUARE_DIGITS)
    assert dense(digits.int_squares(np.array([], dtype=np.int64))).shape == (0, digits.INT_SQUARE_DIGITS)
    assert dense(digits.float_digits(np.array([]), 60, 4)).shape == (0, 4)
    assert digits.to_int([]) == 0
