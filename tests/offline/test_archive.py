"""The archive: each offset once, whatever overlaps, and nothing that was archived is ever lost."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.errors import StoreError
from tidemill.offline import archive
from tidemill.offline.archive import (
    ArchiveLog,
    ArchiveWriter,
    Compaction,
    archived_batches,
    archived_end,
    compact,
    iter_range,
    partitions,
    range_files,
    range_name,
    read_range,
)
from tidemill.offline.directory import DirectoryStore
from tidemill.offline.store import OfflineStore

FOLDER = "archive/s/00000"
COLUMNS: Mapping[str, pl.DataType] = {"amount": pl.Int64(), "at": pl.Datetime("us", "UTC")}


def events(offsets: Sequence[int]) -> pl.DataFrame:
    """Decoded events whose every column says their offset."""
    place = pl.Series("_offset", list(offsets), dtype=pl.Int64)
    return pl.DataFrame(
        {
            "amount": place * 10,
            "at": place.cast(pl.Datetime("us", "UTC")),
            "_offset": place,
            "_time": place,
            "_arrival": place.cast(pl.Int64).clear(len(place)) if len(place) else place,
        }
    )


def is_event(offset: int) -> bool:
    """Every fifth offset of the tests' log is a dead letter or a gap, and has no row."""
    return offset % 5 != 3


def put(store: OfflineStore, start: int, end: int, partition: int = 0) -> None:
    """Archive [start, end) as one file."""
    writer = ArchiveWriter(store, "s", partition)
    writer.add(start, end, events([o for o in range(start, end) if is_event(o)]))
    writer.flush()


def naive_end(ranges: Sequence[tuple[int, int]]) -> int:
    """The first offset that no range holds."""
    end = 0
    while any(a <= end < z for a, z in ranges):
        end += 1
    return end


def offsets_of(frame: pl.DataFrame) -> list[int]:
    assert frame["amount"].to_list() == [o * 10 for o in frame["_offset"]]
    return frame["_offset"].to_list()


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 25)).map(lambda r: (r[0], r[0] + r[1])), max_size=12)


