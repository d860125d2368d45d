"""What should have been served: the kernel over raw events, by a way of its own.

The checks of an entity that lie close together are a **run**. What all of a run's checks knew is folded once, as if it were what had
been published; what only some of them knew is folded for each check, as its tail. Then each check is read as a request reads: so a run of
a thousand reads of one airport folds its year once. Nothing of what the online store had is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.applied import AppliedView
from tidemill.audit.events import PARTITION
from tidemill.audit.reads import IMPORTS, Check, Positions
from tidemill.definitions.expressions import Filter
from tidemill.kernel.bundle import ENTITY, Bundle
from tidemill.kernel.table import OVERFLOW
from tidemill.online.base import Cell
from tidemill.testing import brute_force
from tidemill.times import window_start
from tidemill.types import ColumnType

Ints = npt.NDArray[np.int64]

_RUN = "_run"
#: Checks of a run, and events between the first and the last instant of one: what lies between is folded for each check.
_CHECKS, _BETWEEN = 256, 1_000
#: Events folded at a time.
_FOLDED = 500_000


@dataclass(frozen=True, slots=True)
class Right:
    """What is right for a check: values by feature (OVERFLOW where the number does not fit), and whether any event is in any window."""

    values: Mapping[str, Any]
    present: bool


class EntityEvents:
    """A frame of `EventReader.events`, by entity."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame
        self.time: Ints = frame["_time"].to_numpy()
        self.offset: Ints = frame["_offset"].to_numpy()
        self.partition: npt.NDArray[Any] = frame[PARTITION].to_numpy()
        lengths = frame.group_by(ENTITY, maintain_order=True).len()
        ends = np.cumsum(lengths["len"].to_numpy()).tolist()
        self._ranges = dict(zip(lengths[ENTITY].to_list(), zip([0, *ends][:-1], ends, strict=True), strict=True))

    def rows(self, entity: str, first: int, end: int) -> tuple[int, int]:
        """Where the entity's events with first <= event time < end lie."""
        a, b = self._ranges.get(entity, (0, 0))
        return a + int(self.time[a:b].searchsorted(first)), a + int(self.time[a:b].searchsorted(end))

    def known(self, a: int, b: int, positions: Positions) -> npt.NDArray[np.bool_]:
        """Which of the rows [a, b) lie before the positions."""
        partitions, offsets = self.partition[a:b], self.offset[a:b]
        out = np.zeros(b - a, dtype=np.bool_)
        for partition, end in positions.items():
            out |= (partitions == partition) & (offsets < end)
        return out

    def inside(self, check: Check, first: int) -> Ints:
        """The rows that a check knew, from `first` to its instant."""
        a, b = self.rows(check.entity, first, check.at)
        return a + np.flatnonzero(self.known(a, b, check.known))


@dataclass
class _Run:
    """Checks of one entity, by instant; the rows that all of them knew, and those that only each did."""

    checks: list[Check]
    base: Ints
    tails: list[Ints]


def by_kernel(bundle: Bundle, view: AppliedView, checks: Sequence[Check], events: EntityEvents) -> Iterator[tuple[Check, Right]]:
    """What is right for the checks of one bundle."""
    readers = {n: view.stored(n).read for n in {n for c in checks for n in c.served}}
    solo = _alone(bundle)
    held: list[_Run] = []
    size = 0
    for run in _runs(bundle, checks, events):
        held.append(run)
        size += len(run.base) + sum(map(len, run.tails))
        if size >= _FOLDED:
            yield from _read(bundle, solo, readers, held, events)
            held, size = [], 0
    if held:
        yield from _read(bundle, solo, readers, held, events)


def by_oracle(bundle: Bundle, view: AppliedView, checks: Sequence[Check], events: EntityEvents) -> Iterator[tuple[Check, Right]]:
    """The same by brute force, without tiles: `tidemill.testing.brute_force` over the rows."""
    schema: dict[str, ColumnType] = {**bundle.schema, "_time": ColumnType("int")}
    features = view.view.features
    # Not of all features: the events have the columns of this bundle, and maybe not those that another one's filters read.
    named = {features[name].aggregation.where for check in checks for name in check.served}
    filters = {where for where in named if where is not None}
    frame = events.frame.with_columns(
        pl.Series(f"?{text}", events.frame.select(Filter(text).mask(events.frame)).to_series()) for text in filters
    )
    for check in checks:
        rows = events.inside(check, min(window_start(check.at, w) for w in bundle.windows))
        plain = frame[rows].to_dicts()
        values = {}
        for name in check.served:
            feature = features[name]
            where = feature.aggregation.where
            values[name] = brute_force(
                feature.aggregation,
                feature.window,
                plain if where is None else [e for e in plain if e[f"?{where}"]],
                check.at,
                schema=schema,
                timestamp="_time",
                event_id=bundle.event_id,
                passes=lambda _: True,
            )
        yield check, Right(values, present=bool(len(rows)))


