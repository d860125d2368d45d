"""The oracle: what a feature is, by brute force over raw events. Short enough to be obviously right, and far too slow to serve.

The project's own tests hold everything else equal to it; use it to check definitions of your own. It works on plain Python
values, with exact fractions, and shares with the library only what a sketch *is* (its buckets, its registers), never how states merge.
"""

from __future__ import annotations

import datetime as dt
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import xxhash

from tidemill.aggregations import Aggregation
from tidemill.definitions.expressions import Filter
from tidemill.kernel.buckets import bucket_middles
from tidemill.kernel.registers import PRECISION, estimate
from tidemill.kernel.table import OVERFLOW
from tidemill.times import Window, to_micros, window_start
from tidemill.types import ColumnType

Event = Mapping[str, Any]


def brute_force(
    aggregation: Aggregation,
    window: Window,
    events: Sequence[Event],
    t: int | dt.datetime | str,
    *,
    schema: Mapping[str, ColumnType],
    timestamp: str,
    event_id: str | None = None,
    passes: Callable[[Event], bool] | None = None,
) -> Any:
    """The value at the instant `t` of one aggregation over one window, given all known events of one entity.

    Events are dicts of plain values (timestamps as UTC microseconds or datetimes), in any order, already past the source's checks:
    no infinity, nothing beyond its range. NaN is null. `passes` stands in for the aggregation's `where`, if given. Returns None for
    null, OVERFLOW where the answer does not fit, lists for last_n.

    >>> from tidemill.aggregations import sum
    >>> a = sum("x", windows=["1h"])
    >>> events = [{"at": 0, "x": 0.1}, {"at": 1, "x": 0.2}, {"at": 2, "x": None}]
    >>> schema = {"at": ColumnType("timestamp"), "x": ColumnType("float")}
    >>> brute_force(a, a.windows[0], events, 2, schema=schema, timestamp="at")
    0.30000000000000004
    """
    end = to_micros(t)
    begin = window_start(end, window)
    counts = passes or (_filter(aggregation.where, schema) if aggregation.where else lambda _: True)
    inside = [e for e in events if begin <= to_micros(e[timestamp]) < end and counts(e)]
    if aggregation.column is None:
        return len(inside)
    kind = schema[aggregation.column].name
    rows = [
        (to_micros(e[timestamp]), e.get(event_id) if event_id else None, plain)
        for e in inside
        if (plain := _plain(e[aggregation.column])) is not None
    ]
    values = [value for _, _, value in rows]
    ordered = sorted(rows, key=lambda r: (r[0], r[1] is not None, r[1] if r[1] is not None else 0, r[2]))
    n = len(values)
    match aggregation.function:
        case "sum" if kind == "float":
            return float(_sum(_grid(v, 60) for v in values))
        case "sum":
            total = sum(int(v) for v in values)
            return total if -(2**63) <= total < 2**63 else OVERFLOW
        case "mean":
            return float(_sum(_grid(v, 60) if kind == "float" else Fraction(int(v)) for v in values) / n) if n else None
        case "variance" | "stddev":
            population = aggregation.options()["population"]
            if n < (1 if population else 2):
                return None
            exact = [_grid(v, 30) if kind == "float" else Fraction(int(v)) for v in values]
            mean = _sum(exact) / n
            variance = _sum((x - mean) ** 2 for x in exact) / (n if population else n - 1)
            return float(variance) if aggregation.function == "variance" else _root(variance)
        case "min":
            return _shown(min(values), kind) if n else None
        case "max":
            return _shown(max(values), kind) if n else None
        case "first":
            return _shown(ordered[0][2], kind) if n else None
        case "last":
            return _shown(ordered[-1][2], kind) if n else None
        case "last_n":
            return [_shown(v, kind) for _, _, v in ordered[::-1][: aggregation.options()["n"]]] or None
        case "quantile":
            q = Fraction(str(aggregation.options()["q"]))
            return _middle_of_bucket(float(sorted(values)[math.floor(q * (n - 1))])) if n else None
        case "approx_count_distinct":
            return _distinct(values, kind) if n else None
    raise ValueError(f"the oracle does not know {aggregation.function}")


def _sum(terms: Any) -> Fraction:
    return sum(terms, Fraction(0))


def _plain(value: Any) -> Any:
    """NaN is null; instants are microseconds."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return to_micros(value) if isinstance(value, dt.datetime) else value


def _grid(value: float, bits: int) -> Fraction:
    """The multiple of 2**-bits nearest to a float, ties to even: `round` of a fraction does just that."""
    return Fraction(round(Fraction(value) * 2**bits), 2**bits)


def _root(x: Fraction) -> float:
    """The square root to 200 digits, then rounded once."""
    context = Context(prec=200)
    return float(context.sqrt(context.divide(Decimal(x.numerator), Decimal(x.denominator))))


def _shown(value: Any, kind: str) -> Any:
    if kind == "timestamp":
        return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=value)
    return bool(value) if kind == "bool" else value + 0.0 if kind == "float" else value


def _middle_of_bucket(value: float) -> float:
    """64 buckets to each power of two, from 2**-1022 on."""
    if abs(value) < 2.0**-1022:
        magnitude = 0
    else:
        mantissa, exponent = math.frexp(abs(value))  # in [0.5, 1)
        magnitude = (exponent + 1022) * 64 + math.floor((mantissa * 2 - 1) * 64)
    return float(bucket_middles(np.array([magnitude if value > 0 else -magnitude]))[0])


def _distinct(values: Sequence[Any], kind: str) -> int:
    registers: dict[int, int] = {}
    for value in values:
        if kind == "str":
            canonical = value.encode()
        elif kind == "float":
            canonical = pl.Series([value + 0.0]).to_numpy().tobytes()
        else:
            canonical = int(value).to_bytes(8, "little", signed=True)
        bits = f"{xxhash.xxh3_64_intdigest(canonical):064b}"
        rest = bits[PRECISION:]
        rank = len(rest) - len(rest.lstrip("0")) + 1
        register = int(bits[:PRECISION], 2)
        registers[register] = max(registers.get(register, 0), rank)
    histogram = [0] * (64 - PRECISION + 2)
    for rank in registers.values():
        histogram[rank] += 1
    return estimate(histogram) or 0


def _filter(where: str, schema: Mapping[str, ColumnType]) -> Callable[[Event], bool]:
    """The filter on one event at a time."""
    mask = Filter(where)

    def passes(event: Event) -> bool:
        frame = pl.DataFrame(
            {
                c: pl.Series([event.get(c)], dtype=pl.Int64 if k.name == "timestamp" and isinstance(event.get(c), int) else k.polars)
                for c, k in schema.items()
            }
        )
        frame = frame.with_columns(pl.col(c).cast(pl.Datetime("us", "UTC")) for c, k in schema.items() if k.name == "timestamp")
        return bool(frame.select(mask.mask(frame)).item())

    return passes


def identical(a: Any, b: Any) -> bool:
    """Whether two values are the same in type and in every bit: 1 is not 1.0, and 0.0 is not -0.0.

    >>> identical(0.0, -0.0), identical([1], [1]), identical(True, 1)
    (False, True, False)
    """
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(identical, a, b))
    return struct.pack("<d", a) == struct.pack("<d", b) if isinstance(a, float) else bool(a == b)
