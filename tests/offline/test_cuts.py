"""Cuts: block boundaries within what is archived, made once, never decreasing."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tidemill.errors import StoreError
from tidemill.offline import cuts as module
from tidemill.offline.archive import ArchiveWriter, range_files
from tidemill.offline.cuts import Cuts, cuts, latest_cut, make_cut, read_cut
from tidemill.offline.store import OfflineStore


def put(store: OfflineStore, start: int, end: int, partition: int = 0) -> None:
    writer = ArchiveWriter(store, "s", partition)
    writer.add(start, end, pl.DataFrame(schema={"_offset": pl.Int64, "_time": pl.Int64, "_arrival": pl.Int64}))
    writer.flush()


def test_without_an_archive_there_is_nothing_to_cut(store: OfflineStore) -> None:
    assert make_cut(store, "s") is None
    assert cuts(store, "s") == {}
    assert (Cuts(store, "s").latest, Cuts(store, "s").vector(0)) == (0, {})


def test_a_cut_stands_at_the_last_block_boundary_that_is_archived(store: OfflineStore) -> None:
    put(store, 0, 2_100)
    put(store, 0, 1_023, partition=1)
    put(store, 5_000, 9_000, partition=2)
    assert make_cut(store, "s") == 1
    assert read_cut(store, "s", 1) == {0: 2_048}


def test_nothing_new_means_no_cut(store: OfflineStore) -> None:
    put(store, 0, 2_100)
    assert make_cut(store, "s") == 1
    put(store, 2_000, 2_500)
    assert make_cut(store, "s") is None
    put(store, 2_400, 3_072)
    assert make_cut(store, "s") == 2
    assert cuts(store, "s") == {1: {0: 2_048}, 2: {0: 3_072}}


def test_a_cut_never_lies_beyond_a_hole(store: OfflineStore) -> None:
    put(store, 0, 1_500)
    put(store, 1_501, 9_000)
    make_cut(store, "s")
    assert read_cut(store, "s", 1) == {0: 1_024}


def test_a_partition_that_joins_or_vanishes_moves_no_other_and_never_back(store: OfflineStore) -> None:
    put(store, 0, 2_048)
    make_cut(store, "s")
    put(store, 0, 1_024, partition=11)
    make_cut(store, "s")
    for file in range_files(store, "archive/s/00000"):
        store.delete(file.key)
    put(store, 1_024, 4_096, partition=11)
    make_cut(store, "s")
    assert cuts(store, "s") == {1: {0: 2_048}, 2: {0: 2_048, 11: 1_024}, 3: {0: 2_048, 11: 4_096}}


def test_the_file_is_what_the_design_says(store: OfflineStore) -> None:
    put(store, 0, 1_024)
    make_cut(store, "s")
    assert store.read("cuts/s/00000001.json") == b'{"k": 1, "vector": {"0": 1024}}'


def test_whoever_loses_the_race_for_a_cut_looks_again(store: OfflineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, 0, 1_024)
    create = store.create

    def beaten(key: str, data: bytes) -> bool:
        """Another process is faster, once, and has seen less of the archive."""
        monkeypatch.setattr(store, "create", create)
        assert create(key, b'{"k": 1, "vector": {"0": 1024}}')
        put(store, 1_024, 2_048)
        return create(key, data)

    monkeypatch.setattr(store, "create", beaten)
    assert make_cut(store, "s") == 2
    assert cuts(store, "s") == {1: {0: 1_024}, 2: {0: 2_048}}


def test_a_reader_refreshes_only_what_is_new(store: OfflineStore) -> None:
    put(store, 0, 1_024)
    make_cut(store, "s")
    reader = Cuts(store, "s")
    assert not reader.refresh()
    put(store, 0, 3_000, partition=2)
    make_cut(store, "s")
    store.write("cuts/s/00000001.json", b"never read again")
    assert reader.latest == 1
    assert reader.refresh()
    assert reader.vectors == {1: {0: 1_024}, 2: {0: 1_024, 2: 2_048}}
    assert [array.tolist() for array in reader.arrays.values()] == [[1_024], [1_024, 0, 2_048]]
    assert reader.arrays[2].dtype == np.int64


def test_a_cut_that_is_missing_below_another_is_an_error(store: OfflineStore) -> None:
    for end in (1_024, 2_048, 3_072):
        put(store, 0, end)
        make_cut(store, "s")
    store.delete("cuts/s/00000002.json")
    with pytest.raises(StoreError, match=r"00000002.json is missing, and cut 3 is there"):
        make_cut(store, "s")
    with pytest.raises(StoreError, match=r"00000002.json is missing"):
        Cuts(store, "s")
    with pytest.raises(StoreError, match="cut 4 of s does not exist"):
        read_cut(store, "s", 4)


def test_a_cut_made_while_the_folder_was_listed_is_not_missing(store: OfflineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for end in (1_024, 2_048):
        put(store, 0, end)
        make_cut(store, "s")
    monkeypatch.setattr(store, "list", lambda _: ["cuts/s/00000002.json"])
    assert latest_cut(store, "s") == 2


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"k": 2, "vector": {}}', b'{"k": 1}', b'{"k": 1, "vector": {"x": 1}}', b'{"k": 1, "vector": {"0": -1}}']
)
def test_a_damaged_cut_is_named(store: OfflineStore, data: bytes) -> None:
    store.write("cuts/s/00000001.json", data)
    with pytest.raises(StoreError, match=r"cuts/s/00000001.json should be"):
        Cuts(store, "s")


def test_a_cut_that_decreases_is_refused(store: OfflineStore) -> None:
    store.write("cuts/s/00000001.json", b'{"k": 1, "vector": {"0": 2048, "1": 1024}}')
    store.write("cuts/s/00000002.json", b'{"k": 2, "vector": {"0": 4096}}')
    with pytest.raises(StoreError, match=r"00000002.json cuts partition 1 at 0, and the cut before at 1024: cuts never decrease"):
        module.Cuts(store, "s")
