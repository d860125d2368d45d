"""Notes of batch runs: when a version was folded is remembered by the runs that come after it."""

from __future__ import annotations

from pathlib import Path

from tidemill.offline.runs import last_run, note_run
from tidemill.offline.store import OfflineStore


def test_before_the_first_run_there_is_no_note(tmp_path: Path) -> None:
    assert last_run(OfflineStore.open("offline", base=tmp_path), "tx") is None


def test_a_run_that_folds_nothing_new_leaves_the_time_of_the_version(tmp_path: Path) -> None:
    store = OfflineStore.open("offline", base=tmp_path)
    note_run(store, "tx", 100, 1.5, 1, {"a": 1, "b": 1}, {"a": 7})
    run = note_run(store, "tx", 200, 0.5, 2, {"a": 1, "b": 2}, {"a": 0})
    assert last_run(store, "tx") == run
    assert (run.at, run.seconds, run.k, run.published) == (200, 0.5, 2, {"a": 0})
    assert (run.folded_at("a", 1), run.folded_at("b", 2)) == (100, 200)


def test_of_a_version_that_the_note_does_not_know_no_time_is_told(tmp_path: Path) -> None:
    store = OfflineStore.open("offline", base=tmp_path)
    run = note_run(store, "tx", 100, 1.5, 2, {"a": 2}, {})
    assert [run.folded_at("a", 1), run.folded_at("a", 0), run.folded_at("other", 2)] == [None, None, None]
    assert note_run(store, "tx", 200, 1.5, 2, {"a": 1}, {}).folded_at("a", 1) == 200  # taken back, and folded again


def test_a_note_that_cannot_be_read_is_as_none_and_is_written_again(tmp_path: Path) -> None:
    store = OfflineStore.open("offline", base=tmp_path)
    store.write("runs/tx.json", b"{")
    assert last_run(store, "tx") is None
    assert note_run(store, "tx", 100, 1.5, 1, {"a": 1}, {}).folded_at("a", 1) == 100
