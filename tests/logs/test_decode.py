"""The rules that are not those of JSON lines: typed columns, text columns, arrivals, and what a decoder refuses."""

from __future__ import annotations

import datetime as dt
import gc
import json
from decimal import Decimal
from pathlib import Path
from unittest import mock
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.logs.contract import read_all
from tidemill.errors import DefinitionError, LogError
from tidemill.logs import parquet
from tidemill.logs.base import RecordBatch
from tidemill.logs.decode import Decoder, Events, raw_records
from tidemill.logs.files import FileLog, open_file
from tidemill.times import MAX_TIME, MIN_TIME
from tidemill.types import ColumnType

AT = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
MICROS = 1_704_067_200_000_000


def decode(
    frame: pl.DataFrame, *, text: bool = False, arrival: list[int] | None = None, max_ahead: int | None = None, **schema: str
) -> Events:
    """`schema`: column to type, `timestamp:ms` for one with a unit. A column `at` is the event time."""
    kinds = {"at": ColumnType("timestamp")} | {name: ColumnType(*kind.split(":")) for name, kind in schema.items()}
    if "at" not in frame.columns:
        frame = frame.with_columns(at=pl.lit("2024-01-01") if text else pl.lit(AT))
    decoder = Decoder(kinds, timestamp="at", arrival="known" if "known" in kinds else None, max_ahead=max_ahead)
    stamps = None if arrival is None else np.array(arrival, dtype=np.int64)
    events = decoder.decode(RecordBatch(0, 5, 5 + frame.height, np.arange(5, 5 + frame.height), frame, text=text, arrival=stamps))
    assert len(events.frame) + len(events.dead) == frame.height
    assert {name: events.frame.schema[name] for name in kinds} == {name: kind.polars for name, kind in kinds.items()}
    return events


def values(events: Events, name: str) -> list[object]:
    return events.frame[name].to_list()


def dead(events: Events) -> list[tuple[int, str]]:
    return events.dead.select("offset", "reason").rows()


def test_numbers_of_every_width_are_read_from_typed_columns() -> None:
    frame = pl.DataFrame({"i": [1, None, 200]}, schema={"i": pl.UInt8}).with_columns(
        u=pl.Series([2**63 - 1, None, 2**63], dtype=pl.UInt64),
        f=pl.Series([0.5, None, 1.5], dtype=pl.Float32),
        d=pl.Series(["1.25", None, "2"]).cast(pl.Decimal(10, 2)),
    )
    events = decode(frame, i="int", u="int", f="float", d="float")
    assert events.frame.select("i", "u", "f", "d").rows() == [(1, 2**63 - 1, 0.5, 1.25), (None, None, None, None)]
    assert dead(events) == [(7, "u: outside the 64-bit integers")]


def test_floats_are_freed_of_nan_and_minus_zero_and_what_does_not_fit_is_dead() -> None:
    events = decode(pl.DataFrame({"f": [float("nan"), -0.0, float("inf"), -(2.0**64), 1e300, 2.0**63, None]}), f="float")
    assert values(events, "f") == [None, 0.0, 2.0**63, None]
    assert str(values(events, "f")[1]) == "0.0"
    assert dead(events) == [
        (7, "f: infinite"),
        (8, "f: 2**64 or more, outside what tidemill can add exactly"),
        (9, "f: 2**64 or more, outside what tidemill can add exactly"),
    ]


def test_a_typed_column_of_the_wrong_type_has_only_its_nulls() -> None:
    frame = pl.DataFrame({"i": [1.0, None], "s": [5, None], "b": [1, None], "f": ["1", None], "i2": [True, None]})
    for name, events, reason in [
        ("i", decode(frame.select("i"), i="int"), "i: not an int"),
        ("s", decode(frame.select("s"), s="str"), "s: not a str"),
        ("b", decode(frame.select("b"), b="bool"), "b: not a bool"),
        ("f", decode(frame.select("f"), f="float"), "f: not a float"),
        ("i2", decode(frame.select("i2"), i2="int"), "i2: not an int"),
    ]:
        assert dead(events) == [(5, reason)]
        assert values(events, name) == [None]


