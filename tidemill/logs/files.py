"""Files as a log: JSON lines, CSV and Parquet below a directory that keeps growing.

A path component `partition=N` gives the partition, at most `MAX_PARTITION`; without one it is 0. Within a partition files follow each
other by name, and a record's offset is its number, counted through the files; so new files must sort after the old ones. Plain text
files may grow while they are the last of their partition. Compressed and Parquet files are complete when they appear (write them
elsewhere, then rename them).
"""

from __future__ import annotations

import glob
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path, PurePath

from tidemill.blocks import MAX_PARTITION
from tidemill.errors import LogError
from tidemill.logs.base import RecordBatch
from tidemill.logs.csv import CsvCursor
from tidemill.logs.cursor import Cursor, Marks, Place, Wanted
from tidemill.logs.heads import Heads, MemoryHeads
from tidemill.logs.index import FileEntry, FileIndex, MemoryIndex
from tidemill.logs.jsonlines import JsonLinesCursor
from tidemill.logs.parquet import ParquetCursor
from tidemill.logs.partition import LogFile, PartitionFiles

__all__ = ["FileEntry", "FileIndex", "FileLog", "FileReader", "MemoryIndex", "format_of", "open_file"]

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
CODECS = {".gz": "gzip", ".zst": "zstd"}

_PARTITION = re.compile(r"partition=(\d+)")
_CHUNK = 8 << 20


class FileLog:
    r"""The `Log` over the files that match a glob pattern (`**` matches any depth), or over all files below a directory.

    `format` ("jsonl", "csv" or "parquet") is for files whose names do not say it. `index` remembers complete files, so that a
    restart keeps their offsets without counting; `heads`, how the file that still grows begins, so that it notices another in its
    place. `columns`: only these are read, where the format allows it; `timestamp`: the column that every CSV and Parquet file must
    have. Files whose names begin with `_` or `.` are left out.

    Reads `chunk` bytes at a time, and holds a few chunks at most. Errors: `LogError` for what cannot be read, `LogChangedError`
    for files that are no longer what they were.

    >>> import tempfile, pathlib
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (directory / "a.jsonl").write_text('{"n": 1}\n{"n": 2}\n{"n":')
    >>> log = FileLog(f"{directory}/*.jsonl")
    >>> log.partitions(), log.end(0), log.open(0, 1).read(10).payload
    ([0], 2, b'{"n": 2}\n')
    """

    def __init__(
        self,
        pattern: str | os.PathLike[str],
        *,
        format: str | None = None,
        index: FileIndex | None = None,
        heads: Heads | None = None,
        columns: Sequence[str] | None = None,
        timestamp: str | None = None,
        chunk: int = _CHUNK,
    ) -> None:
        if format is not None and format not in FORMATS.values():
            raise LogError(f"format {format!r} is not known: use one of {', '.join(sorted(set(FORMATS.values())))}")
        self._pattern = os.fspath(pattern)
        if Path(self._pattern).is_dir():
            self._pattern = str(Path(self._pattern, "**", "*"))
        self._format = format
        self._index = index if index is not None else MemoryIndex()
        self._heads = heads if heads is not None else MemoryHeads()
        self._wanted = Wanted(None if columns is None else tuple(columns), timestamp)
        self._chunk = max(chunk, 16)
        self._root = _fixed_directory(self._pattern)
        self._partitions: dict[int, PartitionFiles] = {}
        self._lock = threading.Lock()

    def partitions(self) -> list[int]:
        """The partitions that have a file now, ascending. Raises `LogError` if the pattern's directory does not exist."""
        return sorted(self._list())

    def start(self, partition: int) -> int:
        """Always 0: a file log keeps everything."""
        return 0

    def end(self, partition: int) -> int:
        """The offset after the last complete record. Counts records that were not read yet, so the first call may take a while."""
        return self._files(partition).end()

    def open(self, partition: int, offset: int) -> FileReader:
        """A reader that begins at `offset`. Raises `LogChangedError` if the files do not reach so far."""
        return FileReader(self._files(partition), offset)

    def close(self) -> None:
        """Nothing is held between two calls."""

    def _files(self, partition: int) -> PartitionFiles:
        with self._lock:
            if partition not in self._partitions:
                self._partitions[partition] = PartitionFiles(
                    partition, lambda: self._list().get(partition, []), self._index, self._heads, self._wanted, self._chunk
                )
            return self._partitions[partition]

    def _list(self) -> dict[int, list[LogFile]]:
        if not self._root.is_dir():
            raise LogError(f"{self._root}: there is no such directory; the source's files are {self._pattern}")
        found: dict[int, list[LogFile]] = {}
        for match in glob.iglob(self._pattern, recursive=True):  # noqa: PTH207  (Path.glob takes no absolute pattern)
            path = Path(match)
            if path.name[0] not in "_." and path.is_file():
                parts = path.relative_to(self._root).parts
                found.setdefault(_partition(path), []).append(self._file("/".join(parts), path))
        for files in found.values():
            files.sort(key=lambda file: file.name.split("/"))
        return found

    def _file(self, name: str, path: Path) -> LogFile:
        return LogFile(name, path, *format_of(path, self._format))


