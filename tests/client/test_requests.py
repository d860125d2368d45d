"""What a request may ask, and whose definitions answer it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

import tidemill as tm
from tests.project import EVENTS, VIEW, Folder, events
from tidemill.errors import NotAppliedError, RequestError, StoreUnavailableError

POSITIVE = VIEW.replace("aggregations", 'where="x > 0", aggregations')


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "p", EVENTS + POSITIVE)
    folder.log(events(10))
    folder.stream()
    return folder


@pytest.mark.parametrize(
    "changed",
    [VIEW.replace("aggregations", 'where="x < 0", aggregations'), POSITIVE.replace('tm.Entity("k")', 'tm.Entity("k", keys=["x"])')],
)
def test_a_view_that_means_something_else_than_what_is_applied_is_refused(folder: Folder, changed: str) -> None:
    folder.write(EVENTS + changed)
    with pytest.raises(NotAppliedError, match=r"v:count_lifetime is defined differently"):
        folder.get(k="a", x=1)


def test_each_request_looks_for_newer_definitions_however_many_others_there_are(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tidemill.client.time.monotonic", lambda: now[0])
    store = tm.FeatureStore(folder.env)
    wanted: list[Any] = [["v"], ["v:count_lifetime"]]
    for features in wanted:
        store.get_online_features(features, [{"k": "a"}])
    other = Folder.__new__(Folder)
    other.path = folder.path
    other.define(EVENTS + VIEW)
    for features in wanted:
        now[0] += 2
        with pytest.raises(NotAppliedError):
            store.get_online_features(features, [{"k": "a"}])


@pytest.mark.parametrize("at", ["soon", "", 10**18, dt.date(2026, 1, 1), 1.5, "0001-01-01T00:00:00+12:00"])
def test_an_instant_that_is_none_is_refused(folder: Folder, at: Any) -> None:
    with pytest.raises(RequestError, match="give a datetime"):
        tm.FeatureStore(folder.env).get_online_features(["v"], [{"k": "a"}], at=at)


@pytest.mark.parametrize("rows", ["a", [None], [("k", "a")], {"k": "a"}, 5])
def test_rows_that_are_none_are_refused(folder: Folder, rows: Any) -> None:
    with pytest.raises(RequestError, match="give a list of dicts"):
        tm.FeatureStore(folder.env).get_online_features(["v"], rows)


def test_rows_may_be_an_arrow_table_or_any_iterable(folder: Folder) -> None:
    store = tm.FeatureStore(folder.env)
    for rows in (pa.table({"k": ["a", "b"]}), iter([{"k": "a"}, {"k": "b"}])):
        assert store.get_online_features(["v"], rows, at="2026-06-01").columns["v__count_lifetime"] == [10, 0]  # type: ignore[arg-type]


DATED = """
@tm.on_demand(inputs=[v, tm.Request(due=tm.Timestamp)])
def due_us(due, count_lifetime):
    return due.astype("int64").astype("float64")
"""


def test_an_instant_of_pandas_does_not_become_a_date_because_another_row_has_one(folder: Folder) -> None:
    folder.define(EVENTS + POSITIVE + DATED)
    noon, store = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC), tm.FeatureStore(folder.env)
    objects = {"due": pd.Series([noon, dt.datetime(2026, 6, 2, tzinfo=dt.UTC)], dtype=object), "k": "a"}
    assert store.get_online_features(["due_us"], pd.DataFrame(objects)).columns["due_us"] == [noon.timestamp() * 1e6, 1780358400e6]
    mixed = {"due": pd.Series([dt.date(2026, 6, 2), noon], dtype=object), "k": "a"}
    with pytest.raises(RequestError, match=r"column 'due' holds dates \(row 0\) and instants \(row 1\)"):
        store.get_online_features(["due_us"], pd.DataFrame(mixed))


@pytest.mark.parametrize("features", [{"a": 1}, [["v"]]])
def test_features_that_are_none_are_refused(folder: Folder, features: Any) -> None:
    with pytest.raises(RequestError, match="give a service, or a list"):
        tm.FeatureStore(folder.env).get_online_features(features, [{"k": "a"}])


def test_requests_are_answered_while_the_offline_store_is_away(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tidemill.client.time.monotonic", lambda: now[0])
    store, asked = tm.FeatureStore(folder.env), []

    def away() -> None:
        asked.append(now[0])
        raise StoreUnavailableError("S3 does not answer")

    def get(*features: str) -> list[int]:
        return store.get_online_features(list(features), [{"k": "a"}]).columns["v__count_lifetime"]

    assert get("v") == [10]
    with monkeypatch.context() as patch:
        patch.setattr(folder.env, "applied", away)
        for _ in range(200):
            now[0] += 0.1
            assert get("v") == [10]
        assert asked == pytest.approx([101.0], abs=0.2)  # and no request waits for it again soon
        with pytest.raises(StoreUnavailableError):
            get("v:count_lifetime")  # asked for the first time: only the registry can say what it is
    folder.define(EVENTS + POSITIVE.replace('"lifetime"', '"lifetime", "1h"'))
    now[0] += 31.0
    monkeypatch.setattr(store, "env", folder.env)
    assert get("v") == [10]
