"""Segments to partials: fold what lies between two cuts of a source's archive into the next version of each bundle's partials.

A long fold notes how far it came, with the files that it has written by then, which are nobody's until the version names them. Cut short,
the next fold from the same version goes on from there, also if more segments are to be folded by now. What it holds in memory does not
grow with the log.

Imports are folded apart from the blocks of their segment, once for each bundle (`HistoryTiles`): online slots get these tiles as they get
events (`tidemill.imported`), and the version names their files beside its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace

import polars as pl

from tidemill.blocks import HISTORY
from tidemill.definitions import Source
from tidemill.horizon import horizon_of, latest_of
from tidemill.kernel.bundle import Bundle
from tidemill.offline.archive import iter_range
from tidemill.offline.cuts import import_cuts, imports_of, read_cut
from tidemill.offline.history import Part, iter_parts, read_import
from tidemill.offline.partials import MOST_FILES, HistoryTiles, PartialFile, Partials, Progress, Version
from tidemill.offline.store import OfflineStore
from tidemill.times import BEGINNING

from .engine import USUAL, Budget, Engine, Local, Spread, Stretch, Tiles

#: (events folded, of about how many)
Report = Callable[[int, int], None]


class _Fold:
    """The tiles of one bundle's new segments, merged as they come, and written when there are many."""

    def __init__(self, bundle: Bundle, partials: Partials, of: str, k: int, start: Progress) -> None:
        self.bundle, self.partials, self.of, self.k = bundle, partials, of, k
        found = partials.progress(of)
        self.state = start if found is None else replace(found, horizon=max(start.horizon, found.horizon))
        self._frames: list[list[pl.DataFrame]] = [[] for _ in bundle.tables]
        self._rows = 0

    def know(self, latest: int, arrived: int, slack: int) -> int:
        """Raise the horizon to what these and earlier times allow."""
        state = self.state
        latest, arrived = max(state.latest, latest), max(state.arrived, arrived)
        self.state = replace(state, latest=latest, arrived=arrived, horizon=max(state.horizon, horizon_of(latest, arrived, slack)))
        return self.state.horizon

    def hold(self, tiles: Tiles, most: int) -> bool:
        """Keep the tiles of one chunk. True: even merged they are more than `most`, and ought to be written."""
        for frames, new in zip(self._frames, tiles, strict=True):
            frames.append(new)
            self._rows += len(new)
        if self._rows <= most:
            return False
        for i, frames in enumerate(self._frames):
            if len(frames) > 1:
                self._frames[i] = [self._merged(i)]
        self._rows = sum(len(frame) for frames in self._frames for frame in frames)
        return self._rows > most // 2

    def _merged(self, table: int) -> pl.DataFrame:
        return self.bundle.merge(table, pl.concat(self._frames[table]), self.state.horizon)

    def write(self) -> None:
        """Write what is held."""
        files = list(self.state.files)
        for i, frames in enumerate(self._frames):
            if frames:
                files += self.partials.write(i, self._merged(i), self.k)
                frames.clear()
        self._rows = 0
        self.state = replace(self.state, files=tuple(files))

    def came(self, partition: int, offset: int, events: int) -> None:
        """Everything before this offset is held or written."""
        self.state = replace(self.state, at={**self.state.at, partition: offset}, events=self.state.events + events)

    def note(self) -> None:
        """Write what is held, so that it need not be folded again."""
        self.write()
        self.partials.note_progress(self.of, self.state)

    def gather(self, files: Sequence[PartialFile], most: int) -> list[PartialFile]:
        """These files; but where a day has many, one, or as few as hold `most` tiles each."""
        kept, days = [], dict[tuple[str, int | None], list[PartialFile]]()
        for file in self.partials.live(files, self.state.horizon):
            days.setdefault((file.table, file.day), []).append(file)
        for (table, _), mine in days.items():
            if len(mine) <= MOST_FILES or sum(f.rows for f in mine) > most:
                kept += mine
                continue
            i = next(i for i, t in enumerate(self.bundle.tables) if t.key == table)
            merged = self.bundle.merge(i, self.partials.scan(i, mine), self.state.horizon)
            kept += self.partials.write(i, merged, max(f.k for f in mine))
        return kept


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be folded, for one bundle or for several that stand alike. `ranges`: (partition, start, end), of offsets or parts."""

    store: OfflineStore
    source: Source
    slack: int
    budget: Budget
    engine: Engine | None
    spread: Spread | None = None
    parts: tuple[Part, ...] = ()

    def events(self, ranges: Sequence[tuple[int, int, int]]) -> int:
        """About how many events there are."""
        return sum(sum(p.rows for p in self.parts[a:b]) if partition == HISTORY else b - a for partition, a, b in ranges)

    def read(self, partition: int, start: int, end: int, columns: Mapping[str, pl.DataType]) -> Iterator[tuple[int, pl.DataFrame]]:
        """(what comes next, events)."""
        if partition == HISTORY:
            yield from iter_parts(self.store, self.parts[:end], columns, start=start, rows=self.budget.rows)
            return
        for events in iter_range(self.store, self.source.name, partition, start, end, columns, rows=self.budget.rows):
            yield int(events["_offset"][-1]) + 1, events

    def newest(self, ranges: Sequence[tuple[int, int, int]], report: Callable[[int], None]) -> tuple[int, int]:
        """The largest event and arrival time."""
        if self.spread is not None:
            return self.spread.newest(self._stretch(ranges), report)[:2]
        latest = arrived = BEGINNING
        for partition, start, end in ranges:
            for _, events in self.read(partition, start, end, {}):
                latest, arrived = max(latest, latest_of(events["_time"])), max(arrived, latest_of(events["_arrival"]))
                report(0)  # whoever holds a lease renews it
        return latest, arrived

    def fold(self, group: Sequence[_Fold], ranges: Sequence[tuple[int, int, int]], report: Callable[[int], None]) -> None:
        """Fold the ranges into each of the group, reading ahead while the engine folds."""
        if self.spread is not None:
            self._fold_spread(self.spread, group, ranges, report)
            return
        assert self.engine is not None
        read = {column for one in group for column in (*one.bundle.reads, one.bundle.event_id)}
        columns = {name: kind.polars for name, kind in self.source.schema.items() if name in read}
        under_way: deque[tuple[_Fold, Future[Tiles]]] = deque()
        most, ahead = self.budget.tiles // len(group), self.engine.width * len(group)
        noted, since, full = 0, time.monotonic(), False

        def take(left: int) -> bool:
            many = False
            while len(under_way) > left:
                first, tiles = under_way.popleft()
                many |= first.hold(tiles.result(), most)
            return many

        for partition, start, end in ranges:
            at = start
            for following, events in self.read(partition, start, end, columns):
                latest, arrived = latest_of(events["_time"]), latest_of(events["_arrival"])
                for one in group:
                    under_way.append((one, self.engine.submit(one.bundle, events, one.know(latest, arrived, self.slack))))
                    one.came(partition, following, len(events))
                full |= take(ahead)
                noted += len(events)
                report(len(events))
                due = full or noted >= self.budget.events or time.monotonic() - since >= self.budget.seconds
                if due and following > at:  # in the middle of a part there is no place to go on from
                    take(0)
                    for one in group:
                        one.note()
                    noted, since, full = 0, time.monotonic(), False
                at = following
        take(0)

    def _stretch(self, ranges: Sequence[tuple[int, int, int]]) -> Stretch:
        return Stretch(self.source, tuple(ranges), self.parts)

    def _fold_spread(
        self, spread: Spread, group: Sequence[_Fold], ranges: Sequence[tuple[int, int, int]], report: Callable[[int], None]
    ) -> None:
        """The same, on many machines: with the horizon that the local engine would come to, known before."""
        if not ranges:
            return
        stretch = self._stretch(ranges)
        newest = spread.newest(stretch, report)
        for one in group:
            if newest.partly and one.state.arrived == BEGINNING:
                self._know_in_order(one, ranges)
            one.know(newest.latest, newest.arrived, self.slack)
        written = spread.fold(stretch, [(one.bundle, one.state.horizon) for one in group], group[0].k, report)
        for one, files in zip(group, written, strict=True):
            one.state = replace(one.state, files=(*one.state.files, *files))
            for partition, _, end in ranges:
                one.came(partition, end, 0)

    def _know_in_order(self, one: _Fold, ranges: Sequence[tuple[int, int, int]]) -> None:
        """Raise the horizon as the local engine does, up to the first arrival time.

        Until then it follows event times alone, so it may come to lie beyond what the first arrival time allows, and never falls. From
        there on it rises with both, and the largest of all decide.
        """
        for partition, start, end in ranges:
            for _, events in self.read(partition, start, end, {}):
                one.know(latest_of(events["_time"]), latest_of(events["_arrival"]), self.slack)
                if one.state.arrived != BEGINNING:
                    return


def fold(
    store: OfflineStore,
    source: Source,
    bundles: Sequence[Bundle],
    k: int,
    slack: int,
    progress: Report | None = None,
    *,
    budget: Budget = USUAL,
    engine: Engine | Spread | None = None,
) -> dict[str, Version]:
    """Bring every bundle's partials up to cut `k`; the new versions by bundle id. Reads each archived event once for all bundles alike.

    Crash-safe and idempotent: files are new, and a version appears with its manifest or not at all. Of two folds at once one wins,
    and the other's files are nobody's. `progress` gets (events folded, of about how many).
    """
    out: dict[str, Version] = {}
    due: list[tuple[Bundle, Partials, Version, int]] = []
    for bundle in bundles:
        partials = Partials(store, bundle)
        base, generation = partials.standing(k)
        if base.k >= k:
            out[bundle.id] = base
        else:
            due.append((bundle, partials, base, generation))
    with _running(engine) as (here, spread):
        work = _Work(store, source, slack, budget, here, spread)
        meter = _Meter(progress)
        vector, imported = read_cut(store, source.name, k), imports_of(store, source.name, k)
        histories = {base_k: import_cuts(store, source.name, base_k, k) for base_k in {base.k for _, _, base, _ in due}}
        groups: dict[tuple[tuple[int, int], ...], list[tuple[_Fold, Version, int]]] = {}
        for bundle, partials, base, generation in due:
            of = f"{base.k:08d}-{base.generation:04d}-{partials.attempt():04d}"
            start = Progress(read_cut(store, source.name, base.k), 0, base.horizon, base.latest, base.arrived, ())
            one = _Fold(bundle, partials, of, k, start)
            groups.setdefault(tuple(sorted(one.state.at.items())), []).append((one, base, generation))
        ranges = {at: [(p, dict(at).get(p, 0), end) for p, end in sorted(vector.items()) if end > dict(at).get(p, 0)] for at in groups}
        meter.total = sum(work.events(each) for each in ranges.values())
        for cut, numbers in sorted({c: n for cuts in histories.values() for c, n in cuts.items()}.items()):
            _fold_history(work, [(b, p) for b, p, base, _ in due if base.k < cut], cut, numbers, meter)
        for at, group in sorted(groups.items(), key=lambda item: item[0]):
            folds = [one for one, _, _ in group]
            if work.events(ranges[at]) > budget.rows and any(base.k == 0 for _, base, _ in group):
                # Known beforehand, the newest times put all old events into wide tiles at once, and drop what no window reaches.
                newest = work.newest(ranges[at], meter.more)
                for one in folds:
                    one.know(*newest, slack)
            work.fold(folds, ranges[at], meter.more)
            for one, base, generation in group:
                out[one.bundle.id] = _commit(one, base, generation, k, vector, imported, histories[base.k], budget)
    return out


@contextmanager
def _running(engine: Engine | Spread | None) -> Iterator[tuple[Engine | None, Spread | None]]:
    """The engine, of one kind or the other. Threads that nobody gave, and what is spread, end with the fold."""
    if engine is None:
        with Local() as threads:
            yield threads, None
    elif isinstance(engine, Spread):
        with engine as spread:
            yield None, spread
    else:
        yield engine, None


def _fold_history(work: _Work, due: Sequence[tuple[Bundle, Partials]], cut: int, numbers: range, meter: _Meter) -> None:
    """The tiles of one segment's imports, for those bundles that do not have them."""
    due = [(bundle, partials) for bundle, partials in due if partials.history(cut) is None]
    if not due:
        return
    made = [read_import(work.store, work.source.name, number) for number in numbers]
    latest, arrived = max(each.latest for each in made), max(each.arrived for each in made)
    work = replace(work, parts=tuple(part for each in made for part in each.parts))
    folds: dict[int, list[_Fold]] = {}
    for bundle, partials in due:
        start = Progress({}, 0, horizon_of(latest, arrived, work.slack), latest, arrived, ())
        one = _Fold(bundle, partials, f"history-{cut:08d}", cut, start)
        folds.setdefault(one.state.at.get(HISTORY, 0), []).append(one)
    ends = {at: [(HISTORY, at, len(work.parts))] for at in folds}
    meter.total += sum(work.events(ranges) for ranges in ends.values())
    for at, group in sorted(folds.items()):
        work.fold(group, ends[at], meter.more)
        for one in group:
            one.write()
            state = one.state
            files = tuple(one.gather(state.files, work.budget.tiles))
            one.partials.commit_history(HistoryTiles(cut, state.horizon, latest, arrived, files))
            one.partials.forget_progress(one.of)


def _commit(
    one: _Fold, base: Version, generation: int, k: int, vector: Mapping[int, int], imported: int, cuts: Mapping[int, range], budget: Budget
) -> Version:
    files = list(base.files)
    for cut in cuts:
        tiles = one.partials.history(cut)
        assert tiles is not None  # folded a moment ago
        state = one.state
        latest, arrived = max(state.latest, tiles.latest), max(state.arrived, tiles.arrived)
        one.state = replace(state, horizon=max(state.horizon, tiles.horizon), latest=latest, arrived=arrived)
        files += tiles.files
    one.write()
    state = one.state
    files = one.gather([*files, *state.files], budget.tiles)
    version = Version(k, generation, base.k, dict(vector), state.horizon, state.latest, state.arrived, tuple(files), imported)
    committed = one.partials.commit(version)
    one.partials.forget_progress(one.of)
    return version if committed else one.partials.latest()  # somebody else folded the same segments: theirs is the version


class _Meter:
    """Counts what is done of all that is to be."""

    def __init__(self, report: Report | None) -> None:
        self.total = self.done = 0
        self._report = report

    def more(self, events: int) -> None:
        self.done += events
        if self._report is not None:
            self._report(self.done, max(self.total, self.done))
