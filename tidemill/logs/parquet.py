"""Parquet: typed columns, read a row group at a time. A file is complete when it has its footer, so write it elsewhere and rename it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.errors import LogError
from tidemill.logs.base import RecordBatch
from tidemill.logs.cursor import Place, Wanted

#: Rows that are read at once, and about how many bytes of them; the first time, few: only rows that were read say how wide they are.
_ROWS, _BYTES, _FIRST = 1 << 17, 8 << 20, 1 << 10
#: What is read of a file at once: without it, the whole chunk of a column.
_BUFFER = 1 << 20


class ParquetCursor:
    """Hands out frames with the file's own types; at most 128 Ki rows at once, and fewer of wide ones."""

    def __init__(self, place: Place, ordinal: int, wanted: Wanted) -> None:
        self._place = place
        self.ordinal = 0
        self.sealed = True
        self.size = place.path.stat().st_size
        try:
            # Nanoseconds, the default, would wrap for years after 2262.
            self._file = pq.ParquetFile(place.path, coerce_int96_timestamp_unit="us", buffer_size=_BUFFER)
        except (OSError, pa.ArrowException) as error:
            raise LogError(
                f"{place.path}, at offset {place.first}: is not Parquet, or not complete ({error}); "
                "write it elsewhere, and rename it when it is complete"
            ) from error
        names = self._file.schema_arrow.names
        wanted.check(place.path, names)
        self._columns = [name for name in names if wanted.columns is None or name in wanted.columns]
        self._check_readable(names)
        self._size = _FIRST
        groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._ends = np.cumsum(np.array(groups, dtype=np.int64))
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._ahead: pa.RecordBatch | None = None
        self.skip(ordinal)

    def _check_readable(self, names: list[str]) -> None:
        """What Polars would not say so plainly, or panics at."""
        for field in self._file.schema_arrow:
            if field.name in self._columns and names.count(field.name) > 1:
                raise LogError(f"{self._place.path}: there are {names.count(field.name)} columns {field.name!r}: give each its own name")
            if field.name in self._columns and pa.types.is_decimal256(field.type):
                raise LogError(f"{self._place.path}: column {field.name!r} is {field.type}, which is not read: write it as a double")

    def seal(self) -> None:
        """A Parquet file never grows."""

    def close(self) -> None:
        self._file.close()

    def skip(self, records: int) -> int:
        passed = min(records, int(self._file.metadata.num_rows) - self.ordinal)
        if passed:
            self.ordinal += passed
            self._batches = self._ahead = None
        return passed

    def read(self, max_records: int) -> RecordBatch | None:
        try:
            rows = self._next()
            self._fit(rows)
        except (OSError, pa.ArrowException) as error:
            raise LogError(f"{self._place.path}, after offset {self._place.first + self.ordinal}: cannot be read: {error}") from error
        if rows is None:
            return None
        if rows.num_rows > max_records:
            self._ahead = rows.slice(max_records)
            rows = rows.slice(0, max_records)
        start = self._place.first + self.ordinal
        self.ordinal += rows.num_rows
        offsets = np.arange(start, start + rows.num_rows, dtype=np.int64)
        bad = _not_utf8(rows)
        broken = tuple((start + i, _json(rows.slice(i, 1)), f"{name}: not UTF-8") for i, name in sorted(bad.items()))
        if bad:
            good = np.ones(rows.num_rows, dtype=np.bool_)
            good[list(bad)] = False
            offsets, rows = offsets[good], rows.filter(pa.array(good))
        frame = pl.DataFrame(pl.from_arrow(_in_utc(rows)))
        return RecordBatch(self._place.partition, start, self._place.first + self.ordinal, offsets, frame, broken=broken)

    def _fit(self, rows: pa.RecordBatch | None) -> None:
        """Read as many rows at once from here on as these allow; more only after the first, because to begin anew may cost a row group."""
        if rows is None or (self._size == _FIRST and rows.num_rows < _FIRST):
            return  # so few rows say little
        fit = max(min(_BYTES * rows.num_rows // max(rows.nbytes, 1), _ROWS), 1)
        if self._size == _FIRST or fit < self._size // 2:
            self._size, self._batches = fit, None

    def _next(self) -> pa.RecordBatch | None:
        if self._ahead is not None:
            rows, self._ahead = self._ahead, None
            return rows
        inside = 0
        if self._batches is None:
            group = int(np.searchsorted(self._ends, self.ordinal, side="right"))
            inside = self.ordinal - (int(self._ends[group - 1]) if group else 0)
            groups = list(range(group, len(self._ends)))
            self._batches = self._file.iter_batches(self._size, row_groups=groups, columns=self._columns, use_threads=False)
        for rows in self._batches:
            if inside < rows.num_rows:
                return rows.slice(inside)
            inside -= rows.num_rows
        return None


def _in_utc(rows: pa.RecordBatch) -> pa.Table:
    """The same instants under the zone UTC: Polars does not know every zone that Arrow can write, such as +02:00."""
    table = pa.Table.from_batches([rows]).replace_schema_metadata(None)  # Polars panics at some
    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz not in (None, "UTC"):
            table = table.set_column(i, field.name, table.column(i).cast(pa.timestamp(field.type.unit, "UTC")))
    return table


def _not_utf8(rows: pa.RecordBatch) -> dict[int, str]:
    """Row numbers of text that is not UTF-8, with the column. Nobody between the file and Polars would look otherwise."""
    bad: dict[int, str] = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        values = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type)):
            continue
        try:
            values.validate(full=True)
        except pa.ArrowInvalid:
            for i, value in enumerate(values.cast(pa.large_binary()).to_pylist()):
                if value is not None and value != value.decode(errors="replace").encode():
                    bad.setdefault(i, name)
    return bad


def _json(row: pa.RecordBatch) -> bytes:
    """A row with text that is not UTF-8, as JSON: with the Unicode replacement character where it is not."""
    values = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        is_text = pa.types.is_string(plain.type) or pa.types.is_large_string(plain.type)
        value = (plain.cast(pa.large_binary()) if is_text else plain)[0].as_py()
        values[name] = value.decode(errors="replace") if is_text and value is not None else value
    return json.dumps(values, default=str).encode()
