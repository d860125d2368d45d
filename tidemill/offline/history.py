"""History that came from elsewhere: imports, copied as Parquet beside the archive.

`history/<source>/<number>.json` is import `number` >= 1, a manifest that names its parts. It is created once, when all parts lie there,
and never changed; numbers have no gaps, so of two that are made at once one is first, and the other is checked against it. A
cut says how many imports lie in the segments up to it (`tidemill.offline.cuts`); an import that no cut knows of counts nowhere yet.

Parts are `history/<source>/<import id>/*.parquet`, with the columns of the archive: the source's, `_time` and `_arrival` as there, and
`_offset`, which is the record's number in the file that it came from, and orders nothing. A Parquet file that holds the source's columns
as they ought to be is copied as it is, and its parts are ranges of its rows (`Part.times`). Nobody's parts are those of an import that
was begun and not finished.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.errors import StoreError
from tidemill.offline.archive import PLACE_COLUMNS, wanted_columns
from tidemill.offline.store import ROW_GROUP_ROWS, OfflineStore
from tidemill.times import BEGINNING

_NAME = re.compile(r"(\d{8,})\.json")


@dataclass(frozen=True, slots=True)
class Part:
    """Events of an import: `rows` of a Parquet file, from row `first` on.

    `times` None: the file has the archive's columns. Else it is a copy of a file that was imported: it has the source's columns, or some
    of them, and these two are the event times and the arrivals (None: it says nothing of them); a row's `_offset` is its number.
    """

    key: str
    rows: int
    first: int = 0
    times: tuple[str, str | None] | None = None

    def scan(self, store: OfflineStore, start: int, rows: int) -> pl.LazyFrame:
        """Up to so many rows from number `start` of the part on, with the columns of the archive."""
        start += self.first
        some = store.scan(self.key).slice(start, rows)
        if self.times is None:
            return some
        at, arrival = self.times
        return some.with_columns(
            pl.int_range(start, start + pl.len(), dtype=pl.Int64).alias("_offset"),
            pl.col(at).cast(pl.Int64).alias("_time"),
            (pl.lit(None, pl.Int64) if arrival is None else pl.col(arrival).cast(pl.Int64)).alias("_arrival"),
        )


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """A file that was imported: its name as it was given, its bytes, the SHA-256 of its content, and what became of its records.

    `records` = `events` + `dead` + `outside` (the dates asked for). What an overlap left out is counted for the whole import.
    """

    name: str
    size: int
    digest: str
    records: int
    events: int
    dead: int
    outside: int


@dataclass(frozen=True, slots=True)
class Import:
    """One import. Times are UTC microseconds.

    `at`: when it was made. `overlap`: how what is also in the log was found ("by-id", "by-time", "none"); `before`: the bound of
    "by-time". `left_out`: events that are in the log, or in an earlier import; `repeated`: events whose id came before in these files;
    `without_id`: events that could not be compared; `log_without_id`: events of the log and of earlier imports that were
    not compared.
    `latest`, `arrived`: the largest event and arrival time. `since`, `until`: the event times [since, until) that were asked for.
    """

    number: int
    id: str
    at: int
    overlap: str
    before: int | None
    events: int
    left_out: int
    repeated: int
    without_id: int
    latest: int = BEGINNING
    arrived: int = BEGINNING
    files: tuple[ImportedFile, ...] = ()
    parts: tuple[Part, ...] = ()
    since: int | None = None
    until: int | None = None
    log_without_id: int = 0

    def apart(self, since: int | None, until: int | None) -> bool:
        """Whether no event time is both in this import's dates and in [since, until)."""
        after = since is not None and self.until is not None and since >= self.until
        return after or (until is not None and self.since is not None and until <= self.since)

    def covers(self, since: int | None, until: int | None) -> bool:
        """Whether every event time in [since, until) is in this import's dates."""
        begins = self.since is None or (since is not None and since >= self.since)
        return begins and (self.until is None or (until is not None and until <= self.until))


def import_folder(source: str, id: str) -> str:
    """Where an import's parts lie."""
    return f"history/{source}/{id}"


def latest_import(store: OfflineStore, source: str) -> int:
    """The number of the newest import; 0 where there is none."""
    names = (_NAME.fullmatch(key.rpartition("/")[2]) for key in store.list(f"history/{source}"))
    return max((int(name[1]) for name in names if name), default=0)


def read_import(store: OfflineStore, source: str, number: int) -> Import:
    """One import. Raises `StoreError` where its manifest is absent or damaged."""
    key = _key(source, number)
    data = store.read(key)
    try:
        return msgspec.json.decode(data or b"", type=Import)
    except msgspec.DecodeError as error:
        raise StoreError(f"{store.path(key)}, which says what was imported, is missing or damaged ({error}): restore it") from None


def imports(store: OfflineStore, source: str) -> list[Import]:
    """All imports of a source, in order."""
    return [read_import(store, source, number) for number in range(1, latest_import(store, source) + 1)]


def create_import(store: OfflineStore, source: str, made: Import) -> bool:
    """Make an import. False where its number is taken, and nothing happened: check it against that one, and take the next."""
    return store.create(_key(source, made.number), msgspec.json.encode(made))


def write_part(store: OfflineStore, key: str, frame: pl.DataFrame) -> Part:
    """Write events as a part. Numbers that hardly change from row to row, as times and places do, are stored as their differences.

    With that a part takes less space than with a slow codec, and half the time to write and to read.
    """
    integers = [name for name, dtype in frame.schema.items() if dtype == pl.Int64 or isinstance(dtype, pl.Datetime)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        frame.to_arrow(),
        sink,
        compression="snappy",
        row_group_size=ROW_GROUP_ROWS,
        use_dictionary=[name for name, dtype in frame.schema.items() if dtype == pl.String],
        column_encoding=dict.fromkeys(integers, "DELTA_BINARY_PACKED"),
        write_statistics=integers,  # of texts they take as long as the rest
    )
    store.write(key, sink.getvalue().to_pybytes())
    return Part(key, len(frame))


def iter_parts(
    store: OfflineStore,
    parts: tuple[Part, ...],
    columns: Mapping[str, pl.DataType] | None = None,
    *,
    start: int = 0,
    rows: int = 1_000_000,
) -> Iterator[tuple[int, pl.DataFrame]]:
    """(how many parts are read then, frame of 1 to `rows` rows), from part number `start` on. Columns as `archive.iter_range` has them."""
    for number, part in enumerate(parts[start:], start):
        for first in range(0, part.rows, rows):
            with store.reading(part.key):
                scan = part.scan(store, first, min(rows, part.rows - first))
                schema = scan.collect_schema()
                wanted = [pl.col(name) for name in schema] if columns is None else wanted_columns(store.path(part.key), schema, columns)
                frame = scan.select(wanted).collect()
            if frame.height:
                yield number + (first + rows >= part.rows), frame


def empty_part(columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """No events, with the columns that a part has."""
    return pl.DataFrame(schema={**columns, **PLACE_COLUMNS})


def _key(source: str, number: int) -> str:
    return f"history/{source}/{number:08d}.json"
