"""Canonical entity keys: one text per entity, the same from a request, a stream, a batch and any machine.

One key column: its text. Several: each text with its length in bytes before it, `3:JFK2:AA`, which no two different keys share.
Integers are decimal, booleans `true` and `false`, instants UTC microseconds.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from tidemill.errors import RequestError
from tidemill.times import to_micros
from tidemill.types import ColumnType

#: Longer canonical keys are refused: in requests with an error, in logs as dead letters.
MAX_KEY_BYTES = 4096


def key_expr(keys: Sequence[str], types: Mapping[str, ColumnType]) -> pl.Expr:
    """The canonical key of each row, as a Polars expression over the key columns, which hold no null.

    >>> frame = pl.DataFrame({"origin": ["JFK"], "n": [7]})
    >>> frame.select(key_expr(["origin", "n"], {"origin": ColumnType("str"), "n": ColumnType("int")})).item()
    '3:JFK1:7'
    """
    texts = [_text_expr(pl.col(k), types[k]) for k in keys]
    if len(texts) == 1:
        return texts[0]
    return pl.concat_str([part for t in texts for part in (t.str.len_bytes().cast(pl.String), pl.lit(":"), t)])


def _text_expr(column: pl.Expr, kind: ColumnType) -> pl.Expr:
    if kind.name == "str":
        return column
    return column.cast(pl.Int64).cast(pl.String) if kind.name == "timestamp" else column.cast(pl.String)


def entity_key(row: Mapping[str, Any], keys: Sequence[str], types: Mapping[str, ColumnType]) -> str:
    """The canonical key of one request row. Raises `RequestError` for a key that is missing, null or of the wrong type.

    >>> entity_key({"origin": "JFK", "n": 7}, ["origin", "n"], {"origin": ColumnType("str"), "n": ColumnType("int")})
    '3:JFK1:7'
    """
    if len(keys) == 1:
        text = key_text(keys[0], row.get(keys[0]), types[keys[0]])
    else:
        texts = [key_text(k, row.get(k), types[k]) for k in keys]
        text = "".join(f"{len(t.encode())}:{t}" for t in texts)
    if len(text) > MAX_KEY_BYTES // 4 and len(text.encode()) > MAX_KEY_BYTES:
        raise RequestError(f"the key {', '.join(keys)} is longer than {MAX_KEY_BYTES} bytes")
    return text


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: halves of surrogate pairs, which JSON can bring, cannot."""
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def key_text(name: str, value: Any, kind: ColumnType) -> str:
    """The text of one key column's value."""
    if kind.name == "str":
        if isinstance(value, str):
            if not is_text(value):
                raise RequestError(f"key {name!r} is {value!r}, a half of a surrogate pair, which is no text: no event can have this key")
            return value
    elif kind.name == "int":
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return str(int(value))
    elif kind.name == "bool":
        if isinstance(value, (bool, np.bool_)):
            return "true" if value else "false"
    elif isinstance(value, (dt.datetime, str, np.datetime64)) and str(value) != "NaT":
        try:
            return str(to_micros(value))
        except ValueError:
            raise RequestError(f"key {name!r} is {value!r}: give an instant, such as '2024-03-01T12:00:00Z'") from None
    if value is None:
        raise RequestError(f"a request row has no key {name!r}: give it a value of type {kind}")
    raise RequestError(f"key {name!r} is {value!r} ({type(value).__name__}): give a value of type {kind}")
