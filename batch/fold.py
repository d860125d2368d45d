"""Segments to partials: fold what lies between two cuts of a source's archive into the next version of each bundle's partials."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import polars as pl

from tidemill.definitions import Source
from tidemill.horizon import horizon_of
from tidemill.kernel.bundle import Bundle
from tidemill.offline.archive import iter_range
from tidemill.offline.cuts import read_cut
from tidemill.offline.partials import MOST_FILES, PartialFile, Partials, Version
from tidemill.offline.store import OfflineStore

Progress = Callable[[int, int], None]

#: Events read at a time, and tiles held before they are merged.
ROWS = 1_000_000
_HELD = 4_000_000
_THREADS = min(4, os.cpu_count() or 1)


class BundleFold:
    """The tiles of one bundle's new segments, merged as they come so that memory stays bounded.

    An engine that writes the new tiles' files itself names them in `files`, and sets `horizon`, `latest` and `arrived`.
    """

    def __init__(self, bundle: Bundle, partials: Partials, base: Version, generation: int) -> None:
        self.bundle, self.partials, self.base, self.generation = bundle, partials, base, generation
        self.latest, self.arrived = base.latest, base.arrived
        self.horizon = base.horizon
        self.files: dict[int, list[PartialFile]] = {}
        self._frames: list[list[pl.DataFrame]] = [[] for _ in bundle.tables]

    def raised(self, events: pl.DataFrame, slack: int) -> int:
        """The horizon that these and earlier events allow."""
        latest, arrived = events["_time"].max(), events["_arrival"].max()
        assert isinstance(latest, int)
        self.latest = max(self.latest, latest)
        self.arrived = max(self.arrived, arrived) if isinstance(arrived, int) else self.arrived
        self.horizon = max(self.horizon, horizon_of(self.latest, self.arrived, slack))
        return self.horizon

    def tiles(self, events: pl.DataFrame, horizon: int) -> list[pl.DataFrame]:
        """One batch of events as tiles. Changes nothing, so that several threads may do it."""
        selected, _ = self.bundle.select(events)
        return self.bundle.fold(selected, horizon)

    def hold(self, tiles: Sequence[pl.DataFrame]) -> None:
        """Keep the tiles of one batch."""
        for frames, new in zip(self._frames, tiles, strict=True):
            frames.append(new)
        for i, frames in enumerate(self._frames):
            if sum(map(len, frames)) > _HELD:
                self._frames[i] = [self._merged(i)]

    def _merged(self, table: int) -> pl.DataFrame:
        return self.bundle.merge(table, pl.concat(self._frames[table]), self.horizon)

    def write(self, k: int) -> list[PartialFile]:
        """The new version's files: those of the base that are still reached, and the new tiles'. Days of many files become one."""
        files = self.partials.live(self.base.files, self.horizon)
        for i, table in enumerate(self.bundle.tables):
            if self._frames[i]:
                self.files[i] = self.partials.write(i, self._merged(i), k)
            if not self.files.get(i):
                continue
            days = {
                f.day for f in files if f.table == table.key and sum(g.day == f.day and g.table == table.key for g in files) >= MOST_FILES
            }
            crowded = [f for f in files if f.table == table.key and f.day in days]
            if crowded:
                files = [f for f in files if f not in crowded]
                kept = self.partials.write(i, self.bundle.merge(i, self.partials.scan(i, crowded), self.horizon), max(f.k for f in crowded))
                files += kept
            files += self.files[i]
        return files


@dataclass(frozen=True)
class Segment:
    """What lies between two cuts of a source's archive, to be folded into bundles that stand at the earlier one: version `k` of each.

    `ranges`: (partition, first offset, offset after the last), ascending.
    """

    store: OfflineStore
    source: Source
    folds: Sequence[BundleFold]
    ranges: Sequence[tuple[int, int, int]]
    k: int
    slack: int

    @property
    def columns(self) -> dict[str, pl.DataType]:
        """The source's columns that any of the bundles reads."""
        read = {column for one in self.folds for column in (*one.bundle.reads, one.bundle.event_id)}
        return {name: kind.polars for name, kind in self.source.schema.items() if name in read}

    @property
    def offsets(self) -> int:
        """How many events it holds at most."""
        return sum(b - a for _, a, b in self.ranges)


#: What folds a segment: afterwards each of its folds knows its horizon, and can `write` its version's files.
Engine = Callable[[Segment, Progress | None], None]


def fold(
    store: OfflineStore,
    source: Source,
    bundles: Sequence[Bundle],
    k: int,
    slack: int,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> dict[str, Version]:
    """Bring every bundle's partials up to cut `k`; the new versions by bundle id. Reads each archived event once for all bundles alike.

    Crash-safe and idempotent: files are new, and a version appears with its manifest or not at all. Of two folds at once one wins,
    and the other's files are nobody's. `progress` gets (events folded, of about how many). `engine`: `fold_here` unless given.
    """
    folds: dict[int, list[BundleFold]] = {}
    out: dict[str, Version] = {}
    for bundle in bundles:
        partials = Partials(store, bundle)
        base, generation = partials.standing(k)
        if base.k >= k:
            out[bundle.id] = base
        else:
            folds.setdefault(base.k, []).append(BundleFold(bundle, partials, base, generation))
    target = read_cut(store, source.name, k)
    for base_k, group in sorted(folds.items()):
        start = read_cut(store, source.name, base_k)
        ranges = [(p, start.get(p, 0), end) for p, end in sorted(target.items()) if end > start.get(p, 0)]
        (engine or fold_here)(Segment(store, source, group, ranges, k, slack), progress)
        for one in group:
            out[one.bundle.id] = _commit(one, k, target)
    return out


def fold_here(segment: Segment, progress: Progress | None) -> None:
    """The local engine: reads ahead while threads fold."""
    group, total, done = segment.folds, segment.offsets, 0
    under_way: deque[tuple[BundleFold, Future[list[pl.DataFrame]]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for partition, a, b in segment.ranges:
            for events in iter_range(segment.store, segment.source.name, partition, a, b, segment.columns, rows=ROWS):
                for one in group:
                    under_way.append((one, pool.submit(one.tiles, events, one.raised(events, segment.slack))))
                while len(under_way) > _THREADS * len(group):
                    first, tiles = under_way.popleft()
                    first.hold(tiles.result())
                done += len(events)
                if progress is not None:
                    progress(done, total)
        for one, tiles in under_way:
            one.hold(tiles.result())


def _commit(one: BundleFold, k: int, vector: dict[int, int]) -> Version:
    files = tuple(one.write(k))
    version = Version(k, one.generation, one.base.k, dict(vector), one.horizon, one.latest, one.arrived, files)
    if not one.partials.commit(version):
        return one.partials.latest()  # somebody else folded the same segments: theirs is the version
    return version
