"""The fold on Spark: the same tiles, the same versions, on as many machines as there are.

Tasks read ranges of the archive, each with tidemill's own reader; what they exchange are tiles. First a look at the times alone
says what the version's horizon will be. Then every task folds its range with that horizon, so straight into tiles as wide as they will
ever be in this version; tiles of one table and day meet in one task, which merges them and writes the day's file. Merging is exact, so
it does not matter how the ranges lie, nor which task comes first. A task that is tried again writes a file under another name; only
those named by the tasks that Spark counted are in the version, which the driver commits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import polars as pl
import pyarrow as pa
from pyspark import Accumulator
from pyspark.sql import SparkSession

from tidemill.aggregations import aggregation_from_spec
from tidemill.blocks import HISTORY
from tidemill.definitions.source import str_of_type, type_of_str
from tidemill.environment import Environment
from tidemill.horizon import latest_of
from tidemill.kernel.bundle import Bundle
from tidemill.kernel.memory import keep_freed_memory
from tidemill.kernel.table import SPAN
from tidemill.kernel.tiles import span_starts
from tidemill.offline.archive import iter_range
from tidemill.offline.history import Part, iter_parts
from tidemill.offline.partials import PartialFile, Partials
from tidemill.offline.store import OfflineStore
from tidemill.times import BEGINNING, DAY, floor_to

from ..engine import Newest, Stretch
from .blobs import batch_of, blobs, frame_of, numbers_of
from .ranges import OFFSETS, Range, parts_of_tasks, ranges_of_tasks
from .session import Batches, Cluster, collected, gathered, mapped, tasks

_TIMES = pa.schema([("rows", pa.int64()), ("without_arrival", pa.int64()), ("latest", pa.int64()), ("arrived", pa.int64())])
_TILES = pa.schema([("bundle", pa.int32()), ("part", pa.int32()), ("day", pa.int64()), ("tiles", pa.binary())])
_FILES = pa.schema(
    [("bundle", pa.int32()), ("part", pa.int32()), ("key", pa.string()), ("day", pa.int64()), ("k", pa.int64()), ("rows", pa.int64())]
)
_LIFETIME = BEGINNING // DAY
#: Events that a task reads at a time, and tiles that it holds before it merges them.
ROWS = 1_000_000
_HELD = 4_000_000


@dataclass(frozen=True)
class Place:
    """Where the offline store is: as `OfflineStore.open` takes it. Credentials come from each machine's own environment."""

    url: str
    base: Path

    @classmethod
    def of(cls, env: Environment) -> Place:
        """The project's."""
        return cls(env.project.offline_url, env.project.directory)

    def open(self) -> OfflineStore:
        """The store."""
        return OfflineStore.open(self.url, base=self.base)


def spec_of(bundle: Bundle) -> str:
    """All that a bundle is, as JSON."""
    return json.dumps(
        {
            "id": bundle.id,
            "schema": {column: str_of_type(kind) for column, kind in bundle.schema.items()},
            "event_id": bundle.event_id,
            "keys": bundle.keys,
            "where": bundle.where,
            "aggregations": [aggregation.spec() for aggregation in bundle.aggregations],
        }
    )


@lru_cache(maxsize=256)  # of one executor's process, for the tasks that it runs
def bundle_of(spec: str) -> Bundle:
    """The bundle of a spec."""
    found: Any = json.loads(spec)
    return Bundle(
        found["id"],
        schema={column: type_of_str(kind) for column, kind in found["schema"].items()},
        event_id=found["event_id"],
        keys=found["keys"],
        where=found["where"],
        aggregations=[aggregation_from_spec(each) for each in found["aggregations"]],
    )


