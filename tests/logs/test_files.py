from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.logs.contract import LogContract, read_all, records
from tidemill.blocks import MAX_PARTITION
from tidemill.errors import LogChangedError, LogError
from tidemill.logs.base import RecordBatch
from tidemill.logs.decode import Decoder
from tidemill.logs.files import FileLog, FileReader, MemoryIndex
from tidemill.logs.heads import Head, MemoryHeads
from tidemill.logs.records import MAX_RECORD
from tidemill.types import ColumnType


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


def lines_of(numbers: range) -> bytes:
    return b"".join(b'{"n": %d}\n' % n for n in numbers)


def numbers_in(reader: FileReader, max_records: int = 1000) -> list[int]:
    return [json.loads(line)["n"] for _, line in records(read_all(reader, max_records))]


class TestGrowingFile(LogContract):
    @pytest.fixture(autouse=True)
    def prepare(self, tmp_path: Path) -> None:
        self.directory = tmp_path
        for partition in (0, 1):
            (tmp_path / f"partition={partition}").mkdir()
            (tmp_path / f"partition={partition}" / "log.jsonl").touch()

    def append(self, partition: int, lines: list[bytes]) -> None:
        with (self.directory / f"partition={partition}" / "log.jsonl").open("ab") as file:
            file.writelines(line + b"\n" for line in lines)

    def log(self) -> FileLog:
        return FileLog(self.directory / "partition=*" / "*.jsonl", chunk=64)


class TestGrowingDirectory(LogContract):
    """Every few records are a file of their own: plain, gzip or zstd."""

    @pytest.fixture(autouse=True)
    def prepare(self, tmp_path: Path) -> None:
        self.directory = tmp_path
        self.files = 0
        self.index = MemoryIndex()
        for partition in (0, 1):
            (tmp_path / f"partition={partition}").mkdir()

    def append(self, partition: int, lines: list[bytes]) -> None:
        for at in range(0, len(lines), 4):
            data = b"\n".join(lines[at : at + 4]) + b"\n"
            ending, pack = list(PACK.items())[self.files % 3]
            path = self.directory / f"partition={partition}" / f"{self.files:04d}.jsonl{ending}"
            path.write_bytes(pack(data))
            self.files += 1

    def log(self) -> FileLog:
        return FileLog(self.directory / "**" / "*.jsonl*", chunk=64, index=self.index)


def test_a_line_cut_in_the_middle_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n"')
    log = FileLog(tmp_path / "*.jsonl")
    reader = log.open(0, 0)
    assert numbers_in(reader) == [1]
    assert log.end(0) == 1
    with path.open("ab") as file:
        file.write(b": 2}")
    assert reader.read(10) is None
    with path.open("ab") as file:
        file.write(b"\n")
    assert numbers_in(reader) == [2]
    assert log.end(0) == 2


def test_a_last_line_without_newline_is_a_record_once_a_later_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n{"n": 2}')
    log = FileLog(tmp_path / "*.jsonl")
    reader = log.open(0, 0)
    assert numbers_in(reader) == [1]
    (tmp_path / "b.jsonl").write_bytes(b'{"n": 3}\n')
    assert numbers_in(reader) == [2, 3]
    assert log.end(0) == 3
    assert numbers_in(log.open(0, 1)) == [2, 3]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_compressed_file_is_complete_so_its_unterminated_last_line_is_a_record(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / f"a.jsonl.{'gz' if pack is gzip.compress else 'zst'}").write_bytes(pack(b'{"n": 1}\n') + pack(b'{"n": 2}'))
    assert numbers_in(FileLog(tmp_path / "*").open(0, 0)) == [1, 2]


def test_blank_lines_take_an_offset_and_are_no_event(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\n{"n": 1}\r\n \t\r\n\n{"n": 4}\n\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"n": 6}\n')
    log = FileLog(tmp_path / "*.jsonl")
    assert [offset for offset, _ in records(read_all(log.open(0, 0)))] == [1, 4, 6]
    assert [offset for offset, _ in records(read_all(log.open(0, 2), 1))] == [4, 6]
    assert log.end(0) == 7


