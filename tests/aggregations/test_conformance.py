"""One suite over every aggregation: equal to brute force bit for bit, whatever became of its events in between."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.aggregations.cases import CASES, VIEW_FILTER, Case, bundle, passes_view_filter
from tests.aggregations.weather import Cells, entities, of, read, select, stored, streamed
from tests.strategies import NOW, Log, cut_vectors, edges, event, examples, horizons, logs, windows
from tidemill.aggregations import aggregation_from_spec
from tidemill.blocks import vector_of
from tidemill.kernel import packed
from tidemill.kernel.bundle import Bundle
from tidemill.kernel.table import Table
from tidemill.online.base import EMPTY_CELL, Cell
from tidemill.testing import identical
from tidemill.times import HOUR, MIN_TIME, SECOND, Window

every_case = pytest.mark.parametrize("case", CASES, ids=str)

FEW = tuple(map(Window.parse, ("10s", "1h", "25h", "lifetime")))


def drawn(data: st.DataObject, case: Case, ws: tuple[Window, ...] = FEW, max_size: int = 16) -> Log:
    return data.draw(logs(event(case.schema, NOW, ws, keys=["k"], ids=["id", "sid"]), min_size=3, max_size=max_size), "log")


def appended(view: Bundle, log: Log) -> dict[tuple[int, str], bytes]:
    """The tails by (position of the table, entity), one batch a partition, with a horizon before everything."""
    tails: dict[tuple[int, str], bytes] = {}
    for partition, rows in log.partitions.items():
        for table, name, records in view.deltas(select(view, rows), MIN_TIME, partition, 1).get(0, []):
            key = view.table_ids.index(table), name
            tails[key] = tails.get(key, b"") + records
    return tails


def as_tails(view: Bundle, tails: dict[tuple[int, str], bytes]) -> Cells:
    return {key: Cell(0, b"", b"", tail) for key, tail in tails.items()}


def check(case: Case, view: Bundle, found: Any, log: Log, names: list[str], t: int) -> None:
    ws = tuple(view.windows)
    for window in ws:
        for name, got in zip(names, found.values(view.aggregations[0], window), strict=True):
            rows = [e for e in of(log, name) if view.where is None or passes_view_filter(e)]
            want = case.oracle(ws, window, rows, t, view.event_id)
            assert identical(got, want), f"{window.name} of {name!r} at {t}: {got!r}, and brute force says {want!r}"


@every_case
@examples(3)
@given(data=st.data())
def test_at_every_instant_the_answer_is_brute_force(case: Case, data: st.DataObject) -> None:
    ws = data.draw(windows(), "windows")
    log = drawn(data, case, ws)
    view = bundle(case, ws, data.draw(st.sampled_from((None, "id", "sid")), "event id"))
    cells = as_tails(view, appended(view, log))
    names = [*entities(log), "never seen"]
    around = [e["at"] + d for _, _, e in log.all() for d in (0, 1)]
    for t in data.draw(st.lists(st.sampled_from([*edges(NOW, ws), *around]), max_size=6, unique=True), "instants"):
        check(case, view, read(view, cells, names, t), log, names, t)


@every_case
@examples(4)
@given(data=st.data(), rng=st.randoms(use_true_random=True))
def test_no_weather_changes_a_bit(case: Case, data: st.DataObject, rng: Random) -> None:
    ws = data.draw(windows(), "windows")
    log = drawn(data, case, ws)
    view = bundle(
        case, ws, data.draw(st.sampled_from((None, "id", "sid")), "event id"), data.draw(st.sampled_from((None, VIEW_FILTER)), "view")
    )
    cells = stored(view, log, data.draw(cut_vectors(log), "cuts"), NOW, rng)
    names = [*entities(log), "never seen"]
    for t in (NOW, NOW + 1, NOW + SECOND, NOW + rng.randrange(2 * HOUR)):
        check(case, view, read(view, cells, names, t), log, names, t)
    for name in names:
        check(case, view, read(view, cells, [name], NOW), log, [name], NOW)


@every_case
@examples(2)
@given(data=st.data(), rng=st.randoms(use_true_random=True))
def test_compaction_is_idempotent_and_may_be_done_in_pieces(case: Case, data: st.DataObject, rng: Random) -> None:
    view, log, horizon = bundle(case, FEW), drawn(data, case, max_size=8), data.draw(horizons(NOW), "horizon")
    one, two = streamed(view, log, [], horizon, rng), streamed(view, log, [], horizon, rng)
    for table, table_id in zip(view.tables, view.table_ids, strict=True):
        ones, twos = ([tails[table_id, name] for name in entities(log)] for tails in (one, two))

        def compact(tails: list[bytes], table: Table[Any] = table) -> list[bytes]:
            return packed.compact(table, tails, view.ladder, horizon, {})

        once = compact(ones)
        assert compact(once) == once
        assert [compact([tail])[0] for tail in ones] == once
        assert compact(list(map(bytes.__add__, once, compact(twos)))) == compact(list(map(bytes.__add__, ones, twos)))


@every_case
@examples(2)
@given(data=st.data())
def test_records_merge_as_frames_do(case: Case, data: st.DataObject) -> None:
    view, log, horizon = bundle(case, FEW), drawn(data, case), data.draw(horizons(NOW), "horizon")
    tails = appended(view, log)
    frames = [view.fold(select(view, rows), horizon) for rows in log.partitions.values()]
    everything = {1: vector_of(dict.fromkeys(log.partitions, 2**40))}
    for i, table in enumerate(view.tables):
        merged = view.merge(i, pl.concat([f[i] for f in frames]), horizon)
        names, blobs = view.pack(i, view.with_entities(merged), tag=-1)
        assert names == sorted(name for position, name in tails if position == i and not expired(view, table, tails[i, name], horizon))
        from_frames = packed.compact(table, blobs, view.ladder, horizon, {})
        assert from_frames == packed.compact(table, [tails[i, name] for name in names], view.ladder, horizon, everything)


def expired(view: Bundle, table: Table[Any], tail: bytes, horizon: int) -> bool:
    return packed.compact(table, [tail], view.ladder, horizon, {}) == [b""]


@every_case
def test_nothing_is_zero_or_null(case: Case) -> None:
    view = bundle(case, FEW)
    ahead = {"at": NOW, "k": "a", "v": None, "w": None, "id": None, "sid": None}
    tails = appended(view, Log({0: [(0, ahead)]}))
    for i in range(len(view.tables)):
        nothing = [None, EMPTY_CELL, Cell(3, b"\0" * 8, b"", b""), Cell(0, b"", b"", tails.get((i, "a"), b""))]
        found = view.evaluate(NOW, {0: nothing, i: nothing})
        assert found.present == [False] * 4
        if i == view.table_of(view.aggregations[0]):
            for window in FEW:
                assert all(identical(value, case.nothing) for value in found.values(view.aggregations[0], window))
    nobody = view.evaluate(NOW, {i: [] for i in range(len(view.tables))})
    assert nobody.values(view.aggregations[0], FEW[0]) == []


@every_case
def test_only_nulls_are_nothing_too(case: Case) -> None:
    if case.name.startswith("count"):
        return
    view = bundle(case, FEW)
    nulls = [(i, {"at": NOW - i, "k": "a", "v": None, "w": 1, "id": None, "sid": None}) for i in (1, 2)]
    found = read(view, as_tails(view, appended(view, Log({0: nulls}))), ["a"], NOW)
    assert found.present == [True]
    assert all(identical(found.values(view.aggregations[0], window)[0], case.nothing) for window in FEW)


@every_case
def test_a_spec_is_json_and_reads_back(case: Case) -> None:
    aggregation = case.aggregation(FEW)
    again = aggregation_from_spec(json.loads(json.dumps(aggregation.spec())))
    assert again == aggregation
    assert hash(again) == hash(aggregation)
    assert again.features() == aggregation.features()
    assert again.with_windows(FEW[:1]) != aggregation
    compiled = Bundle("another", schema=case.schema, event_id=None, keys=["k"], where=None, aggregations=[again])
    assert compiled.tables[1:] == bundle(case, FEW).tables[1:]
    assert [t.key for t in compiled.tables] == [t.key for t in bundle(case, FEW).tables]


@every_case
@examples(2)
@given(data=st.data(), rng=st.randoms(use_true_random=True))
def test_ten_reads_give_ten_equal_answers_and_change_nothing(case: Case, data: st.DataObject, rng: Random) -> None:
    log = drawn(data, case, max_size=8)
    view = bundle(case, FEW)
    cells = stored(view, log, data.draw(cut_vectors(log), "cuts"), NOW, rng)
    before = {
        key: cell._replace(tail=bytes(bytearray(cell.tail)), published=bytes(bytearray(cell.published))) for key, cell in cells.items()
    }
    reads = [read(view, cells, entities(log), NOW).values(view.aggregations[0], FEW[-1]) for _ in range(10)]
    assert all(identical(again, reads[0]) for again in reads)
    found = read(view, cells, entities(log), NOW)
    assert identical(found.values(view.aggregations[0], FEW[-1]), found.values(view.aggregations[0], FEW[-1]))
    assert cells == before
