"""The online store in Redis, one server or a cluster.

Each shard of the project is one hash tag, `{<prefix>.<shard>}`: the states, indexes and cells of all bundles in it lie in one slot of
a cluster. So a request for one entity, over any number of views, is one MGET, which is one snapshot. What must be atomic beyond that
is a script: see `redis_scripts`, which also says what the keys hold.
"""

from __future__ import annotations

import re
import struct
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from tidemill.errors import StoreError
from tidemill.online import redis_scripts as scripts
from tidemill.online.base import Advance, Cell, CellId, EntityChange, Heartbeat, SlotId, SlotState, StoreStats
from tidemill.online.redis_connection import Command, RedisConnections

_HEAD = struct.Struct("<BqII")
_STATE = re.compile(r"1 (-?\d+) (-?\d+) (-?\d+) (\S*) (\S*) ([-+])(.*)", re.DOTALL)
#: A script takes at most so many entities, and about so many bytes: the server answers nobody else meanwhile.
_ENTITIES, _BYTES = 64, 1 << 18
#: How far along an index one script looks.
_STRETCH = 1000


class RedisStore:
    """`OnlineStore` on Redis 7.0 or newer. See `RedisConnections` for the URL. Any number of processes and threads may use one store."""

    def __init__(self, url: str) -> None:
        self._connections = RedisConnections(url)
        self._prefix = self._connections.prefix
        self._noted: set[SlotId] = set()

    def slots(self, slots: Sequence[SlotId]) -> list[SlotState]:
        """See `OnlineStore.slots`."""
        return self.read([], slots)[1]

    def read(self, cells: Sequence[CellId], slots: Sequence[SlotId]) -> tuple[list[Cell | None], list[SlotState]]:
        """See `OnlineStore.read`. The cells and slots of one shard are one snapshot."""
        if not cells and not slots:
            return [], []
        keys: dict[int, list[str]] = {}
        for bundle, shard in slots:
            keys.setdefault(shard, []).append(f"{{{self._prefix}.{shard}}}s{bundle}")
        for table, shard, entity in cells:
            keys.setdefault(shard, []).append(f"{{{self._prefix}.{shard}}}c{_name(table)}:{entity}")
        answers = self._connections.run([Command(k[0], ("MGET", *k)) for k in keys.values()])
        found = {shard: iter(values) for shard, values in zip(keys, answers, strict=True)}
        states = [_state(next(found[shard])) for _, shard in slots]
        return [None if (raw := next(found[shard])) is None else _cell(raw) for _, shard, _ in cells], states

    def apply(self, advances: Sequence[Advance]) -> list[bool]:
        """See `OnlineStore.apply`. Each advance is one script."""
        if not advances:
            return []
        answers = self._connections.run([self._apply(a) for a in advances])
        done = [answer == 1 for answer in answers]
        self._note(a.slot for a, ok in zip(advances, done, strict=True) if ok)
        return done

    def _apply(self, a: Advance) -> Command:
        numbers = (a.partition, a.start, a.end, a.through, a.horizon, a.latest, a.arrived)
        appends = chain.from_iterable((_name(table), entity, data) for table, entity, data in a.appends if data)
        return self._script(scripts.APPLY, a.slot, *numbers, *appends)

    def rewrite(self, slot: SlotId, changes: Sequence[EntityChange], horizon: int) -> list[bool]:
        """See `OnlineStore.rewrite`. Many changes are several scripts."""
        if not changes:
            return []
        commands = [self._script(scripts.REWRITE, slot, horizon, *_changes(some)) for some in _stretches(changes)]
        done = [answer == 1 for answers in self._connections.run(commands) for answer in answers]
        self._note([slot] if any(done) else [])
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
        moved = ",".join(f"{p}:{offset}" for p, offset in (positions or {}).items())
        command = self._script(scripts.REBUILD, slot, horizon, _text(expect), _text(cursor), moved, *_changes(changes))
        [answer] = self._connections.run([command])
        self._note([slot] if answer == 1 else [])
        return bool(answer == 1)

    def reset(self, slot: SlotId) -> None:
        """See `OnlineStore.reset`."""
        self._connections.run([self._script(scripts.RESET, slot)])

    def entities(self, slot: SlotId, table: int, *, after: str | None = None, limit: int = 1000, min_tail: int = 0) -> list[str]:
        """See `OnlineStore.entities`."""
        found: list[str] = []
        for entity, _, _, tail in self._lengths(slot, table, after):
            if tail >= min_tail:
                found.append(entity)
                if len(found) == limit:
                    break
        return found

    def heartbeat(self, source: str, beats: Mapping[int, Heartbeat]) -> None:
        """See `OnlineStore.heartbeat`."""
        if beats:
            key = self._beats(source)
            given = chain.from_iterable((p, beat.offset, beat.at) for p, beat in beats.items())
            self._connections.run([Command(key, (1, key, *given), scripts.BEAT)])

    def heartbeats(self, source: str) -> dict[int, Heartbeat]:
        """See `OnlineStore.heartbeats`."""
        key = self._beats(source)
        [answer] = self._connections.run([Command(key, ("HGETALL", key))])
        pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
        return dict(sorted((int(p), Heartbeat(*map(int, value.split(b":")))) for p, value in pairs))

    def stats(self, bundle: str, tables: Sequence[int]) -> StoreStats:
        """See `OnlineStore.stats`. Asks for the size of every cell: for people who ask, not for every request."""
        key = self._shards(bundle)
        [shards] = self._connections.run([Command(key, ("SMEMBERS", key))])
        sizes = [s for shard in shards for table in set(tables) for s in self._lengths(SlotId(bundle, int(shard)), table, None)]
        return StoreStats(len(sizes), sum(vector + value + tail for _, vector, value, tail in sizes))

    def close(self) -> None:
        """See `OnlineStore.close`."""
        self._connections.close()

    # ---- keys -------------------------------------------------------------------------------------------------------------------

    def _script(self, script: scripts.Script, slot: SlotId, *arguments: Any) -> Command:
        tag = f"{{{self._prefix}.{slot.shard}}}"
        state = f"{tag}s{slot.bundle}"
        return Command(state, (2, state, f"{tag}i{slot.bundle}", f"{tag}c", *arguments), script)

    def _beats(self, source: str) -> str:
        return f"{self._prefix}.beats:{source}"

    def _shards(self, bundle: str) -> str:
        return f"{self._prefix}.shards:{bundle}"

    def _note(self, slots: Any) -> None:
        """Remember which shards a bundle has anything in: for `stats` alone, so it need not be atomic."""
        new = [slot for slot in slots if slot not in self._noted]
        if new:
            keys = [self._shards(slot.bundle) for slot in new]
            self._connections.run([Command(key, ("SADD", key, slot.shard)) for key, slot in zip(keys, new, strict=True)])
            self._noted.update(new)

    def _lengths(self, slot: SlotId, table: int, after: str | None) -> Iterator[tuple[str, int, int, int]]:
        """Per entity with a cell in the table, in order: the lengths of vector, value and tail."""
        begin = "-" if after is None else f"({after}"
        while True:
            [found] = self._connections.run([self._script(scripts.LENGTHS, slot, _name(table), begin, _STRETCH)])
            for name, vector, value, tail in found:
                if tail >= 0:
                    yield name.decode(), vector, value, tail
            if len(found) < _STRETCH:
                return
            begin = f"({found[-1][0].decode()}"


