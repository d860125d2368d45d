"""Awkward values of every type, to try a filter on before any event comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from tidemill.times import DAY, MAX_TIME, MIN_TIME

_INTS = [0, 1, -1, None, 7, 2**63 - 1, -(2**63)]
_FLOATS = [0.0, None, -0.0, 1.5, float("nan"), -1e300, 1e-300]
_TEXTS = ["", "a", None, "1", "(", "2024-03-01", "01/02/2024", "ünïcode", "%", "-1.5e3", "2024-03-01T12:00:00Z"]
_BOOLS = [True, None, False]
_TIMES = [0, None, -1, MIN_TIME, MAX_TIME - 1, 20_000 * DAY + 1, 20_000 * DAY]
_ROWS = 33


def probe_frame(schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """A frame of 33 rows with these columns, each filled with the awkward values of its type, beginning elsewhere in each.

    >>> probe_frame({"n": pl.Int64()})["n"].to_list()[:4]
    [0, 1, -1, None]
    """
    columns = []
    for place, (name, kind) in enumerate(schema.items()):
        values = _values(kind)
        cycled = [values[(row * (place + 1) + place) % len(values)] for row in range(_ROWS)]
        columns.append(pl.Series(name, cycled, dtype=pl.Int64 if kind.is_temporal() else None, strict=False).cast(kind, strict=False))
    return pl.DataFrame(columns)


def _values(kind: pl.DataType) -> Sequence[int | float | str | bool | None]:
    if kind.is_temporal():
        return _TIMES
    if kind.is_integer():
        return _INTS
    if kind.is_float():
        return _FLOATS
    return _BOOLS if kind == pl.Boolean else _TEXTS
