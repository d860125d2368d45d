"""What every offline store must do, as tests."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

import tidemill.offline.store as store_module
from tidemill.errors import StoreError, StoreVersionError
from tidemill.offline.store import FORMAT_KEY, MissingFileError, OfflineStore

REPOSITORY = Path(store_module.__file__).parents[2]
#: What another process begins with; the store's URL is its first argument.
PREAMBLE = """
import sys
from pathlib import Path
from tidemill.offline.store import OfflineStore
store = OfflineStore.open(sys.argv[1], base=Path())
"""


def opened(url: str) -> OfflineStore:
    return OfflineStore.open(url, base=Path())


def process(program: str, url: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process that runs `program` with the store, as `store`."""
    command = [sys.executable, "-c", PREAMBLE + program, url, *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class OfflineStoreContract:
    """Subclasses give the fixture `url`: that of a store which is empty at first. Other processes open it too."""

    @pytest.fixture
    def store(self, url: str) -> OfflineStore:
        return opened(url)

    def test_what_is_written_is_read_and_a_second_write_replaces_it(self, store: OfflineStore) -> None:
        store.write("a/b.json", b"one")
        store.write("a/b.json", b"two")
        assert store.read("a/b.json") == b"two"
        assert store.size("a/b.json") == 3

    def test_a_file_is_copied_whole_or_the_store_says_that_it_does_not(self, store: OfflineStore, tmp_path: Path) -> None:
        file = tmp_path / "some file"
        file.write_bytes(data := b"0123456789" * 250_000)
        store.write("a/b", b"before")
        if store.adopt("a/b", file):
            file.write_bytes(b"changed")
            assert store.read("a/b") == data
            with pytest.raises(StoreError, match=r"no-file.*it is not there"):
                store.adopt("a/b", tmp_path / "no-file")
            assert (store.read("a/b"), store.list("a")) == (data, ["a/b"])
        else:
            assert store.path("a/b").startswith("s3://")
            assert store.read("a/b") == b"before"

    def test_what_is_not_there_reads_as_none_lists_as_nothing_and_can_be_deleted(self, store: OfflineStore) -> None:
        assert store.read("a/b") is None
        assert not store.exists("a/b")
        assert store.list("a") == store.folders("a") == store.list("") == []
        store.delete("a/b")
        with pytest.raises(StoreError, match="a/b"):
            store.size("a/b")

    def test_the_first_create_wins_and_the_second_changes_nothing(self, store: OfflineStore) -> None:
        assert store.create("cuts/s/1.json", b"first")
        assert not store.create("cuts/s/1.json", b"second")
        assert store.read("cuts/s/1.json") == b"first"

    def test_a_deleted_key_is_gone_and_can_be_created_again(self, store: OfflineStore) -> None:
        store.create("a/b", b"1")
        store.delete("a/b")
        assert not store.exists("a/b")
        assert store.create("a/b", b"2")

    def test_lists_are_sorted_and_hold_only_what_lies_directly_under_the_prefix(self, store: OfflineStore) -> None:
        for key in ("a/z", "a/m", "a/deep/er/x", "a/deeper", "ab/y"):
            store.write(key, b"")
        assert store.list("a") == ["a/deeper", "a/m", "a/z"]
        assert store.folders("a") == ["a/deep"]
        assert store.folders("") == ["a", "ab"]

    @pytest.mark.parametrize("key", ["", "/a", "a//b", "a/", "../a", "a/../b", ".hidden", "a/.b", "a\\b", "a\0b"])
    def test_a_key_that_could_leave_the_store_or_hide_in_it_is_refused(self, store: OfflineStore, key: str) -> None:
        with pytest.raises(ValueError, match="is not a key"):
            store.write(key, b"")

    def test_frames_come_back_as_they_were(self, store: OfflineStore) -> None:
        frame = pl.DataFrame({"key": ["a", None, "é"], "n": [1, 2, 3]}, schema_overrides={"n": pl.Int64})
        store.write_frame("f/1.parquet", frame)
        store.write_frame("f/2.parquet", frame.reverse())
        assert store.read_frame("f/1.parquet").equals(frame)
        assert store.read_frame(store.list("f"), ["n"])["n"].to_list() == [1, 2, 3, 3, 2, 1]
        assert store.scan(store.list("f")).select(pl.len()).collect().item() == 6

    def test_a_frame_that_is_damaged_is_named_in_the_error(self, store: OfflineStore) -> None:
        store.write_frame("f/1.parquet", pl.DataFrame({"n": [1]}))
        store.write("f/2.parquet", b"PAR1 this is no Parquet PAR1")
        with pytest.raises(StoreError, match=r"f/2\.parquet cannot be read as Parquet"):
            store.read_frame(store.list("f"))

    def test_a_frame_with_other_columns_is_named_in_the_error(self, store: OfflineStore) -> None:
        store.write_frame("f/1.parquet", pl.DataFrame({"n": [1]}))
        store.write_frame("f/2.parquet", pl.DataFrame({"m": [1]}))
        with pytest.raises(StoreError, match=r"f/2\.parquet has other columns"):
            store.read_frame(store.list("f"))
        with pytest.raises(StoreError, match=r"f/2\.parquet cannot be read"):
            store.read_frame(store.list("f"), ["n"])

    def test_a_frame_that_has_gone_is_an_error_of_its_own(self, store: OfflineStore) -> None:
        with pytest.raises(MissingFileError, match=r"f/1\.parquet"):
            store.read_frame("f/1.parquet")

    @pytest.mark.parametrize("megabytes", [6, 51])
    def test_large_contents_are_written_created_and_read_whole(self, store: OfflineStore, megabytes: int) -> None:
        data = bytes(range(256)) * (megabytes * 4096)
        assert store.create("large/created", data)
        assert not store.create("large/created", b"")
        store.write("large/written", b"old")
        store.write("large/written", data)
        assert store.read("large/created") == store.read("large/written") == data
        assert store.size("large/written") == len(data)

    def test_what_another_process_does_is_seen_at_once(self, store: OfflineStore, url: str) -> None:
        other = opened(url)
        for n in range(3):
            assert other.list("a") == [f"a/{m}" for m in range(n)]
            assert not other.exists(f"a/{n}")
            store.write(f"a/{n}", b"")
        assert other.exists("a/2")
        store.delete("a/2")
        assert other.list("a") == ["a/0", "a/1"]

    def test_a_reader_sees_the_old_contents_or_the_new_but_never_both(self, store: OfflineStore) -> None:
        contents = [bytes([n]) * 3_000_000 for n in range(3)]
        store.write("a/b", contents[0])
        over = threading.Event()

        def rewrite() -> None:
            for _ in range(5):
                for data in contents:
                    store.write("a/b", data)
            over.set()

        writer = threading.Thread(target=rewrite)
        writer.start()
        seen = [store.read("a/b")]
        while not over.is_set():
            seen.append(store.read("a/b"))
        writer.join()
        assert all(data in contents for data in seen)

    def test_opening_writes_nothing(self, url: str) -> None:
        assert opened(url).list("") == []

    def test_a_store_of_another_format_is_refused(self, store: OfflineStore, url: str) -> None:
        store.write("a/b", b"1")
        assert json.loads(store.read(FORMAT_KEY) or b"") == {"format": 1}
        opened(url)
        store.write(FORMAT_KEY, b'{"format": 99}')
        with pytest.raises(StoreVersionError, match="format 99"):
            opened(url)
        store.write(FORMAT_KEY, b"[1")
        with pytest.raises(StoreError, match="not even JSON"):
            opened(url)

    def test_of_processes_that_create_the_same_keys_each_key_has_one_winner(self, url: str) -> None:
        program = """
me = sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
print(*[n for n in range(50) if store.create(f"race/{n:03d}", me.encode() * 1000)])
"""
        racers = {name: process(program, url, name) for name in "ABC"}
        for racer in racers.values():
            assert racer.stdout
            assert racer.stdout.readline() == "ready\n"
        for racer in racers.values():
            assert racer.stdin
            racer.stdin.write("\n")
            racer.stdin.flush()
        won = {name: {int(n) for n in racer.communicate(timeout=60)[0].split()} for name, racer in racers.items()}
        assert sorted(n for numbers in won.values() for n in numbers) == list(range(50))
        store = opened(url)
        for name, numbers in won.items():
            assert all(store.read(f"race/{n:03d}") == name.encode() * 1000 for n in numbers)

    def test_of_threads_that_create_the_same_key_one_wins(self, store: OfflineStore) -> None:
        store.write("first", b"")
        for n in range(10):
            start = threading.Barrier(6)

            def create(me: int, key: str = f"race/{n}", start: threading.Barrier = start) -> bool:
                start.wait()
                return store.create(key, bytes([me]))

            with ThreadPoolExecutor(6) as pool:
                won = list(pool.map(create, range(6)))
            assert won.count(True) == 1
            assert store.read(f"race/{n}") == bytes([won.index(True)])

    def test_a_killed_writer_leaves_only_whole_files(self, url: str) -> None:
        program = """
for n in range(100_000):
    store.write(f"k/{n % 7}", bytes([n % 251]) * 50_000)
    store.create(f"c/{n}", bytes([n % 251]) * 50_000)
    if n == 5:
        print("going", flush=True)
"""
        writer = process(program, url)
        assert writer.stdout
        assert writer.stdout.readline() == "going\n"
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=60)
        store = opened(url)
        keys = store.list("k") + store.list("c")
        assert len(keys) >= 12
        for key in keys:
            data = store.read(key)
            assert data is not None
            assert len(data) == 50_000
            assert len(set(data)) == 1
