"""What every online store must do, as tests. `SharedStoreContract` is for those that several processes can use."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.online import processes
from tests.online.processes import Connect
from tests.online.state_machine import StoreMachine
from tidemill.online.base import (
    Advance,
    Cell,
    CellChange,
    CellId,
    EntityChange,
    Heartbeat,
    OnlineStore,
    SlotId,
    SlotState,
    StoreStats,
    tail_digest,
)
from tidemill.times import BEGINNING

SLOT, OTHER, THIRD = SlotId("by_origin", 3), SlotId("by_origin", 4), SlotId("by_carrier", 3)
TABLE, SECOND = 5, 2**63 - 1
JFK = CellId(TABLE, SLOT.shard, "JFK")
NOTHING = tail_digest(b"")


def one(store: OnlineStore, cell: CellId) -> Cell | None:
    [found], _ = store.read([cell], [])
    return found


def state(store: OnlineStore, slot: SlotId = SLOT) -> SlotState:
    [found] = store.slots([slot])
    return found


def append(store: OnlineStore, *appends: tuple[int, str, bytes], slot: SlotId = SLOT) -> None:
    """One more offset of partition 0, with these appends."""
    at = state(store, slot).positions.get(0, 0)
    assert store.apply([Advance(slot, 0, at, at + 1, appends=appends)]) == [True]


def change(prefix: bytes, tail: bytes, publish: tuple[int, bytes, bytes] | None = None, table: int = TABLE) -> CellChange:
    return CellChange(table, len(prefix), tail_digest(prefix), tail, publish)


def rewrite(store: OnlineStore, *cells: CellChange, entity: str = "JFK", horizon: int = BEGINNING) -> bool:
    [done] = store.rewrite(SLOT, [EntityChange(entity, cells)], horizon)
    return done


class OnlineStoreContract:
    """Subclasses give the fixture `connect`: a function that opens the same, at first empty, store each time (and can be pickled)."""

    @pytest.fixture
    def store(self, connect: Connect) -> Iterator[OnlineStore]:
        store = connect()
        yield store
        store.close()

    # Slots and positions

    def test_an_unknown_slot_is_the_empty_state_and_does_not_serve(self, store: OnlineStore) -> None:
        assert store.slots([SLOT, OTHER]) == [SlotState(), SlotState()]
        assert not state(store).serving
        assert store.slots([]) == [], "where every bundle waits for batch"

    def test_an_advance_moves_the_position_and_appends(self, store: OnlineStore) -> None:
        assert store.apply([Advance(SLOT, 2, 0, 10, appends=[(TABLE, "JFK", b"ab"), (SECOND, "JFK", b"x")])]) == [True]
        assert store.apply([Advance(SLOT, 2, 10, 12, appends=[(TABLE, "JFK", b"c")])]) == [True]
        assert state(store).positions == {2: 12}
        assert store.read([JFK, CellId(SECOND, 3, "JFK")], [])[0] == [Cell(0, b"", b"", b"abc"), Cell(0, b"", b"", b"x")]

    def test_an_advance_without_appends_moves_the_position(self, store: OnlineStore) -> None:
        assert store.apply([Advance(SLOT, 0, 0, 5), Advance(OTHER, 0, 0, 5)]) == [True, True]
        assert store.slots([SLOT, OTHER]) == [SlotState({0: 5}), SlotState({0: 5})]

    def test_an_advance_over_an_empty_partition_makes_the_slot_serve(self, store: OnlineStore) -> None:
        assert store.apply([Advance(SLOT, 0, 0, 0)]) == [True]
        assert state(store).positions == {0: 0}
        assert state(store).serving

    @pytest.mark.parametrize("start", [0, 9, 11])
    def test_an_advance_from_a_wrong_start_is_refused_and_changes_nothing(self, store: OnlineStore, start: int) -> None:
        store.apply([Advance(SLOT, 0, 0, 10, appends=[(TABLE, "JFK", b"a")])])
        before = store.read([JFK], [SLOT])
        late = Advance(SLOT, 0, start, 20, through=9, horizon=9, latest=9, arrived=9, appends=[(TABLE, "JFK", b"b"), (TABLE, "LGA", b"c")])
        assert store.apply([late]) == [False]
        assert store.read([JFK], [SLOT]) == before
        assert one(store, CellId(TABLE, 3, "LGA")) is None

    def test_a_second_delivery_of_the_same_advance_is_refused(self, store: OnlineStore) -> None:
        advance = Advance(SLOT, 0, 0, 10, appends=[(TABLE, "JFK", b"a")])
        assert [store.apply([advance]), store.apply([advance])] == [[True], [False]]
        assert one(store, JFK) == Cell(0, b"", b"", b"a")

    def test_a_refused_slot_does_not_stop_the_others(self, store: OnlineStore) -> None:
        store.apply([Advance(OTHER, 0, 0, 3)])
        advances = [Advance(slot, 0, 0, 5, appends=[(table, "k", b"1")]) for slot, table in ((SLOT, 1), (OTHER, 1), (THIRD, 2))]
        assert store.apply(advances) == [True, False, True]
        assert [s.positions for s in store.slots([SLOT, OTHER, THIRD])] == [{0: 5}, {0: 3}, {0: 5}]
        cells, _ = store.read([CellId(1, 3, "k"), CellId(1, 4, "k"), CellId(2, 3, "k")], [])
        assert [cell is not None for cell in cells] == [True, False, True]

    def test_partitions_advance_apart(self, store: OnlineStore) -> None:
        assert store.apply([Advance(SLOT, 0, 0, 5)]) == store.apply([Advance(SLOT, 700, 0, 2**43)]) == [True]
        assert store.apply([Advance(SLOT, 1, 5, 6)]) == [False]
        assert state(store).positions == {0: 5, 700: 2**43}

    def test_horizon_latest_arrived_and_through_only_rise(self, store: OnlineStore) -> None:
        store.apply([Advance(SLOT, 0, 0, 1, through=10, horizon=-20, latest=30, arrived=40)])
        store.apply([Advance(SLOT, 0, 1, 2, through=9, horizon=-21, latest=31, arrived=39)])
        store.apply([Advance(SLOT, 1, 0, 2, through=8, horizon=-19, latest=29, arrived=41)])
        assert state(store) == SlotState({0: 2, 1: 2}, {0: 10, 1: 8}, horizon=-19, latest=31, arrived=41)
        store.apply([Advance(SLOT, 2, 0, 1)])
        assert state(store) == SlotState({0: 2, 1: 2, 2: 1}, {0: 10, 1: 8}, horizon=-19, latest=31, arrived=41)

    def test_no_advances_and_no_changes_are_fine(self, store: OnlineStore) -> None:
        assert store.apply([]) == []
        assert store.rewrite(SLOT, [], 5) == []
        assert store.slots([]) == []
        assert store.read([], []) == ([], [])
        assert state(store) == SlotState()

    # Cells

    def test_reads_answer_in_order_and_none_where_nothing_is(self, store: OnlineStore) -> None:
        for slot in (SLOT, OTHER):
            append(store, *[(TABLE, f"e{i}", f"{slot.shard}:{i}".encode()) for i in range(400)], slot=slot)
        wanted = [CellId(TABLE, shard, f"e{i}") for i in range(500, -1, -1) for shard in (3, 4, 5)]
        cells, states = store.read(wanted, [OTHER, THIRD, SLOT] * 50)
        there = [c.shard < 5 and int(c.entity[1:]) < 400 for c in wanted]
        assert [None if c is None else c.tail for c in cells] == [
            f"{c.shard}:{c.entity[1:]}".encode() if found else None for c, found in zip(wanted, there, strict=True)
        ]
        assert states == [SlotState({0: 1}), SlotState(), SlotState({0: 1})] * 50

    @pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 255, 256, 257, 511, 600])
    def test_a_read_of_any_size_has_an_answer_for_each_cell_and_slot(self, store: OnlineStore, n: int) -> None:
        append(store, (TABLE, "JFK", b"a"))
        cells, states = store.read([JFK] * n, [SLOT] * n)
        assert cells == [Cell(0, b"", b"", b"a")] * n
        assert states == [SlotState({0: 1})] * n

    def test_an_append_of_nothing_leaves_no_cell(self, store: OnlineStore) -> None:
        append(store, (TABLE, "JFK", b""))
        assert one(store, JFK) is None
        assert store.entities(SLOT, TABLE) == []

    def test_bytes_of_every_value_come_back(self, store: OnlineStore) -> None:
        every = bytes(range(256))
        append(store, (TABLE, "JFK", every[::-1]))
        append(store, (TABLE, "JFK", every * 40))
        assert rewrite(store, change(every[::-1], every, (1, every, every + b"\0")))
        append(store, (TABLE, "JFK", b"\0"))
        assert one(store, JFK) == Cell(1, every, every + b"\0", every + every * 40 + b"\0")

    @pytest.mark.parametrize(
        "key", ["", "\0", "a\0b", "a\0", " ", "'; --", "%_*?[", "Zürich", "\u212b", "\U0001f30a", "\uffff", "k" * 100_000]
    )
    def test_any_text_is_a_key(self, store: OnlineStore, key: str) -> None:
        append(store, (TABLE, key, b"1"), (TABLE, key + "x", b"2"))
        append(store, (TABLE, key, b"3"))
        assert rewrite(store, change(b"1", b"11"), entity=key)
        assert one(store, CellId(TABLE, 3, key)) == Cell(0, b"", b"", b"113")
        assert store.entities(SLOT, TABLE) == sorted([key, key + "x"])
        assert store.entities(SLOT, TABLE, after=key) == [key + "x"]

    def test_keys_that_look_alike_are_different_keys(self, store: OnlineStore) -> None:
        keys = ["\u00e5", "a\u030a", "\u212b", "A", "a", "a\0", "a "]
        append(store, *[(TABLE, key, bytes([i])) for i, key in enumerate(keys)])
        cells, _ = store.read([CellId(TABLE, 3, key) for key in keys], [])
        assert cells == [Cell(0, b"", b"", bytes([i])) for i in range(len(keys))]

    # Rewrites: compaction and publishing

    def test_a_rewrite_replaces_the_prefix_and_keeps_later_appends(self, store: OnlineStore) -> None:
        append(store, (TABLE, "JFK", b"old"))
        append(store, (TABLE, "JFK", b"+new"))
        assert rewrite(store, change(b"old", b"o"))
        assert one(store, JFK) == Cell(0, b"", b"", b"o+new")
        assert state(store).positions == {0: 2}

    def test_a_rewrite_is_refused_where_the_prefix_is_another(self, store: OnlineStore) -> None:
        append(store, (TABLE, "JFK", b"old"))
        assert not rewrite(store, change(b"alt", b"o"), horizon=50)
        assert not rewrite(store, CellChange(TABLE, 0, tail_digest(b"old"), b"o"), horizon=50)
        assert one(store, JFK) == Cell(0, b"", b"", b"old")
        assert state(store).horizon == BEGINNING

    def test_a_rewrite_is_refused_where_the_tail_is_shorter(self, store: OnlineStore) -> None:
        append(store, (TABLE, "JFK", b"old"))
        assert not rewrite(store, CellChange(TABLE, 4, tail_digest(b"old"), b"o"))
        assert not rewrite(store, change(b"old!", b"o"))
        assert not rewrite(store, change(b"old", b"o"), entity="LGA")
        assert one(store, JFK) == Cell(0, b"", b"", b"old")
        assert one(store, CellId(TABLE, 3, "LGA")) is None

    def test_a_publish_sets_value_and_vector_and_trims_the_tail(self, store: OnlineStore) -> None:
        append(store, (TABLE, "JFK", b"old+new"))
        assert rewrite(store, change(b"old", b"", (4, b"vector", b"value")))
        assert one(store, JFK) == Cell(4, b"vector", b"value", b"+new")

    def test_an_append_to_a_published_cell_keeps_what_is_published(self, store: OnlineStore) -> None:
        assert rewrite(store, change(b"", b"", (4, b"vector", b"value")))
        append(store, (TABLE, "JFK", b"a"))
        assert one(store, JFK) == Cell(4, b"vector", b"value", b"a")
        assert rewrite(store, change(b"a", b"b"))
        assert one(store, JFK) == Cell(4, b"vector", b"value", b"b")

    @pytest.mark.parametrize("k", [3, 4])
    def test_a_publish_is_refused_unless_its_version_is_above_the_cells(self, store: OnlineStore, k: int) -> None:
        append(store, (TABLE, "JFK", b"a"))
        assert rewrite(store, change(b"", b"", (4, b"v4", b"four")))
        assert not rewrite(store, change(b"a", b"", (k, b"v", b"other")), horizon=50)
        assert one(store, JFK) == Cell(4, b"v4", b"four", b"a")
        assert state(store).horizon == BEGINNING
        assert rewrite(store, change(b"a", b"", (5, b"v5", b"")))
        assert one(store, JFK) == Cell(5, b"v5", b"", b"")

    def test_an_entitys_cells_change_together_or_not_at_all(self, store: OnlineStore) -> None:
        append(store, (TABLE, "JFK", b"a"), (SECOND, "JFK", b"b"))
        right, wrong = change(b"a", b"A", (1, b"v", b"p")), change(b"?", b"B", (1, b"v", b"p"), SECOND)
        assert [rewrite(store, right, wrong), rewrite(store, wrong, right)] == [False, False]
        both = [JFK, CellId(SECOND, 3, "JFK")]
        assert store.read(both, [])[0] == [Cell(0, b"", b"", b"a"), Cell(0, b"", b"", b"b")]
        assert rewrite(store, right, change(b"b", b"B", table=SECOND))
        assert store.read(both, [])[0] == [Cell(1, b"v", b"p", b"A"), Cell(0, b"", b"", b"B")]

    def test_a_refused_entity_does_not_stop_the_others(self, store: OnlineStore) -> None:
        append(store, *[(TABLE, f"e{i:03}", b"a") for i in range(300)])
        changes = [EntityChange(f"e{i:03}", [change(b"a" if i % 3 else b"?", b"A")]) for i in range(300)]
        assert store.rewrite(SLOT, changes, 7) == [i % 3 > 0 for i in range(300)]
        cells, [after] = store.read([CellId(TABLE, 3, f"e{i:03}") for i in range(300)], [SLOT])
        assert cells == [Cell(0, b"", b"", b"A" if i % 3 else b"a") for i in range(300)]
        assert after.horizon == 7

    def test_a_rewrite_raises_the_horizon_and_never_lowers_it(self, store: OnlineStore) -> None:
        append(store, (TABLE, "JFK", b"a"))
        for given, expected in ((10, 10), (5, 10), (11, 11)):
            assert rewrite(store, change(b"a", b"a"), horizon=given)
            assert state(store) == SlotState({0: 1}, horizon=expected)

    def test_a_cell_left_with_nothing_vanishes(self, store: OnlineStore) -> None:
        append(store, (TABLE, "JFK", b"a"), (TABLE, "LGA", b"a"))
        assert rewrite(store, change(b"a", b""))
        assert one(store, JFK) is None
        assert store.entities(SLOT, TABLE) == ["LGA"]
        assert store.stats("by_origin", [TABLE]) == StoreStats(1, 1)
        append(store, (TABLE, "JFK", b"b"))
        assert one(store, JFK) == Cell(0, b"", b"", b"b")

    def test_a_publish_into_an_unknown_slot_does_not_make_it_serve(self, store: OnlineStore) -> None:
        assert rewrite(store, change(b"", b"", (1, b"v", b"p")), horizon=5)
        assert state(store) == SlotState(horizon=5)
        assert not state(store).serving

    # Rebuild and reset

    def test_a_rebuild_is_a_chain_of_cursors_and_serves_only_at_its_end(self, store: OnlineStore) -> None:
        first, second = ([EntityChange(e, [change(b"", b"", (2, b"v", e.encode()))])] for e in ("JFK", "LGA"))
        assert store.rebuild(SLOT, None, "2/JFK", first, horizon=10)
        assert state(store) == SlotState(horizon=10, cursor="2/JFK")
        assert store.rebuild(SLOT, "2/JFK", "2/LGA", second, horizon=12)
        assert not state(store).serving
        assert store.rebuild(SLOT, "2/LGA", None, [], horizon=11, positions={0: 1024, 3: 2048})
        assert state(store) == SlotState({0: 1024, 3: 2048}, horizon=12)
        assert state(store).serving
        assert one(store, CellId(TABLE, 3, "LGA")) == Cell(2, b"v", b"LGA", b"")
        assert store.apply([Advance(SLOT, 3, 2048, 2050)]) == [True]

    def test_a_rebuild_in_one_link_is_a_chain_too(self, store: OnlineStore) -> None:
        assert store.rebuild(SLOT, None, None, [], horizon=1, positions={0: 7})
        assert state(store) == SlotState({0: 7}, horizon=1)

    def test_a_rebuild_does_not_begin_where_positions_are(self, store: OnlineStore) -> None:
        append(store, (TABLE, "JFK", b"a"))
        before = store.read([JFK], [SLOT])
        assert not store.rebuild(SLOT, None, "c", [EntityChange("JFK", [change(b"a", b"b")])], horizon=99)
        assert store.read([JFK], [SLOT]) == before

    @pytest.mark.parametrize("expect", [None, "b", ""])
    def test_a_link_with_a_wrong_cursor_is_refused_and_changes_nothing(self, store: OnlineStore, expect: str | None) -> None:
        assert store.rebuild(SLOT, None, "a", [], horizon=1)
        changes = [EntityChange("JFK", [change(b"", b"x")])]
        assert not store.rebuild(SLOT, expect, None, changes, horizon=99, positions={0: 5})
        assert state(store) == SlotState(horizon=1, cursor="a")
        assert one(store, JFK) is None

    def test_a_link_is_refused_where_no_rebuild_is_under_way(self, store: OnlineStore) -> None:
        assert not store.rebuild(SLOT, "a", "b", [], horizon=1)
        assert state(store) == SlotState()

    def test_an_advance_is_refused_during_a_rebuild(self, store: OnlineStore) -> None:
        assert store.rebuild(SLOT, None, "a", [], horizon=1)
        assert store.apply([Advance(SLOT, 0, 0, 5, appends=[(TABLE, "JFK", b"a")])]) == [False]
        assert store.read([JFK], [SLOT]) == ([None], [SlotState(horizon=1, cursor="a")])

    def test_a_rebuild_passes_over_a_change_that_does_not_fit(self, store: OnlineStore) -> None:
        assert store.rebuild(SLOT, None, "a", [], horizon=1)
        assert rewrite(store, change(b"", b"", (9, b"v9", b"nine")))
        changes = [EntityChange(entity, [change(b"", b"", (2, b"v2", b"two"))]) for entity in ("JFK", "LGA")]
        assert store.rebuild(SLOT, "a", None, changes, horizon=1, positions={0: 5})
        cells, [after] = store.read([JFK, CellId(TABLE, 3, "LGA")], [SLOT])
        assert cells == [Cell(9, b"v9", b"nine", b""), Cell(2, b"v2", b"two", b"")]
        assert after.positions == {0: 5}

    def test_a_reset_removes_all_but_the_horizon(self, store: OnlineStore) -> None:
        store.apply([Advance(SLOT, 0, 0, 9, through=3, horizon=4, latest=5, arrived=6, appends=[(TABLE, "JFK", b"a"), (SECOND, "", b"b")])])
        assert rewrite(store, change(b"a", b"", (1, b"v", b"p")), horizon=8)
        store.reset(SLOT)
        assert store.read([JFK, CellId(SECOND, 3, "")], [SLOT]) == ([None, None], [SlotState(horizon=8)])
        assert store.stats("by_origin", [TABLE, SECOND]) == StoreStats(0, 0)
        append(store, (TABLE, "JFK", b"again"))
        assert one(store, JFK) == Cell(0, b"", b"", b"again")

    def test_a_reset_touches_no_other_slot(self, store: OnlineStore) -> None:
        append(store, (TABLE, "k", b"a"), slot=SLOT)
        append(store, (TABLE, "k", b"b"), slot=OTHER)
        append(store, (99, "k", b"c"), slot=THIRD)
        store.reset(SLOT)
        cells, states = store.read([CellId(TABLE, 3, "k"), CellId(TABLE, 4, "k"), CellId(99, 3, "k")], [SLOT, OTHER, THIRD])
        assert [None if cell is None else cell.tail for cell in cells] == [None, b"b", b"c"]
        assert [s.positions for s in states] == [{}, {0: 1}, {0: 1}]

    def test_a_reset_ends_a_rebuild_so_that_it_can_begin_again(self, store: OnlineStore) -> None:
        store.rebuild(SLOT, None, "a", [EntityChange("JFK", [change(b"", b"", (1, b"v", b"p"))])], horizon=3)
        store.reset(SLOT)
        assert store.read([JFK], [SLOT]) == ([None], [SlotState(horizon=3)])
        assert store.rebuild(SLOT, None, "b", [], horizon=1)

    def test_a_reset_removes_what_was_published_into_an_unknown_slot(self, store: OnlineStore) -> None:
        assert rewrite(store, change(b"", b"", (1, b"v", b"p")))
        store.reset(SLOT)
        assert one(store, JFK) is None

    def test_a_reset_of_an_unknown_slot_is_nothing(self, store: OnlineStore) -> None:
        store.reset(SLOT)
        assert state(store) == SlotState()

    # Looking around

    def test_pages_of_entities_lose_none(self, store: OnlineStore) -> None:
        keys = ["", "\0", "\0\0", " ", "A", "a", "a\0", "a\0b", "aa", "b", "é", "Ж", "\uffff", "\U00010000", "\U0001f30a"]
        append(store, *[(TABLE, key, b"1") for key in reversed(keys)], (SECOND, "elsewhere", b"1"))
        append(store, (TABLE, "elsewhere", b"1"), slot=OTHER)
        for limit in (1, 2, 3, len(keys), 1000):
            pages, after = [], None
            while page := store.entities(SLOT, TABLE, after=after, limit=limit):
                assert len(page) <= limit
                pages += page
                after = page[-1]
            assert pages == keys

    def test_entities_after_the_empty_key_leave_it_out(self, store: OnlineStore) -> None:
        append(store, (TABLE, "", b"1"), (TABLE, "a", b"1"))
        assert store.entities(SLOT, TABLE) == ["", "a"]
        assert store.entities(SLOT, TABLE, after="") == ["a"]
        assert store.entities(SLOT, TABLE, after="a") == []

    def test_entities_can_be_those_with_long_tails(self, store: OnlineStore) -> None:
        append(store, (TABLE, "long", b"123"), (TABLE, "longer", b"1234"), (TABLE, "short", b"1"))
        assert rewrite(store, change(b"", b"", (1, b"v", b"published")), entity="published")
        assert store.entities(SLOT, TABLE, min_tail=3) == ["long", "longer"]
        assert store.entities(SLOT, TABLE, min_tail=3, after="long") == ["longer"]
        assert store.entities(SLOT, TABLE, min_tail=3, limit=1) == ["long"]
        assert store.entities(SLOT, TABLE) == ["long", "longer", "published", "short"]

    def test_heartbeats_are_kept_per_partition_and_an_older_one_changes_nothing(self, store: OnlineStore) -> None:
        assert store.heartbeats("departures") == {}
        store.heartbeat("departures", {0: Heartbeat(10, 100), 7: Heartbeat(20, 100)})
        store.heartbeat("departures", {0: Heartbeat(8, 101), 7: Heartbeat(30, 99)})
        store.heartbeat("arrivals", {0: Heartbeat(1, 1)})
        store.heartbeat("arrivals", {})
        assert store.heartbeats("departures") == {0: Heartbeat(8, 101), 7: Heartbeat(20, 100)}
        assert store.heartbeats("arrivals") == {0: Heartbeat(1, 1)}

    def test_stats_count_the_cells_and_bytes_of_a_bundles_tables(self, store: OnlineStore) -> None:
        append(store, (TABLE, "JFK", b"123"), (TABLE, "LGA", b"1"), (SECOND, "JFK", b"12"))
        append(store, (TABLE, "EWR", b"12345"), slot=OTHER)
        append(store, (99, "k", b"1"), slot=THIRD)
        assert rewrite(store, change(b"123", b"1", (1, b"8 bytes.", b"published")))
        assert store.stats("by_origin", [TABLE, SECOND]) == StoreStats(4, 1 + 8 + 9 + 1 + 2 + 5)
        assert store.stats("by_origin", [SECOND]) == StoreStats(1, 2)
        assert store.stats("by_origin", []) == StoreStats(0, 0)

    def test_it_does_what_the_model_does(self, store: OnlineStore) -> None:
        class Machine(StoreMachine):
            def __init__(self) -> None:
                super().__init__(store)

        run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=20))


class SharedStoreContract(OnlineStoreContract):
    """For stores that outlive a process and that many use at once."""

    def test_what_one_connection_writes_another_reads(self, connect: Connect, store: OnlineStore) -> None:
        other = connect()
        assert other.slots([SLOT]) == [SlotState()]
        append(store, (TABLE, "JFK", b"a"))
        assert other.read([JFK], [SLOT]) == ([Cell(0, b"", b"", b"a")], [SlotState({0: 1})])
        other.close()
        append(store, (TABLE, "JFK", b"b"))
        assert one(store, JFK) == Cell(0, b"", b"", b"ab")

    def test_of_two_writers_at_the_same_position_one_is_refused(self, connect: Connect, store: OnlineStore) -> None:
        other = connect()
        won = [each.apply([Advance(SLOT, 0, 0, 5, appends=[(TABLE, "JFK", data)])]) for each, data in ((store, b"a"), (other, b"b"))]
        other.close()
        assert won == [[True], [False]]
        assert one(store, JFK) == Cell(0, b"", b"", b"a")

    def test_processes_that_write_compact_and_read_at_once_see_values_and_positions_agree(self, connect: Connect) -> None:
        end = 200
        tasks = [processes.write_until, processes.write_until, processes.compact_until, processes.watch_until]
        with ProcessPoolExecutor(len(tasks), multiprocessing.get_context("spawn")) as pool:
            running = [pool.submit(task, connect, end, me, len(tasks)) for me, task in enumerate(tasks)]
            first, second, changed, seen = [each.result(timeout=120) for each in running]
        assert first + second == end
        assert changed > 0
        assert seen > 1
        store = connect()
        assert processes.assert_consistent(store) == end
        store.close()

    def test_a_writer_that_is_killed_leaves_values_and_positions_that_agree(self, connect: Connect, store: OnlineStore) -> None:
        for goal in itertools.accumulate([20, 21]):
            writer = multiprocessing.get_context("spawn").Process(target=processes.write_for_ever, args=(connect,), daemon=True)
            writer.start()
            for _ in processes.patiently():
                assert writer.is_alive()
                if processes.position(store) >= goal:
                    break
            writer.kill()
            writer.join()
            at = processes.assert_consistent(store)
            assert processes.count_one(store, at)
            assert processes.assert_consistent(store) == at + 1
