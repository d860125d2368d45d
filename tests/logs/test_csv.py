from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.logs.contract import read_all
from tidemill.errors import LogError
from tidemill.logs.base import RecordBatch
from tidemill.logs.csv import RAW_COLUMN
from tidemill.logs.decode import Decoder
from tidemill.logs.files import FileLog
from tidemill.logs.records import MAX_RECORD
from tidemill.types import ColumnType

SCHEMA = {"at": ColumnType("timestamp"), "n": ColumnType("int"), "s": ColumnType("str")}


def batches(data: bytes, directory: Path, chunk: int = 8 << 20, max_records: int = 1000) -> list[RecordBatch]:
    """As a complete file of a log."""
    (directory / "a.csv").write_bytes(data)
    (directory / "b.csv").write_bytes(b"at,n,s\n")
    return read_all(FileLog(directory / "*.csv", chunk=chunk).open(0, 0), max_records)


def rows(found: list[RecordBatch]) -> list[tuple[object, ...]]:
    frames = [batch.payload.drop(RAW_COLUMN) for batch in found if isinstance(batch.payload, pl.DataFrame)]
    return [row for frame in frames for row in frame.rows()]


def broken(found: list[RecordBatch]) -> list[tuple[int, bytes, str]]:
    return [letter for batch in found for letter in batch.broken]


def test_an_empty_field_is_null_and_a_quoted_one_is_the_empty_string(tmp_path: Path) -> None:
    assert rows(batches(b'at,n,s\n1,,""\n2,"",\n', tmp_path)) == [("1", None, ""), ("2", "", None)]


def test_quoted_fields_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    data = b'at,n,s\r\n1,"a,b","two\r\nlines"\r\n2,"say ""hi""","\n"\r\n'
    assert rows(batches(data, tmp_path)) == [("1", "a,b", "two\r\nlines"), ("2", 'say "hi"', "\n")]


def test_a_text_that_looks_compressed_is_text(tmp_path: Path) -> None:
    assert rows(batches(b"at,n,s\nx^2,1,\nx\x01y,2,\n", tmp_path)) == [("x^2", "1", None), ("x\x01y", "2", None)]


def test_a_record_with_other_fields_than_the_header_is_broken(tmp_path: Path) -> None:
    found = batches(b"at,n,s\n1,2,3\n1,2\n1,2,3,4\n5,6,7\n", tmp_path)
    assert rows(found) == [("1", "2", "3"), ("5", "6", "7")]
    assert broken(found) == [(1, b"1,2", "2 fields, and the header has 3"), (2, b"1,2,3,4", "4 fields, and the header has 3")]
    assert found[0].offsets.tolist() == [0, 3]


def test_a_stray_quote_breaks_its_record_up_to_the_next_quote(tmp_path: Path) -> None:
    found = batches(b'at,n,s\n1,5" pipe,x\n2,6" pipe,x\n3,"a"b,x\n4,5,6\n', tmp_path)
    assert rows(found) == [("4", "5", "6")]
    assert [(raw, reason) for _, raw, reason in broken(found)] == [
        (b'1,5" pipe,x\n2,6" pipe,x', "a stray quote"),
        (b'3,"a"b,x', "a stray quote"),
    ]


def test_a_quote_that_is_never_closed_costs_its_own_line_only(tmp_path: Path) -> None:
    found = batches(b'at,n,s\n1,"open,x\n2,3,4\n', tmp_path)
    assert rows(found) == [("2", "3", "4")]
    assert broken(found) == [(0, b'1,"open,x', "a quote is never closed")]


