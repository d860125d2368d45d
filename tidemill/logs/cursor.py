"""One file of a log, read onward: what every format offers, and what the two text formats share."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import polars as pl

from tidemill.errors import LogError
from tidemill.logs.base import RecordBatch
from tidemill.logs.bytestream import ByteStream, CompressedBytes, MisnamedError, PlainBytes
from tidemill.logs.records import Block, Broken, Int64s, Piece, RecordCutter, size_of

_MARK_EVERY = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The columns to read, where the format lets one choose, and the one that every file must have. None: all, and none."""

    columns: tuple[str, ...] | None = None
    required: str | None = None

    def check(self, path: Path, there: list[str]) -> None:
        """Raise `LogError` for a file without the required column, or with none of the wanted ones."""
        if self.required is not None and self.required not in there:
            raise LogError(f"{path}: there is no column {self.required!r}, which holds the event time; it has {', '.join(there)}")
        if self.columns is not None and not set(self.columns) & set(there):
            raise LogError(f"{path}: none of the columns {', '.join(self.columns)} is there; it has {', '.join(there)}")


@dataclass(frozen=True, slots=True)
class Place:
    """A file of a partition, and the offset of its first record. `codec`: None, gzip or zstd; `format`: jsonl, csv or parquet."""

    path: Path
    partition: int
    first: int
    format: str
    codec: str | None


class Cursor(Protocol):
    """Reads one file. It stands before record number `ordinal` of the file."""

    ordinal: int
    sealed: bool

    def read(self, max_records: int) -> RecordBatch | None:
        """The next records, or None: no more, or, in a file that is not sealed, no more for now. Raises `LogError`."""
        ...

    def skip(self, records: int) -> int:
        """Pass over so many records; how many there were. Raises `LogError`."""
        ...

    def seal(self) -> None:
        """The file will not grow any more: an unterminated last line is a record."""
        ...

    @property
    def size(self) -> int:
        """The file's size in bytes, once a sealed file is read to its end."""
        ...

    def close(self) -> None: ...


class Marks:
    """Byte positions at which known records of a plain file begin, one per MiB or so: for a quick return to any of them."""

    def __init__(self) -> None:
        self._marks: list[tuple[int, int]] = [(0, 0)]

    def add(self, ordinal: int, position: int) -> None:
        if position - self._marks[-1][1] >= _MARK_EVERY:
            self._marks.append((ordinal, position))

    def before(self, ordinal: int) -> tuple[int, int]:
        """The last known (ordinal, position) that is not after this record."""
        return self._marks[bisect_right(self._marks, ordinal, key=lambda mark: mark[0]) - 1]

    @property
    def last(self) -> tuple[int, int]:
        return self._marks[-1]


Rows = tuple[bytes | memoryview | pl.DataFrame, Int64s, tuple[tuple[int, bytes, str], ...]]


class TextCursor:
    """The pieces of a text file, at most `chunk` bytes ahead. What a block of records becomes is the format's business."""

    def __init__(self, place: Place, marks: Marks, chunk: int, ordinal: int, *, quoted: bool, header: int) -> None:
        self._place = place
        self._marks = marks
        self._chunk = chunk
        self._cutter = RecordCutter(quoted)
        self._queue: deque[Piece] = deque()
        self._used = 0  # records of the first piece that were handed out
        self._error: LogError | None = None
        self._flushed = False
        self.sealed = place.codec is not None
        start, position = marks.before(ordinal) if place.codec is None else (0, 0)
        self.ordinal = start
        self._fed = start - (header if position == 0 else 0)
        self._stream = self._guard(lambda: _open(place, chunk, position))

    @property
    def size(self) -> int:
        return self._stream.position if self._place.codec is None else self._place.path.stat().st_size

    def seal(self) -> None:
        self.sealed = True

    def close(self) -> None:
        self._stream.close()

    def take(self, max_records: int) -> list[Piece]:
        """Up to `max_records` records, as far as a chunk reaches."""
        self._fill(max_records)
        taken: list[Piece] = []
        while self._queue and max_records > 0:
            piece = self._queue[0]
            rest = size_of(piece) - self._used
            count = min(rest, max_records)
            taken.append(piece.part(self._used, self._used + count) if isinstance(piece, Block) else piece)
            max_records -= count
            self._used += count
            if count == rest:
                self._queue.popleft()
                self._used = 0
        return taken

    def skip(self, records: int) -> int:
        left = records
        while left > 0:
            passed = sum(size_of(piece) for piece in self.take(left))
            if passed == 0:
                break
            left -= passed
        self.ordinal += records - left
        return records - left

    def _fill(self, max_records: int) -> None:
        waiting = sum(size_of(piece) for piece in self._queue) - self._used
        size = sum(piece.size for piece in self._queue if isinstance(piece, Block))
        if self._used and isinstance(used := self._queue[0], Block):
            size -= used.part(0, self._used).size
        # At least one record, however many chunks it takes: to the reader, none means the end.
        while (waiting == 0 or (waiting < max_records and size < self._chunk)) and not self._flushed:
            if self._error is not None:
                if waiting:
                    return
                raise self._error
            try:
                chunk = self._guard(self._stream.read)
            except LogError as error:
                self._error = error  # first hand out what was read before it
                continue
            if not chunk and not self.sealed:
                return
            pieces = self._cutter.feed(chunk, last=not chunk)
            self._flushed = not chunk
            self._queue.extend(pieces)
            count = sum(map(size_of, pieces))
            waiting += count
            size += len(chunk)
            self._fed += count
            if self._cutter.waiting is not None:
                self._marks.add(self._fed, self._stream.position - self._cutter.waiting)

    def _guard(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (OSError, MisnamedError) as error:
            raise LogError(f"{self._place.path}, after offset {self._place.first + max(self._fed, 0)}: cannot be read: {error}") from error

    def batch(self, pieces: list[Piece], rows: Callable[[Block], Rows]) -> RecordBatch | None:
        """One batch of these pieces; `rows` gives a block's payload, the numbers of its records, and those that are broken."""
        if not pieces:
            return None
        start = at = self._place.first + self.ordinal
        payloads: list[bytes | memoryview | pl.DataFrame] = []
        offsets: list[Int64s] = []
        broken: list[tuple[int, bytes, str]] = []
        for piece in pieces:
            if isinstance(piece, Broken):
                broken.append((at, piece.raw, piece.reason))
            else:
                payload, numbers, bad = rows(piece)
                payloads.append(payload)
                offsets.append(numbers + at)
                broken += [(number + at, raw, reason) for number, raw, reason in bad]
            at += size_of(piece)
        self.ordinal += at - start
        frames = [p for p in payloads if isinstance(p, pl.DataFrame)]
        return RecordBatch(
            partition=self._place.partition,
            start=start,
            end=at,
            offsets=np.concatenate([np.empty(0, dtype=np.int64), *offsets]),
            payload=pl.concat(frames) if frames else b"".join(p for p in payloads if not isinstance(p, pl.DataFrame)),
            text=bool(frames),
            broken=tuple(sorted(broken)),
        )


def _open(place: Place, chunk: int, position: int) -> ByteStream:
    if place.codec is None:
        return PlainBytes(place.path, chunk, position)
    return CompressedBytes(place.path, chunk, place.codec)