class FileReader:
    """A `PartitionReader` over files. Used by one thread; the log may be shared."""

    def __init__(self, files: PartitionFiles, offset: int) -> None:
        self._files = files
        self._cursor: Cursor | None = None
        self._number = 0
        self._offset = 0
        self.seek(offset)

    #: A read looks at the files themselves.
    at_end = True

    def confirm(self) -> None:
        """A read that finds other files than before fails by itself."""

    def read(self, max_records: int) -> RecordBatch | None:
        """Up to `max_records` records of one file; None when there is nothing new. Blank JSON lines count, and are not in the batch."""
        while self._cursor is not None or self._enter():
            assert self._cursor is not None
            batch = self._cursor.read(max_records)
            if batch is not None:
                self._offset = batch.end
                return batch
            if not self._leave():
                return None
        return None

    def seek(self, offset: int) -> None:
        """Go on from this offset instead. Raises `LogChangedError` if the files do not reach so far."""
        if offset < 0:
            raise ValueError(f"an offset is not negative, but {offset} was asked for")
        self.close()
        self._offset = offset
        self._enter()

    def close(self) -> None:
        """Gives back the open file. Reading again opens it again."""
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None

    def _enter(self) -> bool:
        """Stand before the offset; False if its file does not exist yet."""
        while (number := self._files.locate(self._offset)) is not None:
            self._number = number
            cursor, missing = self._files.enter(number, self._offset)
            self._cursor = cursor
            if missing and self._files.is_sealed(number, cursor):
                cursor.seal()
                missing -= cursor.skip(missing)
            if not missing:
                return True
            if not cursor.sealed:
                self.close()
                raise self._files.past_the_end(self._offset, self._offset - missing)
            self._files.seal(number, cursor)
            self.close()
        return False

    def _leave(self) -> bool:
        """The file has nothing more: whether to read on. One that has just become complete is read once more."""
        cursor = self._cursor
        assert cursor is not None
        if not self._files.is_sealed(self._number, cursor):
            return False
        if not cursor.sealed:
            cursor.seal()
            return True
        self._files.seal(self._number, cursor)
        self.close()
        return True


def format_of(path: Path, format: str | None = None) -> tuple[str, str | None]:
    """A file's format, by its name where `format` does not say it, and its codec. Raises `LogError`.

    >>> format_of(Path("a.csv.gz")), format_of(Path("a.txt"), "jsonl")
    (('csv', 'gzip'), ('jsonl', None))
    """
    codec = CODECS.get(path.suffix)
    kind = format or FORMATS.get(path.with_suffix("").suffix if codec else path.suffix)
    if kind is None:
        endings = ", ".join(FORMATS)
        raise LogError(f"{path}: the name does not tell the format; let it end in {endings} (text also .gz, .zst), or set format=")
    if kind == "parquet" and codec:
        raise LogError(f"{path}: Parquet is compressed inside, and cannot be read out of a {codec} file; unpack it")
    return kind, codec


def open_file(
    path: Path, *, start: int = 0, format: str | None = None, columns: Sequence[str] | None = None, timestamp: str | None = None
) -> Cursor:
    """One complete file, that is in no log, from its record number `start` on. The options are `FileLog`'s. Raises `LogError`."""
    kind, codec = format_of(path, format)
    place, wanted = Place(path, 0, 0, kind, codec), Wanted(None if columns is None else tuple(columns), timestamp)
    cursor: Cursor
    if kind == "parquet":
        cursor = ParquetCursor(place, 0, wanted)
    elif kind == "csv":
        cursor = CsvCursor(place, Marks(), _CHUNK, 0, wanted)
    else:
        cursor = JsonLinesCursor(place, Marks(), _CHUNK, 0)
    cursor.seal()
    cursor.skip(start)
    return cursor


def _partition(path: Path) -> int:
    numbers = [int(m[1]) for part in path.parts[:-1] if (m := _PARTITION.fullmatch(part))]
    number = numbers[-1] if numbers else 0
    if number > MAX_PARTITION:
        raise LogError(
            f"{path}: partition {number} is beyond {MAX_PARTITION}, the highest that there can be: number partitions from 0; "
            f"where the number is a date or the like, name the folder otherwise, such as day={number}, and all such folders are partition 0"
        )
    return number


def _fixed_directory(pattern: str) -> Path:
    """The directory above the first component that is a pattern, or a file name."""
    parts = PurePath(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed])
