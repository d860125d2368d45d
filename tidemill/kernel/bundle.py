"""A bundle: the aggregations of one view that were applied together, compiled into tables and windows.

The whole kernel is three pure functions of it: `deltas` (events to bytes to append), `fold` (events to tiles in frames) with `pack`
(tiles to bytes to publish), and `evaluate` (bytes and an instant to features).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import polars as pl

from tidemill import blocks
from tidemill.aggregations.base import Aggregation, Compiled, Many
from tidemill.definitions.expressions import Filter
from tidemill.entities import MAX_KEY_BYTES, key_expr
from tidemill.errors import DefinitionError
from tidemill.kernel.fixed import Count, FixedStates, FixedTable
from tidemill.kernel.packed import stored
from tidemill.kernel.table import OVERFLOW, SPAN, TAG, Int64s, Reach, Records, Table
from tidemill.kernel.tiles import LIFETIME, Ladder
from tidemill.online.base import Cell
from tidemill.stable import shard_of, stable_id
from tidemill.times import Window, window_start
from tidemill.types import ColumnType

ENTITY = "_entity"
#: How many events: every bundle counts them.
EVENTS = Count()
#: Rows packed at a time: their records fit a core's cache, and the memory is used again for the next.
_PACKED_ROWS = 8192
Values = list[Any]


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event that this bundle's view cannot take: the row in the batch's frame, and why."""

    row: int
    reason: str


