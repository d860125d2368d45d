"""Each odd thing that a frame may hold has one stated answer."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import tidemill as tm
from tests.project import Folder
from tidemill.datasets import HistoricalFeatures
from tidemill.errors import LogError, NotFoundError, RequestError

DEFINITIONS = """
events = tm.Source("events", schema={"k": str, "g": int, "x": float, "at": tm.Timestamp}, timestamp="at", arrival="known",
                   path="log/*.jsonl")
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=["1h", "lifetime"]), tm.sum("x", windows=["1h"]), tm.mean("x", windows=["1h"])])
of_group = tm.FeatureView("of_group", source=events, entity=tm.Entity("g"), aggregations=[tm.count(windows=["lifetime"])])
of_instant = tm.FeatureView("of_instant", source=events, entity=tm.Entity("at"), aggregations=[tm.count(windows=["lifetime"])])
plain = tm.Source("plain", schema={"k": str, "at": tm.Timestamp}, timestamp="at", path="log/*.jsonl")
p = tm.FeatureView("p", source=plain, entity=tm.Entity("k"), aggregations=[tm.count(windows=["lifetime"])])

@tm.on_demand(inputs=[v, tm.Request(rate=float)])
def scaled(count_1h, rate):
    return count_1h * rate
"""
AFTERNOON = dt.datetime(2024, 5, 1, 14)  # noqa: DTZ001  (naive: read as UTC)
ON = {"event_timestamp": "2024-01-01"}
DATE_AND_INSTANT = pd.Series([dt.date(2024, 5, 2), AFTERNOON], dtype=object)
#: Milliseconds, of which 64 bits would make microseconds of 2024; what Polars knows nothing of; and a date that Python cannot say.
WRAPS = pl.Series([(1_714_572_000_000_000 + 2**64) // 1000]).cast(pl.Datetime("ms"))
OBJECTS = pl.Series([AFTERNOON], dtype=pl.Object)
FAR = pl.Series([2**31 - 1], dtype=pl.Int32).cast(pl.Date)
EVENTS = [  # one happens at noon and arrives at two; one happens and arrives at half past twelve
    {"k": "a", "g": 1, "x": 1.5, "at": "2024-05-01T12:00:00Z", "known": "2024-05-01T14:00:00Z"},
    {"k": "a", "g": 1, "x": 2.0, "at": "2024-05-01T12:30:00Z", "known": "2024-05-01T12:30:00Z"},
    {"k": "b", "g": 1, "x": None, "at": "2024-05-01T12:30:00Z", "known": None},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tm.FeatureStore]:
    folder = Folder(tmp_path_factory.mktemp("questions") / "p", DEFINITIONS)
    folder.log(EVENTS)
    store = tm.FeatureStore(folder.path)
    yield store
    store.close()


def counts(store: tm.FeatureStore, rows: Any, feature: str = "v:count_lifetime", **terms: Any) -> list[Any]:
    found = store.get_historical_features(rows, [feature], **terms).to_polars()
    values: list[Any] = found[feature.replace(":", "__")].to_list()
    return values


def at(*times: str) -> list[dict[str, Any]]:
    return [{"k": "a", "event_timestamp": f"2024-05-01T{t}Z"} for t in times]


def test_what_had_arrived_is_known_and_what_had_happened_only_if_asked(store: tm.FeatureStore) -> None:
    rows = at("12:00:00", "12:00:00.000001", "12:30:00", "12:30:00.000001", "13:59:59", "14:00:00")
    assert counts(store, rows) == [0, 0, 0, 1, 1, 2]
    assert counts(store, rows, knowledge="event_time") == [0, 1, 1, 2, 2, 2]


def test_with_a_freshness_nothing_newer_is_known(store: tm.FeatureStore) -> None:
    rows = at("13:29:59.999999", "13:30:00", "14:59:59", "15:00:00")
    assert counts(store, rows, freshness="1h") == [0, 1, 1, 2]
    assert counts(store, rows, freshness="1h", knowledge="event_time") == [1, 2, 2, 2]
    assert counts(store, at("13:30:00"), "v:count_1h", freshness="1h") == [1]  # its window is still the last hour


def test_an_event_without_an_arrival_time_arrived_when_it_happened(store: tm.FeatureStore) -> None:
    rows = [{"k": "b", "event_timestamp": t} for t in ("2024-05-01T12:30:00", "2024-05-01T12:30:00.000001")]
    assert counts(store, rows) == [0, 1]


def test_it_says_what_it_knew_and_why_no_request_could_have_known_it(store: tm.FeatureStore) -> None:
    found = store.get_historical_features(at("14:00:00"), ["v", "p"], freshness="10m")
    assert found.knowledge == {"v": "arrival", "p": "event_time"}
    assert found.hypothetical == "p know what had happened, whether it had arrived or not; nothing newer than 10m is known"


def test_rows_keep_their_order_and_their_columns_and_may_repeat(store: tm.FeatureStore) -> None:
    frame = pd.DataFrame(
        {"label": [3, 1, 2, 1], "k": ["b", "a", "zz", "a"], "event_timestamp": pd.to_datetime(["2024-06-01"] * 4), "rate": [0.5, 1, 2, 1]},
        index=[7, 7, 1, 0],
    )
    found = store.get_historical_features(frame, ["v", "scaled"]).to_df()
    features = ["v__count_1h", "v__count_lifetime", "v__x_sum_1h", "v__x_mean_1h", "scaled"]
    assert list(found.columns) == ["label", "k", "event_timestamp", "rate", *features]
    assert found["label"].tolist() == [3, 1, 2, 1]
    assert found["v__count_lifetime"].tolist() == [1, 2, 0, 2]
    assert found["v__x_sum_1h"].tolist() == [0.0] * 4
    assert found["v__x_mean_1h"].isna().all()
    assert str(found["event_timestamp"].dtype).startswith("datetime64")


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([AFTERNOON]),
        pl.Series([AFTERNOON]).cast(pl.Datetime("ns")),
        pl.Series([AFTERNOON]).dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"),
        pl.Series(["2024-05-01T16:00:00+02:00"]),
        pl.Series([1_714_572_000_000_000]),
        pl.Series([dt.date(2024, 5, 2)]),
    ],
    ids=lambda s: str(s.dtype),
)
def test_an_instant_may_come_in_many_forms(store: tm.FeatureStore, column: pl.Series) -> None:
    assert counts(store, pl.DataFrame({"k": ["a"], "event_timestamp": column})) == [2]


def test_what_is_finer_than_a_microsecond_is_floored(store: tm.FeatureStore) -> None:
    arrival = pl.Series([1_714_572_000_000_000_000, 1_714_571_999_999_999_999]).cast(pl.Datetime("ns"))
    assert counts(store, pl.DataFrame({"k": ["a", "a"], "event_timestamp": arrival})) == [2, 1]


def test_an_instant_is_a_key_as_a_request_would_bring_it(store: tm.FeatureStore) -> None:
    noon = [dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC), "2024-05-01T14:00:00+02:00", np.datetime64("2024-05-01T12:00:00.000000999")]
    for at in noon:
        assert counts(store, [{"at": at, "event_timestamp": np.datetime64("2024-06-01")}], "of_instant:count_lifetime") == [1]


def test_a_column_of_missing_values_and_one_kind_is_of_that_kind(store: tm.FeatureStore) -> None:
    frame = pd.DataFrame({"k": "a", "event_timestamp": "2024-06-01", "note": pd.Series([float("nan"), "late"], dtype=object)})
    assert counts(store, frame) == [2, 2]
    assert counts(store, [{"k": "a", "event_timestamp": "2024-06-01", "size": size} for size in (1, 2.5, None, float("nan"))]) == [2] * 4


def test_no_rows_are_answered_with_no_rows_of_the_right_types(store: tm.FeatureStore) -> None:
    empty = pl.DataFrame(
        {"k": [], "event_timestamp": [], "rate": []}, schema={"k": pl.String, "event_timestamp": pl.Datetime("us"), "rate": pl.Float64}
    )
    found = store.get_historical_features(empty, ["v", "scaled"]).to_polars()
    assert found.height == 0
    assert [found.schema[c] for c in ("v__count_1h", "v__x_mean_1h", "scaled")] == [pl.Int64, pl.Float64, pl.Float64]


def test_before_all_history_and_after_it_and_of_nobody(store: tm.FeatureStore) -> None:
    rows = [
        {"k": "a", "event_timestamp": "0001-01-01"},
        {"k": "a", "event_timestamp": "9999-12-31"},
        {"k": "", "event_timestamp": "2024-06-01"},
    ]
    found = store.get_historical_features(rows, ["v"]).to_polars()
    assert found["v__count_lifetime"].to_list() == [0, 2, 0]
    assert found["v__x_sum_1h"].to_list() == [0.0, 0.0, 0.0]
    assert found["v__x_mean_1h"].to_list() == [None] * 3


def test_arrow_in_and_out_and_other_kinds_of_text(store: tm.FeatureStore) -> None:
    table = pa.table({"k": pa.array(["a"]).dictionary_encode(), "event_timestamp": pa.array([AFTERNOON], pa.timestamp("ms"))})
    found = store.get_historical_features(table, ["v:count_lifetime"]).to_arrow()
    assert found.column("v__count_lifetime").to_pylist() == [2]


@pytest.mark.parametrize(
    ("rows", "features", "said"),
    [
        ([{"k": "a"}], ["v"], "entity_df has no column 'event_timestamp'"),
        ([{"event_timestamp": "2024-01-01"}], ["v"], "entity_df has no column 'k', a key (str)"),
        ([{"k": "a", "event_timestamp": "2024-01-01"}], ["scaled"], "entity_df has no column 'rate', a request column (float)"),
        ([{"k": "a", "event_timestamp": "2024-01-01", "v__count_1h": 1}], ["v"], "which is what a feature is named"),
        ([{"k": "a", "event_timestamp": "2024-01-01"}, {"k": None, "event_timestamp": "2024-01-01"}], ["v"], "row 1 has no key 'k'"),
        ([{"k": 5, "event_timestamp": "2024-01-01"}], ["v"], "key 'k' is a column of Int64: give values of type str"),
        ([{"g": 1.0, "event_timestamp": "2024-01-01"}], ["of_group"], "key 'g' is a column of Float64: give values of type int"),
        (pl.DataFrame({"g": pl.Series([2**63], dtype=pl.UInt64), "event_timestamp": "2024-01-01"}), ["of_group"], "key 'g' is 92233"),
        ([{"k": "a", "event_timestamp": "soon"}], ["v"], "row 0: event_timestamp is 'soon'"),
        ([{"k": "a", "event_timestamp": "2024-01-01"}, {"k": "a", "event_timestamp": None}], ["v"], "row 1: event_timestamp is None"),
        ([{"k": "a", "event_timestamp": 1.5}], ["v"], "event_timestamp is a column of Float64"),
        ("rows.parquet", ["v"], "entity_df is a str"),
        ([{"k": "a", "event_timestamp": "2024-01-01", "rate": "x"}], ["scaled"], "column 'rate' must hold values of type float"),
        ([{"k": "a", **ON}, {"k": 5, **ON}], ["v"], "holds text (row 0) and numbers (row 1)"),
        ([{"g": 2, **ON}, {"g": True, **ON}], ["of_group"], "numbers (row 0) and booleans (row 1)"),
        (pd.DataFrame({"k": "a", "event_timestamp": DATE_AND_INSTANT}), ["v"], "dates (row 0) and instants (row 1)"),
        ([{"k": "a", "event_timestamp": t} for t in (AFTERNOON, AFTERNOON.replace(tzinfo=dt.UTC))], ["v"], "the rows make no frame"),
        ([{"k": "\ud800", **ON}], ["v"], "the rows make no frame"),
        (pl.DataFrame({"k": "a", "event_timestamp": pl.Series([2**62]).cast(pl.Datetime)}), ["v"], f"row 0: event_timestamp is {2**62}"),
        (pl.DataFrame({"k": "a", "event_timestamp": WRAPS}), ["v"], "row 0: event_timestamp is 18448458645709551 (Datetime"),
        (pl.DataFrame({"k": "a", "event_timestamp": FAR}), ["v"], "row 0: event_timestamp is 2147483647 (Date)"),
        (pl.DataFrame({"k": "a", "event_timestamp": OBJECTS}), ["v"], "event_timestamp is a column of Object"),
        ([{"at": 1_714_564_800_000_000, "event_timestamp": "2024-06-01"}], ["of_instant"], "key 'at' is a column of Int64: give datetimes"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_by_name(store: tm.FeatureStore, rows: Any, features: Any, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        store.get_historical_features(rows, features)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"knowledge": "all"}, "knowledge is 'all'"),
        ({"freshness": "soon"}, "freshness: 'soon' is not a duration"),
        ({"freshness": dt.timedelta(hours=-1)}, "never negative"),
        ({"freshness": "900000000000d"}, "longer than all time"),  # added to an arrival, it would be no int64
    ],
)
def test_terms_that_mean_nothing_are_refused(store: tm.FeatureStore, terms: Any, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        store.get_historical_features(at("14:00:00"), ["v"], **terms)
    assert said in str(caught.value)


def test_arrival_cannot_be_known_of_a_source_without_arrival_times(store: tm.FeatureStore) -> None:
    with pytest.raises(RequestError, match="source 'plain' has no arrival times"):
        store.get_historical_features(at("14:00:00"), ["p"], knowledge="arrival")


def test_a_feature_that_nobody_defined(store: tm.FeatureStore) -> None:
    with pytest.raises(NotFoundError):
        store.get_historical_features(at("14:00:00"), ["v:nope"])


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "p", DEFINITIONS)
    (folder.path / "log").rmdir()
    store = tm.FeatureStore(folder.path)
    with pytest.raises(LogError, match="there is no such directory"):
        store.get_historical_features(at("14:00:00"), ["v"])
    store.close()


def test_pandas_gets_the_same_integers_where_there_are_nulls_among_them() -> None:
    large, few = [2**53 + 1, None, -(2**63)], [2**53, None, -(2**53)]
    frame = pl.DataFrame({"large": large, "few": few, "text": ["a", None, "b"], "whole": [2**63 - 1] * 3})
    frame = frame.with_columns(unsigned=pl.Series([2**64 - 1, None, 0], dtype=pl.UInt64))
    found = HistoricalFeatures(frame, {}).to_df()
    assert [None if pd.isna(v) else int(v) for v in found["large"]] == large
    assert [None if pd.isna(v) else int(v) for v in found["unsigned"]] == [2**64 - 1, None, 0]
    assert found["few"].dtype == "float64"  # which holds them, and is what pandas makes of nulls
    assert found["whole"].tolist() == [2**63 - 1] * 3
    assert list(found.columns) == frame.columns
