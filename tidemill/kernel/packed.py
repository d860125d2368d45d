"""Records at work: what a reader, a compactor and a publisher do with the bytes of many entities at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tidemill import blocks
from tidemill.kernel.table import Bools, Int64s, Records, Table
from tidemill.kernel.tiles import RUNG_BITS, Ladder
from tidemill.online.base import EMPTY_CELL, Cell


def window_states(table: Table[Any], cells: Sequence[Cell | None], edges: Int64s, end: int) -> Any:
    """The state of each entity in each window `[edges[i], end)`; edges ascend. The published value and the tail count as one.

    A tile counts by its start alone: its width is such that no served window cuts it.
    """
    entities, windows = len(cells), len(edges)
    if entities == 1:
        return _of_one(table, cells[0] or EMPTY_CELL, edges, end)
    blobs = [b"" if cell is None else cell.published for cell in cells]
    tails = [b"" if cell is None else cell.tail for cell in cells]
    has_tails = any(tails)
    records = table.decode(blobs + tails if has_tails else blobs)
    window = _narrowest(records, edges, end)
    if has_tails:
        first = int(records.entity.searchsorted(entities))  # published records come first
        _drop_held(window, records, first, cells)
    rows = (window >= 0).nonzero()[0]
    slot = records.entity[rows] % entities * windows + window[rows]
    return table.states(table.take(records.body, rows), slot, entities, windows)


def _of_one(table: Table[Any], cell: Cell, edges: Int64s, end: int) -> Any:
    """The same for a single entity, which is what a request in a hurry asks for."""
    records = table.decode([cell.published + cell.tail])
    window = _narrowest(records, edges, end)
    if cell.k and cell.tail:
        tail = len(cell.tail) // table.record_bytes if table.record_bytes else len(table.decode([cell.tail]).tag)
        first = len(records.tag) - tail
        window[first:][~blocks.counted(records.tag[first:], cell.k, np.frombuffer(cell.vector, dtype="<i8"))] = -1
    return table.states_of_one(records.body, window, len(edges))


def _narrowest(records: Records[Any], edges: Int64s, end: int) -> Int64s:
    """The narrowest window that each record lies in, -1 for none."""
    starts = records.span >> RUNG_BITS
    window: Int64s = edges.searchsorted(starts, side="right") - 1
    window[starts >= end] = -1
    return window


def _drop_held(window: Int64s, records: Records[Any], first: int, cells: Sequence[Cell | None]) -> None:
    """Unmark the tail records (those from `first` on) that the published value of their entity holds already."""
    versions: dict[tuple[int, bytes], list[int]] = {}
    for i, cell in enumerate(cells):
        if cell is not None and cell.k and cell.tail:
            versions.setdefault((cell.k, cell.vector), []).append(i)
    tags = records.tag[first:]
    for (k, vector), entities in versions.items():
        held = ~blocks.counted(tags, k, np.frombuffer(vector, dtype="<i8"))
        if len(entities) < len(cells):
            member = np.zeros(len(cells), dtype=np.bool_)
            member[entities] = True
            held &= member[records.entity[first:] - len(cells)]
        window[first:][held] = -1


def compact(table: Table[Any], tails: Sequence[bytes], ladder: Ladder, horizon: int, cuts: Mapping[int, Int64s]) -> list[bytes]:
    """Tails as short as they can be: tags relabelled by the cuts, tiles widened for `horizon`, equal ones merged, expired ones dropped."""
    records = table.decode(tails)
    spans = ladder.widen(records.span, horizon)
    tags = blocks.relabel(records.tag, cuts) if cuts else records.tag
    widened: Records[Any] = Records(records.entity, spans, tags, records.body)
    kept = ladder.keep(spans)
    return table.encode(table.merge_records(_filtered(table, widened, kept)), len(tails))


def trim(table: Table[Any], tails: Sequence[bytes], k: int, vector: Int64s) -> list[bytes]:
    """Tails without what version `k`, with the cut `vector`, holds."""
    records = table.decode(tails)
    return table.encode(_filtered(table, records, blocks.counted(records.tag, k, vector)), len(tails))


def _filtered(table: Table[Any], records: Records[Any], kept: Bools | None) -> Records[Any]:
    if kept is None or kept.all():
        return records
    return Records(records.entity[kept], records.span[kept], records.tag[kept], table.take(records.body, kept))
