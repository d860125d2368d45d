"""A bundle's features at many instants of the past: what `Bundle.evaluate` answers one instant at a time, over raw events.

Events are prepared by the very tables that fold them for the stream, one event at a time; `tidemill.kernel.moving` merges what lies
in each window; and the aggregations finalize it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from tidemill.aggregations.base import Aggregation, Compiled, Many
from tidemill.aggregations.sketches import Quantile
from tidemill.kernel import moving
from tidemill.kernel.buckets import QuantileTable, bucket_middles, buckets_of
from tidemill.kernel.bundle import Bundle
from tidemill.kernel.entries import EntriesTable
from tidemill.kernel.registers import REGISTERS, REST_BITS, RegisterTable, estimate
from tidemill.kernel.table import OVERFLOW, Bools, Int64s, Table, counted_events
from tidemill.times import Window, window_start
from tidemill.types import ColumnType

ENTITY, VISIBLE = "_entity_number", "_visible"

#: An aggregation over a window, as a feature asks for it.
Wanted = tuple[Aggregation, Window]


@dataclass(frozen=True, slots=True)
class Rows:
    """Questions, sorted by entity and instant: which entity, int64 (n,), and when, UTC microseconds (n,)."""

    entity: Int64s
    t: Int64s

    def __len__(self) -> int:
        return len(self.t)

    def part(self, a: int, b: int) -> Rows:
        """The rows [a, b)."""
        return Rows(self.entity[a:b], self.t[a:b])


@dataclass(frozen=True, slots=True)
class Column:
    """The answers to one feature, one per row: a typed series, and how many of its nulls are `overflow`."""

    values: pl.Series
    overflows: int


class Past:
    """Some events of a bundle, ready to be asked about.

    `events` are selected events (`Bundle.select`) with ENTITY, the number of each event's entity, int64, and VISIBLE: the first instant
    at which a question sees it, later than `_time`. Sorted by ENTITY and `_time`. Immutable; threads may ask at once.
    """

    def __init__(self, bundle: Bundle, events: pl.DataFrame, wanted: Sequence[Wanted]) -> None:
        self.wanted = list(wanted)
        self._masks = bundle.masks(events)
        self._groups: list[_Group] = []
        self._place: list[tuple[int, int]] = [(0, 0)] * len(self.wanted)  # of a feature: its group, and its place among the group's
        groups: dict[Any, list[tuple[int, Compiled, Wanted]]] = {}
        for i, (aggregation, window) in enumerate(self.wanted):
            compiled = aggregation.compile(bundle.schema, bundle.event_id)
            groups.setdefault(_kind(aggregation, compiled), []).append((i, compiled, (aggregation, window)))
        for members in groups.values():
            self._groups.append(_group(bundle, events, self._masks, [(c, a) for _, c, a in members]))
            for place, (i, _, _) in enumerate(members):
                self._place[i] = len(self._groups) - 1, place

    @property
    def row_bytes(self) -> int:
        """About what a row takes until its answers are numbers."""
        return sum(8 * len(group.windows) * group.words for group in self._groups)

    def ask(self, rows: Rows) -> list[Column]:
        """The answers, a column per feature wanted, in the order of the rows."""
        found = [group.ask(rows) for group in self._groups]
        return [found[g][i] for g, i in self._place]


def _kind(aggregation: Aggregation, compiled: Compiled) -> Any:
    """Features that one pass over the events answers together."""
    if compiled.table is None:
        return None
    return compiled.table, aggregation.fraction if isinstance(aggregation, Quantile) else None


def _group(bundle: Bundle, events: pl.DataFrame, masks: dict[str, pl.Series], members: Sequence[tuple[Compiled, Wanted]]) -> _Group:
    table: Table[Any] | None = members[0][0].table
    if table is None:
        return _Fixed(bundle, events, masks, members)
    counted = counted_events(events, masks, table.column, table.where)  # type: ignore[attr-defined]  # every table but the fixed one is of a column
    own = events if counted is None else events.filter(counted)
    if isinstance(table, QuantileTable):
        return _Quantiles(own, members, table)
    if isinstance(table, RegisterTable):
        return _Registers(own, members, table)
    assert isinstance(table, EntriesTable)
    return (_TextExtremes if table.order.by_value else _Entries)(own, members, table)


class _Group:
    """Features that share a pass: their windows, and the events that the pass reads. `words`: of state, per row and window."""

    words = 2

    def __init__(self, events: pl.DataFrame, members: Sequence[tuple[Compiled, Wanted]]) -> None:
        self.members = list(members)
        self.windows = list(dict.fromkeys(window for _, (_, window) in members))
        self.place = [self.windows.index(window) for _, (_, window) in members]
        self.entity = events[ENTITY].to_numpy()
        self.time = events["_time"].to_numpy()
        self.visible = events[VISIBLE].to_numpy()

    def ask(self, rows: Rows) -> list[Column]:
        raise NotImplementedError

    def runs(self, rows: Rows) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """Where the events and the rows of each entity asked about lie (see `tidemill.kernel.moving`), and the windows' old edges."""
        starts = np.flatnonzero(np.diff(rows.entity, prepend=-1))
        asked = rows.entity[starts]
        begin, end = (self.entity.searchsorted(asked, side=side) for side in ("left", "right"))
        edges = np.stack([window_start(rows.t, w) for w in self.windows], axis=1)
        return begin, end, np.append(starts, len(rows)), edges


