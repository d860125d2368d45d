"""What the processes of the fault tests run. They count: at every position, each entity's numbers add up to that position."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator

from tidemill.online.base import Advance, Cell, CellChange, CellId, EntityChange, Heartbeat, OnlineStore, SlotId, tail_digest

Connect = Callable[[], OnlineStore]

SLOT = SlotId("counting", 3)
TABLE = 77
ENTITIES = ("", "JFK", "LGA", "Zürich\0")
CELLS = [CellId(TABLE, SLOT.shard, entity) for entity in ENTITIES]


def numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def total(cell: Cell | None) -> int:
    if cell is None:
        return 0
    raw = cell.published + cell.tail
    return sum(struct.unpack(f"<{len(raw) // 8}q", raw))


def patiently() -> Iterator[None]:
    """For loops that wait for another process: on and on, but not for ever."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        yield
    raise AssertionError("another process did not get there within 60 s")


def meet(store: OnlineStore, me: int, of: int) -> None:
    """Wait until all `of` processes are here; else the first would be done before the last has started."""
    store.heartbeat("meeting", {me: Heartbeat(0, 1)})
    for _ in patiently():
        if len(store.heartbeats("meeting")) >= of:
            return


def position(store: OnlineStore) -> int:
    [state] = store.slots([SLOT])
    return state.positions.get(0, 0)


def count_one(store: OnlineStore, at: int) -> bool:
    [done] = store.apply([Advance(SLOT, 0, at, at + 1, appends=[(TABLE, entity, numbers(1)) for entity in ENTITIES])])
    return done


def assert_consistent(store: OnlineStore) -> int:
    """The position, after a look at whether all cells stand exactly there."""
    cells, [state] = store.read(CELLS, [SLOT])
    at = state.positions.get(0, 0)
    assert [total(cell) for cell in cells] == [at] * len(cells)
    return at


def write_until(connect: Connect, end: int, me: int = 0, of: int = 1) -> int:
    """Count up to `end`, whoever else does, too; how many steps were this process's."""
    store, mine = connect(), 0
    meet(store, me, of)
    for _ in patiently():
        if (at := position(store)) >= end:
            break
        mine += count_one(store, at)
    store.close()
    return mine


def write_for_ever(connect: Connect) -> None:
    store = connect()
    for _ in patiently():
        count_one(store, position(store))


def compact_until(connect: Connect, end: int, me: int = 0, of: int = 1) -> int:
    """Compact, and publish each second time, until the count is at `end`; how many entities were changed."""
    store, changed = connect(), 0
    meet(store, me, of)
    for turn, _ in enumerate(patiently()):
        if position(store) >= end:
            break
        cells, _ = store.read(CELLS, [])
        changes = [EntityChange(e, [_merged(c, publish=turn % 2 == 0)]) for e, c in zip(ENTITIES, cells, strict=True) if c is not None]
        changed += sum(store.rewrite(SLOT, changes, horizon=turn))
    store.close()
    return changed


def _merged(cell: Cell, *, publish: bool) -> CellChange:
    prefix, digest = len(cell.tail), tail_digest(cell.tail)
    if publish:
        return CellChange(TABLE, prefix, digest, b"", (cell.k + 1, numbers(cell.k), numbers(total(cell))))
    return CellChange(TABLE, prefix, digest, numbers(total(cell._replace(published=b""))))


def watch_until(connect: Connect, end: int, me: int = 0, of: int = 1) -> int:
    """Look at values and positions until the count is at `end`, and never backwards; how many positions were seen."""
    store, seen = connect(), [-1]
    meet(store, me, of)
    for _ in patiently():
        if (at := assert_consistent(store)) >= end:
            break
        assert at >= seen[-1]
        if at > seen[-1]:
            seen.append(at)
    store.close()
    return len(seen)