class Bundle:
    """See the module's text. Immutable; safe to share between threads.

    `id` is the bundle's stable name in stores. `where` is the view's row filter. Raises `DefinitionError`.
    """

    def __init__(
        self,
        id: str,
        *,
        schema: Mapping[str, ColumnType],
        event_id: str | None,
        keys: Sequence[str],
        where: str | None,
        aggregations: Sequence[Aggregation],
    ) -> None:
        self.id, self.schema, self.event_id, self.keys, self.where = id, dict(schema), event_id, list(keys), where
        self.aggregations = list(aggregations)
        self.windows: list[Window] = sorted({w for a in aggregations for w in a.windows}, key=lambda w: (w.length or 0, w.hop))
        #: Its windows as a text: bundles that agree on it can be evaluated together.
        self.reach = " ".join(f"{w.length}/{w.hop}" for w in self.windows)
        self.ladder = Ladder(self.windows)
        compiled = [a.compile(schema, event_id) for a in aggregations]
        # Every bundle counts its events: an entity is `missing` when none of them lies in any window.
        self.fixed = FixedTable([EVENTS, *(p for c in compiled for p in c.parts)])
        self.tables: list[Table[Any]] = [self.fixed, *dict.fromkeys(c.table for c in compiled if c.table is not None)]
        taken = ["start", "width_us", *(p.name for p in self.fixed.parts), *(c for t in self.tables for c in t.columns)]
        for key in self.keys:
            if key in taken:
                raise DefinitionError(f"key {key!r}: the view's partials have a column of that name; rename the key's column")
        self.table_ids: list[int] = [stable_id([id, t.key]) for t in self.tables]
        texts = [a.where for a in aggregations] + [where]
        self._filters = {text: Filter(text) for text in texts if text is not None}
        #: The columns that its state depends on.
        self.reads = {*keys, *(a.column for a in aggregations if a.column is not None)}
        self.reads.update(c for f in self._filters.values() for c in f.columns(schema))
        self._masks = {a.where for a in aggregations if a.where is not None}
        self._counted = self.fixed.at[EVENTS]
        self._readers: dict[Aggregation, tuple[int, Callable[[Any, int], Values]]] = {}
        for aggregation in aggregations:
            self.serve(aggregation)

    def covers(self, aggregation: Aggregation, window: Window, schema: Mapping[str, ColumnType], event_id: str | None) -> bool:
        """Whether this bundle's state answers an aggregation over a window, on a source as it is declared now.

        It may be an aggregation of its own, or another one that needs no other state.
        """
        if event_id != self.event_id or any(schema.get(column) != self.schema[column] for column in self.reads):
            return False  # it could not be folded any more, be it for a feature that is not even wanted now
        compiled = aggregation.compile(schema, event_id)
        held = compiled.table in self.tables if compiled.table is not None else set(compiled.parts) <= set(self.fixed.parts)
        return held and window in self.windows

    def serve(self, aggregation: Aggregation) -> None:
        """Make `evaluate` answer an aggregation that the bundle covers."""
        compiled = aggregation.compile(self.schema, self.event_id)
        if compiled.finalize is not None:
            at = [self.fixed.at[p] + i for p in compiled.parts for i in range(p.words)]
            self._readers[aggregation] = 0, _FixedReader(at, compiled)
        elif compiled.table is not None and compiled.read is not None:
            self._readers[aggregation] = self.tables.index(compiled.table), compiled.read

    # ---- events to tiles --------------------------------------------------------------------------------------------------------

    def select(self, events: pl.DataFrame) -> tuple[pl.DataFrame, list[Rejected]]:
        """The events of this view, and those that it must reject: a null key, or one that is too long."""
        if self.where is not None:
            events = events.with_row_index("_row").filter(self._filters[self.where].mask(events))
        nulls = pl.any_horizontal(pl.col(k).is_null() for k in self.keys)
        rejected: list[Rejected] = []
        texts = [k for k in self.keys if self.schema[k].name == "str"]
        bad = nulls
        if texts:
            bad = nulls | (pl.sum_horizontal(pl.col(k).str.len_bytes() for k in texts) > MAX_KEY_BYTES // 2)
        flags = events.select(bad.fill_null(True)).to_series()
        if flags.any():
            index = events["_row"].to_list() if "_row" in events.columns else range(len(events))
            for i in flags.arg_true().to_list():
                row = events.row(i, named=True)
                missing = [k for k in self.keys if row[k] is None]
                reason = (
                    f"null key {', '.join(missing)}" if missing else f"key {', '.join(self.keys)} longer than {MAX_KEY_BYTES // 2} bytes"
                )
                rejected.append(Rejected(index[i], reason))
            events = events.filter(~flags)
        return events, rejected

    def fold(self, events: pl.DataFrame, horizon: int, partition: int | None = None) -> list[pl.DataFrame]:
        """Selected events to tiles, a frame per table: the entity's keys, SPAN, TAG if `partition` is given, and the table's columns.

        `horizon` (UTC microseconds) is the one that the tiles' widths are good for: no read may come before it.
        """
        spans = self.ladder.place(events["_time"].to_numpy(), horizon)
        columns = [pl.Series(SPAN, spans)]
        by = [*self.keys, SPAN]
        if partition is not None:
            columns.append(pl.Series(TAG, blocks.block_tags(partition, events["_offset"].to_numpy())))
            by.append(TAG)
        events = events.with_columns(columns)
        kept = self.ladder.keep(spans)
        if kept is not None:
            events = events.filter(pl.Series(kept))
        masks = self.masks(events)
        return [t.fold(events, masks, by) for t in self.tables]

    def masks(self, events: pl.DataFrame) -> dict[str, pl.Series]:
        """Per filter text of its aggregations, which of the events pass."""
        return {text: events.select(self._filters[text].mask(events)).to_series() for text in self._masks}

    def with_entities(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A frame of tiles with the canonical key as ENTITY, sorted by it."""
        return frame.with_columns(key_expr(self.keys, self.schema).alias(ENTITY)).sort(ENTITY)

    def pack(self, table: int, frame: pl.DataFrame, tag: int | None = None) -> tuple[list[str], list[bytes]]:
        """A frame of `with_entities` to entities (each once, sorted) and their records; `tag` where the frame has no TAG."""
        if len(frame) == 0:
            return [], []
        kind = self.tables[table]
        entity = frame[ENTITY].rle_id().cast(pl.Int64).to_numpy()
        spans = frame[SPAN].to_numpy()
        tags = frame[TAG].to_numpy() if tag is None else np.full(len(frame), tag, dtype=np.int64)
        starts = np.flatnonzero(np.diff(entity, prepend=-1))
        blobs: list[bytes] = []
        for first, last in _runs(starts, len(frame)):
            low, high = starts[first], starts[last] if last < len(starts) else len(frame)
            body = kind.pack(frame[low:high])
            records: Records[Any] = Records(entity[low:high] - first, spans[low:high], tags[low:high], body)
            if kind.sparse:
                records = kind.merge_records(records)
            blobs += kind.encode(records, last - first)
        return frame[ENTITY].gather(starts).to_list(), blobs

    def deltas(self, events: pl.DataFrame, horizon: int, partition: int, shards: int) -> dict[int, list[tuple[int, str, bytes]]]:
        """Selected events of one partition to what is appended, per shard: (table id, entity, records)."""
        out: dict[int, list[tuple[int, str, bytes]]] = {}
        shard: dict[str, int] = {}
        for i, frame in enumerate(self.fold(events, horizon, partition)):
            table = self.table_ids[i]
            names, blobs = self.pack(i, self.with_entities(frame))
            for name, blob in zip(names, blobs, strict=True):
                s = shard.get(name)
                if s is None:
                    s = shard[name] = shard_of(name, shards)
                out.setdefault(s, []).append((table, name, blob))
        return out

    def merge(self, table: int, frame: pl.DataFrame, horizon: int, *, distinct: bool = False) -> pl.DataFrame:
        """Tiles of one version, of any number of folds, to merged tiles as wide as `horizon` allows, without the expired.

        `distinct`: no two of these rows are of one tile (and cell), so that there is nothing to merge where none can be widened.
        """
        before = frame[SPAN].to_numpy()
        spans = self.ladder.widen(before, horizon)
        frame = frame.with_columns(pl.Series(SPAN, spans))
        kept = self.ladder.keep(spans)
        if kept is not None:
            frame = frame.filter(pl.Series(kept))
        if distinct and np.array_equal(before, spans):
            return frame
        return self.tables[table].merge(frame, [*self.keys, SPAN])

    # ---- tiles to features ------------------------------------------------------------------------------------------------------

    def evaluate(self, t: int, cells: Mapping[int, Sequence[Cell | None]]) -> Evaluated:
        """The features at the instant `t` of entities whose cells are given, per position in `tables`; always those of table 0."""
        (evaluated,) = evaluate(t, [(self, cells)])
        return evaluated

    def reader(self, aggregation: Aggregation, window: Window) -> Reader:
        """What reads one feature out of what `evaluate` found: one value per entity, None for null, or OVERFLOW."""
        table, read = self._readers[aggregation]
        position = self.windows.index(window)
        return lambda evaluated: read(evaluated.states[table], evaluated.index[position])

    def present(self, states: FixedStates) -> list[bool]:
        """Of each entity, whether any of its events lies in any window."""
        there: list[bool] = (states.words[:, 0, self._counted] > 0).tolist()
        return there

    def table_of(self, aggregation: Aggregation) -> int:
        """The position in `tables` of an aggregation's state."""
        return self._readers[aggregation][0]


#: From so many entities on, arrays of all windows take less time than each value by itself.
MANY = 8


class _FixedReader:
    """Reads one aggregation out of the fixed table's words, of which it has those at some places."""

    def __init__(self, at: Sequence[int], compiled: Compiled) -> None:
        assert compiled.finalize is not None
        self._at, self._finalize = list(at), compiled.finalize
        self._pick: Callable[[Sequence[int]], Sequence[int]] = itemgetter(*at) if len(at) > 1 else lambda words: (words[at[0]],)
        self._many = compiled.many if compiled.output.name in ("int", "float") else None

    def __call__(self, states: FixedStates, window: int) -> Values:
        found = states.found.get(self)
        if found is None:  # all windows at once: one that asks for a window asks for the others too
            found = states.found[self] = self._of_all_windows(states)
        return found[window]

    def _of_all_windows(self, states: FixedStates) -> list[Values]:
        if self._many is not None and len(states) >= MANY:
            return self._in_arrays(self._many, states.words)
        finalize, pick = self._finalize, self._pick
        return [[finalize(pick(words)) for words in entities] for entities in states.rows]

    def _in_arrays(self, many: Callable[[Int64s], Many], words: Int64s) -> list[Values]:
        entities, windows, _ = words.shape
        values, null, overflow = many(words[:, :, self._at].swapaxes(0, 1).reshape(windows * entities, len(self._at)))
        if null is None or not null.any():
            plain: list[Values] = values.reshape(windows, entities).tolist()
            return plain
        found = values.astype(object)
        found[null] = None
        if overflow is not None:
            found[overflow] = OVERFLOW
        answers: list[Values] = found.reshape(windows, entities).tolist()
        return answers


def _runs(starts: Int64s, rows: int) -> Iterator[tuple[int, int]]:
    """Runs [first, last) of entities, given where their rows start: as many as have `_PACKED_ROWS` rows together, at least one."""
    first = 0
    while first < len(starts):
        limit = starts[first] + _PACKED_ROWS
        fitting = len(starts) if limit >= rows else int(starts.searchsorted(limit, side="right")) - 1
        last = max(first + 1, fitting)
        yield first, last
        first = last


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What `Bundle.evaluate` found, for all entities of the call; a `Bundle.reader` gets a feature's values out of it.

    `present`: whether any event of the entity lies in any window of the bundle.
    """

    bundle: Bundle
    index: list[int]
    states: Mapping[int, Any]
    present: list[bool]

    def values(self, aggregation: Aggregation, window: Window) -> Values:
        """One value per entity; where many are read again and again, keep the `Bundle.reader`."""
        return self.bundle.reader(aggregation, window)(self)


Reader = Callable[[Evaluated], Values]


def evaluate(t: int, asked: Sequence[tuple[Bundle, Mapping[int, Sequence[Cell | None]]]]) -> list[Evaluated]:
    """`Bundle.evaluate` of several bundles. Those with the same windows are one pass over their records."""
    alike: dict[str, list[int]] = {}
    for i, (bundle, _) in enumerate(asked):
        alike.setdefault(bundle.reach, []).append(i)
    out: dict[int, Evaluated] = {}
    for members in alike.values():
        edges = [window_start(t, w) for w in asked[members[0]][0].windows]
        order = sorted(range(len(edges)), key=edges.__getitem__)
        index = [0] * len(order)
        for i, position in enumerate(order):
            index[position] = i
        reach = Reach(np.array([edges[i] for i in order]), t)
        for m in members:
            bundle, columns = asked[m]
            found = {i: bundle.tables[i].states(stored(cells), reach) for i, cells in columns.items()}
            out[m] = Evaluated(bundle, index, found, bundle.present(found[0]))
    return [out[i] for i in range(len(asked))]


__all__ = ["ENTITY", "LIFETIME", "Bundle", "Evaluated", "Int64s", "Rejected", "evaluate"]