class _Fixed(_Group):
    """All that the fixed table holds: words that add up, and words that take the minimum."""

    def __init__(
        self, bundle: Bundle, events: pl.DataFrame, masks: dict[str, pl.Series], members: Sequence[tuple[Compiled, Wanted]]
    ) -> None:
        super().__init__(events, members)
        parts = list(dict.fromkeys(p for compiled, _ in members for p in compiled.parts))
        adding, least = [p for p in parts if p.adds], [p for p in parts if not p.adds]
        self._adds = bundle.fixed.of_events(adding, events, masks)
        self._least = bundle.fixed.of_events(least, events, masks) if least else None
        at = np.cumsum([0, *(p.words for p in adding + least)]).tolist()
        where = {p: range(at[i], at[i + 1]) for i, p in enumerate(adding + least)}
        self.words = self._adds.shape[1] + (0 if self._least is None else self._least.shape[1])
        self._words = [[w for p in compiled.parts for w in where[p]] for compiled, _ in members]

    def ask(self, rows: Rows) -> list[Column]:
        begin, end, row, edges = self.runs(rows)
        width = self._adds.shape[1]
        out = np.zeros((len(rows), len(self.windows), width), dtype=np.int64)
        moving.sums(begin, end, row, self.time, self.visible, self._adds, rows.t, edges, out)
        if self._least is not None:
            least = np.empty((len(rows), len(self.windows), self._least.shape[1]), dtype=np.int64)
            moving.minima(begin, end, row, self.time, self.visible, self._least, rows.t, edges, least)
            out = np.concatenate([out, least], axis=2)
        return [
            _finalized(compiled, out[:, place, words])
            for (compiled, _), place, words in zip(self.members, self.place, self._words, strict=True)
        ]


def _finalized(compiled: Compiled, words: Int64s) -> Column:
    if compiled.many is not None:
        return _column(compiled.output, compiled.many(words))
    assert compiled.finalize is not None
    return _plain(compiled.output, map(compiled.finalize, words.tolist()))


def _column(output: ColumnType, many: Many) -> Column:
    values = pl.Series(many.values)
    if output.name == "timestamp":
        values = values.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    values = values.cast(output.polars)
    if many.null is not None and many.null.any():
        values = values.zip_with(pl.Series(~many.null), pl.Series([None], dtype=values.dtype))
    return Column(values, 0 if many.overflow is None else int(many.overflow.sum()))


def _plain(output: ColumnType, found: Iterator[Any]) -> Column:
    values = list(found)
    overflows = sum(v is OVERFLOW for v in values)
    if overflows:
        values = [None if v is OVERFLOW else v for v in values]
    return Column(pl.Series(values, dtype=output.polars), overflows)


class _Quantiles(_Group):
    """Quantiles of one rank: the events' buckets, counted."""

    def __init__(self, events: pl.DataFrame, members: Sequence[tuple[Compiled, Wanted]], table: QuantileTable) -> None:
        super().__init__(events, members)
        self._bucket = buckets_of(events[table.column].cast(pl.Float64).to_numpy())
        aggregation = members[0][1][0]
        assert isinstance(aggregation, Quantile)
        self._q = aggregation.fraction

    def ask(self, rows: Rows) -> list[Column]:
        begin, end, row, edges = self.runs(rows)
        out, n = (np.zeros((len(rows), len(self.windows)), dtype=np.int64) for _ in range(2))
        part, whole = self._q.numerator, self._q.denominator
        moving.ranked(begin, end, row, self.time, self.visible, self._bucket, rows.t, edges, part, whole, out, n)
        return [
            _column(compiled.output, Many(bucket_middles(out[:, place]), n[:, place] == 0))
            for (compiled, _), place in zip(self.members, self.place, strict=True)
        ]


