"""Partials: tiles that batch has folded from the segments of a source's log, as Parquet laid out by day.

`partials/<bundle>/<k>-<generation>.json` is version k, a manifest: its cut's vector, its horizon, and the files that it is made of. A
version is created once and never changed; a file belongs to every version whose manifest names it. Merging is exact, so a
fold only *adds* files, and merges the files of a day now and then. Rolling back withdraws a version (`<k>-<generation>.withdrawn`),
and the next fold of its segments is the next generation.

`history/<k>.json` beside them names the tiles of the imports of segment k alone (`HistoryTiles`), which belong to every version from k on,
and which `tidemill.imported` gives to the slots.

Files are `partials/<bundle>/<table>/day=<date of the tiles' starts, UTC>/<k>-<random>.parquet`; the lifetime tile lies in
`day=lifetime`. Columns: the entity's keys, `start` (UTC) and `width_us` of the tile, the table's state, `<column>_sum` in the user's unit
beside its exact digits, and `_span`, which is start and width for the kernel.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl

from tidemill.blocks import Int64s, vector_of
from tidemill.errors import StoreError
from tidemill.kernel.bundle import Bundle
from tidemill.kernel.digits import BASE_BITS, MOMENT_BITS, SUM_BITS
from tidemill.kernel.fixed import FixedTable, Moment, Squares, Sum
from tidemill.kernel.table import SPAN
from tidemill.kernel.tiles import LIFETIME, span_starts, span_widths
from tidemill.offline.store import OfflineStore
from tidemill.times import BEGINNING, DAY, floor_to, from_micros

#: A day with more files than this is merged into one by the next fold that adds to it.
MOST_FILES = 6
_WRITERS = 4
_NAME = re.compile(r"(\d{8})-(\d{4})\.json")


@dataclass(frozen=True, slots=True)
class PartialFile:
    """One Parquet file: of `table` (its key), holding the tiles of `day` (days since 1970; None: lifetime), written by the fold of `k`."""

    table: str
    key: str
    day: int | None
    k: int
    rows: int


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a bundle's partials. `base` is the k that it was folded on top of; times are UTC microseconds.

    `latest` and `arrived` are the largest event and arrival time folded. `imports`: how many of the source's imports are in it.
    """

    k: int
    generation: int
    base: int
    vector: dict[int, int]
    horizon: int
    latest: int
    arrived: int
    files: tuple[PartialFile, ...] = ()
    imports: int = 0

    @property
    def cut(self) -> Int64s:
        """The cut's vector as an array over partitions."""
        return vector_of(self.vector)


@dataclass(frozen=True, slots=True)
class HistoryTiles:
    """The tiles of what was imported in segment `k`. A function of the imports alone, so it is the same whoever folds it."""

    k: int
    horizon: int
    latest: int
    arrived: int
    files: tuple[PartialFile, ...] = ()


NOTHING = Version(0, 0, 0, {}, BEGINNING, BEGINNING, BEGINNING)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fold came: per partition the next offset (of the history: the next part), the events, and the files of their tiles."""

    at: dict[int, int]
    events: int
    horizon: int
    latest: int
    arrived: int
    files: tuple[PartialFile, ...]


class Chunk(NamedTuple):
    """A share of all entities, `number` of `of`, for work on many of them in bounded memory. Means nothing outside of one process."""

    number: int
    of: int

    def holds(self, keys: Sequence[str]) -> pl.Expr:
        """Whether a row's entity is of this share."""
        return pl.struct(keys).hash(1) % self.of == self.number