def test_categories_are_text_and_a_column_that_is_not_there_is_null() -> None:
    events = decode(
        pl.DataFrame({"s": pl.Series(["a", None], dtype=pl.Categorical), "e": pl.Series([None, None])}),
        s="str",
        e="float",
        gone="int",
        t="timestamp",
    )
    assert events.frame.select("s", "e", "gone", "t").rows() == [("a", None, None, None), (None, None, None, None)]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_typed_timestamps_of_any_unit_and_zone_are_the_same_instant(unit: str, zone: str | None) -> None:
    moments = [AT, None, AT - dt.timedelta(days=30_000, milliseconds=1)]
    local = [None if m is None else m.replace(tzinfo=None) if zone is None else m.astimezone(ZoneInfo(zone)) for m in moments]
    frame = pl.DataFrame({"at": pl.Series(local, dtype=pl.Datetime(unit, zone))})  # type: ignore[arg-type]  # a str, and one of the three
    events = decode(frame)
    assert values(events, "at") == [AT, moments[2]]
    assert values(events, "_time") == [MICROS, MICROS - 30_000 * 86_400_000_000 - 1000]
    assert dead(events) == [(6, "at: missing, and it is the event time")]


def test_nanoseconds_are_floored_also_before_1970() -> None:
    events = decode(pl.DataFrame({"at": pl.Series([1999, -1, -1000, -1001]).cast(pl.Datetime("ns"))}))
    assert values(events, "_time") == [1, -1, -1, -2]


def test_dates_are_midnight_and_times_out_of_range_are_dead() -> None:
    events = decode(pl.DataFrame({"at": [dt.date(2024, 1, 1), dt.date(1, 1, 1), dt.date(9999, 12, 31)]}))
    assert values(events, "_time") == [MICROS, MIN_TIME, MAX_TIME - 86_400_000_000]
    for unit, far in (("ms", 2**62), ("us", MAX_TIME), ("us", MIN_TIME - 1), ("ms", -(2**63))):
        events = decode(pl.DataFrame({"at": pl.Series([far]).cast(pl.Datetime(unit))}))  # type: ignore[arg-type]  # as above
        assert dead(events) == [(5, "at: outside the years 1 to 9999")]
    events = decode(pl.DataFrame({"at": pl.Series([2**31 - 1, -(2**31)], dtype=pl.Int32).cast(pl.Date)}))
    assert len(dead(events)) == 2


@pytest.mark.parametrize(
    ("dtype", "far", "shown"),
    [
        (pl.Date(), 2**31 - 1, "1970-01-02"),
        (pl.Datetime("us", "Asia/Tokyo"), 2**62, "1970-01-01T09:00:00.000001+09:00"),
        (pl.Datetime("ms"), -(2**63), "1970-01-01T00:00:00.001000"),
        (pl.Duration("ms"), 2**62, "0:00:00.001000"),
        (pl.Duration("ms"), -(2**63), "0:00:00.001000"),
    ],
)
def test_a_record_is_shown_alike_whatever_others_are_read_with_it(dtype: pl.DataType, far: int, shown: str) -> None:
    numbers = pl.Series([1, far, None], dtype=pl.Int32 if dtype == pl.Date else pl.Int64)
    frame = pl.DataFrame({"x": numbers.cast(dtype)})
    batch = RecordBatch(0, 5, 8, np.arange(5, 8), frame)
    assert [json.loads(raw)["x"] for raw in raw_records(batch, range(3))] == [shown, far, None]
    assert raw_records(batch, range(3)) == [raw for i in range(3) for raw in raw_records(batch, [i])]


