"""All aggregations together in one bundle, over columns of every type: as a real view has them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill.aggregations as ta
from tests.aggregations.cases import FILTER, passes_filter
from tests.aggregations.weather import answers, entities, of, stored
from tests.strategies import NOW, cut_vectors, decoded, event, examples, logs
from tidemill.aggregations.base import NUMBERS, ORDERED
from tidemill.kernel.bundle import Bundle
from tidemill.online.base import Cell
from tidemill.testing import brute_force, identical
from tidemill.times import Window, from_micros
from tidemill.types import ColumnType

KINDS = ("float", "int", "bool", "str", "timestamp")
SCHEMA = {
    "at": ColumnType("timestamp"),
    "k": ColumnType("str"),
    "w": ColumnType("int"),
    "id": ColumnType("int"),
    **{k: ColumnType(k) for k in KINDS},
}
WINDOWS = ["30s", "1h", "1d", "lifetime"]


def aggregations() -> list[ta.Aggregation]:
    """Everything over everything, some with a filter, some with windows that others do not have."""
    out = [ta.count(windows=WINDOWS), ta.count(windows=["90m"], where=FILTER, name="chosen")]
    for kind in NUMBERS:
        out += [f(kind, windows=WINDOWS) for f in (ta.sum, ta.mean, ta.variance)] + [ta.stddev(kind, windows=["2d"], population=True)]
        out += [ta.sum(kind, windows=WINDOWS, where=FILTER, name=f"chosen_{kind}"), ta.quantile(kind, 0.25, windows=WINDOWS[1:])]
    for kind in ORDERED:
        out += [f(kind, windows=WINDOWS) for f in (ta.min, ta.max, ta.first, ta.last)]
        out += [ta.last_n(kind, 4, windows=["1h", "lifetime"]), ta.approx_count_distinct(kind, windows=["1d"], where=FILTER)]
    return out


VIEW = Bundle("v", schema=SCHEMA, event_id="id", keys=["k"], where=None, aggregations=aggregations())


@examples(6)
@given(
    log=logs(event(SCHEMA, NOW, VIEW.windows, keys=["k"], ids=["id"]), max_size=25), data=st.data(), rng=st.randoms(use_true_random=True)
)
def test_no_weather_changes_a_bit_of_a_whole_view(log: Any, data: st.DataObject, rng: Random) -> None:
    cells = stored(VIEW, log, data.draw(cut_vectors(log), "cuts"), NOW, rng)
    names = entities(log)
    for t in (NOW, NOW + rng.randrange(2 * 10**9)):
        found = answers(VIEW, cells, names, t)
        for aggregation in VIEW.aggregations:
            for window in aggregation.windows:
                for name, got in zip(names, found[aggregation.label, window.name], strict=True):
                    passes = passes_filter if aggregation.where else None
                    want = brute_force(aggregation, window, of(log, name), t, schema=SCHEMA, timestamp="at", event_id="id", passes=passes)
                    assert identical(got, want), (aggregation.label, window.name, name, t)


@pytest.mark.parametrize("table", range(len(VIEW.tables)), ids=[t.key.split("-")[0] for t in VIEW.tables])
def test_every_table_decodes_nothing_to_nothing(table: int) -> None:
    kind = VIEW.tables[table]
    records = kind.decode([b"", b""])
    assert len(records.entity) == len(records.span) == len(records.tag) == 0
    assert kind.encode(kind.merge_records(records), 2) == [b"", b""]


def test_aggregations_share_what_state_they_can() -> None:
    windows = ["1h"]
    shared = [
        ta.sum("x", windows=windows),
        ta.mean("x", windows=windows),
        ta.quantile("x", 0.5, windows=windows),
        ta.quantile("x", 0.9, windows=windows),
    ]
    schema = {"at": ColumnType("timestamp"), "k": ColumnType("str"), "x": ColumnType("float")}
    view = Bundle("v", schema=schema, event_id=None, keys=["k"], where=None, aggregations=shared)
    assert len(view.tables) == 2
    assert view.fixed.words == 1 + 1 + 4
    later = ta.max("x", windows=windows)
    assert [view.covers(a, view.windows[0], schema, None) for a in (*shared, later)] == [True] * 4 + [False]
    assert not view.covers(shared[0], Window.parse("2h"), schema, None)
    assert not view.covers(shared[0], view.windows[0], {**schema, "x": ColumnType("int")}, None)
    assert not view.covers(ta.sum("x", windows=windows, where="x > 0"), view.windows[0], schema, None)


def test_an_aggregation_that_is_covered_later_reads_what_is_there() -> None:
    schema = {"at": ColumnType("timestamp"), "k": ColumnType("str"), "x": ColumnType("float")}
    view = Bundle(
        "v",
        schema=schema,
        event_id=None,
        keys=["k"],
        where=None,
        aggregations=[ta.variance("x", windows=["1h"]), ta.sum("x", windows=["1h"])],
    )
    mean = ta.mean("x", windows=["1h"])
    assert view.covers(mean, view.windows[0], schema, None)
    view.serve(mean)
    assert view.evaluate(NOW, {0: [Cell(0, b"", b"", b"")]}).values(mean, view.windows[0]) == [None]


@pytest.mark.parametrize("table", range(len(VIEW.tables)), ids=[t.key.split("-")[0] for t in VIEW.tables])
def test_the_engine_for_many_rows_groups_as_the_one_for_few(table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**dict.fromkeys(SCHEMA), "at": NOW - i % 7, "k": "ab"[i % 2], "w": i % 3, "id": i % 4} for i in range(40)]
    for i, row in enumerate(rows):
        row.update(float=i * 0.1 - 1, int=i - 9, bool=i % 3 == 0, str=str(i % 5), timestamp=from_micros(i))
    packed = []
    for most in (10**9, 0):
        monkeypatch.setattr("tidemill.kernel.table._STREAMING_ROWS", most)
        tiles = VIEW.with_entities(VIEW.fold(decoded(rows, SCHEMA), NOW - 3)[table])
        kind = VIEW.tables[table]
        packed.append(kind.encode(kind.merge_records(kind.decode(VIEW.pack(table, tiles, tag=-1)[1])), 2))
    assert packed[0] == packed[1]
