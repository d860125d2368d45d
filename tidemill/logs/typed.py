"""The first half of decoding: records to columns of the right kind, and the records that have none.

Both halves together are `tidemill.logs.decode`. This module is what the formats share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.times import END
from tidemill.types import ColumnType

Int64s = npt.NDArray[np.int64]
Schema = Mapping[str, ColumnType]

#: An epoch number that no int64 of microseconds holds: outside every allowed time, as `tidemill.times.END` is.
OUTSIDE = END
_WHOLE = 2**53


class Typed(NamedTuple):
    """Records with columns, and records without.

    `frame` has every schema column: Int64, Float64 (still with NaN and infinities), String, Boolean; timestamps are String (ISO 8601,
    not read yet) or Int64 (UTC microseconds, not checked yet). `rows` (n) are their record numbers, ascending. `dead`: record number
    and reason of the others.
    """

    frame: pl.DataFrame
    rows: Int64s
    dead: list[tuple[int, str]]


def reason_not(name: str, kind: ColumnType) -> str:
    """The reason for a value of the wrong type.

    >>> reason_not("n", ColumnType("int")), reason_not("at", ColumnType("timestamp", "ms"))
    ('n: not an int', "at: not an epoch number in 'ms'")
    """
    if kind.name == "timestamp":
        return reason_not_iso(name) if kind.unit is None else f"{name}: not an epoch number in {kind.unit!r}"
    return f"{name}: not {'an' if kind.name == 'int' else 'a'} {kind.name}"


def reason_not_iso(name: str) -> str:
    """The reason for a timestamp that is not text, or that cannot be read."""
    return f"{name}: not an ISO 8601 time"


def reason_too_large(name: str) -> str:
    """The reason for an integer that 64 bits do not hold."""
    return f"{name}: outside the 64-bit integers"


def epoch_micros(value: float, factor: int) -> int | None:
    """One epoch number as UTC microseconds; NaN is None. An integer is exact; a float is taken to the nearest microsecond.

    >>> epoch_micros(1.5, 1000), epoch_micros(10**30, 1), epoch_micros(float("nan"), 1)
    (1500, 288230376151711744, None)
    """
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value, factor = value * factor, 1
        value = round(value) if abs(value) < OUTSIDE else OUTSIDE
    return value * factor if -OUTSIDE < value * factor < OUTSIDE else OUTSIDE


def epoch_micros_of_ints(name: str, factor: int) -> pl.Expr:
    """`epoch_micros` of an Int64 column."""
    bound = OUTSIDE // factor
    column = pl.col(name)
    inside = column.is_between(-bound, bound, closed="none")
    return pl.when(inside).then(column * factor).when(column.is_not_null()).then(OUTSIDE).alias(name)


def epoch_micros_of_floats(name: str, factor: int) -> pl.Expr:
    """`epoch_micros` of a Float64 column."""
    scaled = pl.col(name).fill_nan(None) * float(factor)
    inside = scaled.abs() < float(OUTSIDE)
    rounded = pl.when(inside).then(scaled).otherwise(0.0).round(mode="half_to_even").cast(pl.Int64)
    return pl.when(inside).then(rounded).when(scaled.is_not_null()).then(OUTSIDE).alias(name)


def may_be_rounded(name: str) -> pl.Expr:
    """Whether a number that was read as a float may have been an integer that floats do not hold."""
    return pl.col(name).abs() >= float(_WHOLE)
