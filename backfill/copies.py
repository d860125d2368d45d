"""Parquet files that are taken as they are, because they have the source's columns and types: to decode and to write them changes nothing.

Such a file is copied first, and then every row of the copy is read once through the code that will read it later, and decoded as that of
any other file. So what is a part of an import was read and checked before, and nobody has to trust whoever wrote the file. Where decoding
would change a value, or leave out a row, the rest of the file is decoded and written anew, like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.definitions import Source
from tidemill.errors import StoreError
from tidemill.logs.base import RecordBatch
from tidemill.offline.history import Part
from tidemill.offline.store import OfflineStore

#: Rows of a row group, at most; rows of several that are read together; and rows that are handed out at once.
_MOST_ROWS, _TOGETHER, _ROWS = 1 << 20, 1 << 19, 1 << 17
#: Bytes that a value takes, a text's own not counted.
_BYTES = 16


@dataclass(slots=True)
class Copy:
    """A file's copy in the offline store, as parts will read it. `ends`: where what is read at once ends, as numbers of rows."""

    store: OfflineStore
    key: str
    times: tuple[str, str | None]
    columns: dict[str, pl.DataType]
    ends: list[int]

    @classmethod
    def of(cls, store: OfflineStore, key: str, path: Path, source: Source, most: int) -> Copy | None:
        """The copy of a file, made now unless it is there. None: it has other columns or types, or row groups of more than `most` bytes."""
        columns = _columns(path, source)
        ends = None if columns is None else _row_groups(path, len(columns), most)
        if columns is None or ends is None or not (store.exists(key) or store.adopt(key, path)):
            return None
        return cls(store, key, (source.timestamp, source.arrival if source.arrival in columns else None), columns, ends)

    def part(self, start: int, end: int) -> Part:
        """These rows as a part."""
        return Part(self.key, end - start, start, self.times)

    def read(self, start: int) -> Iterator[tuple[RecordBatch, pl.DataFrame]]:
        """What is read at once from row `start` on: as records of a file, and as its part would give them. Raises `StoreError`."""
        end = next(end for end in self.ends if end > start)
        try:
            with self.store.reading(self.key):
                frame = self.part(start, end).scan(self.store, 0, end - start).select(*self.columns).collect()
        except pl.exceptions.PanicException as error:
            raise StoreError(f"{self.store.path(self.key)} cannot be read by Polars: {error}") from error
        if len(frame) != end - start:
            raise StoreError(f"{self.store.path(self.key)} has not the {end - start} rows that it says it has from row {start} on")
        for first in range(0, len(frame), _ROWS):
            rows, at = frame[first : first + _ROWS], start + first
            yield RecordBatch(0, at, at + len(rows), np.arange(at, at + len(rows)), rows), rows


def unchanged(read: pl.DataFrame, decoded: pl.DataFrame) -> bool:
    """Whether decoding left rows as they were, to the bit: 0.0 is not -0.0 here, and one NaN is another only if it has its bits."""
    bits = pl.col(pl.Float64).reinterpret(dtype=pl.Int64)
    return read.with_columns(bits).equals(decoded.select(read.columns).with_columns(bits))


def size_of(rows: pl.DataFrame) -> int:
    """The bytes of rows; of texts that many rows share, which a file and a frame may hold once, those of every row."""
    texts = rows.select(pl.col(pl.String).str.len_bytes().sum())
    return rows.height * rows.width * _BYTES + sum(int(total) for total in (texts.row(0) if texts.width else ()))


def _columns(path: Path, source: Source) -> dict[str, pl.DataType] | None:
    """The columns of a file with their types; None unless they are the source's, or some of them, and the event time is there."""
    try:
        there = dict(pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema())
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None  # whoever decodes it says why
    declared = {name: kind.polars for name, kind in source.schema.items()}
    return there if source.timestamp in there and there == {name: declared.get(name) for name in there} else None


def _row_groups(path: Path, width: int, most: int) -> list[int] | None:
    """Where to stop reading a file of so many columns; None unless each row group may be read at once."""
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return None
    ends, rows, size = [0], 0, 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        count, bytes = group.num_rows, group.num_rows * width * _BYTES + group.total_byte_size
        if count > _MOST_ROWS or bytes > most or group.sorting_columns:  # Polars would take the order on trust, and minima from it
            return None
        if rows + count > _TOGETHER or size + bytes > most:  # small ones are read together
            ends.append(ends[-1])
            rows = size = 0
        rows, size = rows + count, size + bytes
        ends[-1] += count
    return ends
