"""Cuts a stream of bytes into records: lines, or CSV records, whose quoted fields may hold newlines.

How bytes fall into chunks never changes where records begin, and nothing is dropped: what cannot be a record is a `Broken` one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

#: The longest record in bytes, without its newline. Offsets of CSV records depend on it, so it is no setting.
MAX_RECORD = 1 << 20
#: So much of a longer record is kept for the dead letters.
RAW_KEPT = 64 << 10

_NEWLINE, _QUOTE = 10, 34


def too_long(limit: int) -> str:
    """The reason for a record of more than `limit` bytes."""
    return f"longer than {limit} bytes; the first {RAW_KEPT} are kept"


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive records in `data`, from `start` on, each ended by a newline; `ends` (int64, n) are the positions after those.

    Parts share `data`: a copy of every byte at every step would cost as much as decoding does.
    """

    data: bytes
    start: int
    ends: Int64s

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return int(self.ends[-1]) - self.start if len(self.ends) else 0

    @property
    def starts(self) -> Int64s:
        """Where each record begins."""
        return np.concatenate([[self.start], self.ends])[: len(self.ends)].astype(np.int64)

    def part(self, first: int, last: int) -> Block:
        """The records `first` to `last`, the latter not included."""
        return Block(self.data, int(self.ends[first - 1]) if first else self.start, self.ends[first:last])

    def payload(self) -> memoryview:
        """The bytes of all records, not copied."""
        return memoryview(self.data)[self.start : self.start + self.size]

    def compact(self) -> Block:
        """The same records with nothing around them."""
        if self.start == 0 and self.size == len(self.data):
            return self
        return Block(bytes(self.payload()), 0, self.ends - self.start)


class Broken(NamedTuple):
    """One record that takes an offset, but is none that can be read."""

    raw: bytes
    reason: str


Piece = Block | Broken


def size_of(piece: Piece) -> int:
    """The number of records (offsets) in a piece."""
    return len(piece) if isinstance(piece, Block) else 1


def quotes_before(data: Bytes, positions: Int64s) -> tuple[Int64s, Int64s]:
    """Where the quotes are, and how many lie before each of the positions."""
    quotes = np.flatnonzero(data == _QUOTE)
    return quotes, np.searchsorted(quotes, positions).astype(np.int64)


class RecordCutter:
    """Cuts chunks, fed in order, into records. With `quoted`, a newline between an odd and an even quote is part of the record."""

    def __init__(self, quoted: bool) -> None:
        self._quoted = quoted
        self._rest = b""
        self._long: bytes | None = None

    @property
    def waiting(self) -> int | None:
        """How many of the bytes fed belong to a record that is not complete; None inside an overlong line."""
        return None if self._long is not None else len(self._rest)

    def feed(self, chunk: bytes, last: bool = False) -> list[Piece]:
        """The records that this chunk completes. `last`: nothing follows, so an unterminated line is a record."""
        pieces: list[Piece] = []
        data, at = self._join(chunk, pieces)
        at = max(at, self._leave_long_line(data, last, pieces))
        while at < len(data):
            at, stuck = self._regular(data, at, pieces)
            if at == len(data):
                break
            if stuck or len(data) - at > MAX_RECORD:
                at = self._overlong(data, at, last, pieces)
            elif last:
                at = self._unterminated(data, at, pieces)
            else:
                break
        self._rest = data[at:]
        return pieces

    def _join(self, chunk: bytes, pieces: list[Piece]) -> tuple[bytes, int]:
        """The bytes to look at, and from where. A line over two chunks is put together by itself, not with the whole chunk."""
        if not self._rest:
            return chunk, 0
        newline = -1 if self._quoted else chunk.find(b"\n")
        if newline < 0 or len(self._rest) + newline > MAX_RECORD:
            return self._rest + chunk, 0
        line = self._rest + chunk[: newline + 1]
        pieces.append(Block(line, 0, np.array([len(line)], dtype=np.int64)))
        return chunk, newline + 1

    def _leave_long_line(self, data: bytes, last: bool, pieces: list[Piece]) -> int:
        if self._long is None:
            return 0
        newline = data.find(b"\n")
        if newline < 0 and not last:
            return len(data)
        pieces.append(Broken(self._long, too_long(MAX_RECORD)))
        self._long = None
        return newline + 1 if newline >= 0 else len(data)

    def _regular(self, data: bytes, at: int, pieces: list[Piece]) -> tuple[int, bool]:
        """Takes complete records of regular length; says where it stopped, and whether before a complete one that is too long."""
        ends = self._ends(data, at)
        if len(ends) == 0:
            return at, False
        over = np.flatnonzero(np.diff(ends, prepend=at) - 1 > MAX_RECORD)
        stuck = len(over) > 0
        if stuck:
            ends = ends[: over[0]]
        if len(ends) == 0:
            return at, stuck
        stop = int(ends[-1])
        pieces.append(Block(data, at, ends))
        return stop, stuck

    def _ends(self, data: bytes, at: int) -> Int64s:
        view = np.frombuffer(data, dtype=np.uint8)[at:]
        newlines = np.flatnonzero(view == _NEWLINE)
        if self._quoted and data.find(b'"', at) >= 0:
            newlines = newlines[quotes_before(view, newlines)[1] % 2 == 0]
        return newlines + (at + 1)

    def _overlong(self, data: bytes, at: int, last: bool, pieces: list[Piece]) -> int:
        """A record that does not end in time. Of one with an open quote, only the first line is given up: the next may be good."""
        newline = data.find(b"\n", at, at + MAX_RECORD + 1)
        if newline >= 0:
            pieces.append(Broken(data[at:newline][:RAW_KEPT], f"a quote is not closed within {MAX_RECORD} bytes"))
            return newline + 1
        newline = data.find(b"\n", at)
        if newline < 0 and not last:
            self._long = data[at : at + RAW_KEPT]
            return len(data)
        pieces.append(Broken(data[at : at + RAW_KEPT], too_long(MAX_RECORD)))
        return newline + 1 if newline >= 0 else len(data)

    def _unterminated(self, data: bytes, at: int, pieces: list[Piece]) -> int:
        if self._quoted and data.count(b'"', at) % 2:
            newline = data.find(b"\n", at)
            stop = newline + 1 if newline >= 0 else len(data)
            pieces.append(Broken(data[at:stop].rstrip(b"\n"), "a quote is never closed"))
            return stop
        pieces.append(Block(data[at:] + b"\n", 0, np.array([len(data) - at + 1], dtype=np.int64)))
        return len(data)


def keep(block: Block, wanted: npt.NDArray[np.bool_]) -> bytes:
    """The bytes of the wanted records, joined run by run."""
    edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False)).reshape(-1, 2)
    starts = np.concatenate([block.starts, block.ends[-1:]]).tolist()
    return b"".join(memoryview(block.data)[starts[a] : starts[b]] for a, b in edges.tolist())


def not_utf8(data: bytes, ends: Int64s) -> Int64s:
    """The numbers of the records that are not valid UTF-8; `ends` are positions after the newlines."""
    try:
        data.decode()
    except UnicodeDecodeError:
        high = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) >= 0x80)
        suspects = np.unique(np.searchsorted(ends, high, side="right"))
        starts = np.concatenate([[0], ends])
        return np.array([i for i in suspects.tolist() if not _decodes(data[starts[i] : starts[i + 1]])], dtype=np.int64)
    return np.empty(0, dtype=np.int64)


def _decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
