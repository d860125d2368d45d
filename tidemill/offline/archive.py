"""The archive: a source's decoded events as Parquet, `archive/<source>/<partition>/<start>-<end>.parquet`.

A file says by its name that the offsets [start, end) of the partition are archived. Its rows are their events; dead letters and gaps
in the log have none. Columns: those of the source's schema, and `_offset`, `_time` (event time) and `_arrival` (null where the log
has none), Int64, times in UTC microseconds. Rows lie in offset order.

Files may overlap: a replay after a crash archives the same offsets again under other names, and compaction writes the merged file
before it deletes what that holds. So readers never add files up; they take each offset from one file, by the names alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from tidemill.errors import StoreError
from tidemill.offline.store import MissingFileError, OfflineStore

#: The columns of every archive file beside the source's own.
PLACE_COLUMNS: Mapping[str, pl.DataType] = {"_offset": pl.Int64(), "_time": pl.Int64(), "_arrival": pl.Int64()}

#: Compaction also merges this many neighbours that do not fill a file yet, lest a slow source keep thousands.
_MANY_FILES = 64
_BEYOND = 2**63 - 1
_NAME = re.compile(r"(\d{15,})-(\d{15,})\.parquet")


class RangeFile(NamedTuple):
    """A file that says by its name which offsets [start, end) it speaks for."""

    start: int
    end: int
    key: str


class ArchivedBatch(NamedTuple):
    """The events at offsets [start, end) of a partition, in offset order."""

    start: int
    end: int
    frame: pl.DataFrame


def partition_folder(root: str, source: str, partition: int) -> str:
    """Where a partition's range files lie.

    >>> partition_folder("archive", "departures", 3)
    'archive/departures/00003'
    """
    return f"{root}/{source}/{partition:05d}"


def range_name(start: int, end: int) -> str:
    """The name of the file for offsets [start, end).

    >>> range_name(0, 1024)
    '000000000000000-000000000001024.parquet'
    """
    return f"{start:015d}-{end:015d}.parquet"


def range_files(store: OfflineStore, folder: str) -> list[RangeFile]:
    """The range files in a folder, sorted by start; files with other names are not ours."""
    names = ((key, _NAME.fullmatch(key.rpartition("/")[2])) for key in store.list(folder))
    return sorted(RangeFile(int(name[1]), int(name[2]), key) for key, name in names if name)


def partitions(store: OfflineStore, source: str, root: str = "archive") -> list[int]:
    """The partitions of a source that the archive has a folder for, ascending."""
    names = (folder.rpartition("/")[2] for folder in store.folders(f"{root}/{source}"))
    return sorted(int(name) for name in names if name.isdecimal())


def archived_end(store: OfflineStore, source: str, partition: int) -> int:
    """The end of the contiguous archived prefix: every offset in [0, archived_end) is archived, the next one is not."""
    files = range_files(store, partition_folder("archive", source, partition))
    return max((to for _, to, _ in cover(files, 0, _BEYOND)), default=0)


def cover(files: list[RangeFile], start: int, end: int) -> Iterator[tuple[int, int, RangeFile]]:
    """Sub-ranges that cover [start, end), each with a file that holds it: adjoining, none overlapping, up to the first hole.

    `files` are sorted by start.

    >>> [(a, z) for a, z, _ in cover([RangeFile(0, 6, "x"), RangeFile(2, 5, "y"), RangeFile(4, 9, "z"), RangeFile(10, 12, "w")], 1, 12)]
    [(1, 6), (6, 9)]
    """
    at, seen, furthest = start, 0, None
    while at < end:
        while seen < len(files) and files[seen].start <= at:
            if furthest is None or files[seen].end > furthest.end:
                furthest = files[seen]
            seen += 1
        if furthest is None or furthest.end <= at:
            return
        to = min(furthest.end, end)
        yield at, to, furthest
        at = to


def archived_batches(
    store: OfflineStore,
    source: str,
    partition: int,
    start: int,
    columns: Mapping[str, pl.DataType] | None = None,
    *,
    end: int | None = None,
    rows: int = 1_000_000,
) -> Iterator[ArchivedBatch]:
    """Adjoining batches of at most `rows` events from `start` on: up to `end`, or to the end of what is archived from there.

    `columns` are the source's columns that are wanted, with their types; a column that a file does not have, or has in another type, is
    null (an int column read as float is cast). None takes every column as it is stored. `_offset`, `_time` and `_arrival` are always
    there. Files that compaction removes meanwhile are no trouble. Raises `StoreError` where a file cannot be read, or an offset before
    `end` is not archived.
    """
    folder = partition_folder("archive", source, partition)
    limit = _BEYOND if end is None else end
    first = at = start
    held: list[pl.DataFrame] = []
    count = 0
    missing: str | None = None
    stalled = 0
    # A listing made while compaction writes and deletes may show neither the merged file nor what it holds: only a second listing
    # that leads no further proves a hole.
    while at < limit and stalled < 2:
        stalled += 1
        for low, high, file in cover(range_files(store, folder), at, limit):
            try:
                for to, frame in _read_file(store, file, low, high, columns, rows):
                    if count and count + frame.height > rows:
                        yield ArchivedBatch(first, at, _joined(held, columns))
                        first, held, count = at, [], 0
                    held.append(frame)
                    count += frame.height
                    at, stalled = to, 0
            except MissingFileError:
                if missing == file.key:
                    raise
                missing, stalled = file.key, 0
                break
    if at > first:
        yield ArchivedBatch(first, at, _joined(held, columns))
    if end is not None and at < end:
        raise StoreError(
            f"offset {at} of {source}, partition {partition}, is not in the archive, and [{start}, {end}) was asked for: "
            f"a file is missing in {store.path(folder)}; restore it, or reset the stream so that it archives the log again"
        )


def iter_range(
    store: OfflineStore,
    source: str,
    partition: int,
    start: int,
    end: int,
    columns: Mapping[str, pl.DataType] | None = None,
    *,
    rows: int = 1_000_000,
) -> Iterator[pl.DataFrame]:
    """The events with start <= _offset < end, each once, in offset order, as frames of 1 to `rows` rows. See `archived_batches`."""
    for batch in archived_batches(store, source, partition, start, columns, end=end, rows=rows):
        if batch.frame.height:
            yield batch.frame


def read_range(
    store: OfflineStore, source: str, partition: int, start: int, end: int, columns: Mapping[str, pl.DataType] | None = None
) -> pl.DataFrame:
    """`iter_range` in one frame, which has all columns even where there are no events."""
    return _joined(list(iter_range(store, source, partition, start, end, columns)), columns)


class ArchiveLog:
    """A source's archive, read like its log, for offsets that the log itself no longer has. Events come decoded."""

    def __init__(self, store: OfflineStore, source: str, columns: Mapping[str, pl.DataType] | None = None) -> None:
        self._store, self._source, self._columns = store, source, columns

    def partitions(self) -> list[int]:
        """The partitions that anything is archived of, ascending."""
        return partitions(self._store, self._source)

    def end(self, partition: int) -> int:
        """See `archived_end`."""
        return archived_end(self._store, self._source, partition)

    def open(self, partition: int, offset: int) -> ArchiveReader:
        """A reader that begins at `offset`."""
        return ArchiveReader(self._store, self._source, partition, offset, self._columns)


