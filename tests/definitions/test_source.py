"""Sources: what is declared is checked, normalised and hashed by its meaning."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from tidemill.definitions import Source
from tidemill.errors import DefinitionError
from tidemill.types import ColumnType, Timestamp

SCHEMA = {"id": int, "card": str, "amount": float, "ok": bool, "at": Timestamp}


def payments(**changes: Any) -> Source:
    return Source(**{"name": "payments", "schema": SCHEMA, "timestamp": "at", "path": "payments/*.jsonl"} | changes)


def test_a_schema_becomes_column_types() -> None:
    source = payments(schema=SCHEMA | {"seen": Timestamp("ms"), "made": dt.datetime})
    assert source.schema["amount"] == ColumnType("float")
    assert source.schema["seen"] == ColumnType("timestamp", "ms")
    assert source.schema["made"] == ColumnType("timestamp")


def test_an_arrival_column_need_not_stand_in_the_schema() -> None:
    assert payments(arrival="known_utc").schema["known_utc"] == ColumnType("timestamp")
    assert payments(arrival="at").schema == payments().schema


def test_durations_and_paths_are_normalised() -> None:
    source = payments(arrival="at", max_ahead="5m", path=Path("data"), format="ndjson")
    assert (source.max_ahead, source.path, source.format) == (300_000_000, "data", "jsonl")
    assert payments(arrival="at", max_ahead=dt.timedelta(minutes=5)).max_ahead == 300_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "my payments"}, "a source's name .* got 'my payments'"),
        ({"name": ""}, "a source's name"),
        ({"schema": {}}, "source 'payments': schema must map column names to types"),
        ({"schema": SCHEMA | {"2nd": int}}, "source 'payments': a column's name .* got '2nd'"),
        ({"schema": SCHEMA | {"prix_é": int}}, "source 'payments': a column's name"),
        ({"schema": SCHEMA | {"_offset": int}}, "column '_offset' begins with an underscore, .* rename it"),
        ({"schema": SCHEMA | {"tags": list}}, "source 'payments', column 'tags': .* is not a column type: use int"),
        ({"timestamp": "att"}, "source 'payments': timestamp 'att' is not in its schema; did you mean 'at'"),
        ({"timestamp": None}, "source 'payments': timestamp None is not in its schema"),
        ({"timestamp": "amount"}, "timestamp 'amount' is a float; declare it in the schema as a Timestamp"),
        ({"event_id": "idd"}, "event_id 'idd' is not in its schema; did you mean 'id'"),
        ({"event_id": "amount"}, "event_id 'amount' is a float; declare it in the schema as int or str"),
        ({"arrival": "id"}, "arrival 'id' is a int; declare it in the schema as a Timestamp"),
        ({"arrival": "known at"}, "source 'payments': arrival must be letters"),
        ({"arrival": "_known"}, "arrival '_known' begins with an underscore"),
        ({"path": None}, "source 'payments' lies nowhere: give it topic=.* path=.* or both"),
        ({"path": ""}, "source 'payments': path must be a file"),
        ({"topic": ""}, "source 'payments': topic must be the name of a Kafka topic"),
        ({"format": "avro", "topic": "t"}, "format is that of files .*, value_format that of a topic .json, avro, protobuf."),
        ({"value_format": "parquet", "topic": "t"}, "format is that of files .*, value_format that of a topic .json, avro, protobuf."),
        ({"value_format": "thrift", "topic": "t"}, "value_format 'thrift' is not known; use 'json', 'avro' or 'protobuf'"),
        ({"value_format": "avro"}, "value_format says how a topic's values are written, and there is no topic="),
        ({"format": "xml"}, "source 'payments': format 'xml' is not known; use 'jsonl', 'csv' or 'parquet'"),
        ({"arrival": "at", "max_ahead": "soon"}, "source 'payments', max_ahead: 'soon' is not a duration"),
        ({"arrival": "at", "max_ahead": dt.timedelta(-1)}, "source 'payments': max_ahead is negative"),
        ({"max_ahead": "5m"}, "source 'payments': max_ahead compares with the arrival time, .* arrival="),
    ],
)
def test_a_wrong_source_is_refused_with_its_name_and_the_fix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        payments(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "oldest", "topic": "t"}, "start is 'earliest', 'latest', or an instant"),
        ({"start": True, "topic": "t"}, "got True"),
        ({"start": "earliest"}, "files are read whole"),
    ],
)
def test_a_wrong_start_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        payments(**changes)


def test_a_source_survives_json() -> None:
    source = payments(
        schema=SCHEMA | {"seen": Timestamp("ms")},
        event_id="id",
        arrival="known",
        max_ahead="90s",
        topic="payments",
        format="jsonl",
        value_format="avro",
        start="2026-11-01",
        description="card payments",
    )
    assert source.start == "2026-11-01T00:00:00+00:00"
    again = Source.from_spec(json.loads(json.dumps(source.spec())))
    assert again == source
    assert hash(again) == hash(source)
    assert again.digest == source.digest


def test_the_digest_is_of_the_meaning() -> None:
    source = payments()
    same = [payments(description="x"), payments(path="elsewhere"), payments(schema=dict(reversed(SCHEMA.items()))), payments(topic="t")]
    same.append(payments(topic="t", value_format="avro"))
    assert {other.digest for other in same} == {source.digest}
    different = [
        payments(name="refunds"),
        payments(event_id="id"),
        payments(event_id="card"),
        payments(arrival="at"),
        payments(arrival="at", max_ahead="5m"),
        payments(schema=SCHEMA | {"at": Timestamp("ms")}),
    ]
    assert len({other.digest for other in [source, *different]}) == 7


def test_the_digest_never_changes() -> None:
    assert payments(event_id="id", arrival="at", max_ahead="5m").digest == "22c19fc2dff610b8"
