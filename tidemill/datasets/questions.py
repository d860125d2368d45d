"""The frame that a training set is asked for with: keys, `event_timestamp`, request columns, and whatever else it carries along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from tidemill.definitions import FeatureSet
from tidemill.entities import MAX_KEY_BYTES
from tidemill.errors import RequestError
from tidemill.times import MAX_TIME, MIN_TIME
from tidemill.types import ColumnType

TIMESTAMP = "event_timestamp"
#: The instant of each row, UTC microseconds.
INSTANT = "_instant"

_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)


def as_frame(entity_df: Any) -> pl.DataFrame:
    """A pandas, Polars or Arrow frame, or a list of dicts, as a Polars frame with the same columns and rows. Raises `RequestError`."""
    if isinstance(entity_df, pl.DataFrame):
        return entity_df
    if isinstance(entity_df, pl.LazyFrame):
        return entity_df.collect()
    if hasattr(entity_df, "to_pylist"):  # an Arrow table or record batch, without importing it
        return pl.DataFrame(entity_df)
    if hasattr(entity_df, "to_dict") and hasattr(entity_df, "columns"):  # pandas; its index is not a column
        return pl.from_pandas(entity_df)
    if isinstance(entity_df, Iterable) and not isinstance(entity_df, (str, Mapping)):
        rows = list(entity_df)
        if all(isinstance(row, Mapping) for row in rows):
            return pl.DataFrame(rows, infer_schema_length=None)
    raise RequestError(f"entity_df is a {type(entity_df).__name__}: give a pandas, Polars or Arrow frame, or a list of dicts")


def check_columns(names: Sequence[str], wanted: FeatureSet) -> None:
    """Raise `RequestError` unless a frame with these columns can be asked for these features, and be answered beside them."""
    needed = {TIMESTAMP: "the instant of each row", **{k: f"a key ({t})" for k, t in wanted.keys.items()}}
    needed |= {name: f"a request column ({kind})" for name, kind in wanted.request.items() if name not in wanted.keys}
    for name, what in needed.items():
        if name not in names:
            raise RequestError(f"entity_df has no column {name!r}, {what}; it has {', '.join(names) or 'none'}")
    for name in names:
        if name in wanted.columns:
            raise RequestError(f"entity_df has a column {name!r}, which is what a feature is named: rename or drop it")


def instants(column: pl.Series, first: int = 0, what: str = TIMESTAMP) -> pl.Series:
    """The instant of each row as INSTANT, Int64 UTC microseconds: what is finer is floored, what is naive is read as UTC.

    Dates are midnight, text is ISO 8601, integers are microseconds. Raises `RequestError`, naming the first row that is none, counted
    from `first`.
    """
    kind = column.dtype
    if kind in (pl.String, pl.Object):
        times = _texts(column.cast(pl.String))
    elif isinstance(kind, pl.Datetime):
        times = column.cast(pl.Int64) // 1000 if kind.time_unit == "ns" else column.dt.cast_time_unit("us").cast(pl.Int64)
    elif kind == pl.Date:
        times = column.cast(pl.Datetime("us")).cast(pl.Int64)
    elif kind in _INTEGERS:
        times = column.cast(pl.Int64, strict=False)
    elif kind == pl.Null:
        times = column.cast(pl.Int64)
    else:
        raise RequestError(f"{what} is a column of {kind}: give datetimes, dates, ISO 8601 texts, or integers (UTC microseconds)")
    bad = (times.is_null() | (times < MIN_TIME) | (times >= MAX_TIME)).fill_null(True)
    if bad.any():
        row = bad.arg_max()
        assert row is not None
        raise RequestError(f"row {first + row}: {what} is {column[row]!r}: give an instant in the years 1 to 9999 in every row")
    return times.alias(INSTANT)


def _texts(column: pl.Series) -> pl.Series:
    from tidemill.times import to_micros

    known: dict[str, int | None] = {}
    for text in column.unique().drop_nulls().to_list():
        try:
            known[text] = to_micros(text)
        except ValueError:
            known[text] = None
    return pl.Series([None if text is None else known[text] for text in column.to_list()], dtype=pl.Int64)


def keys_of(frame: pl.DataFrame, types: Mapping[str, ColumnType], first: int = 0) -> pl.DataFrame:
    """The key columns in the types of the source. Raises `RequestError` for a key that is null, of another type or too long."""
    return pl.DataFrame([_key(frame[name], name, kind, first) for name, kind in types.items()])


def _key(column: pl.Series, name: str, kind: ColumnType, first: int) -> pl.Series:
    found = column.dtype
    if kind.name == "str":
        fits = found in (pl.String, pl.Categorical, pl.Enum)
    elif kind.name == "int":
        fits = found in _INTEGERS
    elif kind.name == "bool":
        fits = found == pl.Boolean
    else:
        return instants(column, first, f"key {name!r}").cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias(name)
    if column.null_count():
        row = column.is_null().arg_max()
        assert row is not None
        raise RequestError(f"row {first + row} has no key {name!r}: give it a value of type {kind}")
    if not fits and len(column):
        raise RequestError(f"key {name!r} is a column of {found}: give values of type {kind}")
    cast = column.cast(kind.polars, strict=False)
    if cast.null_count():
        row = cast.is_null().arg_max()
        assert row is not None
        raise RequestError(f"row {first + row}: key {name!r} is {column[row]!r}: give a value of type {kind}")
    if kind.name == "str" and (cast.str.len_bytes() > MAX_KEY_BYTES).any():
        row = (cast.str.len_bytes() > MAX_KEY_BYTES).arg_max()
        assert row is not None
        raise RequestError(f"row {first + row}: key {name!r} is longer than {MAX_KEY_BYTES} bytes")
    return cast