class ArchiveReader:
    """Reads one archived partition onward from an offset, as a `tidemill.logs.base.PartitionReader` reads a log. Used by one thread."""

    def __init__(
        self, store: OfflineStore, source: str, partition: int, offset: int, columns: Mapping[str, pl.DataType] | None = None
    ) -> None:
        self._store, self._source, self._partition, self._columns = store, source, partition, columns
        self._at, self._rows = offset, 0
        self._batches: Iterator[ArchivedBatch] | None = None

    def read(self, max_records: int) -> ArchivedBatch | None:
        """The next at most `max_records` events, or None: from here on nothing is archived (yet). Raises `StoreError`."""
        if self._batches is None or max_records != self._rows:
            self._rows = max_records
            self._batches = archived_batches(self._store, self._source, self._partition, self._at, self._columns, rows=max_records)
        batch = next(self._batches, None)
        if batch is None:
            self._batches = None  # The next read looks for new files.
        else:
            self._at = batch.end
        return batch

    def seek(self, offset: int) -> None:
        """Go on from this offset instead."""
        self._at, self._batches = offset, None

    def close(self) -> None:
        """Nothing stays open between reads."""
        self._batches = None


class RangeWriter:
    """Buffers consecutive offset ranges of one partition, and writes them as one file when told to.

    There is no flush on `close`: a runtime closes after a failure too, when what came before may not have been written.
    """

    def __init__(
        self, store: OfflineStore, folder: str, offset_column: str, *, rows: int, seconds: float, clock: Callable[[], float]
    ) -> None:
        self._store, self._folder, self._offset_column = store, folder, offset_column
        self._rows, self._seconds, self._clock = rows, seconds, clock
        self._start = self._end = self._count = 0
        self._since = 0.0
        self._frames: list[pl.DataFrame] = []
        self._types: dict[str, pl.DataType] = {}

    @property
    def pending(self) -> tuple[int, int] | None:
        """The offsets [start, end) that wait for a flush, if any."""
        return (self._start, self._end) if self._end > self._start else None

    def add(self, start: int, end: int, frame: pl.DataFrame) -> None:
        """Buffer the rows of offsets [start, end), which must adjoin what is pending.

        Raises `ValueError` for ranges that do not adjoin, and for rows outside the range, out of order or of other types than those
        pending: written, they would make a file that lies. After a seek of the log `clear` first; after a change of the schema `flush`.
        """
        if self.pending and start != self._end:
            raise ValueError(f"{self._folder}: [{start}, {end}) does not adjoin the pending [{self._start}, {self._end}); clear first")
        offsets = frame[self._offset_column].to_numpy()
        if end < start or (len(offsets) and (offsets[0] < start or offsets[-1] >= end or (np.diff(offsets) < self._least_step).any())):
            raise ValueError(f"{self._folder}: rows must lie in [{start}, {end}) in offset order")
        for name, dtype in frame.schema.items():
            if self._types.setdefault(name, dtype) != dtype:
                raise ValueError(f"{self._folder}: column {name!r} is {dtype}, and {self._types[name]} in what is pending; flush first")
        if end == start:
            return
        if not self.pending:
            self._start, self._since = start, self._clock()
        self._frames.append(frame)
        self._count += frame.height
        self._end = end

    def due(self) -> bool:
        """Whether enough rows, or old enough ones, wait for a flush."""
        return self.pending is not None and (self._count >= self._rows or self._clock() - self._since >= self._seconds)

    def flush(self) -> tuple[int, int] | None:
        """Write what is pending durably, and return its offsets [start, end). After a `StoreError` it is still pending."""
        written = self.pending
        if written:
            if self._count or self._keeps_empty_ranges:
                self._store.write_frame(f"{self._folder}/{range_name(*written)}", pl.concat(self._frames, how="diagonal"))
            self.clear()
        return written

    def clear(self) -> None:
        """Forget what is pending, unwritten: the log has it, and whoever seeks reads it again."""
        self._start = self._end = self._count = 0
        self._frames, self._types = [], {}

    #: Whether a range without rows is worth a file, and by how much offsets have to rise from row to row.
    _keeps_empty_ranges = False
    _least_step = 0


