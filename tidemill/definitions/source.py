"""Sources: append-only logs of events, as a user declares them."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.definitions.names import check_name, suggestion
from tidemill.errors import DefinitionError
from tidemill.stable import digest
from tidemill.times import format_duration, from_micros, parse_duration, to_micros
from tidemill.types import ColumnType

#: How files are written, with other usual names for the same. Without `format` the files' names tell.
FORMATS = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl", "csv": "csv", "parquet": "parquet"}
#: How the values of a topic's records are written.
VALUE_FORMATS = ("json", "avro", "protobuf")
_TIMESTAMP = ColumnType("timestamp")


@dataclass(frozen=True, init=False)
class Source:
    """An append-only log of events: its schema, its event-time column, and where it lies.

    `schema`: column name to `int`, `float`, `str`, `bool` or `tidemill.Timestamp`; kept as `ColumnType`s.
    `timestamp`: the column of the event time. `event_id`: the column (int or str) that identifies an event in errors, audits and ties;
    it does not dedupe. `arrival`: the column of the time when the event became known; it need not stand in `schema`, because in
    Kafka it is the record's own timestamp. `max_ahead`: an event whose time is further than this after its arrival is a dead letter;
    kept as microseconds. `topic`: a Kafka topic, read when the project has brokers. `start`: where to begin in a topic that no longer
    holds all, or more than is wanted: "earliest" (what it still has), "latest" (what comes from now on), or an instant (by the records'
    timestamps); decided once, when the topic is first streamed. Without it a topic is read from offset 0, and one that has lost its
    beginning is refused. `path`: files or a glob, relative to the project. `format`: jsonl, csv or parquet, where the files' names do
    not tell. `value_format`: json, avro or protobuf, which is how the topic's values are written; the latter two need a schema registry
    in tidemill.toml.

    Raises `DefinitionError`.

    >>> payments = Source("payments", schema={"card": str, "amount": float, "at": dt.datetime}, timestamp="at", path="payments/*.jsonl")
    >>> payments.schema["amount"].name, Source.from_spec(payments.spec()) == payments
    ('float', True)
    """

    name: str
    schema: Mapping[str, ColumnType]
    timestamp: str
    event_id: str | None
    arrival: str | None
    max_ahead: int | None
    topic: str | None
    path: str | None
    format: str | None
    value_format: str
    start: str | None
    description: str

    def __init__(
        self,
        name: str,
        *,
        schema: Mapping[str, object],
        timestamp: str,
        event_id: str | None = None,
        arrival: str | None = None,
        max_ahead: str | dt.timedelta | None = None,
        topic: str | None = None,
        path: str | os.PathLike[str] | None = None,
        format: str | None = None,
        value_format: str = "json",
        start: str | dt.datetime | None = None,
        description: str = "",
    ) -> None:
        check_name(name, "a source's name")
        columns = _schema(name, schema)
        if arrival is not None and arrival not in columns:
            check_name(arrival, f"source {name!r}: arrival")
            columns[arrival] = _TIMESTAMP
        _check_column(name, columns, "timestamp", timestamp, ("timestamp",), "a Timestamp")
        if event_id is not None:
            _check_column(name, columns, "event_id", event_id, ("int", "str"), "int or str")
        if arrival is not None:
            _check_column(name, columns, "arrival", arrival, ("timestamp",), "a Timestamp")
        if topic is None and path is None:
            raise DefinitionError(f"source {name!r} lies nowhere: give it topic='...' (Kafka), path='data/*.parquet' (files), or both")
        if topic is not None and (not isinstance(topic, str) or not topic):
            raise DefinitionError(f"source {name!r}: topic must be the name of a Kafka topic; got {topic!r}")
        if format in VALUE_FORMATS[1:] or (value_format in FORMATS and value_format not in VALUE_FORMATS):
            raise DefinitionError(
                f"source {name!r}: format is that of files (jsonl, csv, parquet), value_format that of a topic (json, avro, protobuf)"
            )
        if format is not None and format not in FORMATS:
            raise DefinitionError(f"source {name!r}: format {format!r} is not known; use 'jsonl', 'csv' or 'parquet'")
        if value_format not in VALUE_FORMATS:
            raise DefinitionError(f"source {name!r}: value_format {value_format!r} is not known; use 'json', 'avro' or 'protobuf'")
        if topic is None and value_format != "json":
            raise DefinitionError(f"source {name!r}: value_format says how a topic's values are written, and there is no topic=...")
        values: dict[str, object] = {
            "name": name,
            "schema": columns,
            "timestamp": timestamp,
            "event_id": event_id,
            "arrival": arrival,
            "max_ahead": _max_ahead(name, max_ahead, known=arrival is not None or topic is not None),
            "topic": topic,
            "path": None if path is None else _path(name, path),
            "format": None if format is None else FORMATS[format],
            "value_format": value_format,
            "start": _start(name, start, topic),
            "description": description,
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def __hash__(self) -> int:
        return hash((self.name, self.digest))

    @property
    def digest(self) -> str:
        """A stable hash of what an event of this source means.

        Where the log lies and how it is written (topic, path, format, value_format) is not in it: the same events elsewhere mean the
        same. Nor are the columns: what reads a column hashes its type.
        """
        roles = {"timestamp": self.timestamp, "event_id": self.event_id, "arrival": self.arrival}
        typed = {role: column and [column, str_of_type(self.schema[column])] for role, column in roles.items()}
        return digest({"name": self.name, "max_ahead": self.max_ahead, **typed})

    def spec(self) -> dict[str, Any]:
        """The whole definition as JSON, which `from_spec` reads back."""
        return {
            "name": self.name,
            "schema": {column: str_of_type(declared) for column, declared in self.schema.items()},
            "timestamp": self.timestamp,
            "event_id": self.event_id,
            "arrival": self.arrival,
            "max_ahead": None if self.max_ahead is None else format_duration(self.max_ahead),
            "topic": self.topic,
            "path": self.path,
            "format": self.format,
            "value_format": self.value_format,
            "start": self.start,
            "description": self.description,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Source:
        """The source that `spec` describes."""
        schema = {column: type_of_str(text) for column, text in spec["schema"].items()}
        return cls(spec["name"], schema=schema, **{key: value for key, value in spec.items() if key not in ("name", "schema")})


def str_of_type(declared: ColumnType) -> str:
    """A column type as one word of JSON.

    >>> str_of_type(ColumnType("timestamp", "ms")), type_of_str("timestamp:ms") == ColumnType("timestamp", "ms")
    ('timestamp:ms', True)
    """
    return declared.name if declared.unit is None else f"{declared.name}:{declared.unit}"


def type_of_str(text: str) -> ColumnType:
    """The column type that `str_of_type` wrote."""
    name, _, unit = text.partition(":")
    return ColumnType(name, unit or None)


def _schema(source: str, declared: Mapping[str, object]) -> dict[str, ColumnType]:
    if not isinstance(declared, Mapping) or not declared:
        raise DefinitionError(f"source {source!r}: schema must map column names to types, such as {{'amount': float}}; got {declared!r}")
    columns = {}
    for column, kind in declared.items():
        check_name(column, f"source {source!r}: a column's name")
        if column.startswith("_"):
            raise DefinitionError(f"source {source!r}: column {column!r} begins with an underscore, which is tidemill's own; rename it")
        try:
            columns[column] = ColumnType.of(kind)
        except DefinitionError as error:
            raise DefinitionError(f"source {source!r}, column {column!r}: {error}") from None
    return columns


def _check_column(source: str, columns: Mapping[str, ColumnType], role: str, column: object, kinds: tuple[str, ...], wanted: str) -> None:
    if not isinstance(column, str) or column not in columns:
        hint = suggestion(str(column), columns)
        raise DefinitionError(f"source {source!r}: {role} {column!r} is not in its schema; {hint}")
    if column.startswith("_"):
        raise DefinitionError(f"source {source!r}: {role} {column!r} begins with an underscore, which is tidemill's own; rename it")
    if columns[column].name not in kinds:
        raise DefinitionError(f"source {source!r}: {role} {column!r} is a {columns[column]}; declare it in the schema as {wanted}")


def _max_ahead(source: str, declared: str | dt.timedelta | None, *, known: bool) -> int | None:
    if declared is None:
        return None
    try:
        micros = parse_duration(declared)
    except DefinitionError as error:
        raise DefinitionError(f"source {source!r}, max_ahead: {error}") from None
    if micros < 0:
        raise DefinitionError(
            f"source {source!r}: max_ahead is negative; say how far an event's time may lie after its arrival, such as '5m'"
        )
    if not known:
        raise DefinitionError(
            f"source {source!r}: max_ahead compares with the arrival time, and these files have none: name its column with arrival=..., "
            "or leave max_ahead out"
        )
    return micros


def _start(source: str, declared: str | dt.datetime | None, topic: str | None) -> str | None:
    """As text: earliest, latest, or an instant in UTC."""
    if declared is None or (isinstance(declared, str) and declared in ("earliest", "latest")):
        text = declared
    else:
        try:
            text = from_micros(to_micros(declared)).isoformat()
        except (TypeError, ValueError):
            raise DefinitionError(
                f"source {source!r}: start is 'earliest', 'latest', or an instant such as '2026-11-01T00:00:00Z'; got {declared!r}"
            ) from None
    if text is not None and topic is None:
        raise DefinitionError(f"source {source!r}: start says where to begin in a topic, and there is no topic=...; files are read whole")
    return text


def _path(source: str, declared: str | os.PathLike[str]) -> str:
    path = os.fspath(declared) if isinstance(declared, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path:
        raise DefinitionError(f"source {source!r}: path must be a file, a directory or a glob, such as 'data/*.parquet'; got {declared!r}")
    return path
