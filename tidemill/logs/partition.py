"""The files of one partition as one log: their order, their offsets, and whether they are still what they were.

A file's first offset is the number of records in the files before it, so it is fixed once those are complete. A file is complete,
*sealed*, when it is compressed or Parquet, or when a later file is there. Whatever would move an offset that was already given
(a file that comes to lie between, shrinks, begins differently, or vanishes) is a `LogChangedError`.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tidemill.errors import LogChangedError, LogError
from tidemill.logs.csv import CsvCursor
from tidemill.logs.cursor import Cursor, Marks, Place, Wanted
from tidemill.logs.heads import Head, Heads
from tidemill.logs.index import PREFIX, FileEntry, FileIndex, prefix_digest
from tidemill.logs.jsonlines import JsonLinesCursor
from tidemill.logs.parquet import ParquetCursor

_REMEDY = "restore the files as they were, or read them as a source with another name"


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file that the pattern matches. `name`: below the pattern's fixed directory; `codec`: None, gzip or zstd."""

    name: str
    path: Path
    format: str
    codec: str | None

    @property
    def grows(self) -> bool:
        """Whether lines may be added to it while it is the last one."""
        return self.codec is None and self.format != "parquet"


@dataclass(slots=True)
class _Open:
    """The file after the sealed ones, as it was when last looked at. `saved`: its size in the head that a restart will find."""

    file: LogFile
    size: int = 0
    digest: str = ""
    seen: tuple[int, ...] = ()
    saved: int = 0
    counter: Cursor | None = None


@dataclass(slots=True)
class _State:
    entries: list[FileEntry]
    marks: dict[str, Marks] = field(default_factory=dict)
    open: _Open | None = None


