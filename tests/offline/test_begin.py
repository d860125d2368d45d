"""Where a partition begins to count: decided once, by whoever is first."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl
import pytest

from tidemill.offline.archive import ArchiveReader, archived_end
from tidemill.offline.begin import begin
from tidemill.offline.store import OfflineStore

COLUMNS = {"user": pl.String(), "amount": pl.Float64()}


@pytest.fixture
def store(tmp_path: Path) -> OfflineStore:
    return OfflineStore.open(str(tmp_path / "offline"), base=tmp_path)


def never() -> dict[int, int]:
    raise AssertionError("it was decided before")


def test_what_lies_before_is_archived_without_events(store: OfflineStore) -> None:
    assert begin(store, "tx", 3, COLUMNS, lambda: {2: 7, 3: 5_000}) == 5_000
    assert archived_end(store, "tx", 3) == 5_000
    reader = ArchiveReader(store, "tx", 3, 0, COLUMNS)
    batch = reader.read(100)
    assert batch is not None
    assert (batch.start, batch.end, len(batch.frame)) == (0, 5_000, 0)
    assert reader.read(100) is None


def test_it_is_decided_once(store: OfflineStore) -> None:
    begin(store, "tx", 0, COLUMNS, lambda: {0: 70, 1: 0})
    assert begin(store, "tx", 0, COLUMNS, never) == 70
    assert begin(store, "tx", 1, COLUMNS, never) == 0
    assert archived_end(store, "tx", 1) == 0


def test_a_partition_that_comes_later_begins_at_its_beginning(store: OfflineStore) -> None:
    begin(store, "tx", 0, COLUMNS, lambda: {0: 70})
    assert begin(store, "tx", 1, COLUMNS, lambda: {0: 100, 1: 30}) == 0
    assert archived_end(store, "tx", 1) == 0


def test_of_two_at_once_both_begin_where_one_said(store: OfflineStore) -> None:
    def slower() -> dict[int, int]:
        begin(store, "tx", 0, COLUMNS, lambda: {0: 70})
        return {0: 90}

    assert begin(store, "tx", 0, COLUMNS, slower) == 70
    assert archived_end(store, "tx", 0) == 70


def test_killed_before_it_archived_it_is_finished_by_the_next(store: OfflineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "write_frame", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(store, "tx", 0, COLUMNS, lambda: {0: 70})
    assert archived_end(store, "tx", 0) == 0
    assert begin(store, "tx", 0, COLUMNS, never) == 70
    assert archived_end(store, "tx", 0) == 70


def test_a_beginning_far_up_is_one_step(store: OfflineStore) -> None:
    begin(store, "tx", 0, COLUMNS, lambda: {0: 10**12})
    reader, steps, begun = ArchiveReader(store, "tx", 0, 0, COLUMNS), 0, time.monotonic()
    while reader.read(262_144) is not None and time.monotonic() < begun + 10:
        steps += 1
    assert steps == 1