@pytest.mark.parametrize("chunk", [100_000, 8 << 20])
def test_a_quote_that_is_not_closed_within_a_mebibyte_costs_its_own_line_only(tmp_path: Path, chunk: int) -> None:
    filler = b"2,3,%s\n" % (b"f" * 1000)
    found = batches(b'at,n,s\n1,"open,x\n' + filler * (2 * MAX_RECORD // 1000) + b'4,"closed",x\n', tmp_path, chunk)
    assert len(rows(found)) == 2 * MAX_RECORD // 1000 + 1
    assert broken(found) == [(0, b'1,"open,x', f"a quote is not closed within {MAX_RECORD} bytes")]


def test_what_is_not_utf8_is_broken_and_its_bytes_are_kept(tmp_path: Path) -> None:
    found = batches("at,n,s\n1,ü,x\n2,\udcff,x\n3,ü,x\n".encode(errors="surrogateescape"), tmp_path)
    assert rows(found) == [("1", "ü", "x"), ("3", "ü", "x")]
    assert broken(found) == [(1, b"2,\xff,x", "not UTF-8")]


def test_blank_lines_take_an_offset_and_are_no_event(tmp_path: Path) -> None:
    found = batches(b"at,n,s\n\n1,2,3\n\r\n4,5,6\n", tmp_path)
    assert rows(found) == [("1", "2", "3"), ("4", "5", "6")]
    assert found[0].offsets.tolist() == [1, 3]
    assert broken(found) == []


def test_each_file_has_its_own_order_of_columns_and_what_it_lacks_is_null(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"s,n,at,extra\nx,1,2024-01-01,?\n")
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbfat,s\r\n2024-01-02,y\r\n")
    decoder = Decoder(SCHEMA, timestamp="at")
    found = [decoder.decode(batch).frame for batch in read_all(FileLog(tmp_path / "*.csv", columns=list(SCHEMA)).open(0, 0))]
    assert pl.concat(found).select("n", "s", "_time").rows() == [(1, "x", 1_704_067_200_000_000), (None, "y", 1_704_153_600_000_000)]


def test_a_header_waits_for_its_end_in_a_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"at,n")
    reader = FileLog(path).open(0, 0)
    assert reader.read(10) is None
    with path.open("ab") as file:
        file.write(b",s\n1,2,3\n4,")
    assert rows(read_all(reader)) == [("1", "2", "3")]
    with path.open("ab") as file:
        file.write(b'5,"six\n')
    assert reader.read(10) is None
    with path.open("ab") as file:
        file.write(b'"\n')
    assert rows(read_all(reader)) == [("4", "5", "six\n")]


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (b"at,n,n\n", "'n' twice"),
        (b"\n", "is empty"),
        (b"at,\xff\n", "cannot be read"),
        (b"n,s\n", "there is no column 'at', which holds the event time; it has n, s"),
    ],
)
def test_a_header_that_cannot_be_used_is_an_error_with_the_file(tmp_path: Path, header: bytes, what: str) -> None:
    (tmp_path / "a.csv").write_bytes(header + b"1,2,3\n")
    with pytest.raises(LogError, match=what) as caught:
        FileLog(tmp_path / "*.csv", timestamp="at").open(0, 0).read(10)
    assert str(tmp_path / "a.csv") in str(caught.value)


field = st.one_of(st.none(), st.text(st.sampled_from('a",\n\r é1 x^'), max_size=6))


def as_csv(value: str | None, quote: bool) -> str:
    if value is None:
        return ""
    return '"' + value.replace('"', '""') + '"' if quote or value == "" or set(value) & set('",\n\r') else value


@settings(max_examples=150)
@given(
    st.lists(st.tuples(field, field, field).filter(lambda r: any(v is not None for v in r)), max_size=12),
    st.randoms(use_true_random=False),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(16, 64),
    st.integers(1, 5),
    st.booleans(),
)
def test_what_was_written_is_read_whatever_the_chunks_and_the_bytes_are_kept(
    tmp_path_factory: pytest.TempPathFactory,
    table: list[tuple[str | None, ...]],
    random: object,
    newline: str,
    chunk: int,
    step: int,
    last: bool,
) -> None:
    quote = [getattr(random, "random")() < 0.5 for _ in range(3 * len(table))]  # noqa: B009  (a strategy's Random has no public type)
    lines = [",".join(as_csv(v, quote[3 * r + c]) for c, v in enumerate(row)) for r, row in enumerate(table)]
    data = newline.join(["at,n,s", *lines]) + (newline if last or not lines else "")
    found = batches(data.encode(), tmp_path_factory.mktemp("csv"), chunk, step)
    assert broken(found) == []
    assert rows(found) == table
    assert [offset for batch in found for offset in batch.offsets.tolist()] == list(range(len(table)))
    frames = [batch.payload for batch in found if isinstance(batch.payload, pl.DataFrame)]
    kept = [raw.decode().rstrip("\r\n") for frame in frames for raw in frame[RAW_COLUMN]]
    assert kept == [line.rstrip("\r\n") for line in lines]


@settings(max_examples=100)
@given(st.text(st.sampled_from('",\n\r a'), max_size=60), st.integers(16, 64))
def test_nothing_is_dropped_of_any_text_and_chunks_change_nothing(tmp_path_factory: pytest.TempPathFactory, text: str, chunk: int) -> None:
    directory = tmp_path_factory.mktemp("csv")
    data = b"at,n,s\n" + text.encode()
    whole = batches(data, directory)
    small = batches(data, directory, chunk, 2)
    assert rows(whole) == rows(small)
    assert broken(whole) == broken(small)
    raws = [
        (n, raw)
        for b in whole
        if isinstance(b.payload, pl.DataFrame)
        for n, raw in zip(b.offsets.tolist(), b.payload[RAW_COLUMN], strict=True)
    ]
    raws += [(n, raw) for n, raw, _ in broken(whole)]
    assert b"".join(raw for _, raw in sorted(raws)).translate(None, b"\r\n \t") == text.encode().translate(None, b"\r\n \t")
