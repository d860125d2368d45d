"""Connections to the SQLite file of an online store: one per thread, opened at first use, safe over threads and forks.

What goes wrong in SQLite is translated here into tidemill's own errors, and no transaction outlives an exception.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from tidemill.errors import StoreError, StoreUnavailableError, StoreVersionError

#: Says in the file's header that it is ours ("tide"), so that we neither change nor misread someone else's database.
APPLICATION_ID: Final = 0x74696465
#: Stands in the header's `user_version`. Raise it with every change of `_SCHEMA`.
SCHEMA_VERSION: Final = 1

# What is appended to all the time (`cell`) lies apart from what is published once a version (`published`): SQLite writes whole rows,
# and an append to a row that also held a few KB of published state takes two to three times as long, and writes three times the WAL.
# Both have rowids: without, SQLite keeps rows in the nodes of an index tree, where all beyond a quarter of a page goes to overflow pages.
# `tables` in a slot: the ids of the tables that it has cells in (int64), which `reset` must find.
_SCHEMA: Final = (
    """create table slot (
        bundle text not null, shard integer not null, horizon integer not null, latest integer not null, arrived integer not null,
        cursor text, positions blob not null, through blob not null, tables blob not null, primary key (bundle, shard)
    ) without rowid""",
    """create table cell (
        id integer primary key, tbl integer not null, shard integer not null, entity text not null, tail blob not null,
        unique (tbl, shard, entity)
    )""",
    "create table published (cell integer primary key, k integer not null, vector blob not null, value blob not null)",
    """create table heartbeat (
        source text not null, partition integer not null, log_end integer not null, at integer not null, primary key (source, partition)
    ) without rowid""",
)

# Measured with cells of 0.2 to 8 KB: 4 KB pages overflow too often, 16 KB pages write twice the WAL where appends are scattered.
_PAGE_SIZE: Final = 8192
_PRAGMAS: Final = (
    # Without an fsync per commit, a power loss (not: a crash) may take the last commits back. It takes back whole transactions, so
    # values and positions rewind together, which every store may do: the writer sees it at its next apply and goes back in the log.
    "pragma synchronous = normal",
    # Readers find pages in the mapped file, without a copy, and also after another process has committed, which empties their cache.
    "pragma mmap_size = 1073741824",
    # For writers, whose changed pages would else spill into the WAL more than once in a transaction. Taken only as it is used.
    "pragma cache_size = -32768",
    # In pages, so 32 MB: pages that many flushes touch are copied into the database once, not at each commit.
    "pragma wal_autocheckpoint = 4096",
)

#: In bytes. The automatic checkpoint never waits: where at every commit some reader still looks at an older snapshot, it never gets to
#: the end of the WAL, which therefore never begins anew. Beyond this size a writer waits for those readers (new ones see the newest).
_WAL_LIMIT: Final = 128 * 2**20
_WAL_PATIENCE: Final = 1.0  # seconds

#: In seconds: how often a reader looks whether its file is still there. (Looking takes a tenth of a small read.)
_CHECK_EVERY: Final = 0.1

_BEGIN_ANEW: Final = "remove the file with its -wal and -shm, and let the workers fill it again from the log"


class _Handle:
    """One thread's connection. `lock` is held while it is used, so that `close` and a fork find it at rest."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.db: sqlite3.Connection | None = None
        self.file: tuple[int, int] | None = None
        self.checked = 0.0
        self.wal_limit = _WAL_LIMIT

    def close(self) -> None:
        db, self.db = self.db, None
        if db is not None:
            db.close()

    def __del__(self) -> None:  # the thread has ended
        self.close()


