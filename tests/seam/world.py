"""A small world for the real code: a log in memory, stores that can be interrupted anywhere, and slots that can rewind."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from tests.online.model_store import MemoryStore
from tidemill.errors import LogTruncatedError
from tidemill.logs.base import RecordBatch
from tidemill.online.base import SlotId
from tidemill.online.sqlite import SqliteStore


class Crash(BaseException):
    """The process dies here. Not an Exception, so that no handler of the code under test can hide it."""


class MemoryLog:
    """Partitions of raw records with arrival times; None is an offset without a record (Kafka's control records)."""

    def __init__(self) -> None:
        self.records: dict[int, list[tuple[bytes, int] | None]] = {0: [], 1: []}
        self.first: dict[int, int] = {}

    def partitions(self) -> list[int]:
        return sorted(self.records)

    def start(self, partition: int) -> int:
        return self.first.get(partition, 0)

    def end(self, partition: int) -> int:
        return len(self.records[partition])

    def open(self, partition: int, offset: int) -> MemoryReader:
        return MemoryReader(self, partition, offset)

    def close(self) -> None:
        pass


class MemoryReader:
    """Reads as many records at a time as `limit` says, so that batches can be of any size."""

    at_end = True

    def __init__(self, log: MemoryLog, partition: int, offset: int) -> None:
        self._log, self._partition = log, partition
        self.seek(offset)

    def confirm(self) -> None:
        pass

    def seek(self, offset: int) -> None:
        if offset < self._log.start(self._partition):
            raise LogTruncatedError(f"offset {offset} is gone")
        self._at = offset

    def read(self, max_records: int) -> RecordBatch | None:
        start, end = self._at, min(self._at + max_records, self._log.end(self._partition))
        if end <= start:
            return None
        if start < self._log.start(self._partition):
            raise LogTruncatedError(f"offset {start} is gone")
        self._at = end
        there = [(o, r) for o in range(start, end) if (r := self._log.records[self._partition][o]) is not None]
        return RecordBatch(
            self._partition,
            start,
            end,
            np.array([o for o, _ in there], dtype=np.int64),
            b"".join(raw + b"\n" for _, (raw, _) in there),
            arrival=np.array([arrival for _, (_, arrival) in there], dtype=np.int64),
        )

    def close(self) -> None:
        pass


class Interrupted:
    """Wraps a store: counts its calls, lets `between` run before some of them, and crashes before or after the one that is chosen."""

    def __init__(self, inner: Any, methods: frozenset[str]) -> None:
        self._inner, self._methods = inner, methods
        self.crash_at: int | None = None
        self.crash_after = False
        self.between: Callable[[], None] | None = None
        self.wait = 0  # calls that `between` lets pass first, of those that it waits for
        self.before = methods

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in self._methods:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.between is not None and name in self.before:
                self.wait -= 1
                if self.wait < 0:
                    between, self.between = self.between, None
                    between()
            if self.crash_at is not None:
                self.crash_at -= 1
                if self.crash_at < 0:
                    after, self.crash_at = self.crash_after, None
                    if after:
                        method(*args, **kwargs)
                    raise Crash
            return method(*args, **kwargs)

        return call

    def calm(self) -> None:
        """No more trouble."""
        self.crash_at = self.between = None


ONLINE_WRITES = frozenset({"apply", "rewrite", "rebuild", "reset"})
ONLINE_STEPS = frozenset({"apply", "rewrite", "rebuild", "reset", "read", "slots"})
OFFLINE_STEPS = frozenset({"write", "adopt", "create", "write_frame", "read", "list", "read_frame"})


class RewindableMemory(MemoryStore):
    """Slots that can be copied and put back: a failover to a replica that is behind."""

    def snapshot(self, slot: SlotId, tables: list[int]) -> Any:
        return copy.deepcopy((self.states.get(slot), self.cells.get(slot)))

    def put_back(self, slot: SlotId, tables: list[int], snapshot: Any) -> None:
        for held, value in zip((self.states, self.cells), copy.deepcopy(snapshot), strict=True):
            held.pop(slot, None)
            if value is not None:
                held[slot] = value

    def close(self) -> None:
        pass


class RewindableSqlite(SqliteStore):
    """The same over SQLite, behind its back."""

    def snapshot(self, slot: SlotId, tables: list[int]) -> Any:
        with self._connections.reading() as db:
            state = db.execute("select * from slot where bundle = ? and shard = ?", slot).fetchall()
            cells = db.execute(f"select * from cell where {self._of(tables)}", (slot.shard, *tables)).fetchall()
            published = db.execute(
                f"select * from published where cell in (select id from cell where {self._of(tables)})", (slot.shard, *tables)
            ).fetchall()
        return state, cells, published

    def put_back(self, slot: SlotId, tables: list[int], snapshot: Any) -> None:
        with self._connections.writing() as db:
            db.execute("delete from slot where bundle = ? and shard = ?", slot)
            db.execute(f"delete from published where cell in (select id from cell where {self._of(tables)})", (slot.shard, *tables))
            db.execute(f"delete from cell where {self._of(tables)}", (slot.shard, *tables))
            for name, rows in zip(("slot", "cell", "published"), snapshot, strict=True):
                for row in rows:
                    db.execute(f"insert or replace into {name} values ({', '.join('?' * len(row))})", row)

    @staticmethod
    def _of(tables: list[int]) -> str:
        return f"shard = ? and tbl in ({', '.join('?' * len(tables))})"


@lru_cache(maxsize=4096)
def plain(raw: bytes) -> dict[str, Any] | None:
    """What a record says, if it is an event at all: an independent, slow decoder for the few forms that this world produces."""
    try:
        event = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("at"), int):
        return None
    for name, kinds in (("x", (int, float)), ("n", (int,)), ("k", (str,)), ("s", (str,)), ("b", (bool,)), ("id", (int,))):
        value = event.get(name)
        if value is None:
            continue
        if not isinstance(value, kinds) or (isinstance(value, bool) and name != "b"):
            return None
        if isinstance(value, float) and (math.isinf(value) or abs(value) >= 2**64):
            return None
    return event
