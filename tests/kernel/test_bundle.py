"""What a bundle does with events as a whole: selects, names, deals out."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill.aggregations as ta
from tests.strategies import NOW, Event, decoded, event, examples
from tidemill.entities import MAX_KEY_BYTES, entity_key
from tidemill.errors import DefinitionError
from tidemill.kernel.bundle import Bundle, Rejected
from tidemill.online.base import Cell
from tidemill.stable import shard_of
from tidemill.testing import brute_force, identical
from tidemill.times import Window
from tidemill.types import ColumnType

SCHEMA = {c: ColumnType(t) for c, t in {"at": "timestamp", "a": "str", "n": "int", "b": "bool", "x": "float"}.items()}
WINDOWS = [Window.parse("1h"), Window.parse("lifetime")]


def bundle(keys: list[str], where: str | None = None, schema: dict[str, ColumnType] = SCHEMA) -> Bundle:
    aggregations = [f("x", windows=["1h", "lifetime"]) for f in (ta.sum, ta.last, ta.approx_count_distinct)]
    return Bundle(
        "b", schema=schema, event_id=None, keys=keys, where=where, aggregations=[*aggregations, ta.quantile("x", 0.5, windows=["1h"])]
    )


def row(**values: Any) -> Event:
    return {"at": NOW, "a": "k", "n": 1, "b": True, "x": 1.0, **values}


@pytest.mark.parametrize("where", [None, "x >= 0"])
def test_a_rejected_row_is_named_by_its_place_in_the_frame_that_came_in(where: str | None) -> None:
    long = "é" * (MAX_KEY_BYTES // 4 + 1)
    rows = [row(x=-1.0), row(a=None), row(), row(x=-1.0, a=None), row(a=long), row(), row(a=None, n=None)]
    frame = decoded(rows, SCHEMA)
    selected, rejected = bundle(["a", "n"], where).select(frame)
    assert selected["_offset"].to_list() == ([0, 2, 5] if where is None else [2, 5])
    want = [
        Rejected(1, "null key a"),
        Rejected(3, "null key a"),
        Rejected(4, "key a, n longer than 2048 bytes"),
        Rejected(6, "null key a, n"),
    ]
    assert rejected == [r for r in want if where is None or r.row != 3], "what the view does not take, it does not reject"


def test_a_view_filter_takes_null_for_no() -> None:
    rows = [row(x=x) for x in (None, float("nan"), -0.0, 1.0)]
    assert bundle(["a"], "x >= 0").select(decoded(rows, SCHEMA))[0]["_offset"].to_list() == [2, 3]


def test_the_longest_key_is_taken_by_stream_and_request_alike() -> None:
    key = "é" * (MAX_KEY_BYTES // 4)
    view = bundle(["a"])
    events, rejected = view.select(decoded([row(a=key)], SCHEMA))
    assert rejected == []
    assert {name for _, name, _ in view.deltas(events, NOW, 0, 1)[0]} == {entity_key({"a": key}, ["a"], SCHEMA)}


@pytest.mark.parametrize("column", ["id", "value", "time", "bucket", "register", "rank", "cell", "row", "entity", "span", "tag", "offset"])
def test_a_key_may_have_any_name(column: str) -> None:
    view = bundle([column], schema={**SCHEMA, column: ColumnType("int")})
    events, _ = view.select(decoded([row(**{column: 7})], view.schema))
    assert {name for _, name, _ in view.deltas(events, NOW, 0, 1)[0]} == {"7"}


@pytest.mark.parametrize("column", ["count", "x_count", "x_sum", "x_sum_d0"])
def test_a_key_with_the_name_of_a_column_of_the_partials_is_refused(column: str) -> None:
    with pytest.raises(DefinitionError, match=f"key '{column}'"):
        bundle([column], schema={**SCHEMA, column: ColumnType("int")})


def test_no_events_are_no_deltas() -> None:
    view = bundle(["a", "b"], "x > 0")
    events, rejected = view.select(decoded([], SCHEMA))
    assert rejected == []
    assert view.deltas(events, NOW, 0, 4) == {}
    for i, frame in enumerate(view.fold(events, NOW)):
        assert view.pack(i, view.with_entities(view.merge(i, frame, NOW)), tag=-1) == ([], [])


@examples(40)
@given(data=st.data())
def test_entities_of_many_keys_are_dealt_out_by_hash_and_stay_apart(data: st.DataObject) -> None:
    keys = data.draw(st.permutations(["a", "n", "b", "at"]).map(lambda p: p[: 1 + len(p) // 2]), "keys")
    rows = data.draw(st.lists(event(SCHEMA, NOW, WINDOWS, keys=["a", "n", "b"]), max_size=12), "events")
    view, shards = bundle(list(keys)), data.draw(st.integers(1, 7), "shards")
    events, rejected = view.select(decoded(rows, SCHEMA))
    assert rejected == []
    names = [entity_key({**r, "at": decoded([r], SCHEMA)["at"][0]}, keys, SCHEMA) for r in rows]
    dealt = view.deltas(events, NOW - 1, 0, shards)
    tails = {(table, name): records for items in dealt.values() for table, name, records in items}
    assert len(tails) == sum(map(len, dealt.values())), "one item per cell"
    assert all(shard_of(name, shards) == shard for shard, items in dealt.items() for _, name, _ in items)
    assert {name for _, name in tails} <= set(names)
    order = sorted(set(names))
    cells = {i: [Cell(0, b"", b"", tails.get((table, name), b"")) for name in order] for i, table in enumerate(view.table_ids)}
    found = view.evaluate(NOW, cells)
    for aggregation in view.aggregations:
        for window in aggregation.windows:
            for name, got in zip(order, found.values(aggregation, window), strict=True):
                mine = [r for r, n in zip(rows, names, strict=True) if n == name]
                want = brute_force(aggregation, window, mine, NOW, schema=SCHEMA, timestamp="at")
                assert identical(got, want), (aggregation.label, window.name, name)


def test_frames_carry_the_keys_as_they_came() -> None:
    view = bundle(["a", "b"])
    events, _ = view.select(decoded([row(), row(a="", b=False)], SCHEMA))
    for frame in view.fold(events, NOW, 3):
        assert frame.select("a", "b").schema == {"a": pl.String(), "b": pl.Boolean()}
        assert sorted(view.with_entities(frame)["_entity"].unique()) == ["0:5:false", "1:k4:true"]
