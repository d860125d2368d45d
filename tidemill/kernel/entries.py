"""Tables of entries: the first or last few values, and extremes of text, where state is a short ordered list.

A record is one JSON array, `[span,tag,time,id,value,count],`: values and event ids may be text of any length, and a blob decodes in
one call of a JSON parser. Entries are ordered by (event time, event id, value), never by offset, so that history read
from other files gives the same answer; equal ones are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.kernel.table import RECORD_VERSION, Reach, Records, Stored, Table, counted_events
from tidemill.stable import digest
from tidemill.types import ColumnType

#: (time, event id or None, value, how many such)
Entry = tuple[int, int | str | None, Any, int]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Order:
    """Which entries are kept: the `n` first or last, by time, id and value, or (`by_value`) by value alone."""

    n: int
    last: bool
    by_value: bool = False


class EntriesTable(Table[list[Entry]]):
    """See the module's text. `event_id` names the source's id column, if it has one."""

    columns = ("_at", "_id", "_value", "_count")
    cell = ("_at", "_id", "_value")

    def __init__(self, column: str, type_: ColumnType, where: str | None, order: Order, event_id: str | None) -> None:
        self.column, self.type, self.where, self.order = column, type_, where, order
        self.event_id = None if order.by_value else event_id
        kind = f"{'last' if order.last else 'first'}{order.n}" if not order.by_value else "max" if order.last else "min"
        self.key = f"{column}_{kind}-" + digest([RECORD_VERSION, kind, order.by_value, column, str(type_), where, self.event_id])

    # ---- frames -----------------------------------------------------------------------------------------------------------------

    def fold(self, events: pl.DataFrame, masks: Mapping[str, pl.Series], by: Sequence[str]) -> pl.DataFrame:
        counted = counted_events(events, masks, self.column, self.where)
        rows = events if counted is None else events.filter(counted)
        time = pl.lit(0, dtype=pl.Int64) if self.order.by_value else pl.col("_time")
        event_id = pl.lit(None, dtype=pl.String) if self.event_id is None else pl.col(self.event_id)
        value = pl.col(self.column)
        value = value.cast(pl.Int64) if self.type.name == "timestamp" else value
        frame = rows.select(*by, _at=time, _id=event_id, _value=value, _count=pl.lit(1, dtype=pl.Int64))
        return self.merge(frame, by)

    def merge(self, frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        merged = frame.group_by([*by, *self.cell]).agg(pl.col("_count").sum())
        return (
            merged.sort(self.cell, descending=self.order.last, nulls_last=self.order.last)
            .group_by(by, maintain_order=True)
            .head(self.order.n)
            .select(*by, *self.columns)
        )

    def pack(self, frame: pl.DataFrame) -> list[Entry]:
        return frame.select(self.columns).rows()

    # ---- records ----------------------------------------------------------------------------------------------------------------

    def decode(self, blobs: Sequence[bytes]) -> Records[list[Entry]]:
        rows = [_decode(b"[" + blob[:-1] + b"]") for blob in blobs]
        entity = np.repeat(np.arange(len(blobs), dtype=np.int64), [len(r) for r in rows])
        flat = [r for rs in rows for r in rs]
        span = np.array([r[0] for r in flat], dtype=np.int64)
        tag = np.array([r[1] for r in flat], dtype=np.int64)
        return Records(entity, span, tag, [(r[2], r[3], self._value(r[4]), r[5]) for r in flat])

    def _value(self, value: Any) -> Any:
        """JSON writes a whole float as it does an integer."""
        return float(value) if self.type.name == "float" else value

    def encode(self, records: Records[list[Entry]], count: int) -> list[bytes]:
        ends = np.searchsorted(records.entity, np.arange(count + 1)).tolist()
        lines = [_encode((s, t, *e)) + b"," for s, t, e in zip(records.span.tolist(), records.tag.tolist(), records.body, strict=True)]
        return [b"".join(lines[a:b]) for a, b in pairwise(ends)]

    def take(self, body: list[Entry], rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> list[Entry]:
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return [body[i] for i in index.tolist()]

    def merge_records(self, records: Records[list[Entry]]) -> Records[list[Entry]]:
        groups: dict[tuple[int, int, int], list[Entry]] = {}
        for key, entry in zip(
            zip(records.entity.tolist(), records.span.tolist(), records.tag.tolist(), strict=True), records.body, strict=True
        ):
            groups.setdefault(key, []).append(entry)
        keys: list[tuple[int, int, int]] = []
        body: list[Entry] = []
        for key in sorted(groups):
            kept = self.top(groups[key])
            keys += [key] * len(kept)
            body += kept
        columns = np.array(keys, dtype=np.int64).reshape(-1, 3)
        return Records(columns[:, 0], columns[:, 1], columns[:, 2], body)

    def top(self, entries: Sequence[Entry]) -> list[Entry]:
        """The `n` entries that come first in the table's order, equal ones merged."""
        counts: dict[tuple[Any, ...], int] = {}
        for time, event_id, value, n in entries:
            counts[time, event_id, value] = counts.get((time, event_id, value), 0) + n
        ordered = sorted(counts, key=lambda e: (e[0], e[1] is not None, e[1] if e[1] is not None else 0, e[2]), reverse=self.order.last)
        return [(*e, counts[e]) for e in ordered[: self.order.n]]

    def states(self, stored: Stored, reach: Reach) -> list[list[list[Any]]]:
        """The values in order, `[entity][window]`, at most `n` each."""
        from tidemill.kernel import windowed  # Numba: what only writes does without it

        records = self.decode(stored.blobs)
        ends = records.entity.searchsorted(np.arange(len(stored.blobs)), side="right")
        narrowest = np.empty(len(records.span), dtype=np.int64)
        windowed.narrowest(records.span, records.tag, ends, *stored.versions, *reach, narrowest)
        entities, windows = len(stored.blobs) // 2, len(reach.edges)
        groups: list[list[Entry]] = [[] for _ in range(entities * windows)]
        for blob, window, entry in zip(records.entity.tolist(), narrowest.tolist(), records.body, strict=True):
            if window >= 0:
                groups[blob // 2 * windows + window].append(entry)
        out = []
        for e in range(entities):
            kept: list[Entry] = []
            row: list[list[Any]] = []
            for w in reversed(range(windows)):
                kept = self.top([*kept, *groups[e * windows + w]])
                values = [value for _, _, value, n in kept for _ in range(min(n, self.order.n))]
                row.append(values[: self.order.n])
            out.append(row[::-1])
        return out