def test_files_follow_each_other_by_name_and_components_count_one_by_one(tmp_path: Path) -> None:
    for number, name in enumerate(["2023/b.jsonl", "2024/01/a.jsonl", "2024/02/a.jsonl", "2024-extra.jsonl"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(lines_of(range(number, number + 1)))
    (tmp_path / "2024" / "_SUCCESS").touch()
    (tmp_path / "2024" / ".part.jsonl").write_bytes(b"half")
    assert numbers_in(FileLog(tmp_path / "**" / "*").open(0, 0)) == [0, 1, 2, 3]


def test_a_partition_number_beyond_the_limit_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for number in (MAX_PARTITION, 20240101):
        (tmp_path / f"partition={number}").mkdir()
    (tmp_path / f"partition={MAX_PARTITION}" / "a.jsonl").write_bytes(lines_of(range(3)))
    log = FileLog(tmp_path / "**" / "*.jsonl")
    assert log.partitions() == [MAX_PARTITION]
    (tmp_path / "partition=20240101" / "a.jsonl").write_bytes(lines_of(range(3)))
    with pytest.raises(LogError, match=r"a\.jsonl: partition 20240101 is beyond 4095, .* name the folder otherwise, such as day=20240101"):
        log.partitions()


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 1}\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"n": 2}\n'))
    assert numbers_in(FileLog(tmp_path / "*").open(0, 0)) == [1, 2]


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(st.sampled_from([b'{"n": 1}', b"", b" ", b'{"n": "' + b"x" * 90 + b'"}', b"\xff"]), max_size=6), min_size=1, max_size=4
    ),
    st.lists(st.sampled_from(["", ".gz", ".zst"]), min_size=4, max_size=4),
    st.integers(1, 5),
)
def test_every_offset_resumes_to_the_same_records_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[bytes]], endings: list[str], step: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    for number, (lines, ending) in enumerate(zip(files, endings, strict=False)):
        (directory / f"{number}.jsonl{ending}").write_bytes(PACK[ending](b"".join(line + b"\n" for line in lines)))
    expected = [line for lines in files for line in lines]
    kept = [(n, line) for n, line in enumerate(expected) if line.strip()]
    whole, small = FileLog(directory / "*"), FileLog(directory / "*", chunk=16)
    assert whole.end(0) == small.end(0) == len(expected)
    for offset in range(len(expected) + 1):
        assert records(read_all(small.open(0, offset), step)) == [pair for pair in kept if pair[0] >= offset]
        assert records(read_all(whole.open(0, offset))) == [pair for pair in kept if pair[0] >= offset]
    shutil.rmtree(directory)


steps = st.one_of(
    st.lists(st.sampled_from([b"\n", b'{"n":', b"1}", b" ", b"\r\n", b"x" * 40]), max_size=5).map(b"".join),
    st.sampled_from(["read", "end", "next file", "new process"]),
)


@settings(max_examples=80)
@given(st.lists(steps, max_size=30), st.integers(16, 40), st.integers(1, 4))
def test_however_files_grow_and_whoever_looks_when_offsets_and_records_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, steps: list[bytes | str], chunk: int, batch: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    index, heads = MemoryIndex(), MemoryHeads()
    files = [b""]
    (directory / "0000.jsonl").touch()
    log = FileLog(directory, chunk=chunk, index=index, heads=heads)
    reader = log.open(0, 0)
    found: list[RecordBatch] = []
    for step in [*steps, "read"]:
        path = directory / f"{len(files) - 1:04d}.jsonl"
        if isinstance(step, bytes):
            files[-1] += step
            with path.open("ab") as file:
                file.write(step)
        elif step == "next file":
            files.append(b"")
            (directory / f"{len(files) - 1:04d}.jsonl").touch()
        elif step == "end":
            complete = [data + b"\n" if data and not data.endswith(b"\n") else data for data in files[:-1]] + files[-1:]
            assert log.end(0) == sum(data.count(b"\n") for data in complete)
        elif step == "new process":
            last = found[-1].end if found else 0
            log = FileLog(directory, chunk=chunk, index=index, heads=heads)
            reader = log.open(0, last)
        else:
            found += read_all(reader, batch)
    lines = [line for data in files[:-1] for line in data.removesuffix(b"\n").split(b"\n") if data] + files[-1].split(b"\n")[:-1]
    assert records(found) == [(n, line) for n, line in enumerate(lines) if line.strip(b" \t\r")]
    shutil.rmtree(directory)