def test_epoch_numbers_are_exact_as_integers_and_nearest_as_floats() -> None:
    events = decode(pl.DataFrame({"e": [MICROS // 1000, None, 2**62, -(2**63)]}), e="timestamp:ms")
    assert values(events, "e") == [AT, None]
    assert dead(events) == [(7, "e: outside the years 1 to 9999"), (8, "e: outside the years 1 to 9999")]
    events = decode(pl.DataFrame({"e": [1.000_000_4, float("nan"), 1e300]}), e="timestamp:s")
    assert [t and t.timestamp() for t in events.frame["e"]] == [1.0, None]
    assert dead(events) == [(7, "e: outside the years 1 to 9999")]
    events = decode(pl.DataFrame({"e": pl.Series([2**64 - 1], dtype=pl.UInt64)}), e="timestamp:us")
    assert dead(events) == [(5, "e: outside the years 1 to 9999")]
    assert dead(decode(pl.DataFrame({"e": ["2024-01-01"]}), e="timestamp:us")) == [(5, "e: not an epoch number in 'us'")]
    assert dead(decode(pl.DataFrame({"e": [5]}), e="timestamp")) == [(5, "e: not an ISO 8601 time")]


def test_text_columns_are_read_as_the_schema_says() -> None:
    frame = pl.DataFrame(
        {
            "i": ["5", "+7", "-9223372036854775808", None, "5.0", "9223372036854775808", " 5", "", "5", "5", "5", "5"],
            "f": ["1", ".5", "-1e3", None, "1", "1", "1", "1", "nan", "inf", "1,5", "-0"],
            "b": ["true", "FALSE", "1", None, "1", "1", "1", "1", "0", "1", "1", "yes"],
        }
    )
    events = decode(frame, text=True, i="int", f="float", b="bool")
    assert events.frame.select("i", "f", "b").rows() == [
        (5, 1.0, True),
        (7, 0.5, False),
        (-(2**63), -1000.0, True),
        (None, None, None),
        (5, None, False),
    ]
    assert dead(events) == [
        (9, "i: not an int"),
        (10, "i: outside the 64-bit integers"),
        (11, "i: not an int"),
        (12, "i: not an int"),
        (14, "f: infinite"),
        (15, "f: not a float"),
        (16, "b: not a bool"),
    ]


def test_times_in_text_columns_are_iso_or_epoch_numbers() -> None:
    frame = pl.DataFrame({"at": ["2024-01-01T00:00:00Z", "soon", None], "e": ["1704067200.5", "1", "2"]})
    events = decode(frame, text=True, e="timestamp:s")
    assert events.frame.select("at", "e").rows() == [(AT, AT + dt.timedelta(milliseconds=500))]
    assert dead(events) == [(6, "at: not an ISO 8601 time"), (7, "at: missing, and it is the event time")]
    assert dead(decode(frame.with_columns(e=pl.lit("2024-01-01")), text=True, e="timestamp:s"))[0] == (5, "e: not an epoch number in 's'")


def test_the_logs_own_arrival_times_count_where_no_column_is_named() -> None:
    events = decode(pl.DataFrame({"i": [1, 2]}), arrival=[MICROS - 11, MICROS - 10], max_ahead=10, i="int")
    assert values(events, "_arrival") == [MICROS - 10]
    assert dead(events) == [(5, "at: more than 10us after its arrival")]


def test_the_logs_own_arrival_times_count_also_where_a_column_is_named() -> None:
    events = decode(pl.DataFrame({"known": [MICROS]}, schema={"known": pl.Int64}), arrival=[MICROS - 5], known="timestamp:us")
    assert values(events, "_arrival") == [MICROS - 5]


def test_an_arrival_column_may_be_null_but_not_unreadable() -> None:
    frame = pl.DataFrame({"known": ["2024-01-01", None, "later", "2023-12-31T23:59:59"]})
    events = decode(frame, text=True, max_ahead=999_999, known="timestamp")
    assert values(events, "_arrival") == [MICROS, None]
    assert dead(events) == [(7, "known: not an ISO 8601 time"), (8, "at: more than 999999us after its arrival")]


def test_an_arrival_column_beside_the_schema_is_read_from_files_and_yields_to_the_log() -> None:
    decoder = Decoder({"at": ColumnType("timestamp")}, timestamp="at", arrival="known", max_ahead=0)
    payload = (
        b'{"at": "2024-01-01", "known": "2024-01-01"}\n{"at": "2024-01-01", "known": "2023-12-31"}\n{"at": "2024-01-01", "known": 5}\n'
    )
    events = decoder.decode(RecordBatch(0, 0, 3, np.arange(3), payload))
    assert events.frame.columns == ["at", "_offset", "_time", "_arrival"]
    assert events.frame["_arrival"].to_list() == [MICROS]
    assert dead(events) == [(1, "at: more than 0s after its arrival"), (2, "known: not an ISO 8601 time")]
    events = decoder.decode(RecordBatch(0, 0, 3, np.arange(3), payload, arrival=np.array([MICROS, MICROS + 1, MICROS - 1])))
    assert events.frame["_arrival"].to_list() == [MICROS, MICROS + 1]


def test_a_line_longer_than_allowed_is_dead_and_cut() -> None:
    decoder = Decoder({"at": ColumnType("timestamp")}, timestamp="at", max_record=100_000)
    line = b'{"at": "2024-01-01", "x": "%s"}' % (b"y" * 100_000)
    events = decoder.decode(RecordBatch(0, 0, 2, np.arange(2), line + b'\n{"at": "2024-01-01"}\n'))
    assert events.frame["_offset"].to_list() == [1]
    assert dead(events) == [(0, "longer than 100000 bytes; the first 65536 are kept")]
    assert events.dead["raw"][0] == line[:65536]


def test_broken_records_of_the_reader_are_dead_letters_among_the_others() -> None:
    decoder = Decoder({"at": ColumnType("timestamp")}, timestamp="at")
    batch = RecordBatch(3, 0, 4, np.array([1, 3]), b'[]\n{"at": "2024-01-01"}\n', broken=((0, b"a", "x"), (2, b"b", "y")))
    events = decoder.decode(batch)
    assert events.dead.rows() == [(0, "x", b"a"), (1, "not a JSON object", b"[]"), (2, "y", b"b")]
    assert (events.partition, events.start, events.end) == (3, 0, 4)


def test_an_empty_batch_has_its_columns() -> None:
    decoder = Decoder({"at": ColumnType("timestamp"), "f": ColumnType("float")}, timestamp="at")
    for payload in (b"", pl.DataFrame(schema={"at": pl.Datetime("us")})):
        events = decoder.decode(RecordBatch(0, 0, 0, np.arange(0), payload))
        assert events.frame.schema == {
            "at": pl.Datetime("us", "UTC"),
            "f": pl.Float64,
            "_offset": pl.Int64,
            "_time": pl.Int64,
            "_arrival": pl.Int64,
        }
        assert events.dead.schema == {"offset": pl.Int64, "reason": pl.String, "raw": pl.Binary}


def test_a_batch_with_another_number_of_lines_is_a_mistake_of_its_reader() -> None:
    decoder = Decoder({"at": ColumnType("timestamp")}, timestamp="at")
    with pytest.raises(ValueError, match="a batch of 2 records has 1 lines"):
        decoder.decode(RecordBatch(0, 0, 2, np.arange(2), b"{}\n"))


def test_lines_that_begin_as_compressed_data_are_not_unpacked() -> None:
    decoder = Decoder({"at": ColumnType("timestamp")}, timestamp="at")
    inside = b'{"at": "2024-01-01"}\n'
    packed = pa.compress(inside * 100, codec="zstd", asbytes=True)
    payload = packed.replace(b"\n", b" ") + b"\n" + inside * 100
    events = decoder.decode(RecordBatch(0, 0, 101, np.arange(101), payload))
    assert events.frame["_offset"].to_list() == list(range(1, 101))
    assert dead(events) == [(0, "not UTF-8")]


def test_a_frame_without_the_event_time_is_an_error_with_its_offsets() -> None:
    decoder = Decoder({"at": ColumnType("timestamp"), "i": ColumnType("int")}, timestamp="at")
    with pytest.raises(LogError, match="offsets 5 to 6: there is no column 'at', which holds the event time; the file has i"):
        decoder.decode(RecordBatch(0, 5, 6, np.array([5]), pl.DataFrame({"i": [1]})))


def test_a_parquet_file_without_the_wanted_columns_is_an_error_with_its_name(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(LogError, match=r"a\.parquet: there is no column 'at'"):
        FileLog(tmp_path / "*", columns=["x", "at"], timestamp="at").open(0, 0)
    with pytest.raises(LogError, match=r"a\.parquet: none of the columns y, z is there; it has x"):
        FileLog(tmp_path / "*", columns=["y", "z"]).open(0, 0)


def test_parquet_text_that_is_not_utf8_is_a_dead_letter(tmp_path: Path) -> None:
    text = pa.array([b"good", b"bad \xff", None], pa.binary())
    table = pa.table({"at": pa.array([0, 1, 2], pa.timestamp("ns", "+02:00")), "s": pa.Array.from_buffers(pa.string(), 3, text.buffers())})
    pq.write_table(table, tmp_path / "a.parquet")
    [batch] = read_all(FileLog(tmp_path / "*").open(0, 0))
    events = Decoder({"at": ColumnType("timestamp"), "s": ColumnType("str")}, timestamp="at").decode(batch)
    assert events.frame.select("s", "_offset").rows() == [("good", 0), (None, 2)]
    assert dead(events) == [(1, "s: not UTF-8")]


def test_a_parquet_row_becomes_json_in_the_dead_letters() -> None:
    events = decode(pl.DataFrame({"f": [float("inf")], "s": ["x"]}), f="float")
    assert events.dead["raw"][0] == b'{"f": Infinity, "s": "x", "at": "2024-01-01T00:00:00+00:00"}'


@pytest.mark.parametrize(
    ("schema", "named", "what"),
    [
        ({"at": "timestamp"}, {"timestamp": "when"}, "there is no column 'when'"),
        ({"at": "timestamp"}, {"timestamp": "at", "event_id": "id"}, "there is no column 'id'"),
        ({"at": "int"}, {"timestamp": "at"}, "'at' must be a Timestamp, but the schema says int"),
        ({"at": "timestamp", "k": "str"}, {"timestamp": "at", "arrival": "k"}, "'k' must be a Timestamp"),
        ({"at": "timestamp", "_offset": "int"}, {"timestamp": "at"}, "cannot be called '_offset'"),
    ],
)
def test_a_decoder_refuses_what_the_schema_does_not_have(schema: dict[str, str], named: dict[str, str], what: str) -> None:
    with pytest.raises(DefinitionError, match=what):
        Decoder({name: ColumnType(kind) for name, kind in schema.items()}, **named)  # type: ignore[arg-type]  # names only


def test_a_decoded_batch_is_freed_at_once_and_not_when_the_garbage_collector_comes_by() -> None:
    decoder = Decoder({"n": ColumnType("int"), "at": ColumnType("timestamp")}, timestamp="at")
    payload = b'{"n": 1, "at": "1970-01-01"}\n' * 1_000
    batch = RecordBatch(0, 0, 1_000, np.arange(1_000), payload)
    decoder.decode(batch)
    gc.collect()
    gc.disable()
    try:
        decoder.decode(batch)
        assert gc.collect() == 0, "a cycle keeps the frames of a batch alive"
    finally:
        gc.enable()


def test_parquet_with_a_column_twice_or_of_256_bits_is_refused_by_name(tmp_path: Path) -> None:
    at = pa.array([MICROS], pa.timestamp("us", "UTC"))
    twice = pa.Table.from_arrays([at, pa.array([1]), pa.array([2])], names=["at", "n", "n"])
    wide = pa.table({"at": at, "n": pa.array([Decimal(1)], pa.decimal256(50, 1))})
    for name, table, said in (("twice", twice, "2 columns 'n'"), ("wide", wide, r"'n' is decimal256\(50, 1\)")):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path)
        with pytest.raises(LogError, match=said):
            open_file(path, columns=["at", "n"], timestamp="at")
        assert open_file(path, columns=["at"], timestamp="at").read(10) is not None


def test_parquet_is_read_in_smaller_batches_where_its_rows_are_wide(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.parquet", 6_000
    notes = [f"{i}" for i in range(3_000)] + [f"{i}" * 2_000 for i in range(3_000)]
    pl.DataFrame({"n": range(rows), "note": notes}).write_parquet(path, row_group_size=rows)
    with mock.patch.multiple(parquet, _BYTES=1 << 20, _ROWS=1_500):
        cursor, sizes, seen = open_file(path), [], []
        while (batch := cursor.read(rows)) is not None:
            assert isinstance(batch.payload, pl.DataFrame)
            sizes.append(int(batch.payload.estimated_size()))
            seen += batch.payload["n"].to_list()
    assert seen == list(range(rows))
    assert max(sizes) > 3 << 20, "the first wide rows, which nobody expected"
    assert len(sizes) > 10
    assert max(sizes[4:]) < 3 << 20
