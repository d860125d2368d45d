"""Records to events: columns with the types of the source's schema, and the dead letters with their reasons.

What the rules are, whatever the format:

- A record is an event or a dead letter, never neither. What decides is the record and its own arrival, nothing around it.
- Types are exact. In JSON, Avro, Protobuf and Parquet a boolean is no int, `"5"` no number, `5` no text, and `1.0` no int (as Polars has
  it); an int in a float column is the nearest float. CSV has only text, and the schema says what it is to be.
- NaN is null, -0.0 is 0.0. Infinity, a float of 2**64 or more, an int outside 64 bits: dead.
- Timestamps are ISO 8601 text (naive is UTC; digits below the microsecond are cut off), or typed columns of any unit and zone
  (floored to the microsecond). A column with a unit takes numbers instead: integers exactly, floats to the nearest microsecond.
- A missing, unreadable or out-of-range event time is dead; so is one more than `max_ahead` after its arrival. An unreadable arrival
  is dead, a null one stays null. Every other null is a value like any other.
- JSON fields that are not in the schema are ignored; of a key that repeats, the first counts. Fields of Avro and Protobuf go by their
  names too.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from tidemill.errors import DefinitionError, LogError
from tidemill.logs.base import Int64s, RecordBatch
from tidemill.logs.csv import RAW_COLUMN
from tidemill.logs.frame_columns import text_columns, typed_columns
from tidemill.logs.instants import parse_iso
from tidemill.logs.json_columns import JsonColumns
from tidemill.logs.records import MAX_RECORD, RAW_KEPT
from tidemill.logs.registered.columns import RegisteredColumns, Schemas
from tidemill.logs.typed import Schema, Typed, reason_not_iso
from tidemill.times import DAY, MAX_TIME, MIN_TIME, format_duration
from tidemill.types import ColumnType

#: Columns that the decoder adds, so that no schema may use their names.
ADDED = ("_offset", "_time", "_arrival")

_DEAD = {"offset": pl.Int64(), "reason": pl.String(), "raw": pl.Binary()}
_MOST = float(2**64)


@dataclass(frozen=True, slots=True)
class Events:
    """A decoded batch: the records of `partition` from offset `start` to `end`, the latter not included.

    `frame`: the schema's columns in their `ColumnType.polars` types, and `_offset` (Int64), `_time` (Int64, UTC microseconds, never
    null) and `_arrival` (Int64, UTC microseconds, null where unknown); by offset. `dead`: `offset` (Int64), `reason` (String), `raw`
    (Binary: the line, the CSV record, the Kafka value, or a Parquet row as JSON); by offset.
    """

    frame: pl.DataFrame
    dead: pl.DataFrame
    partition: int
    start: int
    end: int


class Decoder:
    r"""Decodes batches of one source. Holds no state: how records are batched changes nothing.

    `timestamp` names a timestamp column of the schema, `event_id` any column (nulls are fine). What counts as
    arrival are the log's own times (Kafka's record timestamps); in a log without them (files) the records' field `arrival`, be it in the
    schema or not.
    `max_ahead` in microseconds; `max_record` in bytes. `schemas`: where the schemas of Avro or Protobuf are known; without it there is
    none to read. Raises `DefinitionError`.

    >>> from tidemill.types import ColumnType
    >>> decoder = Decoder({"n": ColumnType("int"), "at": ColumnType("timestamp")}, timestamp="at")
    >>> payload = b'{"n": 1, "at": "1970-01-01"}\n{"n": true, "at": "1970-01-01"}\n'
    >>> events = decoder.decode(RecordBatch(0, 7, 9, np.array([7, 8]), payload))
    >>> events.frame.select("n", "_offset", "_time").rows(), events.dead.rows()
    ([(1, 7, 0)], [(8, 'n: not an int', b'{"n": true, "at": "1970-01-01"}')])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        timestamp: str,
        event_id: str | None = None,
        arrival: str | None = None,
        max_ahead: int | None = None,
        max_record: int = MAX_RECORD,
        schemas: Schemas | None = None,
    ) -> None:
        for name in (timestamp, event_id):
            if name is not None and name not in schema:
                raise DefinitionError(f"there is no column {name!r} in the schema; it has {', '.join(schema)}")
        for name in (timestamp, arrival):
            if name is not None and name in schema and schema[name].name != "timestamp":
                raise DefinitionError(f"column {name!r} must be a Timestamp, but the schema says {schema[name]}")
        reserved = [name for name in schema if name in ADDED or "\0" in name]
        if reserved:
            raise DefinitionError(f"a column cannot be called {reserved[0]!r}: tidemill uses that name itself")
        self._names = tuple(schema)
        self._timestamp = timestamp
        self._arrival = arrival
        self._max_ahead = max_ahead
        self._max_record = max_record
        self._plain = JsonColumns(schema, max_record)
        self._registered = None if schemas is None else RegisteredColumns(schemas, max_record)
        # The arrival column need not be in the schema: it is read beside it, unless the log has arrivals of its own.
        beside = arrival is not None and arrival not in schema
        self._beside = JsonColumns({**schema, arrival: ColumnType("timestamp")}, max_record) if arrival is not None and beside else None

    def decode(self, batch: RecordBatch) -> Events:
        """The batch's events and dead letters.

        Raises `LogError` for a frame without the event-time column, and `LogUnavailableError` while nobody says what schema the records
        have: then nothing was decided, and the batch can be decoded again.
        """
        reader = self._plain if self._beside is None or batch.arrival is not None else self._beside
        parts = self._typed(batch, reader)
        checked = [self._check(typed, reader.schema, batch) for typed in parts]
        frame = checked[0][0] if len(checked) == 1 else pl.concat([some for some, _ in checked]).sort("_offset")
        reasons = [reason for _, found in checked for reason in found] + [reason for typed in parts for reason in typed.dead]
        rows = [row for row, _ in reasons]
        raw = raw_records(batch, rows, self._max_record)
        dead = [(int(batch.offsets[row]), reason, record) for (row, reason), record in zip(reasons, raw, strict=True)]
        dead += [(offset, reason, raw) for offset, raw, reason in batch.broken]
        letters = pl.DataFrame(sorted(dead), schema=_DEAD, orient="row")
        return Events(frame, letters, batch.partition, batch.start, batch.end)

    def _typed(self, batch: RecordBatch, reader: JsonColumns) -> list[Typed]:
        """In parts, whose rows need not follow each other."""
        payload = batch.payload
        if isinstance(payload, bytes):
            return [reader.read(payload, len(batch.offsets))]
        if isinstance(payload, list):
            assert self._registered is not None
            return self._registered.read(payload, reader.schema)
        if self._timestamp not in payload.columns:
            there = ", ".join(name for name in payload.columns if name != RAW_COLUMN)
            raise LogError(
                f"partition {batch.partition}, offsets {batch.start} to {batch.end}: there is no column {self._timestamp!r}, "
                f"which holds the event time; the file has {there}"
            )
        return [text_columns(payload, reader.schema) if batch.text else typed_columns(payload, reader.schema)]

    def _check(self, typed: Typed, schema: Schema, batch: RecordBatch) -> tuple[pl.DataFrame, list[tuple[int, str]]]:
        """What holds for every format: ranges, and times."""
        times = {name: typed.frame[name] for name, kind in schema.items() if kind.name == "timestamp"}
        micros = {name: parse_iso(column) if column.dtype == pl.String else column for name, column in times.items()}
        arrival: pl.Expr | pl.Series = pl.lit(None, dtype=pl.Int64).alias("_arrival")
        if batch.arrival is not None:
            arrival = pl.Series("_arrival", batch.arrival[typed.rows])
        elif self._arrival is not None and self._arrival in schema:
            arrival = micros[self._arrival].alias("_arrival")
        frame = typed.frame.with_columns(
            *micros.values(),
            pl.Series("_offset", batch.offsets if len(typed.rows) == len(batch.offsets) else batch.offsets[typed.rows]),
            micros[self._timestamp].alias("_time"),
            arrival,
        )
        faults: list[tuple[pl.Expr, str]] = []
        columns: list[pl.Expr] = []
        # Most batches have no fault, and whether there may be one costs less to see than which row has it.
        doubts: list[pl.Expr] = []
        odd: list[pl.Expr] = []
        for name, kind in schema.items():
            column = pl.col(name)
            if kind.name == "float":
                faults += [(column.is_infinite(), f"{name}: infinite")]
                faults += [((column.abs() >= _MOST) & column.is_not_nan(), f"{name}: 2**64 or more, outside what tidemill can add exactly")]
                doubts += [column.max() >= _MOST, column.min() <= -_MOST]
                odd.append((column.is_nan().any() | (column == 0).any()).alias(name))
            elif kind.name == "timestamp":
                if times[name].dtype == pl.String:
                    unread = times[name].is_not_null() & micros[name].is_null()
                    if unread.any():
                        faults.append((pl.lit(unread), reason_not_iso(name)))
                        doubts.append(pl.lit(True))
                if name == self._timestamp:
                    faults.append((column.is_null(), f"{name}: missing, and it is the event time"))
                    doubts.append(column.null_count() > 0)
                faults.append((~column.is_between(MIN_TIME, MAX_TIME, closed="left"), f"{name}: outside the years 1 to 9999"))
                doubts += [column.min() < MIN_TIME, column.max() >= MAX_TIME]
                columns.append(column.cast(pl.Datetime("us", "UTC")))
        if self._max_ahead is not None:
            ahead = pl.col("_time") - pl.col("_arrival")
            faults.append((ahead > self._max_ahead, f"{self._timestamp}: more than {format_duration(self._max_ahead)} after its arrival"))
            doubts.append(ahead.max() > self._max_ahead)
        dead: list[tuple[int, str]] = []
        seen = frame.select(pl.any_horizontal(doubts).alias("\0"), *odd).row(0, named=True)
        if seen.pop("\0"):
            bad = frame.select(pl.any_horizontal(mask for mask, _ in faults).fill_null(False)).to_series()
            if bad.any():
                reason = pl.coalesce(pl.when(mask).then(pl.lit(reason)) for mask, reason in faults)
                dead = list(zip(typed.rows[bad.to_numpy()].tolist(), frame.select(reason).filter(bad).to_series().to_list(), strict=True))
                frame = frame.filter(~bad)
        # `x + 0.0` leaves -0.0 as it is in Polars.
        columns += [
            pl.when(pl.col(name).is_nan()).then(None).when(pl.col(name) == 0).then(0.0).otherwise(pl.col(name)).alias(name)
            for name, some in seen.items()
            if some
        ]
        return frame.with_columns(columns).select(*self._names, *ADDED), dead


