from __future__ import annotations

import multiprocessing
import signal
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.online import processes, sqlite_processes
from tests.online.contract import SharedStoreContract
from tests.online.processes import Connect
from tests.online.sqlite_processes import JFK, SLOT, SharedByThreads, advance, open_files
from tidemill.errors import StoreError, StoreUnavailableError, StoreVersionError
from tidemill.online.base import Advance, Cell, SlotId, SlotState
from tidemill.online.sqlite import SqliteStore


def raw(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "online.db"


@pytest.fixture
def on_connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a statement on each connection that is opened from now on."""

    def install(statement: str) -> None:
        class Prepared(sqlite3.Connection):
            def __init__(self, *args: Any, **named: Any) -> None:
                super().__init__(*args, **named)
                self.execute(statement)

        monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Prepared))

    return install


class TestSqliteStore(SharedStoreContract):
    @pytest.fixture
    def connect(self, tmp_path: Path) -> Connect:
        return partial(SqliteStore, tmp_path / "online.db")


# Opening


def test_the_file_and_its_folder_are_made_at_first_use(path: Path) -> None:
    store = SqliteStore(path)
    assert not path.parent.exists()
    store.slots([])
    assert path.exists()
    store.close()


def test_many_processes_may_make_the_store_at_once(path: Path) -> None:
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        counts = [pool.submit(processes.write_until, partial(SqliteStore, path), 8, me, 4) for me in range(4)]
        assert sum(count.result(timeout=60) for count in counts) == 8


def test_many_threads_may_make_the_store_at_once(tmp_path: Path) -> None:
    for attempt in range(10):
        stores = [SqliteStore(tmp_path / f"{attempt}.db") for _ in range(4)]
        start = threading.Barrier(4)

        def first_use(store: SqliteStore, start: threading.Barrier = start) -> bool:
            start.wait(60)
            [done] = store.apply([advance(0)])
            return done

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(first_use, stores)) == 1
        for store in stores:
            store.close()


@pytest.mark.parametrize("content", [b"id,origin\n1,JFK\n" * 100, b"SQLite format 3", bytes(4096)])
def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "online.db"
    file.write_bytes(content)
    store = SqliteStore(file)
    with pytest.raises(StoreError, match=r"online\.db: this file is not an SQLite database; name another file"):
        store.slots([SLOT])
    store.close()
    assert file.read_bytes() == content


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "online.db"
    db = raw(file)
    db.execute("create table flights (id)")
    db.close()
    content = file.read_bytes()
    store = SqliteStore(file)
    with pytest.raises(StoreError, match="another program's SQLite database"):
        store.apply([advance(0)])
    store.close()
    assert file.read_bytes() == content


@pytest.mark.parametrize("version", [0, 2])
def test_a_store_of_another_version_says_what_to_do(path: Path, version: int) -> None:
    SqliteStore(path).slots([])
    db = raw(path)
    db.execute(f"pragma user_version = {version}")
    db.close()
    with pytest.raises(
        StoreVersionError, match=f"schema version {version}, and this tidemill reads version 1; use the tidemill that wrote it, or"
    ):
        SqliteStore(path).slots([SLOT])


def test_a_damaged_file_says_so(path: Path) -> None:
    store = SqliteStore(path)
    for at in range(50):
        store.apply([advance(at, bytes(5000))])
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    with pytest.raises(StoreError, match=r"online\.db: the file is damaged .* remove the file"):
        SqliteStore(path).read([JFK], [SLOT])


def test_a_folder_that_is_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for below in ("file/online.db", "file/deep/online.db"):
        with pytest.raises(StoreError, match="cannot make its folder"):
            SqliteStore(tmp_path / below).slots([SLOT])


def test_a_path_that_is_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteStore(tmp_path).slots([SLOT])


def test_a_closed_store_says_so(path: Path) -> None:
    store = SqliteStore(path)
    store.slots([SLOT])
    store.close()
    store.close()
    with pytest.raises(StoreError, match="it was closed"):
        store.slots([SLOT])


# Faults


def test_a_lock_held_too_long_is_unavailable_to_writers_and_nothing_to_readers(path: Path) -> None:
    store = SqliteStore(path, timeout=0.01)
    store.apply([advance(0)])
    other = raw(path)
    other.execute("begin immediate")
    with pytest.raises(StoreUnavailableError, match=r"locked by another process for longer than 0\.01 s"):
        store.apply([advance(1)])
    assert store.read([JFK], [SLOT]) == ([Cell(0, b"", b"", b"a")], [SlotState({0: 1})])
    other.execute("rollback")
    other.close()
    assert store.apply([advance(1)]) == [True]
    store.close()


def test_a_full_disk_changes_nothing_and_leaves_no_transaction_open(path: Path, on_connect: Callable[[str], None]) -> None:
    on_connect("pragma max_page_count = 40")
    store = SqliteStore(path)
    store.apply([advance(0)])
    with pytest.raises(StoreError, match="the disk is full; nothing was changed"):
        store.apply([advance(1), Advance(SlotId("by_origin", 4), 0, 0, 1, appends=[(5, "JFK", bytes(1_000_000))])])
    assert store.read([JFK, JFK._replace(shard=4)], [SLOT]) == ([Cell(0, b"", b"", b"a"), None], [SlotState({0: 1})])
    other = raw(path)
    other.execute("begin immediate")
    other.close()
    assert store.apply([advance(1)]) == [True]
    store.close()


def test_no_permission_says_so(path: Path, on_connect: Callable[[str], None]) -> None:
    SqliteStore(path).slots([])
    on_connect("pragma query_only = on")  # root may write anywhere, so a mode would not do
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="no permission to write"):
        store.apply([advance(0)])
    assert store.slots([SLOT]) == [SlotState()]
    store.close()


def test_an_exception_in_the_middle_rolls_back_and_frees_the_lock(path: Path) -> None:
    store = SqliteStore(path)
    store.apply([advance(0)])
    wrong: Any = object()
    with pytest.raises(sqlite3.Error):
        store.apply([advance(1), Advance(SlotId("by_origin", 4), 0, 0, 1, appends=[(5, "JFK", b"a"), (5, "LGA", wrong)])])
    other = raw(path)
    other.execute("begin immediate")
    other.close()
    assert store.read([JFK, JFK._replace(shard=4)], [SLOT]) == ([Cell(0, b"", b"", b"a"), None], [SlotState({0: 1})])
    store.close()


def test_a_kill_in_the_middle_of_a_transaction_leaves_the_store_as_it_was_before(path: Path) -> None:
    store = SqliteStore(path)
    store.apply([advance(0)])
    child = multiprocessing.get_context("spawn").Process(target=sqlite_processes.die_in_the_middle, args=(path,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert path.with_name("online.db-wal").stat().st_size > 10_000_000
    assert store.read([JFK, JFK._replace(entity="0000")], [SLOT]) == ([Cell(0, b"", b"", b"a"), None], [SlotState({0: 1})])
    assert store.apply([advance(1)]) == [True]
    db = raw(path)
    assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
    db.close()
    store.close()


@pytest.mark.parametrize("leftovers", [True, False])
def test_a_file_that_was_removed_is_made_anew_and_begins_at_nothing(path: Path, leftovers: bool) -> None:
    store = SqliteStore(path)
    store.apply([advance(0)])
    path.unlink()
    if not leftovers:
        for file in path.parent.iterdir():
            file.unlink()
    assert store.apply([advance(1)]) == [False]
    assert store.read([JFK], [SLOT]) == ([None], [SlotState()])
    assert store.apply([advance(0, b"b")]) == [True]
    other = SqliteStore(path)
    assert other.read([JFK], [SLOT]) == ([Cell(0, b"", b"", b"b")], [SlotState({0: 1})])
    other.close()
    store.close()


# The WAL


def test_the_wal_stays_small_under_readers_that_never_pause(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.online.sqlite_connection._WAL_LIMIT", 2_000_000)
    store = SqliteStore(path)
    store.apply([advance(0)])
    done = threading.Event()

    def look_always() -> None:
        old = raw(path)
        old.execute("begin").execute("select * from slot").fetchall()
        while not done.is_set():
            new = raw(path)
            new.execute("begin").execute("select * from slot").fetchall()  # before the old one ends
            old.close()
            old = new
        old.close()

    wal, sizes = path.with_name("online.db-wal"), []
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(look_always)
        for at in range(1, 41):
            store.apply([Advance(SLOT, 0, at, at + 1, appends=[(5, f"{at}-{i}", bytes(1000)) for i in range(1000)])])
            sizes.append(wal.stat().st_size)
        done.set()
        reader.result(timeout=60)
    assert max(sizes) < 10_000_000
    store.close()


def test_a_reader_that_never_ends_does_not_stop_the_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.online.sqlite_connection._WAL_LIMIT", 100_000)
    store = SqliteStore(path, timeout=0.01)
    store.apply([advance(0)])
    stuck = raw(path)
    stuck.execute("begin").execute("select * from slot").fetchall()
    for at in range(1, 30):
        assert store.apply([advance(at, bytes(20_000))]) == [True]
    stuck.close()
    wal, sizes = path.with_name("online.db-wal"), []
    for at in range(30, 90):
        assert store.apply([advance(at, bytes(20_000))]) == [True]
        sizes.append(wal.stat().st_size)
    assert min(sizes) == 0
    store.close()


# Threads and forks


def test_each_thread_has_its_connection_and_gives_it_back(path: Path) -> None:
    wal = path.with_name("online.db-wal")  # of the file itself SQLite keeps what threads gave back, for the next that opens it
    store = SqliteStore(path)
    store.slots([SLOT])
    for _ in range(3):
        met = threading.Barrier(3)

        def look(_: int, met: threading.Barrier = met) -> int:
            store.slots([SLOT])
            met.wait(60)
            found = open_files(wal)
            met.wait(60)
            return found

        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(look, range(3))) == [4, 4, 4]
        assert open_files(wal) == 1
        assert open_files(path) <= 4
    store.close()


def test_close_closes_the_connections_of_all_threads(path: Path) -> None:
    store = SqliteStore(path)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(store.slots, [SLOT]).result()
        assert open_files(path) == 1
        store.close()
        assert open_files(path) == 0
        with pytest.raises(StoreError, match="it was closed"):
            pool.submit(store.slots, [SLOT]).result()


def test_threads_that_write_in_turn_lose_nothing(path: Path) -> None:
    store = SqliteStore(path)
    with ThreadPoolExecutor(4) as pool:
        counts = [pool.submit(processes.write_until, lambda: SharedByThreads(store), 200) for _ in range(3)]
        watching = pool.submit(processes.watch_until, lambda: SharedByThreads(store), 200)
        assert sum(count.result(timeout=60) for count in counts) == 200
        assert watching.result(timeout=60) > 0
    store.close()


def test_a_store_may_be_used_on_both_sides_of_a_fork(path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(sqlite_processes.write_on_both_sides_of_forks, path).result(timeout=120) == [0] * 5
    store = SqliteStore(path)
    assert processes.assert_consistent(store) >= 300
    store.close()
