"""A Redis Cluster that moves a slot to another node, in the middle of which scripts cannot reach all of its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.servers.redis import RedisClusterServers
from tidemill.errors import StoreUnavailableError
from tidemill.online.base import Advance, Cell, CellChange, CellId, EntityChange, SlotId, tail_digest
from tidemill.online.redis import RedisStore

SLOT = SlotId("b", 0)
OLD, NEW = CellId(1, 0, "old"), CellId(1, 0, "new")


class Moving:
    """The cluster, and the slot of shard 0, which `begin` starts to move and `end` has moved."""

    def __init__(self, servers: RedisClusterServers) -> None:
        self.store = RedisStore(f"{servers.url}&timeout=2")
        self._servers = servers
        self._nodes = [redis.Redis(port=n.port) for n in servers.nodes]
        self._slot: Any = self._nodes[0].execute_command("CLUSTER", "KEYSLOT", "{tm.0}sb")
        self._ids = [n.execute_command("CLUSTER", "MYID").decode() for n in self._nodes]
        self._source = next(i for i in range(3) if self._slot <= (16383 if i == 2 else (i + 1) * 5461 - 1))
        self._target = (self._source + 1) % 3

    def begin(self) -> None:
        self._nodes[self._target].execute_command("CLUSTER", "SETSLOT", self._slot, "IMPORTING", self._ids[self._source])
        self._nodes[self._source].execute_command("CLUSTER", "SETSLOT", self._slot, "MIGRATING", self._ids[self._target])

    def end(self) -> None:
        source = self._nodes[self._source]
        keys: Any = source.execute_command("CLUSTER", "GETKEYSINSLOT", self._slot, 100)
        source.execute_command("MIGRATE", "127.0.0.1", self._servers.nodes[self._target].port, "", 0, 5000, "KEYS", *keys)
        for node in (self._target, self._source):
            self._nodes[node].execute_command("CLUSTER", "SETSLOT", self._slot, "NODE", self._ids[self._target])

    def close(self) -> None:
        self.store.close()
        for node in self._nodes:
            node.close()


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Moving]:
    servers = RedisClusterServers(tmp_path / "cluster")
    moving = Moving(servers)
    assert moving.store.apply([Advance(SLOT, 0, 0, 10, 0, 0, 0, 0, [(1, "old", b"A")])]) == [True]
    yield moving
    moving.close()
    servers.stop()


def later(call: Callable[[], Any]) -> None:
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            call()


def test_what_cannot_be_applied_whole_is_not_applied_at_all(moving: Moving) -> None:
    more = [Advance(SLOT, 0, 10, 20, 0, 0, 0, 0, [(1, "old", b"B"), (1, "new", b"C")])]
    moving.begin()
    later(lambda: moving.store.apply(more))
    moving.end()
    assert moving.store.apply(more) == [True]
    cells, [state] = moving.store.read([OLD, NEW], [SLOT])
    assert [c and c.tail for c in cells] == [b"AB", b"C"]
    assert state.positions == {0: 20}


def test_what_cannot_be_rewritten_or_removed_whole_stays_as_it_is(moving: Moving) -> None:
    wide = EntityChange("old", (CellChange(1, 1, tail_digest(b"A"), b"W"),))
    absent = EntityChange("new", (CellChange(1, 0, tail_digest(b""), b""),))
    before = moving.store.slots([SLOT])
    moving.begin()
    later(lambda: moving.store.rewrite(SLOT, [wide, absent], 5))
    moving.end()
    assert moving.store.slots([SLOT]) == before
    assert moving.store.read([OLD], [])[0] == [Cell(0, b"", b"", b"A")]
    assert moving.store.rewrite(SLOT, [wide], 5) == [True]
    moving.store.reset(SLOT)
    assert moving.store.read([OLD], [])[0] == [None]