class Partials:
    """The partials of one bundle in an offline store. Raises `StoreError`."""

    def __init__(self, store: OfflineStore, bundle: Bundle) -> None:
        self._store, self._bundle = store, bundle
        self._root = f"partials/{bundle.id}"

    def versions(self) -> list[tuple[int, int]]:
        """(k, generation) of every version that is not withdrawn, ascending."""
        return self._listed()[0]

    def latest(self) -> Version:
        """The newest version; `NOTHING` (k = 0) before the first fold."""
        found = self.versions()
        return self.read(*found[-1]) if found else NOTHING

    def standing(self, k: int) -> tuple[Version, int]:
        """The newest version, and the generation that a fold from there up to `k` has: above those that were withdrawn.

        Both from one look, so that of folds that began at the same version one commits.
        """
        found, withdrawn = self._listed()
        return self.read(*found[-1]) if found else NOTHING, max((g + 1 for of, g in withdrawn if of == k), default=0)

    def _listed(self) -> tuple[list[tuple[int, int]], set[tuple[int, int]]]:
        names = [key.rpartition("/")[2] for key in self._store.list(self._root)]
        withdrawn = {(int(m[1]), int(m[2])) for n in names if (m := _NAME.fullmatch(n.replace(".withdrawn", ".json"))) and n != m[0]}
        found = {(int(m[1]), int(m[2])) for n in names if (m := _NAME.fullmatch(n))}
        return sorted(found - withdrawn), withdrawn

    def read(self, k: int, generation: int) -> Version:
        """One version."""
        key = self._key(k, generation)
        data = self._store.read(key)
        try:
            return msgspec.json.decode(data or b"", type=Version)
        except msgspec.DecodeError as error:
            raise StoreError(
                f"{self._store.path(key)} is missing or damaged ({error}): restore it, or `tidemill batch --rollback`"
            ) from None

    def commit(self, version: Version) -> bool:
        """Create a version; False where it exists already, and nothing happened."""
        return self._store.create(self._key(version.k, version.generation), msgspec.json.encode(version))

    def withdraw(self, k: int, generation: int) -> None:
        """Take a version back. Its files stay until they are swept."""
        self._store.create(self._key(k, generation).removesuffix(".json") + ".withdrawn", b"")

    def history(self, k: int) -> HistoryTiles | None:
        """The tiles of segment k's imports; None before they are folded."""
        key = self._history_key(k)
        data = self._store.read(key)
        try:
            return None if data is None else msgspec.json.decode(data, type=HistoryTiles)
        except msgspec.DecodeError as error:
            raise StoreError(f"{self._store.path(key)} is damaged ({error}): delete it, and run `tidemill batch`") from None

    def commit_history(self, tiles: HistoryTiles) -> bool:
        """Create the tiles of segment k's imports; False where they exist already, and nothing happened."""
        return self._store.create(self._history_key(tiles.k), msgspec.json.encode(tiles))

    def _history_key(self, k: int) -> str:
        return f"{self._root}/history/{k:08d}.json"

    # ---- folds under way --------------------------------------------------------------------------------------------------------

    def progress(self, of: str) -> Progress | None:
        """How far the fold `of` came that was cut short; None where there is nothing to go on with."""
        for key in reversed(self._store.list(f"{self._root}/progress/{of}")):
            try:
                return msgspec.json.decode(self._store.read(key) or b"", type=Progress)
            except msgspec.DecodeError:
                continue  # damaged: what it says is folded anew
        return None

    def note_progress(self, of: str, progress: Progress) -> None:
        """Note how far a fold came, with all that it has written: each note stands for itself."""
        key = f"{self._root}/progress/{of}/{progress.events:015d}-{secrets.token_hex(4)}.json"
        self._store.create(key, msgspec.json.encode(progress))

    def forget_progress(self, of: str) -> None:
        """The fold came to its end."""
        for key in self._store.list(f"{self._root}/progress/{of}"):
            self._store.delete(key)

    def attempt(self) -> int:
        """How many versions were withdrawn so far: what is folded after a roll-back goes on with nothing from before."""
        return len(self._listed()[1])

    def published(self) -> int:
        """The largest k through which every entity is known to be published."""
        names = (key.rpartition("/")[2] for key in self._store.list(f"{self._root}/published"))
        return max((int(n) for n in names if n.isdigit()), default=0)

    def mark_published(self, k: int) -> None:
        """Note that every entity is published through k."""
        self._store.create(f"{self._root}/published/{k:08d}", b"")

    def forget_published(self, above: int) -> None:
        """After a roll-back: nothing above `above` is published any more."""
        for key in self._store.list(f"{self._root}/published"):
            name = key.rpartition("/")[2]
            if name.isdigit() and int(name) > above:
                self._store.delete(key)

    # ---- files ------------------------------------------------------------------------------------------------------------------

    def write(self, table: int, frame: pl.DataFrame, k: int) -> list[PartialFile]:
        """Tiles (the entity's keys, SPAN, the table's columns) to one new file a day."""
        kind = self._bundle.tables[table]
        spans = frame[SPAN].to_numpy()
        days = floor_to(span_starts(spans), DAY) // DAY
        plain = plain_columns(kind) if isinstance(kind, FixedTable) else []
        shown = frame.select(
            *self._bundle.keys,
            pl.Series("start", np.where(spans == LIFETIME, 0, span_starts(spans)), dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
            pl.Series("width_us", span_widths(spans), dtype=pl.Int64),
            *plain,
            *kind.columns,
            SPAN,
        )
        shown = shown.with_columns(start=pl.when(pl.col(SPAN) == LIFETIME).then(None).otherwise(pl.col("start")), _day=pl.Series(days))
        parts = sorted(shown.partition_by("_day", as_dict=True, include_key=False).items())
        with ThreadPoolExecutor(_WRITERS) as pool:  # most of the time a writer waits for the disk
            return list(pool.map(lambda part: self._write_day(kind.key, part[0][0], part[1], k), parts))

    def _write_day(self, table: str, day: int, tiles: pl.DataFrame, k: int) -> PartialFile:
        lifetime = day == BEGINNING // DAY
        name = "lifetime" if lifetime else from_micros(day * DAY).date().isoformat()
        key = f"{self._root}/{table}/day={name}/{k:08d}-{secrets.token_hex(6)}.parquet"
        self._store.write_frame(key, tiles)
        return PartialFile(table, key, None if lifetime else day, k, len(tiles))

    def scan(self, table: int, files: Iterable[PartialFile], chunk: Chunk | None = None) -> pl.DataFrame:
        """The tiles in the files of one table: the entity's keys, SPAN and the table's columns; not merged. `chunk`: only its entities."""
        kind = self._bundle.tables[table]
        columns = [*self._bundle.keys, SPAN, *kind.columns]
        keys = [f.key for f in files if f.table == kind.key]
        if not keys:
            return self.empty(table)
        scan = self._store.scan(keys).select(columns)
        return (scan if chunk is None else scan.filter(chunk.holds(self._bundle.keys))).collect()

    def empty(self, table: int) -> pl.DataFrame:
        """No tiles, with the right columns and types."""
        schema = {**{k: self._bundle.schema[k].polars for k in self._bundle.keys}, SPAN: pl.Int64()}
        return pl.DataFrame(schema={**schema, **{c: pl.Int64() for c in self._bundle.tables[table].columns}})

    def live(self, files: Sequence[PartialFile], horizon: int) -> list[PartialFile]:
        """Files that a window may still reach: the others hold only expired tiles."""
        if self._bundle.ladder.lifetime:
            return list(files)
        expired = self._bundle.ladder.expired(horizon)
        return [f for f in files if f.day is None or (f.day + 1) * DAY > expired]

    def _key(self, k: int, generation: int) -> str:
        return f"{self._root}/{k:08d}-{generation:04d}.json"


def plain_columns(table: FixedTable) -> list[pl.Expr]:
    """The columns in the user's unit that exact digits stand beside: sums as a float (integers: as an integer, if it fits)."""
    out = []
    for part in table.parts:
        if isinstance(part, (Sum, Moment, Squares)):
            bits = 0
            if part.floating:
                bits = SUM_BITS if isinstance(part, Sum) else MOMENT_BITS * (2 if isinstance(part, Squares) else 1)
            scaled = [pl.col(c).cast(pl.Float64) * 2.0 ** (BASE_BITS * i - bits) for i, c in enumerate(part.columns)]
            out.append(pl.sum_horizontal(scaled[::-1]).alias(part.name))
    return out
