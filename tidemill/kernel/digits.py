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
_BLOCK = 16_384

#: One digit of many numbers; None: 0 for all of them.
Digit = Int64s | None

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


def float_digits(x: Float64s, bits: int, digits: int) -> list[Digit]:
    """The integers nearest to `x * 2**bits` (ties to even) in `digits` digits. |x| < 2**64, finite; shape (n,) each.

    Every step is exact: what is cut off a float at a power of two, towards zero, leaves a float. All digits have the sign of x. A digit
    that is 0 for all is None.

    >>> to_int([0 if d is None else int(d[0]) for d in float_digits(np.array([-1.5]), 60, 4)]) == -3 * 2**59
    True
    """
    largest = float(np.abs(x).max(initial=0.0))
    used = [i for i in range(digits) if i == 0 or largest >= 2.0 ** (BASE_BITS * i - bits)]
    out = [np.empty(len(x), dtype=np.int64) for _ in used]
    for a, b in _blocks(len(x)):
        rest = x[a:b]
        for i in reversed(used[1:]):
            scale = 2.0 ** (BASE_BITS * i - bits)
            top = np.trunc(rest * (1 / scale))
            rest = rest - top * scale
            out[i][a:b] = top
        out[0][a:b] = np.rint(rest * 2.0**bits)
    return [*out, *[None] * (digits - len(used))]


def int_digits(x: Int64s) -> list[Digit]:
    """Integers in two digits.

    >>> [int(d[0]) for d in int_digits(np.array([-1]))]
    [4294967295, -1]
    """
    return [x & _MASK, x >> BASE_BITS]


def float_squares(x: Float64s, bits: int, digits: int) -> list[Digit]:
    """The digits of the squares of the integers nearest to `x * 2**bits`: at most six. |x| < 2**64, `bits` <= 30.

    >>> d = float_squares(np.array([-3e18 - 0.5, 0.1]), 30, 6)
    >>> to_int([int(c[0]) for c in d]) == (int(-3e18 - 0.5) * 2**30) ** 2
    True
    """
    if float(np.abs(x).max(initial=0.0)) < 2.0 ** (62 - bits):
        magnitude = np.empty(len(x), dtype=np.int64)
        for a, b in _blocks(len(x)):
            magnitude[a:b] = np.abs(np.rint(x[a:b] * 2.0**bits))
        return [*_squares([magnitude & _MASK, magnitude >> BASE_BITS]), *[None] * (digits - 4)]
    parts = np.abs(np.stack([np.zeros(len(x), dtype=np.int64) if d is None else d for d in float_digits(x, bits, digits // 2)], axis=1))
    carry(parts)  # rounding may have left 2**32 in the lowest digit, whose square would not fit
    return _squares([parts[:, i] for i in range(parts.shape[1])])


def int_squares(x: Int64s) -> list[Digit]:
    """The digits of the squares of integers: four.

    >>> to_int([int(c[0]) for c in int_squares(np.array([-(2**63)]))]) == 2**126
    True
    """
    magnitude = np.where(x < 0, (~x).astype(np.uint64) + np.uint64(1), x.astype(np.uint64))
    return _squares([(magnitude & np.uint64(_MASK)).astype(np.int64), (magnitude >> np.uint64(BASE_BITS)).astype(np.int64)])


def _squares(magnitude: Sequence[Int64s]) -> list[Digit]:
    """Long multiplication of numbers by themselves, digits below 2**32."""
    used = [d.astype(np.uint64) for d in magnitude]
    while len(used) > 1 and not used[-1].any():
        used.pop()
    n, width = len(magnitude[0]), 2 * len(used)
    out = [np.empty(n, dtype=np.int64) for _ in range(width)]
    mask, shift = np.uint64(_MASK), np.uint64(BASE_BITS)
    for low, high in _blocks(n):
        columns = [np.zeros(high - low, dtype=np.uint64) for _ in range(width + 1)]
        for i, a in enumerate(used):
            for j, b in enumerate(used[i:], start=i):
                product = a[low:high] * b[low:high]
                upper, lower = product >> shift, product & mask
                if i != j:
                    upper, lower = upper << np.uint64(1), lower << np.uint64(1)
                columns[i + j] += lower
                columns[i + j + 1] += upper
        for i in range(width):  # each column holds a few 32-bit terms: carry, so that they may be added 2**31 times
            columns[i + 1] += columns[i] >> shift
            out[i][low:high] = columns[i] & mask
    return [*out, *[None] * (2 * len(magnitude) - width)]


def _blocks(n: int) -> list[tuple[int, int]]:
    """Stretches that fit a core's cache with all their intermediate results."""
    return [(a, min(a + _BLOCK, n)) for a in range(0, n, _BLOCK)]


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
