"""What a request's answer is: values, statuses, and what it was computed from."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from tidemill.applied import Stored
from tidemill.blocks import HISTORY, known_imports
from tidemill.errors import RequestError
from tidemill.frames import to_pandas
from tidemill.kernel.bundle import Bundle
from tidemill.online.base import Cell, Heartbeat, SlotState
from tidemill.times import BEGINNING, from_micros
from tidemill.types import ColumnType

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

OK, STALE, MISSING, OVERFLOWED = "ok", "stale", "missing", "overflow"


@dataclass(frozen=True)
class ViewPlan:
    """What a request reads of one view: its bundles, the tables of each, and per output column which bundle, and how to read it."""

    name: str
    keys: tuple[str, ...]
    types: Mapping[str, ColumnType]
    source: str
    max_lag: int | None
    bundles: tuple[Bundle, ...]
    tables: tuple[tuple[int, ...], ...]
    features: tuple[tuple[str, int, Stored], ...]


class Asked(NamedTuple):
    """The distinct entities that a request asks for: which of them each row is, their canonical keys, their shards."""

    row: list[int]
    names: list[str]
    shards: list[int]


@dataclass
class ViewAnswer:
    """One view's part of an answer, for its distinct entities.

    `cells`: per bundle and table of the plan, one cell per entity. `states`: per bundle, the slots that were read, by shard.
    """

    plan: ViewPlan
    asked: Asked
    cells: list[dict[int, Sequence[Cell | None]]]
    states: list[dict[int, SlotState]]
    values: dict[str, list[Any]] = field(default_factory=dict)
    status: dict[str, list[str]] = field(default_factory=dict)

    def imports(self, row: int) -> list[int]:
        """The k up to which the imports of all segments are in a request row's values, per bundle."""
        entity = self.asked.row[row]
        shard, name = self.asked.shards[entity], self.asked.names[entity]
        out = []
        for by_shard, cells in zip(self.states, self.cells, strict=True):
            held = [column[entity] for column in cells.values()]
            published = min((0 if cell is None else cell.k for cell in held), default=0)
            out.append(known_imports(by_shard[shard].positions.get(HISTORY, 0), name, published))
        return out

    def positions(self, row: int) -> list[dict[int, int]]:
        """What is known of a request row's entity, per bundle."""
        entity = self.asked.row[row]
        shard = self.asked.shards[entity]
        pairs = zip(self.states, self.cells, strict=True)
        return [_known(by_shard[shard], [column[entity] for column in cells.values()]) for by_shard, cells in pairs]


class AsOf:
    """What an answer was computed from."""

    def __init__(self, answers: Sequence[ViewAnswer], heartbeats: Callable[[str], Mapping[int, Heartbeat]]) -> None:
        self._answers = answers
        self._beats = {a.plan.source: heartbeats(a.plan.source) for a in answers}

    def __repr__(self) -> str:
        return f"AsOf({self.time.isoformat() if self.time else 'nothing applied'})"

    @property
    def answers(self) -> Sequence[ViewAnswer]:
        """The parts of the answer, by view."""
        return self._answers

    @property
    def time(self) -> dt.datetime | None:
        """The instant (aware, UTC) through which every partition of every source read is known to be applied; None when nothing is."""
        # Slots that stand alike are mostly one object.
        states = {
            (id(state), a.plan.source): (state, self._beats[a.plan.source])
            for a in self._answers
            for by_shard in a.states
            for state in by_shard.values()
        }
        known = min((through(state, beats) for state, beats in states.values()), default=BEGINNING)
        return from_micros(known) if known > BEGINNING else None

    @property
    def views(self) -> list[str]:
        """The views that were read."""
        return [a.plan.name for a in self._answers]

    def positions(self, view: str, row: int = 0) -> dict[int, int]:
        """The offset per partition up to which the view's events are in the values of this request row.

        What was published of an entity may know more than the stream has applied. Where the view's features lie in several bundles, one
        of which is behind, this is the lowest.
        """
        for answer in self._answers:
            if answer.plan.name == view:
                return _lowest(answer.positions(row))
        raise self._no_view(view)

    def imports(self, view: str, row: int = 0) -> int:
        """The cut up to which the source's imports are in the view's values of this request row (see `offline.history`).

        Where the view's features lie in several bundles, the lowest. Without imports it says nothing.
        """
        for answer in self._answers:
            if answer.plan.name == view:
                return min(answer.imports(row), default=0)
        raise self._no_view(view)

    def _no_view(self, view: str) -> RequestError:
        return RequestError(f"the request reads no view {view!r}; it reads {', '.join(a.plan.name for a in self._answers)}")


@dataclass(frozen=True)
class OnlineFeatures:
    """The answer to a request, one item per entity row everywhere.

    `columns`: the keys and request columns as they came, then the features asked for, as `view__feature`. `status`: per feature, `ok`;
    `stale` (the stream is behind by more than the view's `max_lag`); `missing` (no event of this entity in any of the view's
    windows, or no backfill yet); `overflow` (the true number does not fit, and the value is null). `at`: the instant, aware UTC.
    """

    columns: dict[str, list[Any]]
    status: dict[str, list[str]]
    as_of: AsOf
    at: dt.datetime
    _types: Mapping[str, pl.DataType] = field(repr=False, default_factory=dict)

    def to_dict(self) -> dict[str, list[Any]]:
        """The columns: lists of plain Python values, None for null."""
        return dict(self.columns)

    def to_polars(self) -> pl.DataFrame:
        """A typed Polars frame, one row per entity row."""
        return pl.DataFrame([pl.Series(n, v, dtype=self._types.get(n), strict=False) for n, v in self.columns.items()])

    def to_arrow(self) -> pa.Table:
        """A typed Arrow table."""
        return self.to_polars().to_arrow()

    def to_df(self) -> pd.DataFrame:
        """A pandas frame. Needs pandas: `pip install 'tidemill[pandas]'`."""
        return to_pandas(self.to_polars())


def _known(state: SlotState, cells: Sequence[Cell | None]) -> dict[int, int]:
    """The positions of one entity in one bundle: the slot's, or the published version's where they are higher."""
    out = {p: offset for p, offset in state.positions.items() if p != HISTORY}
    for vector in {c.vector for c in cells if c is not None and c.vector}:
        for partition, offset in enumerate(_offsets(vector)):
            if offset > out.get(partition, -1):
                out[partition] = offset
    return out


@lru_cache(maxsize=256)
def _offsets(vector: bytes) -> list[int]:
    """A published version's cut; it changes once per publication."""
    offsets: list[int] = np.frombuffer(vector, dtype="<i8").tolist()
    return offsets


def _lowest(positions: Sequence[dict[int, int]]) -> dict[int, int]:
    if len(positions) == 1:
        return dict(sorted(positions[0].items()))
    partitions = sorted({p for known in positions for p in known})
    return {p: min(known.get(p, 0) for known in positions) for p in partitions}


def through(state: SlotState, beats: Mapping[int, Heartbeat]) -> int:
    """The instant through which a slot has every partition: UTC microseconds, BEGINNING if it is not known.

    A partition that stands where its reader saw the log's end is known up to that moment; else up to the newest arrival applied.
    """
    times = []
    for partition in {*state.positions, *beats} - {HISTORY}:  # what is imported is as old as it is
        known = state.through.get(partition, BEGINNING)
        beat = beats.get(partition)
        if beat is not None and state.positions.get(partition, 0) >= beat.offset:
            known = max(known, beat.at)
        times.append(known)
    return min(times, default=BEGINNING)