class ArchiveWriter(RangeWriter):
    """Archives one partition: `add` batches, `flush` when `due`. `clock` gives seconds, and need not be a wall clock.

    Flush the dead letters of the same offsets before: a restart begins at the archive's end, and never looks at them again.
    """

    _keeps_empty_ranges = True
    _least_step = 1

    def __init__(
        self,
        store: OfflineStore,
        source: str,
        partition: int,
        *,
        rows: int = 131_072,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(store, partition_folder("archive", source, partition), "_offset", rows=rows, seconds=seconds, clock=clock)

    def add(self, start: int, end: int, frame: pl.DataFrame) -> None:
        """Buffer the events of offsets [start, end): the schema's columns, and `_offset`, `_time`, `_arrival`. See `RangeWriter.add`."""
        wrong = [name for name, dtype in PLACE_COLUMNS.items() if frame.schema.get(name) != dtype]
        if wrong:
            raise ValueError(f"{self._folder}: archived events need Int64 columns {', '.join(wrong)}; got {dict(frame.schema)}")
        super().add(start, end, frame)


class Compaction(NamedTuple):
    """What `compact` did: files it wrote, files it deleted."""

    written: int
    deleted: int


def compact(store: OfflineStore, source: str, partition: int, below: int, *, rows: int = 1_000_000) -> Compaction:
    """Merge neighbouring small files that end at or before offset `below` into files of about `rows` offsets.

    Safe at every instant, beside readers, writers and other compactions: a file is deleted only when another one that holds all of
    it is durable. What a crash left undone, the next run deletes. A file of half of `rows` or more is left alone, and so is a group
    of neighbours that is neither that big nor that many, so that events are rewritten seldom.
    """
    files, deleted = _delete_contained(store, range_files(store, partition_folder("archive", source, partition)))
    written = 0
    for group in _groups(files, below, rows):
        written += _merge(store, partition_folder("archive", source, partition), group)
    if written:
        deleted += _delete_contained(store, range_files(store, partition_folder("archive", source, partition)))[1]
    return Compaction(written, deleted)


def _delete_contained(store: OfflineStore, files: list[RangeFile]) -> tuple[list[RangeFile], int]:
    """Delete each file whose range lies within that of another file; what is left, sorted by start (and so by end), and how many went."""
    kept: list[RangeFile] = []
    for file in sorted(files, key=lambda f: (f.start, -f.end)):
        if kept and file.end <= kept[-1].end:
            store.delete(file.key)
        else:
            kept.append(file)
    return kept, len(files) - len(kept)


def _groups(files: list[RangeFile], below: int, rows: int) -> Iterator[list[RangeFile]]:
    """Runs of two or more adjoining (or overlapping) small files that are worth merging. No file of `files` contains another."""
    group: list[RangeFile] = []
    for file in files:
        if file.end > below:
            break
        big = file.end - file.start >= rows // 2
        if big or (group and file.start > group[-1].end):
            if len(group) > 1:  # It can grow no further.
                yield group
            group = []
        if not big:
            group.append(file)
            if len(group) > 1 and (file.end - group[0].start >= rows or len(group) >= _MANY_FILES):
                yield group
                group = []


def _merge(store: OfflineStore, folder: str, group: list[RangeFile]) -> int:
    """Write one file that holds all of `group`; the number of files written: 0 where a column changed its type in between."""
    start, end = group[0].start, group[-1].end
    try:
        frames = [f for low, high, file in cover(group, start, end) for _, f in _read_file(store, file, low, high, None, end - start)]
    except MissingFileError:
        return 0  # Another compaction was here first.
    try:
        merged = pl.concat(frames, how="diagonal")
    except pl.exceptions.SchemaError:
        return 0
    store.write_frame(f"{folder}/{range_name(start, end)}", merged)
    return 1


def _read_file(
    store: OfflineStore, file: RangeFile, low: int, high: int, columns: Mapping[str, pl.DataType] | None, rows: int
) -> Iterator[tuple[int, pl.DataFrame]]:
    """The events at offsets [low, high) of one file, as (offset after the frame, frame of at most `rows` rows)."""
    with store.reading(file.key):
        scan = store.scan(file.key)
        schema = scan.collect_schema()
        wanted = [pl.col(name) for name in schema] if columns is None else wanted_columns(store.path(file.key), schema, columns)
        offset = pl.col("_offset")
        inside = (offset >= low) & (offset < high)
        # Offsets are at least as many as rows, so most files need not be asked how many rows they have.
        count = high - low if high - low <= rows else scan.select(pl.len()).collect().item()
        if count <= rows:
            yield high, scan.filter(inside).select(wanted).collect()
            return
        at = low
        for first in range(0, count, rows):
            frame = scan.slice(first, rows).filter(inside).select(wanted).collect()
            at = frame["_offset"][-1] + 1 if frame.height else at
            yield high if first + rows >= count else at, frame


def wanted_columns(path: str, schema: pl.Schema, columns: Mapping[str, pl.DataType]) -> list[pl.Expr]:
    """Expressions for `columns` and the places, of a file that may have been written under an earlier schema of the source."""
    wanted: list[pl.Expr] = []
    for name, dtype in {**columns, **PLACE_COLUMNS}.items():
        stored = schema.get(name)
        if stored == dtype:
            wanted.append(pl.col(name))
        elif name in PLACE_COLUMNS:
            raise StoreError(f"column {name!r} of {path} is {stored or 'missing'}, and {dtype} was expected: restore the file")
        elif stored == pl.Int64 and dtype == pl.Float64:
            wanted.append(pl.col(name).cast(pl.Float64))
        else:  # decoded before the column was declared, or when it was of another type
            wanted.append(pl.lit(None, dtype).alias(name))
    return wanted


def _joined(frames: list[pl.DataFrame], columns: Mapping[str, pl.DataType] | None) -> pl.DataFrame:
    if not frames:
        return pl.DataFrame(schema={**(columns or {}), **PLACE_COLUMNS})
    try:
        return frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal" if columns is None else "vertical")
    except pl.exceptions.SchemaError as error:
        raise StoreError(f"archive files differ in the type of a column: name the columns and types that are wanted ({error})") from error