def _alone(bundle: Bundle) -> Bundle:
    """The same state, but of runs in the place of entities."""
    schema = {**bundle.schema, _RUN: ColumnType("int")}
    return Bundle(bundle.id, schema=schema, event_id=bundle.event_id, keys=[_RUN], where=None, aggregations=bundle.aggregations)


def _runs(bundle: Bundle, checks: Sequence[Check], events: EntityEvents) -> Iterator[_Run]:
    """The checks as runs, by their first instant, so that those folded together lie close."""
    by_entity: dict[str, list[Check]] = {}
    for check in checks:
        by_entity.setdefault(check.entity, []).append(check)
    groups: list[list[Check]] = []
    for mine in by_entity.values():
        mine.sort(key=lambda c: c.at)
        group = [mine[0]]
        for check in mine[1:]:
            a, b = events.rows(check.entity, group[0].at, check.at)
            if b - a > _BETWEEN or len(group) >= _CHECKS or _apart(group[0].known, check.known) > _BETWEEN:
                groups.append(group)
                group = []
            group.append(check)
        groups.append(group)
    for group in sorted(groups, key=lambda g: g[0].at):
        first = min(window_start(group[0].at, w) for w in bundle.windows)
        a, b = events.rows(group[0].entity, first, group[-1].at)
        shared = {p: min(c.known.get(p, 0) for c in group) for p in group[0].known}
        common = events.known(a, b, shared)
        tails = [np.flatnonzero(events.known(a, b, c.known) & ~common) + a for c in group]
        yield _Run(group, np.flatnonzero(common) + a, tails)


def _apart(one: Positions, other: Positions) -> int:
    """How many records at most lie between two vectors of positions. Imports are large: what was read before one is folded apart."""
    if one.get(IMPORTS, 0) != other.get(IMPORTS, 0):
        return _BETWEEN + 1
    return sum(abs(one.get(p, 0) - other.get(p, 0)) for p in {*one, *other})


def _read(
    bundle: Bundle, solo: Bundle, readers: Mapping[str, Any], runs: Sequence[_Run], events: EntityEvents
) -> Iterator[tuple[Check, Right]]:
    """Fold the runs, and read each check."""
    horizon = runs[0].checks[0].at  # no check of theirs comes before it
    pieces: list[Ints] = []
    labels: list[int] = []
    for run in runs:
        for piece in (run.base, *run.tails):
            labels.append(len(pieces))
            pieces.append(piece)
    rows = np.concatenate(pieces) if pieces else np.array([], dtype=np.int64)
    named = np.repeat(np.array(labels, dtype=np.int64), [len(p) for p in pieces])
    folded = solo.fold(events.frame[rows].with_columns(pl.Series(_RUN, named)), horizon)
    blobs: list[dict[str, bytes]] = []
    for i, tiles in enumerate(folded):
        names, records = solo.pack(i, solo.with_entities(tiles), tag=0)
        blobs.append(dict(zip(names, records, strict=True)))
    asked: dict[int, list[tuple[Check, int, int]]] = {}
    number = 0
    for run in runs:
        base, number = number, number + 1
        for check in run.checks:
            asked.setdefault(check.at, []).append((check, base, number))
            number += 1
    for at, together in asked.items():
        cells = {
            i: [Cell(0, b"", held.get(str(base), b""), held.get(str(tail), b"")) for _, base, tail in together]
            for i, held in enumerate(blobs)
        }
        evaluated = bundle.evaluate(at, cells)
        columns = {name: read(evaluated) for name, read in readers.items()}
        for i, (check, _, _) in enumerate(together):
            yield check, Right({name: columns[name][i] for name in check.served}, evaluated.present[i])


def value_served(value: Any) -> tuple[Any, bool]:
    """A right value as it is served, and whether it is an overflow."""
    return (None, True) if value is OVERFLOW else (value, False)