@settings(max_examples=150, deadline=None)
@given(ranges=RANGES, start=st.integers(0, 40), length=st.integers(0, 60), rows=st.integers(1, 30))
def test_any_pile_of_overlapping_files_gives_each_offset_exactly_once(
    ranges: list[tuple[int, int]], start: int, length: int, rows: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = DirectoryStore(Path(folder))
        for a, z in ranges:
            put(store, a, z)
        end = archived_end(store, "s", 0)
        assert end == naive_end(ranges)

        stop = min(start + length, end)
        want = [o for o in range(start, stop) if is_event(o)]
        assert offsets_of(read_range(store, "s", 0, start, max(start, stop), COLUMNS)) == want
        pieces = list(iter_range(store, "s", 0, start, max(start, stop), COLUMNS, rows=rows))
        assert all(0 < piece.height <= rows for piece in pieces)
        assert [o for piece in pieces for o in offsets_of(piece)] == want

        batches = list(archived_batches(store, "s", 0, start, rows=rows))
        assert [b.start for b in batches] == [start, *(b.end for b in batches)][: len(batches)]
        assert all(b.start <= o < b.end for b in batches for o in offsets_of(b.frame))
        if start < end:
            assert batches[-1].end == end


@settings(max_examples=100, deadline=None)
@given(ranges=RANGES, below=st.integers(0, 90), rows=st.integers(2, 40), crash_at=st.integers(0, 6), again=st.booleans())
def test_a_compaction_cut_short_anywhere_changes_nothing_that_is_read(
    ranges: list[tuple[int, int]], below: int, rows: int, crash_at: int, again: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = CrashingStore(Path(folder))
        for a, z in ranges:
            put(store, a, z)
        end = archived_end(store, "s", 0)
        want = read_range(store, "s", 0, 0, end, COLUMNS)
        held = {o for f in range_files(store, FOLDER) for o in range(f.start, f.end)}
        store.operations_left = crash_at
        with contextlib.suppress(Crash):
            compact(store, "s", 0, below, rows=rows)
        store.operations_left = None
        if again:
            compact(store, "s", 0, below, rows=rows)
        assert archived_end(store, "s", 0) == end
        assert read_range(store, "s", 0, 0, end, COLUMNS).equals(want)
        assert {o for f in range_files(store, FOLDER) for o in range(f.start, f.end)} == held


class Crash(BaseException):
    """The process is gone."""


class CrashingStore(DirectoryStore):
    """Dies before the operation that changes something when none is left."""

    operations_left: int | None = None

    def _spend(self) -> None:
        if self.operations_left is not None:
            if self.operations_left == 0:
                raise Crash
            self.operations_left -= 1

    def write(self, key: str, data: bytes) -> None:
        self._spend()
        super().write(key, data)

    def delete(self, key: str) -> None:
        self._spend()
        super().delete(key)


def test_an_archive_without_anything_ends_at_zero_and_reads_as_nothing(store: OfflineStore) -> None:
    assert archived_end(store, "s", 0) == 0
    assert partitions(store, "s") == []
    assert read_range(store, "s", 0, 0, 0, COLUMNS).schema == {
        **COLUMNS,
        "_offset": pl.Int64(),
        "_time": pl.Int64(),
        "_arrival": pl.Int64(),
    }
    assert list(archived_batches(store, "s", 0, 0)) == []


def test_offsets_after_a_hole_are_not_archived_yet(store: OfflineStore) -> None:
    put(store, 0, 10)
    put(store, 11, 20)
    assert archived_end(store, "s", 0) == 10
    put(store, 8, 12)
    assert archived_end(store, "s", 0) == 20


def test_a_range_with_a_hole_is_refused_and_never_read_around(store: OfflineStore) -> None:
    put(store, 0, 10)
    put(store, 11, 20)
    with pytest.raises(StoreError, match="offset 10 of s, partition 0, is not in the archive"):
        read_range(store, "s", 0, 5, 15, COLUMNS)


def test_offsets_without_a_single_event_are_archived_all_the_same(store: OfflineStore) -> None:
    writer = ArchiveWriter(store, "s", 2)
    writer.add(0, 5_000_000_000, events([]))  # A topic whose beginning was gone before anyone read it.
    writer.add(5_000_000_000, 5_000_000_002, events([5_000_000_001]))
    assert writer.flush() == (0, 5_000_000_002)
    assert partitions(store, "s") == [2]
    assert archived_end(store, "s", 2) == 5_000_000_002
    assert offsets_of(read_range(store, "s", 2, 0, 5_000_000_002, COLUMNS)) == [5_000_000_001]


def test_partitions_are_apart_and_strange_files_are_not_ours(store: OfflineStore) -> None:
    put(store, 0, 10, partition=0)
    put(store, 0, 20, partition=7)
    store.write(f"{FOLDER}/notes.txt", b"")
    store.write(f"{FOLDER}/10-20.parquet", b"")
    store.write("archive/s/old/x", b"")
    assert partitions(store, "s") == [0, 7]
    assert [archived_end(store, "s", p) for p in (0, 7, 9)] == [10, 20, 0]


def test_large_files_are_read_in_slices_of_the_asked_size(store: OfflineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.offline.store.ROW_GROUP_ROWS", 100)
    put(store, 0, 2_000)
    heights = [f.height for f in iter_range(store, "s", 0, 250, 1_990, COLUMNS, rows=300)]
    assert max(heights) <= 300
    assert [o for f in iter_range(store, "s", 0, 250, 1_990, COLUMNS, rows=300) for o in offsets_of(f)] == [
        o for o in range(250, 1_990) if is_event(o)
    ]


def test_a_column_that_the_schema_got_later_is_null_before(store: OfflineStore) -> None:
    put(store, 0, 2)
    writer = ArchiveWriter(store, "s", 0)
    writer.add(2, 4, events([2]).with_columns(note=pl.lit("new")))
    writer.flush()
    columns = {"note": pl.String(), "amount": pl.Float64()}
    assert read_range(store, "s", 0, 0, 4, columns).select("note", "amount").rows() == [(None, 0.0), (None, 10.0), ("new", 20.0)]
    assert read_range(store, "s", 0, 0, 4)["note"].to_list() == [None, None, "new"]


def test_a_column_that_changed_its_type_is_null_before(store: OfflineStore) -> None:
    put(store, 0, 2)
    assert read_range(store, "s", 0, 0, 2, {"amount": pl.String()})["amount"].to_list() == [None, None]


def test_a_file_without_its_places_is_named(store: OfflineStore) -> None:
    store.write_frame(f"{FOLDER}/{range_name(0, 2)}", events([0]).drop("_time"))
    with pytest.raises(StoreError, match=r"column '_time' of .*-000000000000002.parquet is missing"):
        read_range(store, "s", 0, 0, 2, COLUMNS)


def test_a_damaged_file_is_named(store: OfflineStore) -> None:
    put(store, 0, 2)
    store.write(range_files(store, FOLDER)[0].key, b"PAR1")
    with pytest.raises(StoreError, match=r"000000000000000-000000000000002.parquet cannot be read"):
        read_range(store, "s", 0, 0, 2, COLUMNS)


def test_the_writer_is_due_by_rows_or_by_age_and_never_when_empty(store: OfflineStore) -> None:
    now = [0.0]
    writer = ArchiveWriter(store, "s", 0, rows=4, seconds=10.0, clock=lambda: now[0])
    now[0] += 100
    assert not writer.due()
    writer.add(0, 0, events([]))
    assert not writer.due()
    writer.add(0, 3, events([0, 1, 2]))
    assert not writer.due()
    now[0] += 10
    assert writer.due()
    assert writer.flush() == (0, 3)
    assert not writer.due()
    writer.add(3, 8, events([4, 5, 6, 7]))
    assert writer.due()
    assert writer.pending == (3, 8)


def test_nothing_is_written_before_a_flush_and_clear_forgets(store: OfflineStore) -> None:
    writer = ArchiveWriter(store, "s", 0)
    writer.add(0, 3, events([0, 1, 2]))
    del writer
    assert archived_end(store, "s", 0) == 0
    writer = ArchiveWriter(store, "s", 0)
    writer.add(0, 3, events([0, 1, 2]))
    writer.clear()
    assert writer.flush() is None
    writer.add(1, 3, events([1]))
    assert writer.flush() == (1, 3)
    assert [f.key for f in range_files(store, FOLDER)] == [f"{FOLDER}/000000000000001-000000000000003.parquet"]


def test_a_flush_that_fails_can_be_tried_again(store: OfflineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ArchiveWriter(store, "s", 0)
    writer.add(0, 3, events([0, 1, 2]))

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", full)
        with pytest.raises(StoreError, match="full"):
            writer.flush()
    assert archived_end(store, "s", 0) == 0
    assert writer.flush() == (0, 3)
    assert archived_end(store, "s", 0) == 3


@pytest.mark.parametrize(
    ("start", "end", "frame", "says"),
    [
        (4, 6, events([4]), "does not adjoin"),
        (3, 6, events([2]), "in offset order"),
        (3, 6, events([6]), "in offset order"),
        (3, 6, events([4, 3]), "in offset order"),
        (3, 6, events([4, 4]), "in offset order"),
        (3, 6, events([4]).drop("_time"), "_time"),
        (3, 6, events([4]).with_columns(pl.col("amount").cast(pl.Float64)), "flush first"),
    ],
)
def test_a_batch_that_would_make_the_archive_lie_is_refused(
    store: OfflineStore, start: int, end: int, frame: pl.DataFrame, says: str
) -> None:
    writer = ArchiveWriter(store, "s", 0)
    writer.add(0, 3, events([0]))
    with pytest.raises(ValueError, match=says):
        writer.add(start, end, frame)
    writer.add(3, 6, events([3, 5]))
    assert writer.flush() == (0, 6)
    assert offsets_of(read_range(store, "s", 0, 0, 6, COLUMNS)) == [0, 3, 5]


def test_a_reader_goes_on_where_it_stood_when_more_is_archived(store: OfflineStore) -> None:
    put(store, 0, 10)
    log = ArchiveLog(store, "s", COLUMNS)
    reader = log.open(0, 4)
    first = reader.read(3)
    assert first
    assert (first.start, first.end, offsets_of(first.frame)) == (4, 7, [4, 5, 6])
    seen = offsets_of(first.frame)
    while (batch := reader.read(3)) is not None:
        seen += offsets_of(batch.frame)
    assert seen == [o for o in range(4, 10) if is_event(o)]
    put(store, 7, 14)
    batch = reader.read(100)
    assert batch
    assert (batch.start, batch.end, offsets_of(batch.frame)) == (10, 14, [10, 11, 12])
    reader.seek(13)
    batch = reader.read(100)
    assert batch
    assert (batch.start, batch.end, batch.frame.height) == (13, 14, 0)
    reader.close()
    assert (log.partitions(), log.end(0)) == ([0], 14)


def test_small_neighbours_become_one_file_and_a_second_run_finds_nothing_to_do(store: OfflineStore) -> None:
    for start in range(0, 100, 10):
        put(store, start, start + 10)
    assert compact(store, "s", 0, 95, rows=40) == Compaction(2, 8)
    assert [(f.start, f.end) for f in range_files(store, FOLDER)] == [(0, 40), (40, 80), (80, 90), (90, 100)]
    assert compact(store, "s", 0, 95, rows=40) == Compaction(0, 0)


def test_many_tiny_files_are_merged_before_they_fill_one(store: OfflineStore) -> None:
    for start in range(70):
        put(store, start, start + 1)
    assert compact(store, "s", 0, 1_000) == Compaction(1, 64)
    assert archived_end(store, "s", 0) == 70


def test_files_whose_column_changed_its_type_are_left_as_they_are(store: OfflineStore) -> None:
    put(store, 0, 10)
    writer = ArchiveWriter(store, "s", 0)
    writer.add(10, 20, events([10]).with_columns(pl.col("amount").cast(pl.Float64)))
    writer.flush()
    assert compact(store, "s", 0, 100, rows=20) == Compaction(0, 0)


def test_a_reader_finds_what_compaction_merges_under_its_hands(store: OfflineStore) -> None:
    for start in range(0, 100, 10):
        put(store, start, start + 10)
    batches = archived_batches(store, "s", 0, 0, COLUMNS, end=100, rows=5)
    seen = offsets_of(next(batches).frame)
    compact(store, "s", 0, 100, rows=40)
    seen += [o for batch in batches for o in offsets_of(batch.frame)]
    assert seen == [o for o in range(100) if is_event(o)]


@pytest.mark.parametrize("shown", [0, 1])
def test_a_listing_torn_by_compaction_is_made_again_before_a_hole_is_believed(
    store: OfflineStore, monkeypatch: pytest.MonkeyPatch, shown: int
) -> None:
    for start in (0, 10, 20):
        put(store, start, start + 10)
    whole = range_files(store, FOLDER)
    listings = iter([whole[:shown], whole])
    monkeypatch.setattr(archive, "range_files", lambda *_: next(listings))
    assert offsets_of(read_range(store, "s", 0, 0, 30, COLUMNS)) == [o for o in range(30) if is_event(o)]


def test_a_file_that_is_listed_and_cannot_be_found_twice_is_an_error(store: OfflineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, 0, 10)
    whole = range_files(store, FOLDER)
    store.delete(whole[0].key)
    monkeypatch.setattr(archive, "range_files", lambda *_: whole)
    with pytest.raises(StoreError, match="is not there"):
        read_range(store, "s", 0, 0, 10, COLUMNS)


def test_a_replay_after_a_crash_gives_the_same_bytes_to_read(store: OfflineStore) -> None:
    put(store, 0, 10)
    put(store, 10, 20)
    before = read_range(store, "s", 0, 0, 20, COLUMNS)
    put(store, 10, 20)  # The same range again replaces the file by its equal.
    put(store, 5, 17)
    assert read_range(store, "s", 0, 0, 20, COLUMNS).equals(before)
    assert len(range_files(store, FOLDER)) == 3