class SparkEngine:
    """A `Spread` engine of `batch.fold`: see the module's text. `offsets`: of a task, about. Raises `TidemillError` where Spark cannot.

    Spark is started when it is first needed, and ends with the block.
    """

    def __init__(self, place: Place, cluster: Cluster, offsets: int = OFFSETS) -> None:
        self._place, self._cluster, self._offsets = place, cluster, offsets
        self._open = ExitStack()
        self._spark: SparkSession | None = None
        self._known: tuple[Stretch, Newest] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spark = self._known = None
        self._open.close()

    def newest(self, stretch: Stretch, progress: Callable[[int], None]) -> Newest:
        if self._known is None or self._known[0] != stretch:
            self._known = stretch, self._newest(stretch, progress)
        return self._known[1]

    def _newest(self, stretch: Stretch, progress: Callable[[int], None]) -> Newest:
        spark, reading = self._running(), self._reading(stretch)
        times = mapped(tasks(spark, len(reading.ranges)), _Times(reading), _TIMES)
        found = [row for row in collected(times, progress=lambda done, _: progress(done)) if row.rows]
        latest, arrived = (max((row[i] for row in found), default=BEGINNING) for i in (2, 3))
        partly = 0 < sum(row.without_arrival for row in found) < sum(row.rows for row in found)
        return Newest(latest, arrived, partly)

    def fold(
        self, stretch: Stretch, bundles: Sequence[tuple[Bundle, int]], k: int, progress: Callable[[int], None]
    ) -> list[list[PartialFile]]:
        spark, reading = self._running(), self._reading(stretch)
        specs = tuple((spec_of(bundle), horizon) for bundle, horizon in bundles)
        read = {column for bundle, _ in bundles for column in (*bundle.reads, bundle.event_id)}
        columns = tuple((name, str_of_type(kind)) for name, kind in stretch.source.schema.items() if name in read)
        done = spark.sparkContext.accumulator(0)
        folding = _Folding(reading, columns, specs, done)
        tiles = gathered(mapped(tasks(spark, len(reading.ranges)), folding, _TILES), ["bundle", "part", "day"])
        told = 0

        def tell(events: int, _: int) -> None:
            nonlocal told
            progress(max(events - told, 0))
            told = max(told, events)

        found = collected(mapped(tiles, _Merging(self._place, specs, k), _FILES), done, progress=tell)
        tell(done.value, 0)
        out: list[list[PartialFile]] = [[] for _ in bundles]
        for row in found:
            table = bundles[row.bundle][0].tables[row.part]
            out[row.bundle].append(PartialFile(table.key, row.key, None if row.day == _LIFETIME else row.day, row.k, row.rows))
        return out

    def _running(self) -> SparkSession:
        if self._spark is None:
            self._spark = self._open.enter_context(self._cluster.session())
        return self._spark

    def _reading(self, stretch: Stretch) -> _Reading:
        archived = [r for r in stretch.ranges if r[0] != HISTORY]
        ranges = ranges_of_tasks(self._place.open(), stretch.source.name, archived, self._offsets)
        parts = [
            each
            for partition, a, b in stretch.ranges
            if partition == HISTORY
            for each in parts_of_tasks(stretch.parts, a, b, self._offsets)
        ]
        return _Reading(self._place, stretch.source.name, (*ranges, *parts), stretch.parts)


# ---- what tasks do ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """How tasks read: the range of each, of offsets, or of imported parts where the partition is `HISTORY`."""

    place: Place
    source: str
    ranges: tuple[Range, ...]
    parts: tuple[Part, ...]

    def read(self, number: int, columns: Mapping[str, pl.DataType]) -> Iterator[pl.DataFrame]:
        """The events of one task."""
        store = self.place.open()
        partition, start, end = self.ranges[number]
        if partition != HISTORY:
            yield from iter_range(store, self.source, partition, start, end, columns, rows=ROWS)
            return
        for _, events in iter_parts(store, self.parts[start:end], columns, rows=ROWS):
            yield events


@dataclass(frozen=True)
class _Times:
    """The ranges' numbers to the largest times in each."""

    reading: _Reading

    def __call__(self, numbers: Batches) -> Batches:
        for number in numbers_of(numbers):
            rows = without = 0
            latest = arrived = BEGINNING
            for events in self.reading.read(number, {}):
                rows += len(events)
                without += events["_arrival"].null_count()
                latest = max(latest, latest_of(events["_time"]))
                arrived = max(arrived, latest_of(events["_arrival"]))
            yield batch_of(_TIMES, rows, without, latest, arrived)