class PartitionFiles:
    """Shared by the readers of a partition, which may be in several threads. `listing` gives the files that are there, in order."""

    def __init__(
        self, number: int, listing: Callable[[], list[LogFile]], index: FileIndex, heads: Heads, wanted: Wanted, chunk: int
    ) -> None:
        self.number = number
        self._listing = listing
        self._index = index
        self._heads = heads
        self._wanted = wanted
        self._chunk = chunk
        self._lock = threading.RLock()
        self._state = _State(index.load(number))
        self._files: list[LogFile] = []

    def refresh(self) -> None:
        """Look at the directory again. Raises `LogChangedError`."""
        with self._lock:
            self._files = self._listing()
            state = self._state
            for at, entry in enumerate(state.entries):
                self._require(at, entry.name)
                size = _stat(self._files[at].path)[0]
                if size != entry.size:
                    raise self._changed(self._files[at], f"had {entry.size} bytes when it was complete, and has {size} now")
            if state.open is not None:
                self._require(len(state.entries), state.open.file.name)
                self._look_at(state.open, 0)

    def locate(self, offset: int) -> int | None:
        """The number of the file to read for `offset`: a sealed one, or the next after them. None: there is no such file yet."""
        with self._lock:
            entries = self._state.entries
            if len(entries) >= len(self._files):
                self.refresh()
            if offset < self._sealed_end:
                return bisect_right(entries, offset, key=lambda entry: entry.first) - 1
            if len(entries) < len(self._files):
                return len(entries)
            if offset > self._sealed_end:
                raise self.past_the_end(offset, self._sealed_end)
            return None

    def enter(self, number: int, offset: int) -> tuple[Cursor, int]:
        """A cursor in this file before `offset`, or at its end; and how many records it is short of `offset`."""
        with self._lock:
            self._check(number, 0)
            first = self._state.entries[number].first if number < len(self._state.entries) else self._sealed_end
            cursor = self._cursor(self._files[number], first, offset - first)
            return cursor, offset - first - cursor.ordinal

    def is_sealed(self, number: int, cursor: Cursor) -> bool:
        """Whether the file, read so far by this cursor, is complete; looks at the directory again where it may matter.

        Raises `LogChangedError`.
        """
        with self._lock:
            if number + 1 == len(self._files):
                self.refresh()
            self._check(number, cursor.size)
            return number < len(self._state.entries) or number + 1 < len(self._files) or not self._files[number].grows

    def seal(self, number: int, cursor: Cursor) -> None:
        """The file is complete and was read to its end by this cursor. Raises `LogChangedError`."""
        with self._lock:
            state = self._state
            file = self._files[number]
            self._check(number, cursor.size)
            if number < len(state.entries):
                known = state.entries[number]
                if known.count != cursor.ordinal:
                    raise self._changed(file, f"had {known.count} records when it was complete, and has {cursor.ordinal} now")
                return
            entry = FileEntry(file.name, self._sealed_end, cursor.ordinal, cursor.size, _digest(file.path, cursor.size))
            if state.open is not None and state.open.counter is not None:
                state.open.counter.close()
            self._index.save(self.number, number, [entry])
            state.entries.append(entry)
            state.open = None

    def end(self) -> int:
        """The offset after the last complete record; counts what nobody has read yet."""
        with self._lock:
            self.refresh()
            while len(self._state.entries) < len(self._files):
                number = len(self._state.entries)
                counter = self._counter(number)
                _skip_all(counter)
                if not self.is_sealed(number, counter):
                    return self._sealed_end + counter.ordinal
                counter.seal()
                _skip_all(counter)
                self.seal(number, counter)
            return self._sealed_end

    def past_the_end(self, offset: int, end: int) -> LogChangedError:
        """The error for an offset that was handed out once, and that the files no longer reach."""
        last = self._files[-1].path if self._files else "no file"
        return LogChangedError(
            f"partition {self.number} ends at offset {end} ({last}), and offset {offset} was asked for: records are gone; {_REMEDY}"
        )

    @property
    def _sealed_end(self) -> int:
        return self._state.entries[-1].end if self._state.entries else 0

    def _counter(self, number: int) -> Cursor:
        """Counts where it stopped the last time, or where a reader is by now."""
        known = self._check(number, 0)
        read = self._marks(known.file).last[0]
        if known.counter is None or known.counter.ordinal < read:
            if known.counter is not None:
                known.counter.close()
            known.counter = self._cursor(known.file, self._sealed_end, read)
        return known.counter

    def _marks(self, file: LogFile) -> Marks:
        return self._state.marks.setdefault(file.name, Marks())

    def _cursor(self, file: LogFile, first: int, ordinal: int) -> Cursor:
        place = Place(file.path, self.number, first, file.format, file.codec)
        cursor: Cursor
        if file.format == "parquet":
            cursor = ParquetCursor(place, 0, self._wanted)
        elif file.format == "csv":
            cursor = CsvCursor(place, self._marks(file), self._chunk, ordinal, self._wanted)
        else:
            cursor = JsonLinesCursor(place, self._marks(file), self._chunk, ordinal)
        cursor.skip(ordinal - cursor.ordinal)
        return cursor

    def _require(self, at: int, name: str) -> None:
        """The file in this place must be the one that was there."""
        if at < len(self._files) and self._files[at].name == name:
            return
        if any(file.name == name for file in self._files):
            raise self._changed(self._files[at], f"appeared before {name}, which was already read; new files must sort after the old ones")
        raise LogChangedError(f"{name}: was already read as part of partition {self.number}, and is gone; {_REMEDY}")

    def _check(self, number: int, read: int) -> _Open:
        """The file must still be what it was; `read`: so many bytes of it were read."""
        state = self._state
        file = self._files[number]
        if number < len(state.entries):
            entry = state.entries[number]
            known = _Open(file, entry.size, entry.digest)
            size = _stat(file.path)[0]
            if size != entry.size:
                raise self._changed(file, f"had {entry.size} bytes when it was complete, and has {size} now")
            if _digest(file.path, size) != entry.digest:
                raise self._changed(file, "begins differently than when it was read")
            return known
        if state.open is None:
            state.open = self._recalled(number)
        self._look_at(state.open, read)
        return state.open

    def _recalled(self, number: int) -> _Open:
        """The file after the sealed ones, as an earlier run knew it."""
        file, head = self._files[number], self._heads.load(self.number)
        if head is None or head.number != number:
            return _Open(file)
        self._require(number, head.name)
        return _Open(file, head.size, head.digest, saved=head.size)

    def _look_at(self, known: _Open, read: int) -> None:
        """An open file may have grown, nothing else."""
        seen = _stat(known.file.path)
        size, before = seen[0], max(known.size, read)
        if size < before or (known.seen and not known.file.grows and size != known.size):
            raise self._changed(known.file, f"had {before} bytes when it was read, and has {size} now")
        if seen != known.seen:
            if known.size and _digest(known.file.path, known.size) != known.digest:
                raise self._changed(known.file, "begins differently than when it was read")
            known.seen, known.size, known.digest = seen, size, _digest(known.file.path, size)
            # Each time that it has doubled: a few writes for a file of any size. A file that does not grow is sealed once it is read.
            if known.file.grows and size and size >= 2 * known.saved:
                self._heads.save(self.number, Head(len(self._state.entries), known.file.name, size, known.digest))
                known.saved = size

    def _changed(self, file: LogFile, what: str) -> LogChangedError:
        return LogChangedError(f"{file.path}: {what}, so offsets would name other events; {_REMEDY}")


def _skip_all(cursor: Cursor) -> None:
    while cursor.skip(1 << 20):
        pass


def _stat(path: Path) -> tuple[int, ...]:
    try:
        info = path.stat()
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}") from error
    return (info.st_size, info.st_mtime_ns, info.st_ino, info.st_dev)


def _digest(path: Path, size: int) -> str:
    try:
        return prefix_digest(path, min(size, PREFIX))
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}") from error
