"""Protobuf values: columns by the rules of the other formats, and dead letters for whatever cannot be read."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.logs.wire import NOW, SCHEMA, Known, alone, batch, moments, short, texts, whole
from tidemill.errors import LogUnavailableError
from tidemill.logs.base import RecordBatch
from tidemill.logs.decode import Decoder, Events
from tidemill.logs.registered import protoc
from tidemill.logs.registered.protobuf import ProtobufSchema, protobuf_schema
from tidemill.logs.registered.written import Reference, SchemaRefusedError
from tidemill.times import to_micros
from tidemill.types import ColumnType

pytest.importorskip("grpc_tools")
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

#: The same columns with several types, in other orders, some missing, one more, some that can be null and some that cannot.
VERSIONS = (
    """
    syntax = "proto3"; package v;
    message R {
      int64 i = 1; double f = 2; string s = 3; bool b = 4; string at = 5; sint64 known = 6; repeated string other = 7;
    }
    """,
    """
    syntax = "proto3"; package v;
    import "google/protobuf/wrappers.proto";
    message Other { string at = 1; }
    message R {
      message Inner { int64 x = 1; }
      Inner other = 9; optional string at = 1; google.protobuf.DoubleValue known = 2; google.protobuf.BoolValue b = 3;
      oneof either { string s = 4; int32 nothing = 5; }
      optional float f = 70000; google.protobuf.Int64Value i = 7;
    }
    """,
    """
    syntax = "proto2"; package v;
    message R {
      enum Colour { red = 3; green = -1; }
      optional sfixed64 i = 1; optional sint32 f = 2; optional Colour s = 3 [default = green]; required string at = 5;
      optional uint64 known = 6; map<string, int32> other = 8;
    }
    """,
)


@cache
def made(text: str) -> ProtobufSchema:
    return protobuf_schema(text)


@cache
def classes(text: str, *references: Reference) -> Any:
    """A pool with the messages of a schema, as any producer has them."""
    pool = DescriptorPool()
    for file in protoc.described(text, references).file:
        pool.Add(file)
    return pool


def message(text: str, name: str, values: Mapping[str, Any]) -> Any:
    """A message with these values; of wrappers, the value itself."""
    found = GetMessageClass(classes(text).FindMessageTypeByName(name))()
    for field, value in values.items():
        if value is None:
            continue
        declared = found.DESCRIPTOR.fields_by_name[field]
        if declared.message_type is not None and declared.message_type.file.name == "google/protobuf/wrappers.proto":
            getattr(found, field).SetInParent()
            getattr(found, field).value = value
        elif declared.enum_type is not None and isinstance(value, str):
            setattr(found, field, declared.enum_type.values_by_name[value].number)
        else:
            setattr(found, field, value)
    return found


def framed(body: bytes, number: int = 0, which: bytes = b"\0") -> bytes:
    return b"\0" + number.to_bytes(4, "big") + which + body


def encoded(text: str, values: Mapping[str, Any], number: int = 0, name: str = "v.R", which: bytes = b"\0") -> bytes:
    return framed(message(text, name, values).SerializePartialToString(), number, which)


def decode(values: Sequence[bytes], *texts: str, schema: Mapping[str, ColumnType] = SCHEMA) -> Events:
    return Decoder(schema, timestamp="at", schemas=Known(*map(made, texts))).decode(batch(values))


# ---- equal to JSON --------------------------------------------------------------------------------------------------------------

floats = st.floats(width=32)
#: The values of each version, null where it can have one.
VALUES: tuple[dict[str, st.SearchStrategy[Any]], ...] = (
    {"i": whole, "f": st.floats(), "s": texts, "b": st.booleans(), "at": moments, "known": whole},
    {
        "i": st.none() | whole,
        "f": st.none() | floats,
        "s": st.none() | texts,
        "b": st.none() | st.booleans(),
        "at": st.none() | moments,
        "known": st.none() | st.floats(),
    },
    {
        "i": st.none() | whole,
        "f": st.none() | short,
        "s": st.none() | st.sampled_from(["red", "green"]),
        "at": moments,
        "known": st.none() | st.integers(0, 2**64 - 1),
    },
)
WHICH = (b"\0", b"\x02\x02", b"\x02\0")  # the place of `R` in its file: the first, the second, the first said at length
rows_of_all = st.lists(
    st.integers(0, 2).flatmap(lambda n: st.tuples(st.just(n), st.fixed_dictionaries(VALUES[n]))),
    min_size=1,
    max_size=10,
)


def values_of(rows: list[tuple[int, dict[str, Any]]]) -> list[bytes]:
    return [encoded(VERSIONS[n], row, n, which=WHICH[n]) for n, row in rows]


@settings(max_examples=100)
@given(rows_of_all)
def test_what_json_can_say_too_is_decoded_alike(rows: list[tuple[int, dict[str, Any]]]) -> None:
    values = values_of(rows)
    found = decode(values, *VERSIONS)
    payload = "".join(json.dumps(row) + "\n" for _, row in rows).encode()
    plain = Decoder(SCHEMA, timestamp="at").decode(
        RecordBatch(0, 0, len(rows), np.arange(len(rows)), payload, arrival=np.full(len(rows), NOW))
    )
    assert found.frame.equals(plain.frame)
    assert found.dead["offset"].to_list() == plain.dead["offset"].to_list()
    for letter, expected in zip(found.dead.rows(named=True), plain.dead["reason"], strict=True):
        assert letter["raw"] == values[letter["offset"]]
        assert letter["reason"] in {expected, *alone(rows[letter["offset"]][1])}


@settings(max_examples=100)
@given(rows_of_all, st.data())
def test_whatever_the_bytes_are_each_value_is_decided_by_itself(rows: Any, data: st.DataObject) -> None:
    values = values_of(rows)
    for place, value in enumerate(values):
        cut = data.draw(st.integers(0, len(value)))
        noise = data.draw(st.binary(max_size=6))
        values[place] = data.draw(
            st.sampled_from([value, value[:cut], value[:cut] + noise + value[cut + len(noise) :], value + noise, value[:5] + noise])
        )
    together = decode(values, *VERSIONS)
    decoder = Decoder(SCHEMA, timestamp="at", schemas=Known(*map(made, VERSIONS)))
    parts = [decoder.decode(batch([value], n)) for n, value in enumerate(values)]
    assert together.frame.equals(pl.concat([part.frame for part in parts]))
    assert together.dead.equals(pl.concat([part.dead for part in parts]))
    assert together.frame.height + together.dead.height == len(values)


# ---- which field in which column ------------------------------------------------------------------------------------------------

EVERYTHING = """
    syntax = "proto3"; package v;
    import "google/protobuf/timestamp.proto";
    import "google/protobuf/wrappers.proto";
    import "google/protobuf/duration.proto";
    import "google/type/date.proto";
    import "confluent/type/decimal.proto";
    enum Colour { option allow_alias = true; none = 0; red = 1; rot = 1; }
    message R {
      string at = 1; int32 int32 = 2; uint32 uint32 = 3; uint64 uint64 = 4; fixed32 fixed32 = 5; fixed64 fixed64 = 6;
      sfixed32 sfixed32 = 7; float float = 8; bool bool = 9; string string = 10; bytes bytes = 11; Colour colour = 12;
      google.protobuf.Timestamp stamp = 13; google.protobuf.StringValue text = 14; google.protobuf.UInt64Value much = 15;
      google.protobuf.Duration duration = 16; google.type.Date date = 17; confluent.type.Decimal decimal = 18; R again = 19;
      repeated int32 list = 20; map<string, R> map = 21; optional Colour maybe = 22; google.protobuf.BytesValue raw = 23;
      google.protobuf.FloatValue narrow = 24; repeated google.protobuf.Timestamp stamps = 25; int64 from = 26;
    }
