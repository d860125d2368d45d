"""Records at work: what a reader, a compactor and a publisher do with the bytes of many entities at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from tidemill import blocks
from tidemill.kernel.table import Bools, Int64s, Records, Table
from tidemill.kernel.tiles import RUNG_BITS, Ladder
from tidemill.online.base import EMPTY_CELL, Cell

#: A table, and the cells of some entities in it.
Column = tuple[Table[Any], Sequence[Cell | None]]


def window_states(columns: Sequence[Column], edges: Int64s, t: int) -> list[Any]:
    """Per column, the state of each entity in each window `[edges[i], t)`; edges ascend. The published value and the tail count as one.

    A tile counts by its start alone: its width is such that no served window cuts it. All columns are placed in one pass, since for
    one entity it is the number of NumPy calls that takes the time.
    """
    windows = len(edges)
    decoded = [_decoded(table, cells) for table, cells in columns]
    window = _narrowest(_joined([records.span for records, _ in decoded]), edges, t)
    lengths = [len(records.span) for records, _ in decoded]
    ends = list(accumulate(lengths))
    own = [window[b - n : b] for n, b in zip(lengths, ends, strict=True)]
    _drop_held(own, decoded, columns)
    inside = (window >= np.arange(windows)[:, None]).astype(np.int64) if len(columns[0][1]) == 1 else None
    out = []
    for (table, cells), (records, first), place, end in zip(columns, decoded, own, ends, strict=True):
        if inside is not None and len(cells) == 1:
            out.append(table.states_of_one(records.body, place, inside[:, end - len(place) : end]))
            continue
        entity = records.entity
        entity[first:] -= len(cells)
        rows = (place >= 0).nonzero()[0]
        out.append(table.states(table.take(records.body, rows), entity[rows] * windows + place[rows], len(cells), windows))
    return out


def _decoded(table: Table[Any], cells: Sequence[Cell | None]) -> tuple[Records[Any], int]:
    """All records, published ones first, and where the tails' begin. A tail's entity is counted on behind the last published one."""
    if len(cells) == 1:
        cell = cells[0] or EMPTY_CELL
        records = table.decode([cell.published + cell.tail])
        if not cell.tail:
            return records, len(records.tag)
        tail = len(cell.tail) // table.record_bytes if table.record_bytes else len(table.decode([cell.tail]).tag)
        return records, len(records.tag) - tail
    blobs = [b"" if cell is None else cell.published for cell in cells]
    tails = [b"" if cell is None else cell.tail for cell in cells]
    if not any(tails):
        records = table.decode(blobs)
        return records, len(records.tag)
    records = table.decode(blobs + tails)
    return records, int(records.entity.searchsorted(len(cells)))


def _joined(arrays: Sequence[Int64s]) -> Int64s:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _narrowest(spans: Int64s, edges: Int64s, end: int) -> Int64s:
    """The narrowest window that each tile lies in, -1 for none."""
    starts = spans >> RUNG_BITS
    window: Int64s = edges.searchsorted(starts, side="right") - 1
    window[starts >= end] = -1
    return window


def _drop_held(own: Sequence[Int64s], decoded: Sequence[tuple[Records[Any], int]], columns: Sequence[Column]) -> None:
    """Unmark the tail records that the published value of their entity holds already."""
    versions = {(c.k, c.vector) for _, cells in columns for c in cells if c is not None and c.tail}
    if len(versions) == 1:  # as usual: one pass over everything
        ((k, vector),) = versions
        if k:
            held = ~blocks.counted(_joined([r.tag[first:] for r, first in decoded]), k, np.frombuffer(vector, dtype="<i8"))
            at = 0
            for place, (_, first) in zip(own, decoded, strict=True):
                tail = place[first:]
                tail[held[at : at + len(tail)]] = -1
                at += len(tail)
        return
    for place, (records, first), (_, cells) in zip(own, decoded, columns, strict=True):
        _drop_held_by_entity(place[first:], records.tag[first:], records.entity[first:] % len(cells), cells)


def _drop_held_by_entity(window: Int64s, tags: Int64s, entity: Int64s, cells: Sequence[Cell | None]) -> None:
    """The same for the tails of one column, whose entities stand at different versions."""
    versions: dict[tuple[int, bytes], list[int]] = {}
    for i, cell in enumerate(cells):
        if cell is not None and cell.k and cell.tail:
            versions.setdefault((cell.k, cell.vector), []).append(i)
    for (k, vector), entities in versions.items():
        held = ~blocks.counted(tags, k, np.frombuffer(vector, dtype="<i8"))
        if len(entities) < len(cells):
            member = np.zeros(len(cells), dtype=np.bool_)
            member[entities] = True
            held &= member[entity]
        window[held] = -1


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
