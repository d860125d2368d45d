"""Many exact ratios at once, each correctly rounded: what `digits.to_int(row) / n` is, without a Python integer per row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tidemill.kernel.compiled import compiled_for_threads
from tidemill.kernel.digits import BASE_BITS, Float64s, Int64s

#: Digits beyond the point: 96 bits, so that 64 are left below the leading one of the smallest ratio, 1 / 2**31.
_POINT = 3
_SHIFT, _MASK = np.uint64(BASE_BITS), np.uint64((1 << BASE_BITS) - 1)


def ratios(words: Int64s, counts: Int64s, bits: int) -> Float64s:
    """`to_int(row) / (count << bits)` for every row of digits, shape (n, digits), correctly rounded. 0 <= counts < 2**31; by 0: NaN.

    Long division in base 2**32, three digits beyond the point, then the 64 leading bits, the lowest of them set where anything was cut
    off: so the one rounding, from 64 bits to a float's 53, goes the right way.

    >>> ratios(np.array([[1, 0], [-1, -1]]), np.array([3, 1]), 0).tolist() == [1 / 3, float(-1 - 2**32)]
    True
    """
    out = np.empty(len(words))
    _ratios(words, counts, bits, out)
    return out


@compiled_for_threads
def _ratios(words: Any, counts: Any, bits: int, out: Any) -> None:
    width = words.shape[1]
    digit = np.empty(width, dtype=np.int64)
    quotient = np.empty(width + 1 + _POINT, dtype=np.uint64)  # the last digit may have more than 32 bits
    for r in range(len(words)):
        if counts[r] == 0:
            out[r] = np.nan
            continue
        for i in range(width):
            digit[i] = words[r, i]
        negative = _carried(digit)
        if negative:
            for i in range(width):
                digit[i] = -digit[i]
            _carried(digit)
        divisor, rest = np.uint64(counts[r]), np.uint64(0)
        quotient[width + _POINT] = 0
        for i in range(width, -1, -1):
            part = np.uint64(digit[width - 1] >> BASE_BITS) if i == width else (rest << _SHIFT) + (np.uint64(digit[i]) & _MASK)
            if part == 0:
                quotient[i + _POINT] = 0
                rest = np.uint64(0)
            else:
                quotient[i + _POINT] = part // divisor
                rest = part - quotient[i + _POINT] * divisor
        for i in range(_POINT - 1, -1, -1):
            part = rest << _SHIFT
            quotient[i] = part // divisor if rest else np.uint64(0)
            rest = part - quotient[i] * divisor
        out[r] = _rounded(quotient, rest, bits)
        if negative:
            out[r] = -out[r]


@compiled_for_threads
def _carried(digit: Any) -> bool:
    """Bring the digits of one number below 2**32; whether it is negative."""
    for i in range(len(digit) - 1):
        digit[i + 1] += digit[i] >> BASE_BITS
        digit[i] &= (1 << BASE_BITS) - 1
    return bool(digit[-1] < 0)


@compiled_for_threads
def _rounded(quotient: Any, rest: Any, bits: int) -> float:
    leading = len(quotient) - 1
    while leading > 2 and quotient[leading] == 0:
        leading -= 1
    high, middle, low = quotient[leading], quotient[leading - 1], quotient[leading - 2]
    if high == 0 and middle == 0 and low == 0:
        return 0.0
    cut = rest != 0
    for i in range(leading - 2):
        cut = cut or quotient[i] != 0
    used = 0
    while high >> np.uint64(used):
        used += 1
    free = np.uint64(BASE_BITS - used)
    mantissa = ((high << _SHIFT | middle) << free) | (low >> np.uint64(used))
    if cut or low & ((np.uint64(1) << np.uint64(used)) - np.uint64(1)):
        mantissa |= np.uint64(1)
    return math.ldexp(float(mantissa), (leading - 1 - _POINT) * BASE_BITS - (BASE_BITS - used) - bits)