"""
EMPTY = {"uint64": 0, "float": 0.0, "bool": False, "string": "", "colour": "none", "stamp": None, "text": None, "maybe": None}


def one(field: str, column: ColumnType, **values: Any) -> object:
    """What a column of this type has of that field, or the reason for a dead letter."""
    value = encoded(EVERYTHING, {"at": "2024-01-01", **values})
    found = decode([value], EVERYTHING, schema={field: column, "at": ColumnType("timestamp")})
    assert found.frame.height + found.dead.height == 1
    return found.frame[field].to_list()[0] if found.frame.height else found.dead["reason"][0]


@pytest.mark.parametrize(
    ("field", "value", "column", "expected"),
    [
        ("int32", -5, "int", -5),
        ("uint32", 2**32 - 1, "int", 2**32 - 1),
        ("fixed32", 2**32 - 1, "int", 2**32 - 1),
        ("sfixed32", -(2**31), "int", -(2**31)),
        ("uint64", 2**63 - 1, "int", 2**63 - 1),
        ("uint64", 2**63, "int", "uint64: outside the 64-bit integers"),
        ("fixed64", 2**64 - 1, "float", "fixed64: 2**64 or more, outside what tidemill can add exactly"),
        ("fixed64", 2**64 - 2**12, "float", float(2**64 - 2**12)),
        ("much", 2**63, "int", "much: outside the 64-bit integers"),
        ("much", 7, "int", 7),
        ("float", 0.1, "float", struct.unpack("f", struct.pack("f", 0.1))[0]),
        ("float", float("nan"), "float", None),
        ("narrow", 0.5, "float", 0.5),
        ("int32", 3, "float", 3.0),
        ("bool", True, "bool", True),
        ("bool", True, "int", "bool: not an int"),
        ("int32", 1, "bool", "int32: not a bool"),
        ("string", "5", "int", "string: not an int"),
        ("string", "é", "str", "é"),
        ("text", "", "str", ""),
        ("colour", 1, "str", "red"),
        ("colour", 9, "str", "colour: a number for which the Protobuf enum has no name"),
        ("colour", 1, "int", "colour: not an int"),
        ("maybe", 0, "str", "none"),
        ("bytes", b"abc", "str", "bytes: not a str"),
        ("from", 4, "int", 4),
        ("duration", None, "int", "duration: not an int"),
        ("again", None, "str", "again: not a str"),
        ("list", None, "int", "list: not an int"),
        ("map", None, "str", "map: not a str"),
        ("raw", None, "str", "raw: not a str"),
        ("stamps", None, "str", "stamps: not a str"),
        (
            "decimal",
            None,
            "float",
            "decimal: a Protobuf decimal, which no column holds exactly; write it as a double, an int64 or a string",
        ),
    ],
)
def test_a_field_is_in_the_columns_of_its_type_only(field: str, value: Any, column: str, expected: object) -> None:
    found = one(field, ColumnType(column), **{field: value})  # type: ignore[arg-type]
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(("field", "expected"), EMPTY.items())
def test_what_is_not_written_is_zero_where_protobuf_cannot_tell_and_null_where_it_can(field: str, expected: object) -> None:
    kind = {"uint64": "int", "float": "float", "bool": "bool", "stamp": "timestamp"}.get(field, "str")
    assert one(field, ColumnType(kind)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [
        (1_700_000_000, 0, 1_700_000_000_000_000),
        (1_700_000_000, 1_999, 1_700_000_000_000_001),
        (-1, 999_999_999, -1),
        (-62_135_596_800, 0, to_micros("0001-01-01")),
        (-62_135_596_801, 0, "stamp: outside the years 1 to 9999"),
        (2**62, 0, "stamp: outside the years 1 to 9999"),
        (-(2**63), 0, "stamp: outside the years 1 to 9999"),
        (0, -1, "stamp: a google.protobuf.Timestamp whose nanos are not between 0 and 999,999,999"),
        (0, 1_000_000_000, "stamp: a google.protobuf.Timestamp whose nanos are not between 0 and 999,999,999"),
    ],
)
@pytest.mark.parametrize("column", [ColumnType("timestamp"), ColumnType("timestamp", "ms")])
def test_a_timestamp_is_floored_to_the_microsecond(seconds: int, nanos: int, expected: object, column: ColumnType) -> None:
    written = message(EVERYTHING, "v.R", {"at": "2024-01-01"})
    written.stamp.seconds, written.stamp.nanos = seconds, nanos
    schema = {"stamp": column, "at": ColumnType("timestamp")}
    found = decode([framed(written.SerializeToString())], EVERYTHING, schema=schema)
    assert [*found.frame["stamp"].cast(pl.Int64), *found.dead["reason"]] == [expected]


def test_a_timestamp_is_no_number() -> None:
    written = message(EVERYTHING, "v.R", {"at": "2024-01-01"})
    written.stamp.seconds = 5
    found = decode([framed(written.SerializeToString())], EVERYTHING, schema={"stamp": ColumnType("int"), "at": ColumnType("timestamp")})
    assert found.dead["reason"].to_list() == ["stamp: not an int"]


def test_fields_of_no_column_are_ignored_where_nobody_asks_for_them() -> None:
    written = message(EVERYTHING, "v.R", {"at": "2024-01-01", "int32": 8, "bytes": b"x"})
    written.again.list.extend([1, 2])
    written.list.extend(range(9))
    written.map["a"].at = "b"
    written.decimal.value = b"1"
    written.stamps.add(nanos=-5)
    found = decode([framed(written.SerializeToString())], EVERYTHING, schema={"int32": ColumnType("int"), "at": ColumnType("timestamp")})
    assert found.frame.select("int32", "_time").rows() == [(8, NOW)]


# ---- which message --------------------------------------------------------------------------------------------------------------

SEVERAL = """
    syntax = "proto3"; package v;
    message A { string at = 1; message B { string at = 2; int64 n = 3; } message C { string at = 4; message D { string at = 5; } } }
    message M { map<string, string> m = 1; message N { string at = 2; } }
    message E { string at = 6; }
