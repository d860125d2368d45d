"""What the processes and threads of the SQLite store's own tests run."""

from __future__ import annotations

import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tests.online import processes
from tidemill.online.base import Advance, CellId, SlotId
from tidemill.online.sqlite import SqliteStore

SLOT = SlotId("by_origin", 3)
JFK = CellId(5, 3, "JFK")


def advance(at: int, data: bytes = b"a") -> Advance:
    return Advance(SLOT, 0, at, at + 1, appends=[(5, "JFK", data)])


def open_files(path: Path) -> int:
    """How often this process has the database file open."""
    return sum(fd.resolve() == path for fd in Path("/proc/self/fd").iterdir())


class SharedByThreads(SqliteStore):
    """One store under several threads, none of which closes it."""

    def __init__(self, store: SqliteStore) -> None:
        self._connections = store._connections

    def close(self) -> None:
        pass


def die_in_the_middle(path: Path) -> None:
    """Apply more than the cache holds, so that much is in the WAL already, and die at the commit."""

    class Deadly(sqlite3.Connection):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.set_trace_callback(lambda sql: os.kill(os.getpid(), signal.SIGKILL) if sql == "commit" else None)

    store = SqliteStore(path)
    store.slots([])
    store.close()
    sqlite3.connect = partial(sqlite3.connect, factory=Deadly)  # type: ignore[assignment]  # this process has no other use for it
    SqliteStore(path).apply([Advance(SLOT, 0, 1, 2, appends=[(5, f"{i:04}", bytes(10_000)) for i in range(5_000)]), advance(1)])


def write_on_both_sides_of_forks(path: Path) -> list[int]:
    """Fork while one thread has a connection at rest and another writes; the children's exit codes."""
    store = SqliteStore(path)
    codes = []
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(processes.write_until, lambda: SharedByThreads(store), 300)
        for _ in range(5):
            processes.assert_consistent(store)
            child = os.fork()
            if child == 0:
                os._exit(in_the_child(store, path))
            codes.append(os.waitpid(child, 0)[1])
            processes.assert_consistent(store)
        writing.result(timeout=60)
    store.close()
    return codes


def in_the_child(store: SqliteStore, path: Path) -> int:
    """0 if nothing was inherited, and the store can be read and written."""
    try:
        if open_files(path) > 0:
            return 1
        for _ in processes.patiently():
            if processes.count_one(store, processes.assert_consistent(store)):
                return 0
    except BaseException:  # noqa: BLE001  # whatever it is, a forked child must not go on as a second pytest
        return 2
    return 3
