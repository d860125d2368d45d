"""The real store and the model, through the same random calls: equal answers, and equal contents after each."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.online.model_store import MemoryStore
from tidemill.online.base import Advance, CellChange, CellId, EntityChange, Heartbeat, OnlineStore, SlotId, tail_digest
from tidemill.times import BEGINNING

ENTITIES = ["", "a", "a\0", "b", "Ж", "\U0001f30a"]
PARTITIONS = [0, 1, 5]
TIMES = st.sampled_from([BEGINNING, -5, 0, 7, 2**57])
PIECES = st.binary(max_size=4)
WHICH = st.integers(0, 3)
PICK = st.data()

_fresh = itertools.count()


class StoreMachine(RuleBasedStateMachine):
    """Names of its own for each example, so that all examples may use one store."""

    def __init__(self, store: OnlineStore) -> None:
        super().__init__()
        self.store, self.model = store, MemoryStore()
        run = next(_fresh)
        self.source = f"machine-{run}"
        self.slots = [SlotId(f"{self.source}-{bundle}", shard) for bundle in "xy" for shard in (0, 9)]
        self.tables = {f"{self.source}-{bundle}": [2**62 + 4 * run + i, 4 * run + i + 1000] for i, bundle in enumerate("xy")}
        self.keys = [CellId(t, slot.shard, e) for slot in self.slots for t in self.tables[slot.bundle] for e in ENTITIES]

    def both(self, method: str, *args: Any, **named: Any) -> None:
        assert getattr(self.store, method)(*args, **named) == getattr(self.model, method)(*args, **named)

    @rule(data=PICK, slots=st.lists(WHICH, unique=True, max_size=3))
    def apply(self, data: st.DataObject, slots: list[int]) -> None:
        advances = []
        for which in slots:
            slot, partition = self.slots[which], data.draw(st.sampled_from(PARTITIONS))
            now = self.model.slots([slot])[0].positions.get(partition, 0)
            start = data.draw(st.sampled_from([now, now, now, 0, now + 1]))
            cells = st.tuples(st.sampled_from(self.tables[slot.bundle]), st.sampled_from(ENTITIES))
            appends = [(*cell, data.draw(PIECES)) for cell in data.draw(st.lists(cells, unique=True, max_size=5))]
            times = {name: data.draw(TIMES) for name in ("through", "horizon", "latest", "arrived")}
            advances.append(Advance(slot, partition, start, start + data.draw(st.integers(0, 9)), **times, appends=appends))
        self.both("apply", advances)

    def change(self, data: st.DataObject, slot: SlotId, entity: str) -> EntityChange:
        changes = []
        for table in data.draw(st.lists(st.sampled_from(self.tables[slot.bundle]), unique=True, min_size=1)):
            [cell], _ = self.model.read([CellId(table, slot.shard, entity)], [])
            k, tail = (cell.k, cell.tail) if cell else (0, b"")
            prefix = data.draw(st.integers(0, len(tail)))
            digest = tail_digest(tail[:prefix] + data.draw(st.sampled_from([b"", b"", b"", b"!"])))
            publish = data.draw(st.none() | st.tuples(st.integers(max(1, k - 1), k + 2), PIECES, PIECES))
            changes.append(CellChange(table, prefix + data.draw(st.sampled_from([0, 0, 0, 1])), digest, data.draw(PIECES), publish))
        return EntityChange(entity, changes)

    @rule(data=PICK, which=WHICH, entities=st.lists(st.sampled_from(ENTITIES), max_size=4), horizon=TIMES)
    def rewrite(self, data: st.DataObject, which: int, entities: list[str], horizon: int) -> None:
        slot = self.slots[which]
        self.both("rewrite", slot, [self.change(data, slot, entity) for entity in entities], horizon)

    @rule(data=PICK, which=WHICH, entities=st.lists(st.sampled_from(ENTITIES), max_size=3), horizon=TIMES, last=st.booleans())
    def rebuild(self, data: st.DataObject, which: int, entities: list[str], horizon: int, last: bool) -> None:
        slot = self.slots[which]
        expect = data.draw(st.sampled_from([self.model.slots([slot])[0].cursor] * 3 + [None, "other"]))
        changes = [self.change(data, slot, entity) for entity in entities]
        positions = data.draw(st.dictionaries(st.sampled_from(PARTITIONS), st.integers(0, 20))) if last else None
        cursor = None if last else data.draw(st.sampled_from(["1/a", "", "1/\0"]))
        self.both("rebuild", slot, expect, cursor, changes, horizon=horizon, positions=positions)

    @rule(which=WHICH)
    def reset(self, which: int) -> None:
        self.both("reset", self.slots[which])

    @rule(beats=st.dictionaries(st.sampled_from(PARTITIONS), st.builds(Heartbeat, st.integers(0, 9), st.integers(0, 9))))
    def heartbeat(self, beats: dict[int, Heartbeat]) -> None:
        self.both("heartbeat", self.source, beats)

    @rule(
        which=WHICH, table=st.integers(0, 1), after=st.none() | st.sampled_from(ENTITIES), limit=st.integers(1, 4), least=st.integers(0, 6)
    )
    def entities(self, which: int, table: int, after: str | None, limit: int, least: int) -> None:
        slot = self.slots[which]
        self.both("entities", slot, self.tables[slot.bundle][table], after=after, limit=limit, min_tail=least)

    @invariant()
    def holds_the_same(self) -> None:
        self.both("read", self.keys, self.slots)
        self.both("heartbeats", self.source)
        for bundle, tables in self.tables.items():
            self.both("stats", bundle, tables)
