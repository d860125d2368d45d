"""The frame that a training set is asked for with: keys, `event_timestamp`, request columns, and whatever else it carries along."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from tidemill.definitions import FeatureSet
from tidemill.entities import MAX_KEY_BYTES
from tidemill.errors import RequestError
from tidemill.times import DAY, MAX_TIME, MILLISECOND, MIN_TIME
from tidemill.types import ColumnType

TIMESTAMP = "event_timestamp"
#: The instant of each row, UTC microseconds.
INSTANT = "_instant"

_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)


def as_frame(entity_df: Any) -> pl.DataFrame:
    """A pandas, Polars or Arrow frame, or a list of dicts, as a Polars frame with the same columns and rows.

    No value changes its kind on the way: where a column holds values of several (text beside numbers, dates beside instants), there is
    no one type for all of it. Raises `RequestError` then, and for everything else that makes no columns.
    """
    if isinstance(entity_df, pl.DataFrame):
        return entity_df
    try:
        if isinstance(entity_df, pl.LazyFrame):
            return entity_df.collect()
        if hasattr(entity_df, "to_pylist"):  # an Arrow table or record batch, without importing it
            return pl.DataFrame(entity_df)
        if hasattr(entity_df, "to_dict") and hasattr(entity_df, "columns"):  # pandas; its index is not a column
            for name, column in entity_df.items():
                if str(column.dtype) == "object":  # Arrow would make a date of an instant that follows one
                    _check_kinds(name, column.tolist())
            return pl.from_pandas(entity_df)
        if isinstance(entity_df, Iterable) and not isinstance(entity_df, (str, Mapping)):
            rows = list(entity_df)
            if all(isinstance(row, Mapping) for row in rows):
                return _of_dicts(rows)
    except (pl.exceptions.PolarsError, ValueError, TypeError, OverflowError) as error:  # Arrow's errors are ValueErrors and TypeErrors
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequestError(f"the rows make no frame: {said}") from None
    raise RequestError(f"entity_df is a {type(entity_df).__name__}: give a pandas, Polars or Arrow frame, or a list of dicts")


def _of_dicts(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    for name in dict.fromkeys(name for row in rows for name in row):
        _check_kinds(name, [row.get(name) for row in rows])
    plain = [{name: _plain(value) for name, value in row.items()} for row in rows]
    return pl.DataFrame(plain, infer_schema_length=None)


def _plain(value: Any) -> Any:
    """NumPy's instants, of which Polars makes numbers in a dict, as `datetime`; NaT as None."""
    return value.astype("datetime64[us]").item() if isinstance(value, np.datetime64) else value


#: What a value may be, for columns of Python objects; a bool is no number, and an instant no date, though Python has them so.
_KINDS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("text", (str,)),
    ("booleans", (bool, np.bool_)),
    ("numbers", (int, float, Decimal, np.number)),
    ("instants", (dt.datetime, np.datetime64)),
    ("dates", (dt.date,)),
)


def _kind(type_: type) -> str | None:
    return next((kind for kind, types in _KINDS if issubclass(type_, types)), None)


def _check_kinds(name: object, values: Sequence[Any]) -> None:
    """Raise `RequestError` where a column has values of two kinds. Null, NaN and NaT are of any."""
    kinds = {type_: kind for type_ in set(map(type, values)) if (kind := _kind(type_)) is not None}
    if len(set(kinds.values())) < 2:
        return
    first: dict[str, int] = {}
    for row, value in enumerate(values):
        kind = kinds.get(type(value))
        if kind is not None and value == value:  # noqa: PLR0124 - NaN, NaT
            first.setdefault(kind, row)
    if len(first) > 1:
        told = " and ".join(f"{kind} (row {row})" for kind, row in first.items())
        raise RequestError(f"column {name!r} holds {told}: give values of one kind")


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
    if kind == pl.String:
        times = _texts(column)
    elif isinstance(kind, pl.Datetime):
        number = column.to_physical()
        times = number // 1000 if kind.time_unit == "ns" else number if kind.time_unit == "us" else _times_of(number, MILLISECOND)
    elif kind == pl.Date:
        times = _times_of(column.to_physical().cast(pl.Int64), DAY)
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
        raise RequestError(f"row {first + row}: {what} is {_shown(column, row)}: give an instant in the years 1 to 9999 in every row")
    return times.alias(INSTANT)


def known_from(column: pl.Series, what: str) -> pl.Series:
    """When what is dated so is known, as `instants`; but a date, which says no hour, only when its day (UTC) is over.

    >>> known_from(pl.Series(["1970-01-01T12:00:00", "1970-01-01"]), "label_time").to_list() == [DAY // 2, DAY]
    True
    """
    times = instants(column, what=what)
    if column.dtype == pl.Date:
        return times + DAY
    if column.dtype == pl.String:
        days = {text for text in column.unique().to_list() if _is_date(text)}
        return times + DAY * column.is_in(days).cast(pl.Int64) if days else times
    return times


def _is_date(text: str) -> bool:
    try:
        dt.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _times_of(numbers: pl.Series, unit: int) -> pl.Series:
    """Int64 in a unit to microseconds; null where that leaves the years 1 to 9999, so that nothing wraps into them."""
    inside = numbers.is_between(MIN_TIME // unit, MAX_TIME // unit, closed="left")
    return numbers.set(~inside, None) * unit


def _shown(column: pl.Series, row: int) -> str:
    """A value for people; of a time that Python cannot say, the number that stands for it."""
    if column.dtype.is_temporal() and column.to_physical()[row] is not None:
        return f"{column.to_physical()[row]} ({column.dtype})"
    return repr(column[row])


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
    elif found in _INTEGERS and len(column):  # of which unit, a request could not say either
        raise RequestError(f"key {name!r} is a column of {found}: give datetimes, or ISO 8601 texts")
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
