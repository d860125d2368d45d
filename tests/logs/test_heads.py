"""What is remembered of a log file that still grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.errors import StoreError
from tidemill.logs.heads import Head, StoredHeads
from tidemill.offline.store import OfflineStore

HEAD = Head(2, "partition=0/c.jsonl", 100, "ab")


@pytest.fixture
def store(tmp_path: Path) -> OfflineStore:
    return OfflineStore.open("offline", base=tmp_path)


def test_the_newest_head_of_each_partition_is_kept_for_the_next_process(store: OfflineStore) -> None:
    heads = StoredHeads(store, "s")
    assert heads.load(0) is None
    heads.save(0, HEAD)
    heads.save(0, Head(2, HEAD.name, 200, "cd"))
    heads.save(1, HEAD)
    again = StoredHeads(store, "s")
    assert (again.load(0), again.load(1)) == (Head(2, HEAD.name, 200, "cd"), HEAD)
    assert StoredHeads(store, "other").load(0) is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"number": 1}', b"\xff"])
def test_a_damaged_head_is_an_error_that_names_its_file(store: OfflineStore, data: bytes) -> None:
    store.write("index/s/open/00000.json", data)
    with pytest.raises(StoreError, match=r"index/s/open/00000\.json should say how a log file begins, and is damaged: delete it"):
        StoredHeads(store, "s").load(0)
