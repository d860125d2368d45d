"""Records at work: what a reader, a compactor and a publisher do with the bytes of many entities at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tidemill import blocks
from tidemill.kernel.table import Bools, Int64s, Records, Stored, Table, Versions
from tidemill.kernel.tiles import Ladder
from tidemill.online.base import EMPTY_CELL, Cell


def stored(cells: Sequence[Cell | None]) -> Stored:
    """The cells of some entities in one table, as `Table.states` takes them."""
    if len(cells) == 1:
        cell = cells[0] or EMPTY_CELL
        return Stored((cell.published, cell.tail), _one_version(1, cell.k, cell.vector))
    blobs: list[bytes] = []
    known: dict[tuple[int, bytes], int] = {}
    of = []
    for k, vector, published, tail in (cell or EMPTY_CELL for cell in cells):
        blobs += (published, tail)
        of.append(known.setdefault((k, vector), len(known)))
    if len(known) == 1:
        return Stored(blobs, _one_version(len(cells), *next(iter(known))))
    widest = max((len(vector) for _, vector in known), default=0) // 8
    cuts = np.zeros((len(known), widest), dtype=np.int64)  # absent is 0: nothing is held
    for cut, (_, vector) in zip(cuts, known, strict=True):
        cut[: len(vector) // 8] = np.frombuffer(vector, dtype="<i8")
    return Stored(blobs, Versions(np.array(of, dtype=np.int64), np.array([k for k, _ in known], dtype=np.int64), cuts))


@lru_cache(maxsize=256)
def _one_version(entities: int, k: int, vector: bytes) -> Versions:
    """All at the same version, as usual; it changes once per publication."""
    cut = np.frombuffer(vector, dtype="<i8").astype(np.int64).reshape(1, -1)
    return Versions(np.zeros(entities, dtype=np.int64), np.array([k]), cut)


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
    from tidemill.kernel import windowed  # Numba: what only streams does without it

    records = table.decode(tails)
    return table.encode(_filtered(table, records, windowed.counted(records.tag, k, vector)), len(tails))


def _filtered(table: Table[Any], records: Records[Any], kept: Bools | None) -> Records[Any]:
    if kept is None or kept.all():
        return records
    return Records(records.entity[kept], records.span[kept], records.tag[kept], table.take(records.body, kept))
