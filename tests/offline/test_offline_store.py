"""The offline store's contract, and what only a directory can do wrong."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import tidemill.offline.store as store_module
from tidemill.errors import DefinitionError, StoreError, StoreVersionError
from tidemill.offline.store import FORMAT_KEY, DirectoryStore, MissingFileError, OfflineStore

REPOSITORY = Path(store_module.__file__).parents[2]


class StoreContract:
    """What every offline store must keep; an implementation's test gives a `store` fixture."""

    def test_what_is_written_is_read_and_a_second_write_replaces_it(self, store: OfflineStore) -> None:
        store.write("a/b.json", b"one")
        store.write("a/b.json", b"two")
        assert store.read("a/b.json") == b"two"
        assert store.size("a/b.json") == 3

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


class TestDirectoryStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> OfflineStore:
        return OfflineStore.open("offline [odd] *name*", base=tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "offline")


def leave_temporary(folder: Path, name: str, *, age: float) -> Path:
    """What a writer that crashed `age` seconds ago has left."""
    folder.mkdir(parents=True, exist_ok=True)
    leftover = folder / name
    leftover.write_bytes(b"half of a fi")
    os.utime(leftover, (leftover.stat().st_mtime - age,) * 2)
    return leftover


def test_a_crashed_writers_leftover_is_not_listed_and_goes_after_a_day(tmp_path: Path) -> None:
    folder = tmp_path / "offline" / "a"
    old = leave_temporary(folder, ".tidemill-0123456789abcdef.tmp", age=90_000)
    young = leave_temporary(folder, ".tidemill-fedcba9876543210.tmp", age=3_600)
    store = OfflineStore.open("offline", base=tmp_path)
    assert store.list("a") == []
    assert old.exists()  # Reading removes nothing.
    store.write("a/b", b"1")
    assert not old.exists()
    assert young.exists()
    assert store.list("a") == ["a/b"]


def test_nobody_elses_hidden_file_is_removed(tmp_path: Path) -> None:
    other = leave_temporary(tmp_path / "offline" / "a", ".nfs0001", age=900_000)
    store = OfflineStore.open("offline", base=tmp_path)
    store.write("a/b", b"1")
    assert other.exists()
    assert store.list("a") == ["a/b"]


def test_a_writer_that_dies_before_the_last_step_leaves_the_old_contents(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("a/b", b"old")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # A killed process tidies nothing up.
        with pytest.raises(KeyboardInterrupt):
            store.write("a/b", b"new")
    assert store.read("a/b") == b"old"
    assert store.list("a") == ["a/b"]


@pytest.mark.parametrize(
    ("code", "says"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.EACCES, "permissions")]
)
def test_a_write_that_the_system_refuses_says_so_and_leaves_nothing(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    store.write("a/b", b"old")

    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StoreError, match=rf"cannot write .*a/b in the offline store: .*{says}.*\[offline\] url"):
            store.write("a/b", b"new")
        with pytest.raises(StoreError, match=says):
            store.create("a/c", b"new")
    assert store.read("a/b") == b"old"
    assert [file.name for file in Path(store.path("a")).iterdir()] == ["b"]
    store.write("a/b", b"new")
    assert store.read("a/b") == b"new"


def test_a_file_system_without_hard_links_is_named_as_the_trouble(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StoreError, match="no hard links"):
        store.create("cuts/s/1.json", b"1")


def test_a_real_limit_of_the_system_cuts_no_file_in_half(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
from pathlib import Path
from tidemill.errors import StoreError
from tidemill.offline.store import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]))
store.write("a/b", b"old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.write("a/b", b"new" * 100_000)
except StoreError:
    print(store.read("a/b").decode(), store.list("a"))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "old ['a/b']"


def test_a_file_where_a_folder_is_needed_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "offline").write_text("not a folder")
    store = OfflineStore.open("elsewhere", base=tmp_path)
    store.write("a", b"")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        store.write("a/b", b"1")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        OfflineStore.open("offline", base=tmp_path)


def test_opening_creates_nothing(tmp_path: Path) -> None:
    OfflineStore.open("offline", base=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_url_is_relative_to_the_project_absolute_or_a_file_url(tmp_path: Path) -> None:
    def root(url: str) -> str:
        return OfflineStore.open(url, base=tmp_path).path("k")

    assert root(".tidemill/offline") == str(tmp_path / ".tidemill/offline/k")
    assert root("/data") == "/data/k"
    assert root("file:///data/with%20space") == "/data/with space/k"


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "file://host/path", "", " "])
def test_a_url_that_is_no_directory_is_a_definition_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(DefinitionError, match=r"\[offline\] url"):
        OfflineStore.open(url, base=tmp_path)


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    OfflineStore.open("offline", base=tmp_path).write("a/b", b"1")
    OfflineStore.open("offline", base=tmp_path)
    (tmp_path / "offline" / FORMAT_KEY).write_text('{"format": 99}')
    with pytest.raises(StoreVersionError, match="format 99"):
        OfflineStore.open("offline", base=tmp_path)
    (tmp_path / "offline" / FORMAT_KEY).write_text("[1")
    with pytest.raises(StoreError, match="not even JSON"):
        OfflineStore.open("offline", base=tmp_path)


def test_of_two_processes_that_create_the_same_keys_each_key_has_one_winner(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from tidemill.offline.store import DirectoryStore
store, me = DirectoryStore(Path(sys.argv[1])), sys.argv[2]
sys.stdin.readline()
print(*[n for n in range(200) if store.create(f"race/{n:03d}", me.encode() * 1000)])
"""
    racers = {
        name: subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), name], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("A", "B")
    }
    for racer in racers.values():
        assert racer.stdin
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = {name: {int(n) for n in racer.communicate(timeout=60)[0].split()} for name, racer in racers.items()}
    assert won["A"] | won["B"] == set(range(200))
    assert not won["A"] & won["B"]
    store = DirectoryStore(tmp_path)
    for name, numbers in won.items():
        assert all(store.read(f"race/{n:03d}") == name.encode() * 1000 for n in numbers)


def test_a_killed_writer_leaves_only_whole_files(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from tidemill.offline.store import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]))
for n in range(100_000):
    store.write(f"k/{n % 7}", bytes([n % 251]) * 50_000)
    store.create(f"c/{n}", bytes([n % 251]) * 50_000)
    if n == 5:
        print("going", flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    assert writer.stdout.readline() == "going\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=60)
    store = DirectoryStore(tmp_path)
    for key in store.list("k") + store.list("c"):
        data = store.read(key)
        assert data is not None
        assert len(data) == 50_000
        assert len(set(data)) == 1