def test_marks_bring_a_reader_back_into_a_long_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"".join(b'{"n": %d, "pad": "%s"}\n' % (n, b"x" * 1000) for n in range(5000)))
    log = FileLog(tmp_path / "*", chunk=300_000)
    assert log.end(0) == 5000
    for offset in (4999, 17, 3000, 1048, 1049):
        batch = log.open(0, offset).read(3)
        assert batch is not None
        assert records([batch])[0][1].startswith(b'{"n": %d,' % offset)


def test_a_line_longer_than_a_mebibyte_is_broken_and_the_next_one_is_not(tmp_path: Path) -> None:
    lines = [b'{"n": 1}', b"y" * (MAX_RECORD + 1), b"z" * MAX_RECORD, b'{"n": 4}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    for chunk in (8 << 20, 100_000):
        batches = read_all(FileLog(tmp_path / "*", chunk=chunk).open(0, 0))
        assert records(batches) == [(0, lines[0]), (2, lines[2]), (3, lines[3])]
        [(offset, raw, reason)] = [letter for batch in batches for letter in batch.broken]
        assert (offset, raw, reason[:11]) == (1, b"y" * 65536, "longer than")


class CountedHeads(MemoryHeads):
    """Counts what would be writes to the offline store."""

    saved = 0

    def save(self, partition: int, head: Head) -> None:
        self.saved += 1
        super().save(partition, head)


class TestChangedFiles:
    @pytest.fixture(autouse=True)
    def prepare(self, tmp_path: Path) -> None:
        self.directory = tmp_path
        for number, name in enumerate("bcd"):
            (tmp_path / f"{name}.jsonl").write_bytes(lines_of(range(number * 10, number * 10 + 10)))
        self.index, self.heads = MemoryIndex(), CountedHeads()
        self.log = FileLog(tmp_path / "*.jsonl", index=self.index, heads=self.heads)
        self.reader = self.log.open(0, 0)

    def refused(self, what: str, *, reopened: bool = True) -> None:
        """By the reader that read them, by `end`, and by a process that knows them from the index."""
        with pytest.raises(LogChangedError, match=what):
            read_all(self.reader)
        with pytest.raises(LogChangedError, match=what):
            self.log.end(0)
        if reopened:
            with pytest.raises(LogChangedError, match=what):
                FileLog(self.directory / "*.jsonl", index=self.index).end(0)

    def test_a_file_that_comes_before_those_already_read_is_refused(self) -> None:
        assert len(numbers_in(self.reader)) == 30
        (self.directory / "a.jsonl").write_bytes(b'{"n": 0}\n')
        self.refused(r"a\.jsonl: appeared before b\.jsonl")

    def test_a_file_that_comes_before_those_not_read_yet_is_read(self) -> None:
        self.reader.read(1)
        (self.directory / "bb.jsonl").write_bytes(b'{"n": 99}\n')
        log = FileLog(self.directory / "*.jsonl", index=self.index)
        assert numbers_in(log.open(0, 0))[9:12] == [9, 99, 10]

    def test_a_file_that_is_gone_is_missed(self) -> None:
        read_all(self.reader)
        (self.directory / "c.jsonl").unlink()
        self.refused(r"c\.jsonl: was already read .* is gone")

    def test_a_complete_file_that_shrank_is_refused(self) -> None:
        read_all(self.reader)
        os.truncate(self.directory / "b.jsonl", 9)
        self.refused(r"b\.jsonl: had 90 bytes when it was complete, and has 9 now")

    def test_a_complete_file_that_grew_is_refused(self) -> None:
        read_all(self.reader)
        with (self.directory / "b.jsonl").open("ab") as file:
            file.write(b'{"n": 0}\n')
        self.refused(r"b\.jsonl: had 90 bytes when it was complete, and has 99 now")

    def test_a_complete_file_that_begins_differently_is_refused_when_it_is_read_again(self) -> None:
        read_all(self.reader)
        (self.directory / "b.jsonl").write_bytes(lines_of(range(50, 59)))
        with pytest.raises(LogChangedError, match=r"b\.jsonl: begins differently"):
            self.reader.seek(3)

    def test_the_last_file_may_not_shrink(self) -> None:
        read_all(self.reader)
        os.truncate(self.directory / "d.jsonl", 50)
        self.refused(r"d\.jsonl: had 100 bytes when it was read, and has 50 now", reopened=False)
        with pytest.raises(LogChangedError, match="ends at offset 25"):
            FileLog(self.directory / "*.jsonl", index=self.index).open(0, 30)

    def test_the_last_file_may_not_begin_differently_even_if_it_is_longer(self) -> None:
        read_all(self.reader)
        (self.directory / "d.jsonl").write_bytes(lines_of(range(70, 90)))
        self.refused(r"d\.jsonl: begins differently", reopened=False)

    def test_the_last_file_may_grow_past_what_its_digest_covered(self) -> None:
        read_all(self.reader)
        for _ in range(3):
            with (self.directory / "d.jsonl").open("ab") as file:
                file.write(lines_of(range(4000)))
            assert numbers_in(self.reader) == list(range(4000))

    def restarted(self) -> FileLog:
        return FileLog(self.directory / "*.jsonl", index=self.index, heads=self.heads)

    def test_after_a_restart_too_the_last_file_may_not_be_another_one(self) -> None:
        read_all(self.reader)
        (self.directory / "d.jsonl").write_bytes(lines_of(range(70, 90)))
        with pytest.raises(LogChangedError, match=r"d\.jsonl: begins differently"):
            self.restarted().open(0, 30)
        with pytest.raises(LogChangedError, match=r"d\.jsonl: begins differently"):
            self.restarted().end(0)

    def test_after_a_restart_too_the_last_file_may_not_shrink_or_vanish(self) -> None:
        read_all(self.reader)
        os.truncate(self.directory / "d.jsonl", 50)
        with pytest.raises(LogChangedError, match=r"d\.jsonl: had 100 bytes when it was read, and has 50 now"):
            self.restarted().open(0, 20)
        (self.directory / "d.jsonl").rename(self.directory / "e.jsonl")
        with pytest.raises(LogChangedError, match=r"d\.jsonl: was already read .* is gone"):
            self.restarted().open(0, 20)

    def test_a_file_that_was_replaced_and_is_no_longer_the_last_is_refused(self) -> None:
        read_all(self.reader)
        (self.directory / "d.jsonl").write_bytes(lines_of(range(70, 90)))
        (self.directory / "e.jsonl").write_bytes(lines_of(range(5)))
        with pytest.raises(LogChangedError, match=r"d\.jsonl: begins differently"):
            self.restarted().end(0)

    def test_a_file_that_only_grew_is_the_same_after_every_restart_and_its_head_is_seldom_written(self) -> None:
        read_all(self.reader)
        log = self.restarted()
        for n in range(1000):
            with (self.directory / "d.jsonl").open("ab") as file:
                file.write(lines_of(range(100, 110)))
            log = log if n % 7 else self.restarted()
            assert log.end(0) == 40 + 10 * n
        assert self.heads.saved < 20
        (self.directory / "e.jsonl").write_bytes(lines_of(range(5)))
        assert self.restarted().end(0) == 10_035

    def test_an_offset_past_the_end_is_refused_with_the_end(self) -> None:
        with pytest.raises(LogChangedError, match=r"ends at offset 30 \(.*d\.jsonl\), and offset 31 was asked for"):
            self.log.open(0, 31)


def test_the_index_keeps_offsets_and_spares_the_counting(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines_of(range(number * 5, number * 5 + 5))))
    index = MemoryIndex()
    assert FileLog(tmp_path / "*", index=index).end(0) == 15
    entries = [json.loads(json.dumps(entry.to_json())) for entry in index.load(0)]
    assert [(e["name"], e["first"], e["count"]) for e in entries] == [(f"{n}.jsonl.gz", n * 5, 5) for n in range(3)]
    again = FileLog(tmp_path / "*", index=index)
    reader = again.open(0, 12)
    # Unpacking the first file now would fail; its size and beginning are as they were, so only the index can have told.
    assert numbers_in(reader) == [12, 13, 14]