"""


@pytest.mark.parametrize(
    ("which", "name"),
    [
        (b"\0", "A"),
        (b"\x02\0", "A"),
        (b"\x04\0\0", "A.B"),
        (b"\x04\0\x02", "A.C"),
        (b"\x06\0\x02\0", "A.C.D"),
        (b"\x02\x04", "E"),
        (b"\x82\0\x84\x80\0", "E"),
    ],
)
def test_a_value_says_which_message_it_is(which: bytes, name: str) -> None:
    found = decode([encoded(SEVERAL, {"at": "2024-01-01"}, name=f"v.{name}", which=which)], SEVERAL, schema={"at": ColumnType("timestamp")})
    assert found.frame["_time"].to_list() == [NOW]


NOT_FRAMED = "not in Confluent's wire format: a zero byte, the id of a schema in 4 bytes, which message it is, then Protobuf"


@pytest.mark.parametrize(
    ("which", "reason"),
    [
        (b"\x02\x06", "message 3 of schema id 0: there is none at that place"),
        (b"\x04\0\x04", "message 0.2 of schema id 0: there is none at that place"),
        (b"\x08\0\x02\0\0", "message 0.1.0.0 of schema id 0: there is none at that place"),
        (b"\x04\x02\0", "message 1.0 of schema id 0: it is nested in a message with maps, and writers disagree about the place of such"),
        (b"", NOT_FRAMED),
        (b"\x02", NOT_FRAMED),
        (b"\x01", NOT_FRAMED),
        (b"\x02\x01", NOT_FRAMED),
        (b"\xff\xff\xff\xff\xff\xff\x01", NOT_FRAMED),
        (b"\xfe\x0f" + bytes(2000), NOT_FRAMED),
    ],
)
def test_a_value_that_does_not_say_which_message_it_is_is_a_dead_letter(which: bytes, reason: str) -> None:
    found = decode([framed(b"", which=which)], SEVERAL, schema={"at": ColumnType("timestamp")})
    assert found.dead["reason"].to_list() == [reason]


# ---- values that cannot be read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "body", "reason"),
    [
        (0, b"\x2a\x0a2024", "cut off, or not written with its schema (id 0)"),
        (0, b"\x1a\x02\xff\xfe\x2a\x0a2024-01-01", "not UTF-8"),
        (2, b"\x2a\x02\xff\xfe", "at: not UTF-8"),  # this version checks nothing
        (2, b"\x08\x01", "without a field that its schema (id 0) requires"),
        (0, b"", "at: not an ISO 8601 time"),
        (1, b"", "at: missing, and it is the event time"),
    ],
)
def test_a_value_that_cannot_be_read_is_a_dead_letter(version: int, body: bytes, reason: str) -> None:
    (found,) = decode([framed(body, which=WHICH[version])], VERSIONS[version]).dead["reason"].to_list()
    assert found.startswith(reason)


def test_submessages_that_nobody_asked_for_take_no_memory() -> None:
    fields = " ".join(f"int64 f{n} = {n};" for n in range(1, 400))
    text = f'syntax = "proto3"; message R {{ string at = 1; repeated Wide many = 2; }} message Wide {{ {fields} }}'
    program = f"""
