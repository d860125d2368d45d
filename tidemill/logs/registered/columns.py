"""Values in Confluent's wire format to typed columns.

Each is read with the schema that it was written with. What may be in which column is not decided here: the values become columns with
the types that their format gives them, and `typed_columns` does with them as it does with those of a Parquet file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl

from tidemill.logs.frame_columns import typed_columns
from tidemill.logs.records import too_long
from tidemill.logs.registered.written import HEADER, NOTHING, Columns, Dead, Message, WrittenSchema
from tidemill.logs.typed import Schema, Typed, epoch_micros_of_ints
from tidemill.times import DAY

_NOT_FRAMED = "not in Confluent's wire format: a zero byte, the id of a schema in 4 bytes, then the value"
_ROW = "\0row"


class Schemas(Protocol):
    """Where writers' schemas are known."""

    def schemas(self, ids: Collection[int]) -> Mapping[int, WrittenSchema | str]:
        """By id, the schema, or the reason why there is none that can be used. Raises `LogUnavailableError`: it cannot be said now."""
        ...


class RegisteredColumns:
    """Reads columns from values. `max_record`: bytes of a value."""

    def __init__(self, schemas: Schemas, max_record: int) -> None:
        self._schemas = schemas
        self._max = max_record

    def read(self, values: Sequence[bytes], schema: Schema) -> list[Typed]:
        """The columns of `schema`, in one part for each schema that values were written with, or more. Raises `LogUnavailableError`.

        A value is decided by itself, and by what the registry says of its id.
        """
        dead: list[Dead] = []
        ids: dict[int, list[int]] = {}
        for row, value in enumerate(values):
            if len(value) > self._max:
                dead.append((row, too_long(self._max)))
            elif len(value) < HEADER or value[0] != 0:
                dead.append((row, _NOT_FRAMED))
            else:
                ids.setdefault(int.from_bytes(value[1:HEADER], "big"), []).append(row)
        parts: list[Typed] = []
        known = self._schemas.schemas(ids) if ids else {}
        for number, rows in ids.items():
            written = known[number]
            if isinstance(written, str):
                dead += [(row, written) for row in rows]
                continue
            messages, none = written.messages(values, rows, number)
            dead += none
            for message, its in messages:
                columns, read, unread = message.columns(values, its, schema, number)
                dead += unread
                for some, kept, types in _alike(columns, read, message):
                    parts.append(_typed(some, kept, types, message, schema))
        nothing = typed_columns(pl.DataFrame({_ROW: []}), schema)
        return [Typed(nothing.frame, nothing.rows, dead), *parts]


def _alike(columns: Columns, rows: list[int], message: Message) -> list[tuple[Columns, list[int], dict[str, type]]]:
    """The records in parts in which a field has values of one type (and nulls). Only fields that have several make more than one."""
    if not rows:
        return []
    types: dict[str, type] = {}
    mixed: list[str] = []
    for name, values in columns.items():
        several = [python for python in message.fields[name] if python is not type(None)]
        if len(several) > 1:
            several = [python for python in set(map(type, values)) if python is not type(None)]
        if len(several) > 1:
            mixed.append(name)
        else:
            types[name] = several[0] if several else type(None)
    if not mixed:
        return [(columns, rows, types)]
    parts: dict[tuple[type, ...], list[int]] = {}
    for place, key in enumerate(zip(*(map(type, columns[name]) for name in mixed), strict=True)):
        parts.setdefault(key, []).append(place)
    return [
        (
            {name: [values[place] for place in places] for name, values in columns.items()},
            [rows[place] for place in places],
            types | dict(zip(mixed, key, strict=True)),
        )
        for key, places in parts.items()
    ]


def _typed(values: Columns, rows: list[int], types: Mapping[str, type], message: Message, schema: Schema) -> Typed:
    columns = [pl.int_range(len(rows), eager=True).alias(_ROW)]
    refused: dict[int, str] = {}
    for name, python in types.items():
        kind = message.fields[name][python]
        if isinstance(kind, str):
            for place, value in enumerate(values[name]):
                if value is not None:
                    refused.setdefault(place, f"{name}: {kind}")
        else:
            columns.append(_column(values[name], kind).alias(name))
    frame, places, dead = typed_columns(pl.DataFrame(columns), schema)
    if refused:
        good = np.array([place not in refused for place in places.tolist()], dtype=np.bool_)
        frame, places = frame.filter(pl.Series(good)), places[good]
        dead = sorted((dict(dead) | refused).items())
    return Typed(frame, np.array(rows, dtype=np.int64)[places], [(rows[place], reason) for place, reason in dead])


def _column(values: Sequence[Any], kind: pl.DataType) -> pl.Series:
    if kind == NOTHING:
        return pl.Series([None if value is None else b"" for value in values], dtype=kind)
    if isinstance(kind, pl.Date):  # days that no `pl.Date` holds are outside every allowed time, and no error
        days = pl.DataFrame({"t": pl.Series(values, dtype=pl.Int64)})
        return days.select(epoch_micros_of_ints("t", DAY)).to_series().cast(pl.Datetime("us", "UTC"))
    if isinstance(kind, pl.Datetime):
        return pl.Series(values, dtype=pl.Int64).cast(kind)
    return pl.Series(values, dtype=kind)