def test_an_index_with_other_files_in_these_places_is_an_error(tmp_path: Path) -> None:
    index = MemoryIndex()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines_of(range(5))))
    one, other = FileLog(tmp_path / "*", index=index), FileLog(tmp_path / "*", index=index)
    other.open(0, 0).close()
    assert one.end(0) == 5
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines_of(range(6))))
    with pytest.raises(LogChangedError):
        other.end(0)


class TestNotTheFormatItSays:
    def refused(self, path: Path, data: bytes, what: str) -> None:
        path.write_bytes(data)
        log = FileLog(path)
        with pytest.raises(LogError, match=what) as caught:
            read_all(log.open(0, 0))
        assert str(path) in str(caught.value)
        with pytest.raises(LogError, match=what):
            FileLog(path).end(0)

    def test_parquet_that_is_not(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "a.parquet", b"PAR1 hello, this is not Parquet", "at offset 0: is not Parquet")
        self.refused(tmp_path / "b.parquet", b"", "at offset 0: is not Parquet")

    @pytest.mark.parametrize("ending", ["gz", "zst"])
    def test_compression_that_is_not(self, tmp_path: Path, ending: str) -> None:
        self.refused(tmp_path / f"a.jsonl.{ending}", b'{"n": 1}\n', "after offset 0: cannot be read")
        self.refused(tmp_path / f"a.csv.{ending}", b"", "after offset 0: cannot be read: it is empty")

    @pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zst", zstd)])
    def test_a_compressed_file_cut_short_gives_what_it_has_and_then_says_where(
        self, tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]
    ) -> None:
        path = tmp_path / f"a.jsonl.{ending}"
        path.write_bytes((pack(lines_of(range(1000))) + pack(lines_of(range(1000, 2000))))[:-5])
        reader = FileLog(path, chunk=4096).open(0, 0)
        found: list[tuple[int, bytes]] = []
        while len(found) < 500:
            batch = reader.read(100)
            assert batch is not None
            found += records([batch])
        assert [offset for offset, _ in found] == list(range(len(found)))
        with pytest.raises(LogError, match=r"a\.jsonl\..*, after offset \d{3,4}: cannot be read"):
            read_all(reader)

    def test_a_compressed_or_parquet_file_under_a_text_name(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "a.jsonl", gzip.compress(b"{}"), "compressed with gzip, and its name does not say so")
        self.refused(tmp_path / "a.csv", zstd(b"{}"), "compressed with zstd, and its name does not say so")
        pl.DataFrame({"n": [1]}).write_parquet(tmp_path / "a.parquet")
        self.refused(tmp_path / "b.jsonl", (tmp_path / "a.parquet").read_bytes(), "a Parquet file, and its name does not say so")

    def test_a_name_that_tells_nothing_needs_the_format(self, tmp_path: Path) -> None:
        (tmp_path / "events.log").write_bytes(b'{"n": 1}\n')
        with pytest.raises(LogError, match=r"events\.log: the name does not tell the format"):
            FileLog(tmp_path / "*").partitions()
        assert numbers_in(FileLog(tmp_path / "*", format="jsonl").open(0, 0)) == [1]
        with pytest.raises(LogError, match="'xml' is not known"):
            FileLog(tmp_path / "*", format="xml")

    def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(LogError, match="nowhere: there is no such directory"):
            FileLog(tmp_path / "nowhere" / "*.jsonl").partitions()

    def test_a_directory_without_files_yet_is_an_empty_log(self, tmp_path: Path) -> None:
        log = FileLog(tmp_path / "*.jsonl")
        assert log.partitions() == []
        reader = log.open(0, 0)
        assert reader.read(10) is None
        assert log.end(0) == 0
        (tmp_path / "a.jsonl").write_bytes(lines_of(range(3)))
        assert numbers_in(reader) == [0, 1, 2]


