"""The protocol of online stores in the fewest words: one process, one thread, everything in dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tidemill.online.base import (
    EMPTY_CELL,
    Advance,
    Cell,
    CellChange,
    CellId,
    EntityChange,
    Heartbeat,
    SlotId,
    SlotState,
    StoreStats,
    tail_digest,
)
from tidemill.times import BEGINNING


class MemoryStore:
    """An `OnlineStore` for tests, and what the real ones are compared with. Its three dictionaries are open to look at."""

    def __init__(self) -> None:
        self.states: dict[SlotId, SlotState] = {}
        self.cells: dict[SlotId, dict[tuple[int, str], Cell]] = {}
        self.beats: dict[tuple[str, int], Heartbeat] = {}

    def slots(self, slots: Sequence[SlotId]) -> list[SlotState]:
        return [self.states.get(slot, SlotState()) for slot in slots]

    def apply(self, advances: Sequence[Advance]) -> list[bool]:
        return [self._advance(advance) for advance in advances]

    def _advance(self, advance: Advance) -> bool:
        [state] = self.slots([advance.slot])
        if state.cursor is not None or state.positions.get(advance.partition, 0) != advance.start:
            return False
        for table, entity, data in advance.appends:
            cell = self._cell(advance.slot, table, entity)
            self._set(advance.slot, table, entity, cell._replace(tail=cell.tail + data))
        through = max(state.through.get(advance.partition, BEGINNING), advance.through)
        self.states[advance.slot] = SlotState(
            positions={**state.positions, advance.partition: advance.end},
            through={**state.through, advance.partition: through} if through > BEGINNING else state.through,
            horizon=max(state.horizon, advance.horizon),
            latest=max(state.latest, advance.latest),
            arrived=max(state.arrived, advance.arrived),
        )
        return True

    def read(self, cells: Sequence[CellId], slots: Sequence[SlotId]) -> tuple[list[Cell | None], list[SlotState]]:
        everything = {
            CellId(table, slot.shard, entity): cell for slot, held in self.cells.items() for (table, entity), cell in held.items()
        }
        return [everything.get(cell) for cell in cells], self.slots(slots)

    def rewrite(self, slot: SlotId, changes: Sequence[EntityChange], horizon: int) -> list[bool]:
        done = [self._change(slot, change) for change in changes]
        if any(done):
            [state] = self.slots([slot])
            self.states[slot] = replace(state, horizon=max(state.horizon, horizon))
        return done

    def _change(self, slot: SlotId, change: EntityChange) -> bool:
        if not all(self._fits(self._cell(slot, cell.table, change.entity), cell) for cell in change.cells):
            return False
        for cell in change.cells:
            was = self._cell(slot, cell.table, change.entity)
            k, vector, published = cell.publish or (was.k, was.vector, was.published)
            self._set(slot, cell.table, change.entity, Cell(k, vector, published, cell.tail + was.tail[cell.prefix :]))
        return True

    @staticmethod
    def _fits(cell: Cell, change: CellChange) -> bool:
        same = len(cell.tail) >= change.prefix and tail_digest(cell.tail[: change.prefix]) == change.digest
        return same and (change.publish is None or change.publish[0] > cell.k)

    def rebuild(
        self,
        slot: SlotId,
        expect: str | None,
        cursor: str | None,
        changes: Sequence[EntityChange],
        *,
        horizon: int,
        positions: Mapping[int, int] | None = None,
    ) -> bool:
        [state] = self.slots([slot])
        if state.cursor != expect or (expect is None and state.positions):
            return False
        for change in changes:
            self._change(slot, change)
        raised = {p: max(offset, state.positions.get(p, 0)) for p, offset in (positions or {}).items()}
        self.states[slot] = replace(state, positions={**state.positions, **raised}, horizon=max(state.horizon, horizon), cursor=cursor)
        return True

    def reset(self, slot: SlotId) -> None:
        self.states[slot] = SlotState(horizon=self.slots([slot])[0].horizon)
        self.cells.pop(slot, None)

    def entities(self, slot: SlotId, table: int, *, after: str | None = None, limit: int = 1000, min_tail: int = 0) -> list[str]:
        found = (e for (t, e), cell in self.cells.get(slot, {}).items() if t == table and len(cell.tail) >= min_tail)
        return sorted(e for e in found if after is None or e > after)[:limit]

    def heartbeat(self, source: str, beats: Mapping[int, Heartbeat]) -> None:
        for partition, beat in beats.items():
            if beat.at >= self.beats.get((source, partition), beat).at:
                self.beats[source, partition] = beat

    def heartbeats(self, source: str) -> dict[int, Heartbeat]:
        return {partition: beat for (of, partition), beat in self.beats.items() if of == source}

    def stats(self, bundle: str, tables: Sequence[int]) -> StoreStats:
        counted = [c for slot, held in self.cells.items() if slot.bundle == bundle for (t, _), c in held.items() if t in tables]
        return StoreStats(len(counted), sum(len(cell.vector) + len(cell.published) + len(cell.tail) for cell in counted))

    def close(self) -> None:
        pass

    def _cell(self, slot: SlotId, table: int, entity: str) -> Cell:
        return self.cells.get(slot, {}).get((table, entity), EMPTY_CELL)

    def _set(self, slot: SlotId, table: int, entity: str, cell: Cell) -> None:
        held = self.cells.setdefault(slot, {})
        held.pop((table, entity), None)
        if cell.k or cell.tail:
            held[table, entity] = cell