class _Registers(_Group):
    """Distinct counts."""

    words = REST_BITS + 2

    def __init__(self, events: pl.DataFrame, members: Sequence[tuple[Compiled, Wanted]], table: RegisterTable) -> None:
        super().__init__(events, members)
        self._register, self._rank = table.cells(events[table.column])

    def ask(self, rows: Rows) -> list[Column]:
        begin, end, row, edges = self.runs(rows)
        out = np.zeros((len(rows), len(self.windows), REST_BITS + 2), dtype=np.int64)
        moving.registers(begin, end, row, self.time, self.visible, self._register, self._rank, REGISTERS, rows.t, edges, out)
        return [self._estimates(compiled, out[:, place]) for (compiled, _), place in zip(self.members, self.place, strict=True)]

    @staticmethod
    def _estimates(compiled: Compiled, histograms: Int64s) -> Column:
        known: dict[bytes, int] = {}
        for raw, histogram in zip(map(bytes, np.ascontiguousarray(histograms)), histograms, strict=True):
            if raw not in known:
                known[raw] = estimate(histogram.tolist())
        return _plain(compiled.output, (known[raw] or None for raw in map(bytes, np.ascontiguousarray(histograms))))


class _Entries(_Group):
    """The first or last few values: the events in the table's own order, and the outermost of them in each window."""

    def __init__(self, events: pl.DataFrame, members: Sequence[tuple[Compiled, Wanted]], table: EntriesTable) -> None:
        by = [ENTITY, "_time", *([] if table.event_id is None else [table.event_id]), table.column]
        events = events.sort(by, nulls_last=False, maintain_order=False)
        super().__init__(events, members)
        self._order, self._values = table.order, events[table.column]
        self.words = 1 + table.order.n

    def ask(self, rows: Rows) -> list[Column]:
        begin, end, row, edges = self.runs(rows)
        found = np.empty((len(rows), len(self.windows), self._order.n), dtype=np.int64)
        n = np.zeros((len(rows), len(self.windows)), dtype=np.int64)
        moving.outermost(begin, end, row, self.time, self.visible, rows.t, edges, self._order.last, self._order.n, found, n)
        return [
            Column((self._lists if compiled.listed else self._values_at)(found[:, place], n[:, place]), 0)
            for (compiled, _), place in zip(self.members, self.place, strict=True)
        ]

    def _values_at(self, found: Int64s, n: Int64s) -> pl.Series:
        there = pl.Series(n > 0)
        index = pl.Series(np.where(n > 0, found[:, 0], 0)).zip_with(there, pl.Series([None], dtype=pl.Int64))
        return self._values.gather(index)

    def _lists(self, found: Int64s, n: Int64s) -> pl.Series:
        inside: Bools = np.arange(found.shape[1]) < n[:, None]
        flat = self._values.gather(pl.Series(found[inside])).to_arrow()
        offsets = pa.array(np.append(0, np.cumsum(n)), mask=np.append(n == 0, False))  # a null offset makes a null list
        lists = pl.Series(pa.LargeListArray.from_arrays(offsets, flat))
        return lists.cast(pl.List(self._values.dtype))


class _TextExtremes(_Group):
    """The smallest or largest text: by its rank among all texts, which stands for it."""

    def __init__(self, events: pl.DataFrame, members: Sequence[tuple[Compiled, Wanted]], table: EntriesTable) -> None:
        super().__init__(events, members)
        texts = events[table.column]
        self._texts = texts.unique().sort()
        rank = texts.to_frame("text").join(self._texts.to_frame("text").with_row_index("rank"), on="text", maintain_order="left")["rank"]
        word = rank.cast(pl.Int64).to_numpy()
        self._last = table.order.last
        self._word = (~word if self._last else word).reshape(-1, 1)

    def ask(self, rows: Rows) -> list[Column]:
        begin, end, row, edges = self.runs(rows)
        out = np.empty((len(rows), len(self.windows), 1), dtype=np.int64)
        moving.minima(begin, end, row, self.time, self.visible, self._word, rows.t, edges, out)
        found = out[:, :, 0]
        index = np.where(found == moving.NOTHING, -1, ~found if self._last else found)
        return [Column(self._gathered(index[:, place]), 0) for place in self.place]

    def _gathered(self, index: Int64s) -> pl.Series:
        there = pl.Series(index >= 0)
        return self._texts.gather(pl.Series(np.maximum(index, 0)).zip_with(there, pl.Series([None], dtype=pl.Int64)))
