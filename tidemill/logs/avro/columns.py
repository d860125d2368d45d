"""Values in Confluent's wire format to typed columns.

fastavro reads the records, with the schema that each was written with. What may be in which column is not decided here: the values
become columns with Avro's own types, and `typed_columns` does with them as it does with those of a Parquet file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from typing import Any, Protocol

import numpy as np
import polars as pl

from tidemill.logs.avro.schema import NOTHING, WriterSchema
from tidemill.logs.frame_columns import typed_columns
from tidemill.logs.records import too_long
from tidemill.logs.typed import Schema, Typed, epoch_micros_of_ints
from tidemill.times import DAY

_HEADER = 5
_NOT_FRAMED = "not in Confluent's wire format: a zero byte, the id of a schema in 4 bytes, then Avro"
_ROW = "\0row"


class Schemas(Protocol):
    """Where writers' schemas are known."""

    def schemas(self, ids: Collection[int]) -> Mapping[int, WriterSchema | str]:
        """By id, the schema, or the reason why there is none that can be used. Raises `LogUnavailableError`: it cannot be said now."""
        ...


class AvroColumns:
    """Reads columns from values. `max_record`: bytes of a value."""

    def __init__(self, schemas: Schemas, max_record: int) -> None:
        from fastavro import schemaless_reader

        self._schemas = schemas
        self._max = max_record
        self._read_one: Any = schemaless_reader

    def read(self, values: Sequence[bytes], schema: Schema) -> list[Typed]:
        """The columns of `schema`, in one part for each schema that values were written with, or more. Raises `LogUnavailableError`.

        A value is decided by itself, and by what the registry says of its id.
        """
        dead: list[tuple[int, str]] = []
        ids: dict[int, list[int]] = {}
        for row, value in enumerate(values):
            if len(value) > self._max:
                dead.append((row, too_long(self._max)))
            elif len(value) < _HEADER or value[0] != 0:
                dead.append((row, _NOT_FRAMED))
            else:
                ids.setdefault(int.from_bytes(value[1:_HEADER], "big"), []).append(row)
        parts: list[Typed] = []
        known = self._schemas.schemas(ids) if ids else {}
        for number, rows in ids.items():
            written = known[number]
            if isinstance(written, str):
                dead += [(row, written) for row in rows]
                continue
            records, read, unread = self._records(values, rows, written, number)
            dead += unread
            for some, kept, types in _alike(records, read, written, schema):
                parts.append(_typed(some, kept, types, written, schema))
        nothing = typed_columns(pl.DataFrame({_ROW: []}), schema)
        return [Typed(nothing.frame, nothing.rows, dead), *parts]

    def _records(
        self, values: Sequence[bytes], rows: Sequence[int], written: WriterSchema, number: int
    ) -> tuple[list[dict[str, Any]], list[int], list[tuple[int, str]]]:
        """The records, the rows that they are of, and those that are none."""
        read_one, parsed = self._read_one, written.parsed
        records: list[dict[str, Any]] = []
        kept: list[int] = []
        dead: list[tuple[int, str]] = []
        for row in rows:
            value = values[row]
            stream = BytesIO(value)
            stream.seek(_HEADER)
            try:
                record = read_one(stream, parsed, None)
            except UnicodeDecodeError:
                dead.append((row, "not UTF-8"))
            except Exception:  # noqa: BLE001  (fastavro checks nothing, so anything may happen to it; the value is to blame)
                dead.append((row, f"cut off, or not written with its schema (id {number})"))
            else:
                if stream.tell() != len(value):
                    dead.append((row, f"longer than its schema (id {number}) says"))
                else:
                    records.append(record)
                    kept.append(row)
        return records, kept, dead


def _alike(
    records: list[dict[str, Any]], rows: list[int], written: WriterSchema, schema: Schema
) -> list[tuple[list[dict[str, Any]], list[int], dict[str, type]]]:
    """The records in parts in which a field has values of one type (and nulls). Only unions of several types make more than one."""
    types: dict[str, type] = {}
    mixed: list[str] = []
    for name in schema:
        several = [python for python in written.fields.get(name, ()) if python is not type(None)]
        if len(several) == 1:
            types[name] = several[0]
        elif several:
            mixed.append(name)
    if not mixed:
        return [(records, rows, types)] if records else []
    parts: dict[tuple[type, ...], tuple[list[dict[str, Any]], list[int]]] = {}
    for record, row in zip(records, rows, strict=True):
        some, kept = parts.setdefault(tuple(type(record[name]) for name in mixed), ([], []))
        some.append(record)
        kept.append(row)
    return [(some, kept, types | dict(zip(mixed, key, strict=True))) for key, (some, kept) in parts.items()]


def _typed(records: list[dict[str, Any]], rows: list[int], types: Mapping[str, type], written: WriterSchema, schema: Schema) -> Typed:
    columns = [pl.int_range(len(records), eager=True).alias(_ROW)]
    refused: dict[int, str] = {}
    for name, python in types.items():
        kind = written.fields[name][python]
        if isinstance(kind, str):
            for place, record in enumerate(records):
                if record[name] is not None:
                    refused.setdefault(place, f"{name}: {kind}")
        else:
            columns.append(_column([record[name] for record in records], kind).alias(name))
    frame, places, dead = typed_columns(pl.DataFrame(columns), schema)
    if refused:
        good = np.array([place not in refused for place in places.tolist()], dtype=np.bool_)
        frame, places = frame.filter(pl.Series(good)), places[good]
        dead = sorted((dict(dead) | refused).items())
    return Typed(frame, np.array(rows, dtype=np.int64)[places], [(rows[place], reason) for place, reason in dead])


def _column(values: list[Any], kind: pl.DataType) -> pl.Series:
    if kind == NOTHING:
        return pl.Series([None if value is None else b"" for value in values], dtype=kind)
    if isinstance(kind, pl.Date):  # days that no `pl.Date` holds are outside every allowed time, and no error
        days = pl.DataFrame({"t": pl.Series(values, dtype=pl.Int64)})
        return days.select(epoch_micros_of_ints("t", DAY)).to_series().cast(pl.Datetime("us", "UTC"))
    if isinstance(kind, pl.Datetime):
        return pl.Series(values, dtype=pl.Int64).cast(kind)
    return pl.Series(values, dtype=kind)