import resource
from tests.logs.test_protobuf import *
schema = made({text!r})
value = framed(b"\\x0a\\x0a2024-01-01" + b"\\x12\\0" * 500_000)
columns = {{"at": ColumnType("timestamp")}}
decoder = Decoder(columns, timestamp="at", schemas=Known(schema))
assert decoder.decode(batch([value[:18]])).frame.height == 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert decoder.decode(batch([value])).frame.height == 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert int(done.stdout) < 50_000  # KiB; the objects would be a gigabyte


# ---- schemas --------------------------------------------------------------------------------------------------------------------

MONEY = 'syntax = "proto3"; package m; import "deep/colour.proto"; message Money { int64 cents = 1; c.Colour colour = 2; }'
COLOUR = 'syntax = "proto3"; package c; enum Colour { none = 0; red = 1; }'
BUYS = 'syntax = "proto3"; import "money.proto"; import "deep/colour.proto"; message Buy { string at = 1; m.Money m = 2; c.Colour s = 3; }'


def as_descriptor(text: str, *references: Reference) -> str:
    """As confluent-kafka's serializer registers it."""
    (*_, file) = protoc.described(text, references).file
    copy = FileDescriptorProto.FromString(file.SerializeToString())
    copy.name = "some/name.proto"
    return base64.b64encode(copy.SerializeToString()).decode()


