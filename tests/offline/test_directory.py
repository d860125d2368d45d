"""The offline store in a directory: the contract, and what only a directory can do wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.offline.contract import REPOSITORY, OfflineStoreContract
from tidemill.errors import DefinitionError, StoreError
from tidemill.offline.directory import DirectoryStore
from tidemill.offline.store import OfflineStore


class TestDirectoryStore(OfflineStoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(tmp_path / "offline [odd] *name*")


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
from tidemill.offline.directory import DirectoryStore
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


@pytest.mark.parametrize("url", ["gs://me:secret@bucket/prefix", "file://secret/path", "", " "])
def test_a_url_that_is_neither_a_directory_nor_a_bucket_is_a_definition_error_that_does_not_show_it(tmp_path: Path, url: str) -> None:
    with pytest.raises(DefinitionError, match=r"\[offline\] url") as raised:
        OfflineStore.open(url, base=tmp_path)
    assert "secret" not in str(raised.value)
