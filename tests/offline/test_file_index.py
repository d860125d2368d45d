"""The stored index of log files: entries for good, decided by one, the same for all."""

from __future__ import annotations

import pytest

from tidemill.errors import LogChangedError, StoreError
from tidemill.logs.index import FileEntry, FileIndex
from tidemill.offline.index import StoredFileIndex
from tidemill.offline.store import OfflineStore

ENTRIES = [FileEntry(f"{n:02d}.jsonl", n * 10, 10, 340, f"{n:064x}") for n in range(6)]
OTHER = FileEntry("x.jsonl", 20, 5, 99, "ff")


def test_a_restart_finds_every_entry_in_order(store: OfflineStore) -> None:
    index: FileIndex = StoredFileIndex(store, "s")
    assert index.load(0) == []
    index.save(0, 0, ENTRIES[:3])
    index.save(0, 3, ENTRIES[3:4])
    index.save(1, 0, ENTRIES[:1])
    again = StoredFileIndex(store, "s")
    assert again.load(0) == ENTRIES[:4]
    assert again.load(1) == ENTRIES[:1]
    assert StoredFileIndex(store, "other").load(0) == []


def test_what_is_there_already_may_be_saved_again_in_any_division(store: OfflineStore) -> None:
    StoredFileIndex(store, "s").save(0, 0, ENTRIES[:2])
    StoredFileIndex(store, "s").save(0, 0, ENTRIES[:4])
    StoredFileIndex(store, "s").save(0, 1, ENTRIES[1:3])
    StoredFileIndex(store, "s").save(0, 3, ENTRIES[3:])
    StoredFileIndex(store, "s").save(0, 0, [])
    assert StoredFileIndex(store, "s").load(0) == ENTRIES
    assert [key.rpartition("/")[2] for key in store.list("index/s/00000")] == ["00000000.json", "00000002.json", "00000004.json"]


def test_a_different_entry_in_a_saved_place_is_refused(store: OfflineStore) -> None:
    index = StoredFileIndex(store, "s")
    index.save(0, 0, ENTRIES[:3])
    with pytest.raises(LogChangedError, match=r"x.jsonl"):
        index.save(0, 2, [OTHER, ENTRIES[3]])
    assert StoredFileIndex(store, "s").load(0) == ENTRIES[:3]


def test_a_second_worker_learns_what_the_first_decided(store: OfflineStore) -> None:
    first, second = StoredFileIndex(store, "s"), StoredFileIndex(store, "s")
    assert second.load(0) == []
    first.save(0, 0, ENTRIES[:3])
    second.save(0, 0, ENTRIES[:2])
    assert second.load(0) == ENTRIES[:3]
    with pytest.raises(LogChangedError):
        second.save(0, 2, [OTHER])


def test_whoever_loses_a_race_compares_and_goes_on(store: OfflineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    create = store.create

    def beaten(key: str, data: bytes) -> bool:
        monkeypatch.setattr(store, "create", create)
        StoredFileIndex(store, "s").save(0, 0, ENTRIES[:2])
        return create(key, data)

    monkeypatch.setattr(store, "create", beaten)
    StoredFileIndex(store, "s").save(0, 0, ENTRIES[:5])
    assert StoredFileIndex(store, "s").load(0) == ENTRIES[:5]


def test_entries_leave_no_gap(store: OfflineStore) -> None:
    with pytest.raises(ValueError, match="entry 2 cannot be saved, the index ends at 0"):
        StoredFileIndex(store, "s").save(0, 2, ENTRIES[2:])


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"entries": []}', b'{"entries": [{"name": "a"}]}', b'{"entries": [1]}'])
def test_a_damaged_file_of_the_index_is_named(store: OfflineStore, data: bytes) -> None:
    store.write("index/s/00000/00000000.json", data)
    with pytest.raises(StoreError, match=r"index/s/00000/00000000.json should"):
        StoredFileIndex(store, "s").load(0)