def raw_records(batch: RecordBatch, rows: Sequence[int] | Int64s, longest: int = MAX_RECORD) -> list[bytes]:
    """The bytes of these records (by their number in the batch): JSON lines, Avro, Protobuf and CSV as they are, Parquet as JSON.

    Of a line or a value of more than `longest` bytes, the first 64 KiB.
    """
    payload = batch.payload
    if len(rows) == 0:
        return []
    if isinstance(payload, bytes):
        ends = np.flatnonzero(np.frombuffer(payload, dtype=np.uint8) == 10)
        starts = np.concatenate([[0], ends[:-1] + 1])
        return [_cut(payload[starts[row] : ends[row]], longest) for row in rows]
    if isinstance(payload, list):
        return [_cut(payload[row], longest) for row in rows]
    wanted = pl.Series(rows, dtype=pl.Int64)
    if RAW_COLUMN in payload.columns:
        return [raw.removesuffix(b"\n").removesuffix(b"\r") for raw in payload[RAW_COLUMN].gather(wanted).to_list()]
    frame = payload[wanted]
    columns = [_json_values(column) for column in frame]
    return [json.dumps(dict(zip(frame.columns, row, strict=True)), default=_as_json).encode() for row in zip(*columns, strict=True)]


def _cut(record: bytes, longest: int) -> bytes:
    return record if len(record) <= longest else record[:RAW_KEPT]


def _json_values(column: pl.Series) -> list[object]:
    """Python values; of a time or a duration beyond Python's, at which Polars panics, the number that stands for it."""
    first, end = MIN_TIME // DAY + 1, MAX_TIME // DAY - 1  # a day from either end, so that no zone leads beyond it
    per_day = 1 if column.dtype == pl.Date else None
    if isinstance(column.dtype, pl.Datetime):  # nanoseconds do not reach so far
        per_day = {"ms": DAY // 1_000, "us": DAY}.get(column.dtype.time_unit)
    elif column.dtype == pl.Duration("ms"):  # nor do microseconds that are no instants
        first, end, per_day = -dt.timedelta.max.days, dt.timedelta.max.days, DAY // 1_000
    if per_day is not None:
        numbers = column.to_physical()
        inside = numbers.is_between(first * per_day, end * per_day, closed="left")
        values = pl.select(pl.when(inside).then(column)).to_series()
        return [number if value is None else value for value, number in zip(values, numbers, strict=True)]
    try:
        return column.to_list()
    except (pl.exceptions.PanicException, OverflowError, ValueError):
        return column.to_physical().to_list()


def _as_json(value: object) -> str:
    return value.isoformat() if isinstance(value, (dt.date, dt.time)) else str(value)
