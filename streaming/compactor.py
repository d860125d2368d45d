"""Compaction: tails as short as they can be. It changes no value, ever; it is only about size.

A worker compacts what it appended to most, between flushes: a tail is rewritten when it has doubled since the last time, so
that the work stays proportional to what is appended. Besides, a sweep walks slowly over all cells, and finds those that only grow old.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tidemill.blocks import Int64s
from tidemill.horizon import horizon_of
from tidemill.kernel import packed
from tidemill.kernel.bundle import Bundle
from tidemill.online.base import Advance, CellChange, CellId, EntityChange, OnlineStore, SlotId, tail_digest

#: A tail shorter than this is left alone.
LEAST = 4096
#: Cells per step, and how many cells are remembered before the smallest are forgotten (the sweep finds them).
STEP = 500
_REMEMBERED = 1_000_000


@dataclass
class Compactor:
    """Of the bundles of one worker. `cuts` gives the cuts of a bundle's source by k, for relabelling.

    `share` = (i, n): this worker is number i of n, which sweep the shards between them. `rounds`: how often it has swept its own.
    """

    online: OnlineStore
    bundles: Mapping[str, Bundle]
    cuts: Mapping[str, Mapping[int, Int64s]]
    slack: int
    least: int = LEAST
    share: tuple[int, int] = (0, 1)
    rewritten: int = 0
    rounds: int = 0
    _grown: dict[tuple[SlotId, int, str], int] = field(default_factory=dict)
    _full: dict[tuple[SlotId, int], list[str]] = field(default_factory=dict)
    _sweep: tuple[int, str | None] = (0, None)

    def note(self, advances: Sequence[Advance]) -> None:
        """Remember what was appended."""
        grown = self._grown
        for advance in advances:
            slot = advance.slot
            for table, entity, records in advance.appends:
                key = (slot, table, entity)
                size = grown.get(key, 0) + len(records)
                if size >= self.least:
                    self._full.setdefault((slot, table), []).append(entity)
                    size = 0
                grown[key] = size
        if len(grown) > _REMEMBERED:
            grown.clear()

    @property
    def due(self) -> int:
        """How many cells wait for compaction."""
        return sum(map(len, self._full.values()))

    def step(self) -> int:
        """Compact some of the cells that grew most; how many were rewritten."""
        if not self._full:
            return 0
        (slot, table), entities = self._full.popitem()
        if len(entities) > STEP:
            self._full[slot, table] = entities[STEP:]
        return self.compact(slot, table, entities[:STEP])

    def drain(self) -> int:
        """Compact all that waits."""
        done = 0
        while self._full:
            done += self.step()
        return done

    def sweep(self, shards: int) -> int:
        """Compact the next page of all cells; how many were rewritten. Calling it again and again walks round and round."""
        index, of = self.share
        places = [(SlotId(b.id, s), t) for b in self.bundles.values() for s in range(index, shards, of) for t in b.table_ids]
        at, after = self._sweep
        if at >= len(places):
            self._sweep, self.rounds = (0, None), self.rounds + 1
            return 0
        slot, table = places[at]
        entities = self.online.entities(slot, table, after=after, limit=STEP, min_tail=1)
        self._sweep = (at, entities[-1]) if len(entities) == STEP else (at + 1, None)
        return self.compact(slot, table, entities)

    def compact(self, slot: SlotId, table: int, entities: Sequence[str]) -> int:
        """Rewrite these tails of one table, where that makes them shorter; how many were."""
        bundle = self.bundles.get(slot.bundle)
        if bundle is None or not entities:
            return 0
        cells, (state,) = self.online.read([CellId(table, slot.shard, e) for e in entities], [slot])
        horizon = max(state.horizon, horizon_of(state.latest, state.arrived, self.slack))
        tails = [cell.tail if cell is not None else b"" for cell in cells]
        shorter = packed.compact(bundle.tables[bundle.table_ids.index(table)], tails, bundle.ladder, horizon, self.cuts.get(bundle.id, {}))
        changes = [
            EntityChange(e, [CellChange(table, len(tail), tail_digest(tail), new)])
            for e, tail, new in zip(entities, tails, shorter, strict=True)
            if len(new) < len(tail)
        ]
        for entity, new in zip(entities, shorter, strict=True):
            self._grown[slot, table, entity] = -len(new)
        done = sum(self.online.rewrite(slot, changes, horizon)) if changes else 0
        self.rewritten += done
        return done
