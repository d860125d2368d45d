"""Ratios of exact integers are rounded as Python rounds int / int."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import examples
from tidemill.kernel.digits import MAX_TERMS
from tidemill.kernel.ratios import ratios
from tidemill.testing import identical

#: Around what a float can just hold, and what it has to round: ties, and one beside them.
_AWKWARD = tuple(
    s * (v + d) << shift for s in (1, -1) for v in (0, 2**53, 2**54, 2**64) for d in (-2, -1, 0, 1, 2, 3) for shift in (0, 5, 33)
)
_INTEGERS = st.sampled_from(_AWKWARD) | st.integers(-(2**120), 2**120) | st.integers(-(2**40), 2**40)
_COUNTS = st.sampled_from((1, 2, 3, 10, MAX_TERMS - 1)) | st.integers(1, MAX_TERMS - 1)


def digits_of(value: int, width: int, borrowed: int) -> list[int]:
    """An integer in digits, as sums leave them: `borrowed` units of the second digit stand in the first."""
    out = [(value >> 32 * i) & 0xFFFFFFFF for i in range(width - 1)] + [value >> 32 * (width - 1)]
    out[0] += borrowed << 32
    out[1] -= borrowed
    return out


@examples(60)
@given(rows=st.lists(st.tuples(_INTEGERS, _COUNTS, st.integers(-(2**29), 2**29)), min_size=1), bits=st.sampled_from((0, 30, 60)))
def test_a_ratio_is_what_python_makes_of_it(rows: list[tuple[int, int, int]], bits: int) -> None:
    words = np.array([digits_of(value, 4, borrowed) for value, _, borrowed in rows], dtype=np.int64)
    found = ratios(words, np.array([n for _, n, _ in rows]), bits)
    for got, (value, n, _) in zip(found.tolist(), rows, strict=True):
        assert identical(got, value / (n << bits)), (value, n)


def test_a_ratio_by_nothing_is_nan() -> None:
    assert np.isnan(ratios(np.array([[0, 0]]), np.array([0]), 0)).all()
