"""The raw events of the entities that were asked for: from the archive, and beyond its end from the log itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from tidemill.applied import AppliedView
from tidemill.audit.reads import IMPORTS, Check, Positions
from tidemill.entities import key_expr
from tidemill.environment import Environment
from tidemill.errors import TidemillError
from tidemill.kernel.bundle import ENTITY, Bundle
from tidemill.offline.archive import archived_batches, archived_end
from tidemill.offline.cuts import import_cuts, latest_cut
from tidemill.offline.history import iter_parts, read_import
from tidemill.times import BEGINNING, window_start

#: Which partition an event is of; IMPORTS where it was imported.
PARTITION = "_partition"
#: Events read at a time.
_ROWS = 250_000
#: For so long a log that answers nothing is asked again, in seconds.
_PATIENCE = 10.0


class TooManyError(Exception):
    """More events than may be held at once."""


class EventReader:
    """Reads what lies before some positions of a view's source. Remembers how far that goes, so that it is the same for all checks."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._archived: dict[tuple[str, int], int] = {}
        self._logged: dict[tuple[str, int], int] = {}

    def available(self, view: AppliedView, wanted: Positions) -> Positions:
        """Up to which offset of each of these partitions events can be had, at most what is wanted."""
        source = view.view.source.name
        out: Positions = {}
        for partition, end in wanted.items():
            if partition == IMPORTS:
                out[partition] = end
                continue
            place = source, partition
            if place not in self._archived:
                self._archived[place] = archived_end(self._env.offline, source, partition)
            have = self._archived[place]
            if have < end:
                if self._logged.get(place, 0) < end:
                    self._logged[place] = self._end_of_log(view, partition, have)
                have = max(have, self._logged[place])
            out[partition] = min(have, end)
        return out

    def events(
        self,
        view: AppliedView,
        columns: Mapping[str, pl.DataType],
        entities: set[str],
        known: Positions,
        first: int,
        end: int,
        most: int | None,
    ) -> pl.DataFrame:
        """The view's events of these entities before the positions `known`, with first <= event time < end, by entity and time.

        They have ENTITY, PARTITION, `_offset`, `_time` and `columns`. Raises `TooManyError` where they are more than `most`.
        """
        selected = next(iter(view.bundles)).bundle
        names = pl.Series(sorted(entities), dtype=pl.String)
        found: list[pl.DataFrame] = []
        count = 0
        for partition, frame in self._batches(view, columns, known):
            mine = frame.filter(
                (pl.col("_time") >= first)
                & (pl.col("_time") < end)
                & pl.all_horizontal(pl.col(k).is_not_null() for k in selected.keys)
                & key_expr(selected.keys, view.view.key_types).is_in(names.implode())
            )
            mine, _ = selected.select(mine)
            if not mine.height:
                continue
            mine = mine.with_columns(key_expr(selected.keys, view.view.key_types).alias(ENTITY), pl.lit(partition).alias(PARTITION))
            found.append(mine.select(ENTITY, PARTITION, "_offset", "_time", *columns))
            count += mine.height
            if most is not None and count > most:
                raise TooManyError
        if not found:
            types = {ENTITY: pl.String(), PARTITION: pl.Int32(), "_offset": pl.Int64(), "_time": pl.Int64(), **columns}
            return pl.DataFrame(schema=types)
        return pl.concat(found).sort(ENTITY, "_time", PARTITION, "_offset")

    def _batches(self, view: AppliedView, columns: Mapping[str, pl.DataType], known: Positions) -> Iterator[tuple[int, pl.DataFrame]]:
        source = view.view.source.name
        for partition, end in sorted(known.items()):
            if partition == IMPORTS:
                yield from self._imported(source, columns, end)
                continue
            have = min(self._archived[source, partition], end)
            for batch in archived_batches(self._env.offline, source, partition, 0, columns, end=have, rows=_ROWS):
                yield partition, batch.frame
            if have < end:
                for frame in self._from_log(view, partition, have, end):
                    yield partition, frame

    def _imported(self, source: str, columns: Mapping[str, pl.DataType], end: int) -> Iterator[tuple[int, pl.DataFrame]]:
        """What was imported, each event at the number of its cut."""
        store = self._env.offline
        for k, numbers in import_cuts(store, source, 0, min(latest_cut(store, source), end - 1)).items():
            for number in numbers:
                for _, frame in iter_parts(store, read_import(store, source, number).parts, columns, rows=_ROWS):
                    yield IMPORTS, frame.with_columns(pl.lit(k, pl.Int64).alias("_offset"))

    def _end_of_log(self, view: AppliedView, partition: int, start: int) -> int:
        """The end of the log, if it still has what follows `start`; else `start`."""
        try:
            log = self._env.log(view.view.source)
            try:
                if partition in log.partitions() and log.start(partition) <= start:
                    return log.end(partition)
            finally:
                getattr(log, "close", lambda: None)()
        except TidemillError:
            pass  # a log that is away has nothing to add: what lies there is not to be had yet
        return start

    def _from_log(self, view: AppliedView, partition: int, start: int, end: int) -> Iterator[pl.DataFrame]:
        source = view.view.source
        log, decoder = self._env.log(source), self._env.decoder(source)
        reader = log.open(partition, start)
        try:
            at, asked = start, time.monotonic()
            while at < end:
                batch = reader.read(_ROWS)
                if batch is None:
                    if reader.at_end or time.monotonic() - asked > _PATIENCE:
                        raise TidemillError(f"the log of {source.name} ended at offset {at} of partition {partition} while it was read")
                    time.sleep(0.01)
                    continue
                at, asked = batch.end, time.monotonic()
                yield decoder.decode(batch).frame.filter(pl.col("_offset") < end)
        finally:
            reader.close()
            getattr(log, "close", lambda: None)()


def reach(bundles: Sequence[Bundle], checks: Sequence[Check]) -> tuple[int, int]:
    """The event times [first, end) that any window of these checks reaches."""
    windows = {b.id: b.windows for b in bundles}
    first = min((window_start(c.at, w) for c in checks for w in windows[c.bundle]), default=BEGINNING)
    return first, max((c.at for c in checks), default=BEGINNING)


def columns_of(view: AppliedView, bundles: Sequence[Bundle]) -> dict[str, pl.DataType]:
    """The columns that folding these bundles takes."""
    read: set[Any] = {c for b in bundles for c in (*b.reads, *b.keys, b.event_id)}
    return {name: kind.polars for name, kind in view.view.source.schema.items() if name in read}
