"""The online store in one SQLite file: many processes read it while several write in turn (WAL).

Every call is one transaction: one snapshot where it reads, all or nothing where it writes. So more is atomic than the protocol asks for.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Final

from tidemill.online.base import Advance, Cell, CellId, EntityChange, Heartbeat, SlotId, SlotState, StoreStats, tail_digest
from tidemill.online.sqlite_connection import SqliteConnections
from tidemill.times import BEGINNING

# Blobs joined by || become text; the bytes stay the same (the database is UTF-8, and SQLite does not look), only the type has to go back.
_APPEND: Final = """insert into cell (tbl, shard, entity, tail) values (?, ?, ?, ?)
    on conflict do update set tail = cast(tail || excluded.tail as blob)"""
_SET_TAIL: Final = "insert into cell (tbl, shard, entity, tail) values (?, ?, ?, ?) on conflict do update set tail = excluded.tail"
_PUBLISH: Final = """insert or replace into published (cell, k, vector, value)
    select id, ?, ?, ? from cell where tbl = ? and shard = ? and entity = ?"""
_REMOVE: Final = "delete from cell where tbl = ? and shard = ? and entity = ?"
_SLOT: Final = "select horizon, latest, arrived, cursor, positions, through, tables from slot where bundle = ? and shard = ?"
_SET_SLOT: Final = "insert or replace into slot values (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_BEAT: Final = """insert into heartbeat values (?, ?, ?, ?)
    on conflict do update set log_end = excluded.log_end, at = excluded.at where excluded.at >= at"""

_PAIR: Final = struct.Struct("<qq")
_MOST_KEYS: Final = 256  # per statement


class SqliteStore:
    """The `OnlineStore` in the SQLite file `path`, which is made, with its folder, at first use. `timeout` in seconds, for locks.

    Any number of processes and threads may use one file, on a local disk; one object may be used by all threads of a process,
    and across `fork`.
    """

    def __init__(self, path: Path | str, *, timeout: float = 30.0) -> None:
        self._connections = SqliteConnections(Path(path), timeout)

    def slots(self, slots: Sequence[SlotId]) -> list[SlotState]:
        """See `OnlineStore.slots`."""
        with self._connections.reading() as db:
            return _states(db, slots)

    def read(self, cells: Sequence[CellId], slots: Sequence[SlotId]) -> tuple[list[Cell | None], list[SlotState]]:
        """See `OnlineStore.read`. All cells and slots of a call are one snapshot."""
        with self._connections.reading() as db:
            rows = _find(db, _cells_query, cells)
            states = _states(db, slots)
        return [None if tail is None else Cell(k or 0, vector or b"", value or b"", tail) for k, vector, value, tail in rows], states

    def apply(self, advances: Sequence[Advance]) -> list[bool]:
        """See `OnlineStore.apply`. All advances of a call are one transaction."""
        if not advances:
            return []
        with self._connections.writing() as db:
            return [_advance(db, advance) for advance in advances]

    def rewrite(self, slot: SlotId, changes: Sequence[EntityChange], horizon: int) -> list[bool]:
        """See `OnlineStore.rewrite`. All changes of a call are one transaction."""
        if not changes:
            return []
        with self._connections.writing() as db:
            done = _change(db, slot, changes)
            if any(done):
                state, tables = _load(db, slot)
                _save(db, slot, replace(state, horizon=max(state.horizon, horizon)), tables | _tables(changes))
        return done

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
        """See `OnlineStore.rebuild`."""
        with self._connections.writing() as db:
            state, tables = _load(db, slot)
            if state.cursor != expect or (expect is None and state.positions):
                return False
            _change(db, slot, changes)
            moved = _highest(state.positions, positions or {})
            after = replace(state, positions=moved, horizon=max(state.horizon, horizon), cursor=cursor)
            _save(db, slot, after, tables | _tables(changes))
        return True

    def reset(self, slot: SlotId) -> None:
        """See `OnlineStore.reset`. Only the horizon stays: `latest`, `arrived` and `through` are of what was applied, and go."""
        with self._connections.writing() as db:
            state, tables = _load(db, slot)
            if state == SlotState() and not tables:
                return
            for table in tables:
                db.execute("delete from published where cell in (select id from cell where tbl = ? and shard = ?)", (table, slot.shard))
                db.execute("delete from cell where tbl = ? and shard = ?", (table, slot.shard))
            _save(db, slot, SlotState(horizon=state.horizon), frozenset())

    def entities(self, slot: SlotId, table: int, *, after: str | None = None, limit: int = 1000, min_tail: int = 0) -> list[str]:
        """See `OnlineStore.entities`."""
        where = "entity >= ''" if after is None else "entity > ?"
        if min_tail > 0:  # else the index alone answers
            where += " and length(tail) >= ?"
        given = [table, slot.shard, *([] if after is None else [after]), *([min_tail] if min_tail > 0 else []), limit]
        with self._connections.reading() as db:
            found = db.execute(f"select entity from cell where tbl = ? and shard = ? and {where} order by entity limit ?", given)
            return [entity for (entity,) in found]

    def heartbeat(self, source: str, beats: Mapping[int, Heartbeat]) -> None:
        """See `OnlineStore.heartbeat`."""
        if not beats:
            return
        with self._connections.writing() as db:
            db.executemany(_BEAT, [(source, partition, beat.offset, beat.at) for partition, beat in beats.items()])

    def heartbeats(self, source: str) -> dict[int, Heartbeat]:
        """See `OnlineStore.heartbeats`."""
        with self._connections.reading() as db:
            rows = db.execute("select partition, log_end, at from heartbeat where source = ? order by partition", (source,))
            return {partition: Heartbeat(log_end, at) for partition, log_end, at in rows}

    def stats(self, bundle: str, tables: Sequence[int]) -> StoreStats:
        """See `OnlineStore.stats`. Reads every cell's row: for people who ask, not for every request."""
        cells = size = 0
        with self._connections.reading() as db:
            for table in set(tables):
                for query in (
                    "select count(*), total(length(tail)) from cell where tbl = ?",
                    "select 0, total(length(vector) + length(value)) from published join cell on cell.id = published.cell where tbl = ?",
                ):
                    found, length = db.execute(query, (table,)).fetchone()
                    cells, size = cells + found, size + int(length)
        return StoreStats(cells, size)

    def close(self) -> None:
        """See `OnlineStore.close`. Waits for calls that other threads are in."""
        self._connections.close()