@pytest.mark.parametrize("which", range(8))
def test_schemas_are_text_or_descriptors_and_so_are_those_that_they_import(which: int) -> None:
    colour = Reference("deep/colour.proto", COLOUR)
    money = Reference("money.proto", MONEY)
    buys = BUYS
    if which & 1:
        buys = as_descriptor(BUYS, colour, money)
    if which & 2:
        money = Reference("money.proto", as_descriptor(MONEY, colour))
    if which & 4:
        colour = Reference("deep/colour.proto", as_descriptor(COLOUR))
    schema = protobuf_schema(buys, [colour, money])
    value = framed(b"\x0a\x0a2024-01-01\x18\x01")
    found = Decoder(SCHEMA, timestamp="at", schemas=Known(schema)).decode(batch([value]))
    assert found.frame.select("s", "_time").rows() == [("red", NOW)]


@pytest.mark.parametrize(
    ("text", "references", "reason"),
    [
        ('syntax = "proto3"; message R { int64 i = 1 }', [], "is no Protobuf schema: tidemill.registered.proto:1:44: Expected"),
        ('syntax = "proto3"; import "gone.proto"; message R {}', [], "is no Protobuf schema: gone.proto: File not found"),
        ('syntax = "proto3"; message R { Other o = 1; }', [], "is no Protobuf schema: .*Other. is not defined"),
        (f'syntax = "proto3"; import "{protoc.ROOT}"; message R {{}}', [], "is no Protobuf schema: .*recursive"),
        ("", [], "is no Protobuf schema: .*|"),
        ("message R {}", [Reference("../escaped.proto", "")], "imports a file of an impossible name: '../escaped.proto'"),
        ("message R {}", [Reference("/tmp/escaped.proto", "x")], "imports a file of an impossible name: '/tmp/escaped.proto'"),
        ("message R {" * 5000 + "}" * 5000, [], "is no Protobuf schema: "),
    ],
)
def test_what_is_no_schema_is_refused(text: str, references: list[Reference], reason: str) -> None:
    if text == "":  # nothing is a file without messages
        (value,) = Decoder(SCHEMA, timestamp="at", schemas=Known(protobuf_schema(""))).decode(batch([framed(b"")])).dead["reason"]
        assert value == "message 0 of schema id 0: there is none at that place"
        return
    with pytest.raises(SchemaRefusedError, match=reason):
        protobuf_schema(text, references)


