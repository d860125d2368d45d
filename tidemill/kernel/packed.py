"""Records at work: what a reader, a compactor and a publisher do with the bytes of many entities at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tidemill import blocks
from tidemill.kernel.table import Bools, Int64s, Records, Table
from tidemill.kernel.tiles import RUNG_BITS, Ladder
from tidemill.online.base import Cell


def window_states(table: Table[Any], cells: Sequence[Cell | None], edges: Sequence[int], end: int) -> Any:
    """The state of each entity in each window `[edges[i], end)`; edges ascend. The published value and the tail count as one.

    A tile counts by its start alone: its width is such that no served window cuts it.
    """
    blobs, tails = [], 0
    for cell in cells:
        blobs.append(b"" if cell is None else cell.published)
    for cell in cells:
        tail = b"" if cell is None else cell.tail
        tails += len(tail)
        blobs.append(tail)
    entities = len(cells)
    records = table.decode(blobs if tails else blobs[:entities])
    starts = records.span >> RUNG_BITS
    window = np.searchsorted(np.array(edges), starts, side="right") - 1
    valid = (window >= 0) & (starts < end)
    if tails:
        valid &= _counted_of(records, cells)
    entity = records.entity % entities if tails else records.entity
    body = records.body
    slot = entity * len(edges) + window
    if not valid.all():
        body, slot = table.take(body, valid), slot[valid]
    return table.states(body, slot, entities, len(edges))


def _counted_of(records: Records[Any], cells: Sequence[Cell | None]) -> Bools:
    """Which records count, where the second half of `entity` are tails: those that the published value does not hold already."""
    entities = len(cells)
    counted = np.ones(len(records.entity), dtype=np.bool_)
    versions: dict[tuple[int, bytes], list[int]] = {}
    for i, cell in enumerate(cells):
        if cell is not None and cell.k and cell.tail:
            versions.setdefault((cell.k, cell.vector), []).append(entities + i)
    for (k, vector), tails in versions.items():
        if len(tails) == 1:
            rows = records.entity == tails[0]
        else:
            member = np.zeros(2 * entities, dtype=np.bool_)
            member[tails] = True
            rows = member[records.entity]
        counted[rows] = blocks.counted(records.tag[rows], k, np.frombuffer(vector, dtype="<i8"))
    return counted


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