@dataclass(frozen=True)
class _Folding:
    """The ranges' numbers to tiles: of every bundle and table, by day. `specs`: of the bundles, with their horizons."""

    reading: _Reading
    columns: tuple[tuple[str, str], ...]
    specs: tuple[tuple[str, int], ...]
    done: Accumulator[int]

    def __call__(self, numbers: Batches) -> Batches:
        keep_freed_memory()
        columns = {name: type_of_str(kind).polars for name, kind in self.columns}
        bundles = [(bundle_of(spec), horizon) for spec, horizon in self.specs]
        for number in numbers_of(numbers):
            held = [[_Held(bundle, i, horizon) for i in range(len(bundle.tables))] for bundle, horizon in bundles]
            for events in self.reading.read(number, columns):
                for (bundle, horizon), tables in zip(bundles, held, strict=True):
                    selected, _ = bundle.select(events)
                    for table, tiles in zip(tables, bundle.fold(selected, horizon), strict=True):
                        table.add(tiles)
                self.done.add(len(events))
            for i, tables in enumerate(held):
                for j, table in enumerate(tables):
                    for day, tiles in _by_day(table.merged()):
                        for blob in blobs(tiles):
                            yield batch_of(_TILES, i, j, day, blob)


class _Held:
    """Tiles of one table, merged when they are many."""

    def __init__(self, bundle: Bundle, table: int, horizon: int) -> None:
        self._bundle, self._table, self._horizon = bundle, table, horizon
        self._frames: list[pl.DataFrame] = []
        self._rows = self._least = 0

    def add(self, tiles: pl.DataFrame) -> None:
        self._frames.append(tiles)
        self._rows += len(tiles)
        if self._rows > max(_HELD, 2 * self._least):  # what merging cannot make less is not merged again for each blob
            self._frames = [self.merged()]
            self._rows = self._least = len(self._frames[0])

    def merged(self) -> pl.DataFrame:
        """All of them; None before the first."""
        if len(self._frames) == 1:
            return self._frames[0]
        return self._bundle.merge(self._table, pl.concat(self._frames), self._horizon) if self._frames else pl.DataFrame({SPAN: []})


def _by_day(tiles: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """The tiles of each day (days since 1970) that they start in."""
    days = floor_to(span_starts(tiles[SPAN].cast(pl.Int64).to_numpy()), DAY) // DAY
    parts = tiles.with_columns(pl.Series("_day", days)).partition_by("_day", as_dict=True, include_key=False)
    for (day,), part in sorted(parts.items()):
        yield day, part


@dataclass(frozen=True)
class _Merging:
    """Tiles, those of one bundle, table and day one after the other, to the day's file."""

    place: Place
    specs: tuple[tuple[str, int], ...]
    k: int

    def __call__(self, tiles: Batches) -> Batches:
        keep_freed_memory()
        store = self.place.open()
        at: tuple[int, int, int] | None = None
        held: _Held | None = None
        for batch in tiles:
            for row in batch.to_pylist():
                place = row["bundle"], row["part"], row["day"]
                if place != at:
                    yield from self._written(store, at, held)
                    spec, horizon = self.specs[place[0]]
                    at, held = place, _Held(bundle_of(spec), place[1], horizon)
                assert held is not None
                held.add(frame_of(row["tiles"]))
        yield from self._written(store, at, held)

    def _written(self, store: OfflineStore, at: tuple[int, int, int] | None, held: _Held | None) -> Batches:
        if at is None or held is None:
            return
        bundle, table, _ = at
        for file in Partials(store, bundle_of(self.specs[bundle][0])).write(table, held.merged(), self.k):
            yield batch_of(_FILES, bundle, table, file.key, _LIFETIME if file.day is None else file.day, file.k, file.rows)
