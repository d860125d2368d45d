"""Dead letters: each one once, with its reason and its bytes, however often its place was read."""

from __future__ import annotations

import polars as pl
import pytest

from tidemill.errors import StoreError
from tidemill.offline.dead import LETTER_COLUMNS, DeadWriter, count_dead, list_dead
from tidemill.offline.store import OfflineStore

Letter = tuple[int, str, str | None]


def letters(*items: Letter) -> pl.DataFrame:
    """Letters of (offset, reason, view), whose raw bytes name their offset."""
    rows = [(offset, reason, view, b"\xff raw %d" % offset, offset + 1_000) for offset, reason, view in items]
    return pl.DataFrame(rows, schema=dict(LETTER_COLUMNS), orient="row")


def put(store: OfflineStore, start: int, end: int, *items: Letter, partition: int = 0) -> None:
    writer = DeadWriter(store, "s", partition)
    writer.add(start, end, letters(*items))
    writer.flush()


def found(frame: pl.DataFrame) -> list[tuple[int, int, str | None]]:
    return frame.select("partition", "offset", "view").rows()


def test_a_letter_comes_back_with_its_reason_and_its_bytes(store: OfflineStore) -> None:
    put(store, 0, 10, (3, "no event time", None), partition=2)
    assert list_dead(store, "s").rows(named=True) == [
        {"partition": 2, "offset": 3, "reason": "no event time", "view": None, "raw": b"\xff raw 3", "arrival": 1_003}
    ]


def test_a_source_without_dead_letters_has_an_empty_list_and_no_files(store: OfflineStore) -> None:
    writer = DeadWriter(store, "s", 0)
    writer.add(0, 100, letters())
    assert writer.flush() == (0, 100)
    assert store.folders("dead/s") == []
    assert list_dead(store, "s").schema == {"partition": pl.Int64(), **LETTER_COLUMNS}
    assert count_dead(store, "s") == {}


def test_a_letter_that_a_replay_found_again_is_listed_and_counted_once(store: OfflineStore) -> None:
    put(store, 0, 10, (3, "null key", "by_card"), (3, "null key", "by_shop"), (5, "not JSON", None))
    put(store, 2, 20, (3, "null key", "by_card"), (3, "null key", "by_shop"), (5, "not JSON", None), (12, "not JSON", None))
    assert found(list_dead(store, "s")) == [(0, 3, "by_card"), (0, 3, "by_shop"), (0, 5, None), (0, 12, None)]
    assert count_dead(store, "s") == {"not JSON": 2, "null key": 2}


def test_the_same_offset_of_two_partitions_is_two_letters(store: OfflineStore) -> None:
    put(store, 0, 10, (3, "not JSON", None), partition=0)
    put(store, 0, 10, (3, "not JSON", None), partition=1)
    assert found(list_dead(store, "s")) == [(0, 3, None), (1, 3, None)]
    assert count_dead(store, "s") == {"not JSON": 2}


def test_letters_can_be_asked_for_by_partition_view_reason_and_offset(store: OfflineStore) -> None:
    put(store, 0, 10, (1, "not JSON", None), (2, "null key", "by_card"), (3, "null key", "by_shop"))
    put(store, 0, 10, (7, "amount is infinite (1e999)", None), partition=1)
    assert found(list_dead(store, "s", partition=1)) == [(1, 7, None)]
    assert found(list_dead(store, "s", view="by_shop")) == [(0, 3, "by_shop")]
    assert found(list_dead(store, "s", reason="infinite (")) == [(1, 7, None)]
    assert found(list_dead(store, "s", start=2)) == [(0, 2, "by_card"), (0, 3, "by_shop"), (1, 7, None)]
    assert found(list_dead(store, "s", partition=5)) == []


def test_a_limit_gives_the_first_letters_although_files_overlap(store: OfflineStore) -> None:
    put(store, 0, 30, (25, "x", None), (28, "x", None))
    put(store, 5, 20, (6, "x", None), (7, "x", None), (19, "x", None))
    put(store, 40, 50, (41, "x", None))
    put(store, 0, 10, (0, "x", None), partition=1)
    everything = found(list_dead(store, "s"))
    assert everything == [(0, 6, None), (0, 7, None), (0, 19, None), (0, 25, None), (0, 28, None), (0, 41, None), (1, 0, None)]
    for limit in range(1, 8):
        assert found(list_dead(store, "s", limit=limit)) == everything[:limit]
    with pytest.raises(ValueError, match="at least 1"):
        list_dead(store, "s", limit=0)


def test_files_after_the_limit_are_not_even_opened(store: OfflineStore) -> None:
    put(store, 0, 10, (3, "x", None), (4, "x", None))
    store.write("dead/s/00000/000000000000010-000000000000020.parquet", b"damaged")
    assert found(list_dead(store, "s", limit=2)) == [(0, 3, None), (0, 4, None)]
    with pytest.raises(StoreError, match=r"000000000000010-000000000000020.parquet cannot be read"):
        list_dead(store, "s", limit=3)
    with pytest.raises(StoreError, match=r"000000000000010-000000000000020.parquet cannot be read"):
        count_dead(store, "s")


def test_the_writer_gathers_batches_and_takes_only_letters(store: OfflineStore) -> None:
    writer = DeadWriter(store, "s", 0, rows=2)
    writer.add(0, 10, letters((3, "x", None)))
    assert not writer.due()
    writer.add(10, 20, letters())
    writer.add(20, 30, letters((20, "x", "v"), (20, "x", "w")))
    assert writer.due()
    with pytest.raises(ValueError, match="dead letters have the columns"):
        writer.add(30, 40, letters((31, "x", None)).drop("raw"))
    assert writer.flush() == (0, 30)
    assert store.list("dead/s/00000") == ["dead/s/00000/000000000000000-000000000000030.parquet"]
