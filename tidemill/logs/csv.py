"""CSV (RFC 4180, comma, double quotes): the first record names the columns, each file in its own order.

An empty field is null, a quoted empty field (`""`) is the empty string. A quoted field may hold newlines. A record with another
number of fields than the header, with a stray quote, or that is not UTF-8 is broken: it takes an offset and goes to the dead
letters. A quote that opens within a field and meets another one lines later makes one broken record of all those lines.
"""

from __future__ import annotations

import csv

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tidemill.errors import LogError
from tidemill.logs.base import RecordBatch
from tidemill.logs.cursor import Marks, Place, Rows, TextCursor, Wanted
from tidemill.logs.jsonlines import blank_records
from tidemill.logs.records import Block, Broken, Int64s, keep, not_utf8, quotes_before

#: A column (Binary) beside the text columns: each record's bytes as they lie in the file, newline included, for the dead letters.
RAW_COLUMN = "\0raw"

_NEWLINE, _RETURN, _QUOTE, _COMMA = 10, 13, 34, 44


class CsvCursor(TextCursor):
    """Hands out frames of text columns."""

    def __init__(self, place: Place, marks: Marks, chunk: int, ordinal: int, wanted: Wanted) -> None:
        super().__init__(place, marks, chunk, ordinal, quoted=True, header=1)
        self._names: list[str] | None = None
        self._wanted = wanted
        self._header_passed = self.ordinal > 0

    def read(self, max_records: int) -> RecordBatch | None:
        if not self._read_header():
            return None
        return self.batch(self.take(max_records), self._frame)

    def skip(self, records: int) -> int:
        return super().skip(records) if self._read_header() else 0

    def _read_header(self) -> bool:
        """Whether the header is known; it is not while a growing file's first line has no end."""
        if self._names is None:
            source: TextCursor = self
            if self._header_passed:
                source = TextCursor(self._place, Marks(), self._chunk, 0, quoted=True, header=1)
            pieces = source.take(1)
            if not pieces:
                return False
            self._names = self._parse_header(pieces[0])
        return True

    def _parse_header(self, piece: Block | Broken) -> list[str]:
        path = self._place.path
        if isinstance(piece, Broken):
            raise LogError(f"{path}: the header line cannot be read: {piece.reason}")
        try:
            names = next(csv.reader([bytes(piece.payload()).decode().rstrip("\r\n")], strict=True), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise LogError(f"{path}: the header line cannot be read: {error}") from error
        named = [name for name in names if name]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice or not named:
            fault = f"has {', '.join(map(repr, twice))} twice" if twice else "is empty"
            raise LogError(f"{path}: the header line {fault}; the first line of a CSV file names its columns")
        self._wanted.check(path, named)
        return names

    def _frame(self, block: Block) -> Rows:
        block = block.compact()
        names = self._names or []
        reasons: dict[int, str] = {}
        for number, count in _ragged(block, len(names)):
            reasons[number] = f"{count} fields, and the header has {len(names)}"
        for number in _stray_quotes(block).tolist():
            reasons[number] = "a stray quote"
        for number in not_utf8(block.data, block.ends).tolist():
            reasons[number] = "not UTF-8"
        numbers = np.arange(len(block), dtype=np.int64)
        good = np.ones(len(block), dtype=np.bool_)
        good[list(reasons)] = False
        blank = blank_records(block)
        good[blank] = False
        for number in blank.tolist():
            reasons.pop(number, None)
        starts, ends = block.starts, block.ends - 1
        broken = tuple((i, block.data[starts[i] : ends[i]].removesuffix(b"\r"), reasons[i]) for i in sorted(reasons))
        lengths = np.diff(block.ends, prepend=0)[good]
        frame = self._parse(Block(block.data if good.all() else keep(block, good), 0, np.cumsum(lengths)))
        return frame, numbers[good], broken

    def _parse(self, block: Block) -> pl.DataFrame:
        names = self._names or []
        places = {name: i for i, name in enumerate(names) if name and (self._wanted.columns is None or name in self._wanted.columns)}
        columns = [f"column_{i}" for i in range(len(names))]
        schema = dict.fromkeys(columns, pl.String())
        if len(block):
            try:
                # Without a first line of our own, Polars would unpack bytes that begin as zlib does: `x^2,1` is a record.
                frame = pl.read_csv(",".join(columns).encode() + b"\n" + block.data, schema=schema)
            except pl.exceptions.PolarsError as error:
                raise LogError(f"{self._place.path}: records that ought to be CSV cannot be read: {error}") from error
            if frame.height != len(block):
                raise LogError(f"{self._place.path}: {len(block)} records were read as {frame.height}: is it CSV with commas and quotes?")
        else:
            frame = pl.DataFrame(schema=schema)
        return frame.select(pl.col(columns[i]).alias(name) for name, i in places.items()).with_columns(_raw(block))


def _raw(block: Block) -> pl.Series:
    """The records' bytes with their newlines: offsets into the block itself, so no record is copied."""
    offsets = np.concatenate([[0], block.ends]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(block.data)]
    return pl.Series(RAW_COLUMN, pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(block), buffers))


def _ragged(block: Block, fields: int) -> list[tuple[int, int]]:
    """Records with another number of fields: (number, fields)."""
    data = np.frombuffer(block.data, dtype=np.uint8)
    commas = np.flatnonzero(data == _COMMA)
    if b'"' in block.data:
        commas = commas[quotes_before(data, commas)[1] % 2 == 0]
    counts = np.diff(np.searchsorted(commas, block.ends), prepend=0) + 1
    wrong = np.flatnonzero(counts != fields)
    return list(zip(wrong.tolist(), counts[wrong].tolist(), strict=True))


def _stray_quotes(block: Block) -> Int64s:
    """Records in which a quote neither opens nor closes a field, nor doubles another one."""
    if b'"' not in block.data:
        return np.empty(0, dtype=np.int64)
    data = np.frombuffer(block.data, dtype=np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    opening: npt.NDArray[np.bool_] = np.arange(len(quotes)) % 2 == 0
    doubles = np.zeros(len(quotes), dtype=np.bool_)
    doubles[1:] = np.diff(quotes) == 1
    before = np.where(quotes > 0, data[np.maximum(quotes - 1, 0)], _NEWLINE)
    good_open = (before == _COMMA) | (before == _NEWLINE) | doubles
    after = data[quotes + 1]  # a block ends with a newline, so there is a next byte
    after_next = data[np.minimum(quotes + 2, len(data) - 1)]
    doubled = np.append(doubles[1:], False)
    good_close = (after == _COMMA) | (after == _NEWLINE) | ((after == _RETURN) & (after_next == _NEWLINE)) | doubled
    stray = quotes[~np.where(opening, good_open, good_close)]
    return np.unique(np.searchsorted(block.ends, stray, side="right"))
