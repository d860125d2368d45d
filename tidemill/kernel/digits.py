"""Exact sums in base 2**32: integers of any width as columns of int64 digits, least significant first.

A float sum depends on the order of its terms; an integer sum does not. So a number is put once, per event, on a fixed grid, and its
integer is written in digits of 32 bits, the last one signed. Digit columns add as plain int64, at full speed in Polars, NumPy,
Parquet or any SQL engine, in any order and grouping, and 2**31 terms cannot overflow them; `carry` brings them back below 2**32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]

BASE_BITS = 32
_MASK = (1 << BASE_BITS) - 1

#: Sums of floats: multiples of 2**-60, |x| < 2**64, so 124 bits and the sign in four digits.
SUM_BITS = 60
SUM_DIGITS = 4
#: Variances of floats: multiples of 2**-30, so 94 bits and the sign in three digits, and squares of 188 bits in six.
MOMENT_BITS = 30
MOMENT_DIGITS = 3
SQUARE_DIGITS = 6
#: Integers and their squares.
INT_DIGITS = 2
INT_SQUARE_DIGITS = 4
#: More terms than this and a digit could have overflowed: the answer is `overflow`, never a wrapped number.
MAX_TERMS = 1 << 31


def float_digits(x: Float64s, bits: int, digits: int) -> list[Int64s]:
    """The integers nearest to `x * 2**bits` (ties to even) in `digits` digits. |x| < 2**64, finite; shape (n,) each.

    Every step is exact: what is cut off a float at a power of two, towards zero, leaves a float. All digits have the sign of x.

    >>> to_int([int(d[0]) for d in float_digits(np.array([-1.5]), 60, 4)]) == -3 * 2**59
    True
    """
    out: list[Int64s] = []
    rest = x
    for i in reversed(range(1, digits)):
        scale = 2.0 ** (BASE_BITS * i - bits)
        top = np.trunc(rest / scale)
        rest = rest - top * scale
        out.append(top.astype(np.int64))
    out.append(np.rint(rest * 2.0**bits).astype(np.int64))
    return out[::-1]


def int_digits(x: Int64s) -> list[Int64s]:
    """Integers in two digits.

    >>> [int(d[0]) for d in int_digits(np.array([-1]))]
    [4294967295, -1]
    """
    return [x & _MASK, x >> BASE_BITS]


def float_squares(digits: Sequence[Int64s]) -> list[Int64s]:
    """The digits of the squares of what `float_digits` gave.

    >>> d = float_squares(float_digits(np.array([-3e18 - 0.5, 0.1]), 30, 3))
    >>> to_int([int(c[0]) for c in d]) == (int(-3e18 - 0.5) * 2**30) ** 2
    True
    """
    magnitude = np.abs(np.stack(digits, axis=1))
    carry(magnitude)  # rounding may have left 2**32 in the lowest digit, whose square would not fit
    return _squares([magnitude[:, i].astype(np.uint64) for i in range(len(digits))])


def int_squares(x: Int64s) -> list[Int64s]:
    """The digits of the squares of integers.

    >>> to_int([int(c[0]) for c in int_squares(np.array([-(2**63)]))]) == 2**126
    True
    """
    magnitude = np.where(x < 0, (~x).astype(np.uint64) + np.uint64(1), x.astype(np.uint64))
    return _squares([magnitude & np.uint64(_MASK), magnitude >> np.uint64(BASE_BITS)])


def _squares(magnitude: Sequence[npt.NDArray[np.uint64]]) -> list[Int64s]:
    """Long multiplication of numbers by themselves, digits below 2**32."""
    width = 2 * len(magnitude)
    columns = [np.zeros(len(magnitude[0]), dtype=np.uint64) for _ in range(width + 1)]
    mask, shift = np.uint64(_MASK), np.uint64(BASE_BITS)
    for i, a in enumerate(magnitude):
        for j, b in enumerate(magnitude[i:], start=i):
            product = a * b
            for _ in range(1 if i == j else 2):
                columns[i + j] += product & mask
                columns[i + j + 1] += product >> shift
    for i in range(width):  # each column holds a few 32-bit terms: carry, so that they may be added 2**31 times
        columns[i + 1] += columns[i] >> shift
        columns[i] &= mask
    return [c.astype(np.int64) for c in columns[:width]]


def carry(words: Int64s) -> None:
    """Bring the digits of one accumulator, shape (n, digits), below 2**32 in place; the last digit keeps the rest and the sign.

    >>> w = np.array([[2**32 + 1, -1, 5]]); carry(w); w.tolist()
    [[1, 0, 5]]
    """
    for i in range(words.shape[1] - 1):
        words[:, i + 1] += words[:, i] >> BASE_BITS
        words[:, i] &= _MASK


def to_int(digits: Sequence[int]) -> int:
    """The integer that digits stand for.

    >>> to_int([4294967295, -1])
    -1
    """
    out = 0
    for d in reversed(digits):
        out = (out << BASE_BITS) + d
    return out
