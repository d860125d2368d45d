"""Frames to typed columns: text columns (CSV) and columns with the file's own types (Parquet)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from tidemill.logs.typed import (
    OUTSIDE,
    Schema,
    Typed,
    epoch_micros_of_floats,
    epoch_micros_of_ints,
    reason_not,
    reason_too_large,
)
from tidemill.times import DAY
from tidemill.types import ColumnType

_PER_MILLI = 1_000
_INTEGER = r"^[+-]?\d+$"

#: A column as it ought to be, and for each reason where it is not.
Column = tuple[pl.Series, list[tuple[pl.Series, str]]]


def text_columns(frame: pl.DataFrame, schema: Schema) -> Typed:
    """Columns of text. Numbers are decimal, without spaces; booleans are true, false, 1 or 0, in any case."""
    return _columns(frame, schema, _from_text)


def typed_columns(frame: pl.DataFrame, schema: Schema) -> Typed:
    """Columns with types. Every width of integer and float will do, decimals for floats, any unit and zone for timestamps."""
    return _columns(frame, schema, _from_type)


def _columns(frame: pl.DataFrame, schema: Schema, convert: Callable[[pl.Series, str, ColumnType], Column]) -> Typed:
    columns: list[pl.Series] = []
    faults: list[tuple[pl.Series, str]] = []
    for name, kind in schema.items():
        if name in frame.columns and frame[name].dtype != pl.Null:
            column, wrong = convert(frame[name], name, kind)
            columns.append(column.alias(name))
            faults += [(mask, reason) for mask, reason in wrong if mask.any()]
        else:
            empty = kind.polars if kind.name != "timestamp" else pl.Int64()
            columns.append(pl.Series(name, [None], dtype=empty).new_from_index(0, frame.height))
    rows = np.arange(frame.height, dtype=np.int64)
    typed = pl.DataFrame(columns)
    if not faults:
        return Typed(typed, rows, [])
    reasons: dict[int, str] = {}
    for mask, reason in faults:
        for row in mask.arg_true().to_list():
            reasons.setdefault(row, reason)
    good = np.ones(frame.height, dtype=np.bool_)
    good[list(reasons)] = False
    return Typed(typed.filter(pl.Series(good)), rows[good], sorted(reasons.items()))


def _from_text(text: pl.Series, name: str, kind: ColumnType) -> Column:
    there = text.is_not_null()
    if kind.name == "str" or (kind.name == "timestamp" and kind.unit is None):
        return text, []
    if kind.name == "int":
        integers = text.cast(pl.Int64, strict=False)
        return integers, _unread_integers(text, there & integers.is_null(), name, kind)
    if kind.name == "bool":
        words = {"true": True, "1": True, "false": False, "0": False}
        booleans = text.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Boolean)
        return booleans, [(there & booleans.is_null(), reason_not(name, kind))]
    floats = text.cast(pl.Float64, strict=False)
    wrong = [(there & floats.is_null(), reason_not(name, kind))]
    if kind.name == "float":
        return floats, wrong
    factor = kind.micros_per_unit
    both = pl.DataFrame({"i": text.cast(pl.Int64, strict=False), "f": floats})
    return both.select(pl.coalesce(epoch_micros_of_ints("i", factor), epoch_micros_of_floats("f", factor))).to_series(), wrong


def _unread_integers(text: pl.Series, unread: pl.Series, name: str, kind: ColumnType) -> list[tuple[pl.Series, str]]:
    if not unread.any():
        return []
    return [(unread & text.str.contains(_INTEGER), reason_too_large(name)), (unread, reason_not(name, kind))]


def _from_type(column: pl.Series, name: str, kind: ColumnType) -> Column:
    there, dtype = column.dtype, kind.polars
    if kind.name == "timestamp":
        return _from_time(column, name, kind)
    if there == dtype:
        return column, []
    if kind.name == "int" and there.is_integer():
        integers = column.cast(pl.Int64, strict=False)
        return integers, [(column.is_not_null() & integers.is_null(), reason_too_large(name))]
    fits = (
        (kind.name == "float" and there.is_numeric())
        or (kind.name == "str" and there in (pl.String, pl.Categorical, pl.Enum))
        or (kind.name == "bool" and there == pl.Boolean)
    )
    return (column.cast(dtype), []) if fits else _nothing(column, name, kind, dtype)


def _from_time(column: pl.Series, name: str, kind: ColumnType) -> Column:
    there = column.dtype
    if isinstance(there, pl.Datetime) and there.time_unit == "us":
        return column.to_physical(), []
    frame = pl.DataFrame({"t": column.to_physical() if isinstance(there, pl.Datetime) else column})
    if isinstance(there, pl.Datetime):
        if there.time_unit == "ns":
            return frame.select(pl.col("t") // 1_000).to_series(), []  # floors, also before 1970
        return frame.select(epoch_micros_of_ints("t", _PER_MILLI)).to_series(), []
    if there == pl.Date:
        return frame.select(pl.col("t").to_physical().cast(pl.Int64)).select(epoch_micros_of_ints("t", DAY)).to_series(), []
    if kind.unit is None:
        return (column.cast(pl.String), []) if there in (pl.String, pl.Categorical, pl.Enum) else _nothing(column, name, kind, pl.Int64())
    factor = kind.micros_per_unit
    if there.is_integer():
        integers = pl.DataFrame({"t": column.cast(pl.Int64, strict=False)}).select(epoch_micros_of_ints("t", factor)).to_series()
        return integers.fill_null(OUTSIDE).zip_with(column.is_not_null(), pl.Series([None], dtype=pl.Int64)), []
    if there.is_numeric():
        return pl.DataFrame({"t": column.cast(pl.Float64)}).select(epoch_micros_of_floats("t", factor)).to_series(), []
    return _nothing(column, name, kind, pl.Int64())


def _nothing(column: pl.Series, name: str, kind: ColumnType, dtype: pl.DataType) -> Column:
    """A column of the wrong type: only its nulls can be read."""
    return pl.Series(name, [None], dtype=dtype).new_from_index(0, len(column)), [(column.is_not_null(), reason_not(name, kind))]