@lru_cache(maxsize=4096)
def _name(table: int) -> str:
    """A table's id as eleven characters."""
    return urlsafe_b64encode(table.to_bytes(8, "big")).rstrip(b"=").decode()


@lru_cache(maxsize=4096)
def _state(raw: bytes | None) -> SlotState:
    """A slot's state; requests between two flushes read the same text again and again, so they share it."""
    if raw is None:
        return SlotState()
    found = _STATE.fullmatch(raw.decode())
    if found is None:
        raise StoreError(f"Redis holds a slot of unknown form ({raw[:40]!r}): use the version of tidemill that wrote it, or another prefix")
    horizon, latest, arrived, _, listed, sign, cursor = found.groups()
    places = [place.split(":") for place in listed.split(",") if place]
    positions = {int(p): int(offset) for p, offset, _ in places}
    through = {int(p): int(t) for p, _, t in places if t}
    return SlotState(positions, through, int(horizon), int(latest), int(arrived), cursor if sign == "+" else None)


def _cell(raw: bytes) -> Cell:
    if raw[0] == 0:
        return Cell(0, b"", b"", raw[1:])
    _, k, vector, value = _HEAD.unpack_from(raw)
    a = _HEAD.size + vector
    b = a + value
    return Cell(k, raw[_HEAD.size : a], raw[a:b], raw[b:])


def _text(cursor: str | None) -> str:
    return "-" if cursor is None else f"+{cursor}"


def _changes(changes: Sequence[EntityChange]) -> list[Any]:
    """As scripts take them."""
    out: list[Any] = [len(changes)]
    for change in changes:
        out += [change.entity, len(change.cells)]
        for cell in change.cells:
            k, vector, value = cell.publish or ("", b"", b"")
            out += [_name(cell.table), cell.prefix, cell.digest.hex(), cell.tail, k, vector, value]
    return out


def _stretches(changes: Sequence[EntityChange]) -> Iterator[Sequence[EntityChange]]:
    first = size = 0
    for i, change in enumerate(changes):
        size += sum(len(c.tail) + (len(c.publish[2]) if c.publish else 0) for c in change.cells)
        if i + 1 - first == _ENTITIES or size >= _BYTES:
            yield changes[first : i + 1]
            first, size = i + 1, 0
    if first < len(changes):
        yield changes[first:]