def test_a_descriptor_that_protoc_would_not_make_is_refused() -> None:
    file = FileDescriptorProto(name="x.proto", syntax="proto3")
    file.message_type.add(name="R").field.add(name="x", number=1, type=11, label=1, type_name=".Gone")
    with pytest.raises(SchemaRefusedError, match="is no Protobuf schema"):
        protobuf_schema(base64.b64encode(file.SerializeToString()).decode())


def test_a_protoc_that_does_not_come_back_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protoc, "_PATIENCE", 0.0)
    with pytest.raises(LogUnavailableError, match="protoc has not read a schema"):
        protobuf_schema(COLOUR)


def test_editions_say_themselves_what_can_be_null() -> None:
    text = """
        edition = "2023"; package v;
        message R { string at = 1; int64 i = 2 [features.field_presence = IMPLICIT]; bool b = 3; repeated R list = 4; }
    """
    found = decode([encoded(text, {"at": "2024-01-01"})], text)
    assert found.frame.select("i", "b").rows() == [(0, None)]


def test_fields_may_have_any_name_and_any_order_of_what_is_optional() -> None:
    text = """
        syntax = "proto3"; package v;
        message R {
          optional int64 HasField = 1; optional R FromString = 2; optional string at = 3; optional R class = 4;
          oneof x { R SerializeToString = 5; string IsInitialized = 6; } optional bool DESCRIPTOR = 7; int32 __class__ = 8;
        }
    """
    names = {"HasField": "int", "IsInitialized": "str", "DESCRIPTOR": "bool", "__class__": "int", "at": "timestamp"}
    schema = {name: ColumnType(kind) for name, kind in names.items()}  # type: ignore[arg-type]
    body = b"\x08\x05\x12\x02\x08\x01\x1a\x0a2024-01-01\x32\x01y\x38\x01\x40\x07"
    found = decode([framed(body)], text, schema=schema)
    assert found.frame.select(list(names)[:4]).rows() == [(5, "y", True, 7)]


def test_a_schema_with_a_message_that_reads_itself_is_read() -> None:
    text = 'syntax = "proto3"; message R { string at = 1; R next = 2; }'
    body = b""
    for _ in range(300):
        body = b"\x12" + _varint(len(body)) + body
    found = decode([framed(b"\x0a\x0a2024-01-01" + body)], text)
    assert found.frame["_time"].to_list() == [NOW]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