def _find(db: sqlite3.Connection, query: Callable[[int], str], keys: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """One row per key, in order: nulls where there is none. A statement for many keys takes half the time of one per key.

    A left join of a list keeps the list's order. The list is padded with null keys, which find nothing, so that few statements
    are ever prepared, and each stays in the connection's cache.
    """
    out: list[tuple[Any, ...]] = []
    for first in range(0, len(keys), _MOST_KEYS):
        some = keys[first : first + _MOST_KEYS]
        n = len(some)
        padded = n if n < 16 else -(-n // 16) * 16
        given = list(chain.from_iterable(some))
        given += [None] * (len(some[0]) * (padded - n))
        rows = db.execute(query(padded), given).fetchall()
        out += rows[:n]
    return out


@cache
def _cells_query(n: int) -> str:
    return f"""with q (t, s, e) as (values {", ".join(["(?, ?, ?)"] * n)}) select k, vector, value, tail
        from q left join cell on tbl = t and shard = s and entity = e left join published on cell = id"""


@cache
def _tails_query(n: int) -> str:
    return f"""with q (t, s, e) as (values {", ".join(["(?, ?, ?)"] * n)}) select ifnull(k, 0), ifnull(tail, x'')
        from q left join cell on tbl = t and shard = s and entity = e left join published on cell = id"""


@cache
def _slots_query(n: int) -> str:
    return f"""with q (b, s) as (values {", ".join(["(?, ?)"] * n)}) select horizon, latest, arrived, cursor, positions, through
        from q left join slot on bundle = b and shard = s"""


def _states(db: sqlite3.Connection, slots: Sequence[SlotId]) -> list[SlotState]:
    return [_state(*row) for row in _find(db, _slots_query, slots)]


@lru_cache(maxsize=4096)
def _state(horizon: int, latest: int, arrived: int, cursor: str | None, positions: bytes | None, through: bytes) -> SlotState:
    """A row's state; requests between two flushes read the same rows again and again, so they share it."""
    return SlotState() if positions is None else SlotState(_unpack(positions), _unpack(through), horizon, latest, arrived, cursor)


def _load(db: sqlite3.Connection, slot: SlotId) -> tuple[SlotState, frozenset[int]]:
    """A slot's state, and the tables that it may have cells in."""
    row = db.execute(_SLOT, slot).fetchone()
    if row is None:
        return SlotState(), frozenset()
    tables: bytes = row[-1]
    return _state(*row[:-1]), frozenset(struct.unpack(f"<{len(tables) // 8}q", tables))


def _save(db: sqlite3.Connection, slot: SlotId, state: SlotState, tables: frozenset[int]) -> None:
    packed = struct.pack(f"<{len(tables)}q", *sorted(tables))
    positions, through = _pack(state.positions), _pack(state.through)
    db.execute(_SET_SLOT, (*slot, state.horizon, state.latest, state.arrived, state.cursor, positions, through, packed))


def _highest(old: Mapping[int, int], new: Mapping[int, int]) -> dict[int, int]:
    return {**old, **{key: max(value, old.get(key, value)) for key, value in new.items()}}


def _advance(db: sqlite3.Connection, advance: Advance) -> bool:
    state, tables = _load(db, advance.slot)
    if state.cursor is not None or state.positions.get(advance.partition, 0) != advance.start:
        return False
    if advance.appends:
        shard = advance.slot.shard
        # In key order, neighbours share pages that are at hand. An append of nothing must not leave an empty cell.
        db.executemany(_APPEND, [(table, shard, entity, data) for table, entity, data in sorted(advance.appends) if data])
        tables |= {table for table, _, _ in advance.appends}
    moved = SlotState(
        positions={**state.positions, advance.partition: advance.end},
        through=_highest(state.through, {advance.partition: advance.through} if advance.through > BEGINNING else {}),
        horizon=max(state.horizon, advance.horizon),
        latest=max(state.latest, advance.latest),
        arrived=max(state.arrived, advance.arrived),
    )
    _save(db, advance.slot, moved, tables)
    return True


def _change(db: sqlite3.Connection, slot: SlotId, changes: Sequence[EntityChange]) -> list[bool]:
    """Make the changes that fit: per entity, all of its cells or none."""
    keys = [CellId(cell.table, slot.shard, change.entity) for change in changes for cell in change.cells]
    before: dict[CellId, tuple[int, bytes]] = {key: (k, tail) for key, (k, tail) in zip(keys, _find(db, _tails_query, keys), strict=True)}
    after: dict[CellId, tuple[int, bytes]] = {}
    published: dict[CellId, tuple[int, bytes, bytes]] = {}
    done = []
    for change in changes:
        made: dict[CellId, tuple[int, bytes]] = {}
        for cell in change.cells:
            key = CellId(cell.table, slot.shard, change.entity)
            k, tail = after.get(key) or before[key]
            prefix = tail[: cell.prefix]
            if len(prefix) < cell.prefix or tail_digest(prefix) != cell.digest or (cell.publish is not None and cell.publish[0] <= k):
                break
            made[key] = (k if cell.publish is None else cell.publish[0], cell.tail + tail[cell.prefix :])
        else:
            after |= made
            published |= {CellId(c.table, slot.shard, change.entity): c.publish for c in change.cells if c.publish is not None}
        done.append(len(made) == len(change.cells))
    _write(db, after, published)
    return done


def _write(db: sqlite3.Connection, cells: Mapping[CellId, tuple[int, bytes]], published: Mapping[CellId, tuple[int, bytes, bytes]]) -> None:
    kept, gone = [], []
    for key in sorted(cells):
        k, tail = cells[key]
        if k or tail:
            kept.append((*key, tail))
        else:
            gone.append(key)
    db.executemany(_SET_TAIL, kept)
    db.executemany(_PUBLISH, [(*published[key], *key) for key in sorted(published)])
    db.executemany(_REMOVE, gone)


def _tables(changes: Iterable[EntityChange]) -> set[int]:
    return {cell.table for change in changes for cell in change.cells}


def _unpack(raw: bytes) -> dict[int, int]:
    return dict(_PAIR.iter_unpack(raw))


def _pack(values: Mapping[int, int]) -> bytes:
    return b"".join(_PAIR.pack(key, value) for key, value in values.items())