class SqliteConnections:
    """All connections of this process to one file. `timeout` in seconds: how long to wait for a lock."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._wal = path.with_name(f"{path.name}-wal")
        self._timeout = timeout
        self._local = threading.local()
        self._closed = False
        self.handles: weakref.WeakSet[_Handle] = weakref.WeakSet()
        with _forking:
            _all.add(self)

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """One snapshot: nothing that others commit meanwhile is seen."""
        return self._transaction("begin", writes=False)

    def writing(self) -> AbstractContextManager[sqlite3.Connection]:
        """One transaction, alone: committed at the end, or rolled back by any exception."""
        return self._transaction("begin immediate", writes=True)

    def close(self) -> None:
        """Close the connections of all threads, once they are at rest."""
        self._closed = True
        for handle in list(self.handles):
            with handle.lock:
                handle.close()

    @contextmanager
    def _transaction(self, begin: str, *, writes: bool) -> Iterator[sqlite3.Connection]:
        handle: _Handle = getattr(self._local, "handle", None) or self._new_handle()
        with handle.lock:
            try:
                db = self._opened(handle, writes=writes)
                db.execute(begin)
                try:
                    yield db
                    db.execute("commit")
                except BaseException:
                    _roll_back(handle, db)
                    raise
            except sqlite3.Error as error:
                raise self._translated(error) from error
            if writes:
                self._bound_wal(handle, db)

    def _new_handle(self) -> _Handle:
        handle = self._local.handle = _Handle()
        with _forking:
            self.handles.add(handle)
        return handle

    def _opened(self, handle: _Handle, *, writes: bool) -> sqlite3.Connection:
        """The open connection, if it is to the file that is there now. One that was removed lives on unseen, and would take writes."""
        if self._closed:
            raise StoreError(f"online store {self._path}: it was closed; open it again")
        now = time.monotonic()
        if handle.db is not None and (writes or now > handle.checked + _CHECK_EVERY):
            if handle.file != _identity(self._path):
                handle.close()
            handle.checked = now
        if handle.db is None:
            handle.db = self._open()
            handle.file, handle.checked = _identity(self._path), now
        return handle.db

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"online store {self._path}: cannot make its folder ({error.strerror}); check [online] url") from error
        # Used by one thread at a time, under the handle's lock; another thread only ever closes it.
        db = sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        try:
            if _header(db) == (0, 0):
                self._create(db)
            self._check(*_header(db))
            for pragma in _PRAGMAS:
                db.execute(pragma)
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, application: int, version: int) -> None:
        if application != APPLICATION_ID:
            raise StoreError(f"online store {self._path}: this is another program's SQLite database; name another file in [online] url")
        if version != SCHEMA_VERSION:
            raise StoreVersionError(
                f"online store {self._path}: it has schema version {version}, and this tidemill reads version {SCHEMA_VERSION}; "
                f"use the tidemill that wrote it, or {_BEGIN_ANEW}"
            )

    def _create(self, db: sqlite3.Connection) -> None:
        """Make the tables, unless another process just did, or the file holds something else."""
        if db.execute("select count(*) from sqlite_master").fetchone() != (0,):
            return
        db.execute(f"pragma page_size = {_PAGE_SIZE}")  # only a file that is still empty takes it
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                db.execute("pragma journal_mode = wal")
                break
            except sqlite3.OperationalError as error:
                # Two that change the mode at once would wait for each other, so here SQLite does not wait at all.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        db.execute("begin immediate")  # an exception from here on closes the connection, and so rolls back
        if _header(db) == (0, 0):
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute(f"pragma application_id = {APPLICATION_ID}")
            db.execute(f"pragma user_version = {SCHEMA_VERSION}")
        db.execute("commit")

    def _bound_wal(self, handle: _Handle, db: sqlite3.Connection) -> None:
        """Keep the WAL from growing under readers that never pause. The commit stands, whatever comes of it."""
        try:
            size = self._wal.stat().st_size
        except OSError:
            return
        if size <= handle.wal_limit:
            return
        busy = True
        try:
            db.execute(f"pragma busy_timeout = {int(1000 * min(_WAL_PATIENCE, self._timeout))}")
            busy = bool(db.execute("pragma wal_checkpoint(truncate)").fetchone()[0])
            db.execute(f"pragma busy_timeout = {int(1000 * self._timeout)}")
        except sqlite3.Error:
            handle.close()  # in doubt, begin anew
        # Someone holds a snapshot for long (a backup, a shell): ask again when it is twice as large, not at each commit.
        handle.wal_limit = 2 * size if busy else _WAL_LIMIT

    def _translated(self, error: sqlite3.Error) -> Exception:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:  # not from SQLite itself: a mistake in how it is called
            return error
        where = f"online store {self._path}"
        match code & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
                return StoreUnavailableError(f"{where}: locked by another process for longer than {self._timeout:g} s; try again")
            case sqlite3.SQLITE_FULL:
                return StoreError(f"{where}: the disk is full; nothing was changed; free some space and try again")
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return StoreError(f"{where}: no permission to write ({error}); its folder must be writable, too")
            case sqlite3.SQLITE_CANTOPEN:
                return StoreError(f"{where}: cannot be opened ({error}); it must be a file, in a folder that this user may write to")
            case sqlite3.SQLITE_NOTADB:
                return StoreError(f"{where}: this file is not an SQLite database; name another file in [online] url")
            case sqlite3.SQLITE_CORRUPT:
                return StoreError(f"{where}: the file is damaged ({error}); {_BEGIN_ANEW}")
            case sqlite3.SQLITE_TOOBIG:
                return StoreError(f"{where}: a cell is too large for SQLite ({error}); nothing was changed; compact more often")
            case _:
                return StoreError(f"{where}: {error} ({error.sqlite_errorname})")


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that took its place; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _header(db: sqlite3.Connection) -> tuple[int, int]:
    return db.execute("pragma application_id").fetchone()[0], db.execute("pragma user_version").fetchone()[0]


def _roll_back(handle: _Handle, db: sqlite3.Connection) -> None:
    """End the transaction; SQLite has done so itself after some errors."""
    try:
        if db.in_transaction:
            db.execute("rollback")
    except sqlite3.Error:
        handle.close()  # which rolls back, too


# SQLite notes per process which file locks it holds, and a forked child inherits the notes without the locks: it, or any connection it
# opens beside an inherited one, would believe itself protected. So no connection may be open at a fork: all are closed before, once at
# rest, and parent and child open their own when they need one.
_all: weakref.WeakSet[SqliteConnections] = weakref.WeakSet()
_forking = threading.Lock()
_held: list[_Handle] = []


def _before_fork() -> None:
    _forking.acquire()
    for connections in list(_all):
        for handle in list(connections.handles):
            handle.lock.acquire()
            _held.append(handle)
            handle.close()


def _after_fork() -> None:
    while _held:
        _held.pop().lock.release()
    _forking.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
