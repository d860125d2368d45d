"""Entity rows, as people hold them, made into what JSON can carry."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from numbers import Real
from typing import Any

from tidemill.entity_rows import rows_of
from tidemill.errors import RequestError


def plain_rows(entity_rows: Any) -> list[dict[str, Any]]:
    """Rows as a list of dicts: of dicts, or of a Polars, pandas or Arrow frame, none of which is imported.

    >>> plain_rows([{"origin": "JFK"}])
    [{'origin': 'JFK'}]
    """
    return [dict(row) for row in rows_of(entity_rows, lambda frame: list(frame.to_dict("records")))]


def json_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, in what JSON can carry: NaN and NaT are null, as in process; numbers of NumPy are Python's; instants are text.

    Raises `RequestError` for an infinite value, and for what is no scalar.

    >>> json_rows([{"x": float("nan"), "at": dt.datetime(2026, 3, 1, tzinfo=dt.UTC)}])
    [{'x': None, 'at': '2026-03-01T00:00:00+00:00'}]
    """
    return [{str(name): _json(name, value, row) for name, value in columns.items()} for row, columns in enumerate(rows)]


def _json(name: object, value: Any, row: int) -> str | int | float | bool | None:
    if value is None or type(value) in (str, int, bool):
        return value  # type: ignore[no-any-return]
    if hasattr(value, "dtype") and hasattr(value, "item") and not getattr(value, "shape", ()):  # a NumPy scalar
        value = value.astype("datetime64[us]").item() if value.dtype.kind == "M" else value.item()
    if isinstance(value, dt.datetime):
        return None if value != value else value.isoformat()  # noqa: PLR0124 - pandas' NaT is a datetime
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):  # of a class of its own, as the members of an enumeration are
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, (Real, Decimal)):
        number = float(value)
        if math.isinf(number):
            raise RequestError(f"row {row}: {name!r} is {value!r}, and JSON has no infinity: give a finite number, or None")
        return None if math.isnan(number) else number
    raise RequestError(f"row {row}: {name!r} is {value!r} ({type(value).__name__}): give text, a number, a bool, an instant or None")


def json_instant(at: dt.datetime | int | str | None) -> int | str | None:
    """An instant of a request in what JSON can carry. Raises `RequestError` for what cannot be one."""
    if at is None or (isinstance(at, (int, str)) and not isinstance(at, bool)):
        return at
    if isinstance(at, dt.datetime):
        return at.isoformat()
    found = _json("at", at, 0) if hasattr(at, "dtype") else None
    if isinstance(found, (int, str)) and not isinstance(found, bool):
        return found
    raise RequestError(f"at is {at!r}: give a datetime, an ISO 8601 text such as '2024-03-01T12:00:00Z', or UTC microseconds")
