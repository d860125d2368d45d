"""Avro values: columns by the rules of the other formats, and dead letters for whatever cannot be read."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.logs.wire import NOW, SCHEMA, Known, alone, batch, moments, short, texts, whole
from tidemill.errors import LogUnavailableError
from tidemill.logs.base import RecordBatch
from tidemill.logs.decode import Decoder, Events, raw_records
from tidemill.logs.kafka.batches import record_batch
from tidemill.logs.records import RAW_KEPT
from tidemill.logs.registered.avro import AvroSchema, avro_schema
from tidemill.logs.registered.written import Reference, SchemaRefusedError
from tidemill.types import ColumnType

fastavro = pytest.importorskip("fastavro")


def record(fields: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": [{"name": n, "type": t} for n, t in fields.items()], **more}


def framed(body: bytes, number: int = 0) -> bytes:
    return b"\0" + number.to_bytes(4, "big") + body


def encoded(schema: Any, value: Mapping[str, Any], number: int = 0) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), value)
    return framed(stream.getvalue(), number)


def made(schema: Any) -> AvroSchema | str:
    return schema if isinstance(schema, str) else avro_schema(json.dumps(schema))


def decode(values: Sequence[bytes], *schemas: Any, schema: Mapping[str, ColumnType] = SCHEMA, **options: Any) -> Events:
    return Decoder(schema, timestamp="at", schemas=Known(*map(made, schemas)), **options).decode(batch(values))


def one(kind: Any, value: Any, column: ColumnType) -> object:
    """What a column of this type has of a field of that type, or the reason for a dead letter."""
    written = record({"x": kind, "at": {"type": "long", "logicalType": "timestamp-micros"}})
    found = decode([encoded(written, {"x": value, "at": NOW})], written, schema={"x": column, "at": ColumnType("timestamp")})
    assert found.frame.height + found.dead.height == 1
    return found.frame["x"].to_list()[0] if found.frame.height else found.dead["reason"][0]


# ---- equal to JSON --------------------------------------------------------------------------------------------------------------

#: A type of Avro, and values that JSON can say too.
KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    ("int", short),
    ("long", whole),
    ("float", st.floats(width=32)),
    ("double", st.floats()),
    ("string", texts),
    ("boolean", st.booleans()),
    ("null", st.none()),
    ({"type": "enum", "name": "E", "symbols": ["red", "green"]}, st.sampled_from(["red", "green"])),
    ({"type": "array", "items": "int"}, st.lists(short, max_size=3)),
    ({"type": "map", "values": "string"}, st.dictionaries(texts, texts, max_size=2)),
    ({"type": "record", "name": "Inner", "fields": [{"name": "x", "type": "long"}]}, st.fixed_dictionaries({"x": whole})),
]
FITTING = {"i": (0, 1), "f": (0, 1, 2, 3), "s": (4, 7), "b": (5,), "at": (4,), "known": (0, 1, 2, 3)}


@st.composite
def versions(draw: st.DrawFn) -> tuple[Any, st.SearchStrategy[Any]]:
    """A version of the schema and its values: columns in any order, some missing, some of any type, one more that nobody asked for."""
    names = draw(st.permutations([*SCHEMA, "other"]))
    wrong = draw(st.sampled_from([*SCHEMA, None, None, None]))
    fields: dict[str, Any] = {}
    values: dict[str, st.SearchStrategy[Any]] = {}
    for name in names:
        if name not in ("at", "known") and draw(st.integers(0, 5)) == 0:
            continue
        fits = range(len(KINDS)) if name in (wrong, "other") else FITTING[name]
        kind, made = KINDS[draw(st.sampled_from(fits))]
        if isinstance(kind, dict) and "name" in kind:
            kind = kind | {"name": f"{kind['name']}_{name}"}
        if name == "at" and kind == "string":
            made = moments
        if kind != "null" and draw(st.booleans()):
            kind, made = ["null", kind], st.one_of(st.none(), made)
        fields[name], values[name] = kind, made
    return record(fields), st.fixed_dictionaries(values)


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Any], list[tuple[int, dict[str, Any]]]]:
    known = draw(st.lists(versions(), min_size=1, max_size=3))
    rows = draw(st.lists(st.integers(0, len(known) - 1).flatmap(lambda n: st.tuples(st.just(n), known[n][1])), min_size=1, max_size=8))
    return [schema for schema, _ in known], rows


@settings(max_examples=100)
@given(logs())
def test_what_json_can_say_too_is_decoded_alike(log: tuple[list[Any], list[tuple[int, dict[str, Any]]]]) -> None:
    schemas, rows = log
    avro = decode([encoded(schemas[n], row, n) for n, row in rows], *schemas)
    decoder = Decoder(SCHEMA, timestamp="at")
    payload = "".join(json.dumps(row) + "\n" for _, row in rows).encode()
    plain = decoder.decode(RecordBatch(0, 0, len(rows), np.arange(len(rows)), payload, arrival=np.full(len(rows), NOW)))
    assert avro.frame.equals(plain.frame)
    assert avro.dead["offset"].to_list() == plain.dead["offset"].to_list()
    for letter, expected in zip(avro.dead.rows(named=True), plain.dead["reason"], strict=True):
        row = rows[letter["offset"]][1]
        assert letter["raw"] == encoded(schemas[rows[letter["offset"]][0]], row, rows[letter["offset"]][0])
        assert letter["reason"] in {expected, *alone(row)}


@settings(max_examples=100)
@given(logs(), st.data())
def test_whatever_the_bytes_are_each_value_is_decided_by_itself(log: Any, data: st.DataObject) -> None:
    schemas, rows = log
    values = [encoded(schemas[n], row, n) for n, row in rows]
    for place, value in enumerate(values):
        cut = data.draw(st.integers(0, len(value)))
        values[place] = data.draw(
            st.sampled_from([value, value[:cut], value[:cut] + b"\xff" + value[cut + 1 :], value + b"\0", value[:5] + b"\x01" + value[5:]])
        )
    together = decode(values, *schemas)
    decoder = Decoder(SCHEMA, timestamp="at", schemas=Known(*map(made, schemas)))
    parts = [decoder.decode(batch([value], n)) for n, value in enumerate(values)]
    assert together.frame.equals(pl.concat([part.frame for part in parts]))
    assert together.dead.equals(pl.concat([part.dead for part in parts]))
    assert together.frame.height + together.dead.height == len(values)


# ---- types that JSON does not have ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logical", "number"),
    [
        ("timestamp-millis", NOW // 1000),
        ("timestamp-micros", NOW),
        ("timestamp-nanos", NOW * 1000 + 999),
        ("local-timestamp-millis", NOW // 1000),
        ("local-timestamp-micros", NOW),
        ("local-timestamp-nanos", NOW * 1000),
    ],
)
@pytest.mark.parametrize("unit", [None, "s", "ms", "us"])
def test_times_of_any_unit_are_times(logical: str, number: int, unit: str | None) -> None:
    written = record({"at": {"type": "long", "logicalType": logical}})
    values = [framed(_zigzag(n)) for n in (number, -1, 2**62)]
    found = decode(values, written, schema={"at": ColumnType("timestamp", unit)})
    expected = {"millis": -1000, "micros": -1, "nanos": -1}[logical.rpartition("-")[2]]
    nanos = logical.endswith("nanos")
    assert found.frame["_time"].to_list() == [NOW, expected, *([2**62 // 1000] if nanos else [])]
    assert found.dead["reason"].to_list() == ([] if nanos else ["at: outside the years 1 to 9999"])


def test_days_are_their_midnights() -> None:
    assert one({"type": "int", "logicalType": "date"}, 19723, ColumnType("timestamp")) == pl.Series([NOW]).cast(pl.Datetime("us", "UTC"))[0]
    written = record({"at": {"type": "int", "logicalType": "date"}})
    assert decode([framed(_zigzag(2**62))], written).dead["reason"].to_list() == ["at: outside the years 1 to 9999"]


@pytest.mark.parametrize("kind", ["int", "float", "str", "bool", "timestamp"])
def test_decimals_are_refused_with_the_reason(kind: str) -> None:
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    assert str(one(decimal, b"\x01", ColumnType(kind))).startswith("x: an Avro decimal, which no column holds exactly")
    assert one(["null", decimal], None, ColumnType(kind)) is None
    fixed = {"type": "fixed", "name": "F", "size": 2, "logicalType": "decimal", "precision": 4, "scale": 2}
    assert str(one(fixed, b"\0\1", ColumnType(kind))).startswith("x: an Avro decimal")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("bytes", b"a"),
        ({"type": "fixed", "name": "F", "size": 2}, b"ab"),
        ({"type": "fixed", "name": "D", "size": 12, "logicalType": "duration"}, b"a" * 12),
        ({"type": "int", "logicalType": "time-millis"}, 5),
        ({"type": "long", "logicalType": "time-micros"}, 5),
        ({"type": "array", "items": "string"}, ["a"]),
    ],
)
def test_what_no_column_has_is_wrong_in_every_one_and_ignored_where_nobody_asks(kind: Any, value: Any) -> None:
    reasons = {
        "int": "x: not an int",
        "float": "x: not a float",
        "str": "x: not a str",
        "bool": "x: not a bool",
        "timestamp": "x: not an ISO 8601 time",
    }
    raw = {k: v for k, v in kind.items() if k != "logicalType"} if isinstance(kind, dict) else kind
    for name, reason in reasons.items():
        written, plain = record({"x": kind, "at": "string"}), record({"x": raw, "at": "string"})
        value_of = encoded(plain, {"x": value, "at": "2024-01-01"})
        schema = {"x": ColumnType(name), "at": ColumnType("timestamp")}
        assert decode([value_of], written, schema=schema).dead["reason"].to_list() == [reason]
        assert decode([value_of], written, schema={"at": ColumnType("timestamp")}).frame.height == 1


def test_a_time_is_no_number_and_no_text() -> None:
    time = {"type": "long", "logicalType": "timestamp-millis"}
    assert one(time, 5, ColumnType("int")) == "x: not an int"
    assert one(time, 5, ColumnType("float")) == "x: not a float"
    assert one("long", 5, ColumnType("timestamp")) == "x: not an ISO 8601 time"
    assert one({"type": "string", "logicalType": "uuid"}, "no uuid", ColumnType("str")) == "no uuid"
    assert one({"type": "int", "logicalType": "timestamp-millis"}, 5, ColumnType("int")) == 5  # of no meaning on an int, so it is plain


def test_of_a_union_each_value_is_what_it_is() -> None:
    union = ["null", "long", "string", "double", "boolean"]
    for value in (7, "7", 7.5, True, None):
        assert one(union, value, ColumnType("str")) == (value if value is None or isinstance(value, str) else "x: not a str")
        number = value if value is None or type(value) in (int, float) else "x: not a float"
        assert one(union, value, ColumnType("float")) == number
    written = record({"s": union, "f": union, "at": "string"})
    rows = [
        {"s": "a", "f": 1},
        {"s": "b", "f": 2.5},
        {"s": 5, "f": 1.0},
        {"s": None, "f": "x"},
        {"s": "c", "f": None},
        {"s": "d", "f": True},
    ]
    found = decode([encoded(written, row | {"at": "2024-01-01"}) for row in rows], written)
    assert found.frame.select("_offset", "s", "f").rows() == [(0, "a", 1.0), (1, "b", 2.5), (4, "c", None)]
    assert found.dead.select("offset", "reason").rows() == [(2, "s: not a str"), (3, "f: not a float"), (5, "f: not a float")]
    times = ["string", {"type": "long", "logicalType": "timestamp-micros"}]
    assert one(times, NOW, ColumnType("timestamp")) == one(times, "2024-01-01", ColumnType("timestamp"))
    two = ["null", {"type": "int", "logicalType": "date"}, {"type": "long", "logicalType": "timestamp-micros"}]
    written = record({"at": two})
    reason = "at: an Avro union of integers that mean different things"
    assert decode([framed(b"\x02\x02"), framed(b"\x00")], written).dead["reason"].to_list() == [
        reason,
        "at: missing, and it is the event time",
    ]


def test_columns_that_no_version_has_are_null_and_a_missing_event_time_is_a_dead_letter() -> None:
    here, nowhere = record({"at": "string"}), record({"other": "string"})
    found = decode([encoded(here, {"at": "2024-01-01"}), encoded(nowhere, {"other": "x"}, 1)], here, nowhere)
    assert found.frame.select("i", "f", "s", "b", "known").row(0) == (None,) * 5
    assert found.dead.select("offset", "reason").rows() == [(1, "at: missing, and it is the event time")]


# ---- what is no value -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_a_dead_letter_with_its_bytes_and_its_neighbours_are_events() -> None:
    written = record({"s": "string", "at": "string"})
    good = encoded(written, {"s": "x", "at": "2024-01-01"})
    values = {
        good: None,
        b"": "not in Confluent's wire format",
        b"\0\0\0\0": "not in Confluent's wire format",
        b"\x01" + good[1:]: "not in Confluent's wire format",
        b'{"s": "x", "at": "2024-01-01"}': "not in Confluent's wire format",
        framed(b""): "cut off, or not written with its schema (id 0)",
        good[:-1]: "cut off, or not written with its schema (id 0)",
        framed(b"\x01abc"): "cut off, or not written with its schema (id 0)",
        good + b"\n": "longer than its schema (id 0) says",
        framed(good[5:].replace(b"\x02x", b"\x02\xff")): "not UTF-8",
        framed(b"", 2**32 - 1): "schema id 4294967295 is not in the schema registry",
        framed(b"\x02x" + b"\x08soon"): "at: not an ISO 8601 time",
    }
    found = decode([*values, good], written)
    assert found.frame["_offset"].to_list() == [0, len(values)]
    assert found.dead["raw"].to_list() == [value for value, reason in values.items() if reason]
    for reason, expected in zip(found.dead["reason"], filter(None, values.values()), strict=True):
        assert reason.startswith(expected)


def test_a_value_that_is_too_long_keeps_its_beginning() -> None:
    written = record({"s": "string", "at": "string"})
    value = encoded(written, {"s": "x" * 200_000, "at": "2024-01-01"})
    found = decode([value], written, max_record=100_000)
    assert found.dead.rows() == [(0, f"longer than 100000 bytes; the first {RAW_KEPT} are kept", value[:RAW_KEPT])]
    assert decode([value], written).frame.height == 1


def test_a_registry_that_does_not_answer_decides_nothing() -> None:
    class Away:
        def schemas(self, ids: Collection[int]) -> Mapping[int, AvroSchema | str]:
            raise LogUnavailableError("not now")

    decoder = Decoder(SCHEMA, timestamp="at", schemas=Away())
    with pytest.raises(LogUnavailableError, match="not now"):
        decoder.decode(batch([b"nonsense", framed(b"x")]))
    assert decoder.decode(batch([b"nonsense"])).dead.height == 1
    assert decoder.decode(batch([])).frame.height == 0


def test_values_are_taken_from_messages_as_they_are() -> None:
    values: list[bytes | None] = [b"a\nb", None, b"\n\n\n", b"x" * 11, b""]
    got = record_batch(3, 10, 99, np.array([10, 12, 13, 14, 15]), values, [1, 2, 3, 4, 5], 10, lines=False)
    assert got.payload == [b"a\nb", b"\n\n\n", b""]
    assert got.arrival is not None
    assert (got.offsets.tolist(), got.arrival.tolist()) == ([10, 13, 15], [1000, 3000, 5000])
    assert [(offset, reason[:20]) for offset, _, reason in got.broken] == [(14, "longer than 10 bytes")]
    assert raw_records(got, [1, 2]) == [b"\n\n\n", b""]
    assert record_batch(0, 5, 7, np.array([], dtype=np.int64), [], [], 10, lines=False).payload == []


# ---- schemas --------------------------------------------------------------------------------------------------------------------


def refusal(schema: object, references: Sequence[str] = ()) -> str:
    with pytest.raises(SchemaRefusedError) as caught:
        avro_schema(schema if isinstance(schema, str) else json.dumps(schema), [Reference("", text) for text in references])
    return str(caught.value)


NULLS = [{"name": f"n{i}", "type": "null"} for i in range(100)]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ('"string"', "is not that of a record"),
        ([record({"x": "int"})], "is not that of a record"),
        ("{", "is no Avro schema: JSONDecodeError"),
        ("[" * 100_000, "is no Avro schema: RecursionError"),
        (record({"x": "Unheard"}), "is no Avro schema: UnknownType"),
        (record({"next": ["null", "R"]}), "contains itself (R)"),
        (record({"all": {"type": "array", "items": "R"}}), "contains itself (R)"),
        (record({"x": {"type": "record", "name": "A", "fields": [{"name": "up", "type": ["null", "R"]}]}}), "contains itself (R)"),
        (record({"x": {"type": "array", "items": "null"}}), "has an array of values that take no bytes"),
        (record({"x": {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}}), "has an array of values that take no"),
        (record({"x": {"type": "array", "items": ["null", {"type": "record", "name": "A", "fields": NULLS}]}}), "has an array of values"),
        (record({"x": {"type": "map", "values": {"type": "record", "name": "A", "fields": NULLS}}}), "has a map of nothing"),
    ],
)
def test_a_schema_that_could_do_harm_or_is_none_is_refused(schema: Any, reason: str) -> None:
    assert refusal(schema).startswith(reason)


def test_nesting_is_counted_through_names_and_what_takes_no_bytes_through_repetition() -> None:
    def chain(length: int, fields: int) -> list[str]:
        """R0 in R1 in R2 ..., each several times."""
        first = {"type": "record", "name": "R0", "fields": [{"name": "x", "type": "null"}]}
        later = [
            {"type": "record", "name": f"R{n}", "fields": [{"name": f"f{i}", "type": f"R{n - 1}"} for i in range(fields)]}
            for n in range(1, length)
        ]
        return [json.dumps(schema) for schema in (first, *later)]

    *references, deep = chain(100, 1)
    assert refusal(deep, references) == "is nested deeper than 64"
    *references, broad = chain(40, 2)
    assert refusal(broad, references) == "has too many fields that take no bytes"
    *references, fine = chain(10, 2)
    assert avro_schema(fine, [Reference("", text) for text in references]).fields["f0"] == {dict: pl.Binary()}


def test_a_schema_that_contains_itself_cannot_end_the_process() -> None:
    reason = "schema id 0 " + refusal(record({"next": ["null", "R"]}))
    assert decode([framed(b"\x02" * 1_000_000 + b"\0")], reason).dead["reason"].to_list() == ["schema id 0 contains itself (R)"]


def test_schemas_that_refer_to_others_are_read() -> None:
    money = {"type": "record", "name": "money.Amount", "fields": [{"name": "cents", "type": "long"}]}
    colour = {"type": "enum", "namespace": "money", "name": "Colour", "symbols": ["red", "green"]}
    written = avro_schema(
        json.dumps(record({"amount": "money.Amount", "s": ["null", "money.Colour"], "at": "string"})),
        [Reference("money", json.dumps(money)), Reference("colour", json.dumps(colour))],
    )

    class One:
        def schemas(self, ids: Collection[int]) -> Mapping[int, AvroSchema | str]:
            return {0: written}

    value = framed(_zigzag(5) + b"\x02\x02" + b"\x142024-01-01")
    assert Decoder(SCHEMA, timestamp="at", schemas=One()).decode(batch([value])).frame["s"].to_list() == ["green"]


def _zigzag(number: int) -> bytes:
    """A long, as Avro writes it."""
    rest, out = (number << 1) ^ (number >> 63), bytearray()
    while True:
        rest, low = rest >> 7, rest & 0x7F
        out.append(low | (0x80 if rest else 0))
        if not rest:
            return bytes(out)