SCHEMA = {
    "id": ColumnType("int"),
    "name": ColumnType("str"),
    "amount": ColumnType("float"),
    "ok": ColumnType("bool"),
    "at": ColumnType("timestamp"),
}


def events(count: int) -> pl.DataFrame:
    rng = np.random.default_rng(3)
    return pl.DataFrame(
        {
            "id": pl.Series(rng.integers(-(2**63), 2**63 - 1, count)),
            "name": [["plain", 'with "quotes"', "two\nlines", "comma, here", "", None, "ünï"][n % 7] for n in range(count)],
            "amount": pl.Series([None if n % 5 == 0 else float(x) for n, x in enumerate(rng.normal(0, 1e6, count))], dtype=pl.Float64),
            "ok": [[True, False, None][n % 3] for n in range(count)],
            "at": pl.Series(rng.integers(0, 2_000_000_000_000_000, count)).cast(pl.Datetime("us", "UTC")),
        }
    )


def write(frame: pl.DataFrame, path: Path) -> None:
    text = frame.with_columns(pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
    match path.suffixes[0]:
        case ".parquet":
            frame.write_parquet(path, row_group_size=max(frame.height // 3, 1))
            return
        case ".csv":
            data = text.write_csv(quote_style="necessary").encode()
        case _:
            data = text.write_ndjson().encode()
    path.write_bytes(PACK["".join(path.suffixes[1:])](data))


@pytest.mark.parametrize("chunk", [1000, 8 << 20])
def test_every_format_gives_the_same_events(tmp_path: Path, chunk: int) -> None:
    frame = events(211)
    decoder = Decoder(SCHEMA, timestamp="at", event_id="id")
    expected: pl.DataFrame | None = None
    for ending in ("jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.gz", "csv.zst", "parquet"):
        directory = tmp_path / ending
        directory.mkdir()
        # The last record of a growing CSV or JSON file needs its newline, which every writer here writes.
        write(frame[:100], directory / f"a.{ending}")
        write(frame[100:].select(reversed(frame.columns)), directory / f"b.{ending}")
        decoded = [decoder.decode(batch) for batch in read_all(FileLog(directory / "*", chunk=chunk).open(0, 0), 37)]
        assert not any(len(batch.dead) for batch in decoded)
        got = pl.concat([batch.frame for batch in decoded])
        expected = got if expected is None else expected
        assert got.select(frame.columns).equals(frame), ending
        assert got.equals(expected), ending
        log = FileLog(directory / "*", chunk=chunk)
        for offset in (0, 1, 99, 100, 101, 210, 211):
            rest = [decoder.decode(batch).frame for batch in read_all(log.open(0, offset), 50)]
            assert pl.concat([expected.clear(), *rest]).equals(expected[offset:]), (ending, offset)
        assert log.end(0) == 211
