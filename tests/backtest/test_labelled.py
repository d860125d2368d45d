"""Rows, labels and the split: each odd thing has one stated treatment."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.backtest.conftest import DEFINITIONS, Walk
from tests.project import Folder
from tidemill.definitions import FeatureSet, resolve_features
from tidemill.errors import RequestError
from tidemill.labelled import Names, prepare, read_labelled, split
from tidemill.times import HOUR, to_micros


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return resolve_features("s", Folder(tmp_path_factory.mktemp("wanted") / "p", DEFINITIONS).env.definitions)


def row(hour: int, label: Any = 1, known: str | None = "", **more: Any) -> dict[str, Any]:
    at = f"2026-01-01T{hour:02}:00:00Z"
    return {"k": "a", "rate": 1.0, "event_timestamp": at, "label": label, "label_time": at if known == "" else known, **more}


FOUR = [row(0, 0), row(1, 1), row(2, 0), row(3, 1)]


def test_a_row_without_a_label_is_left_out_and_counted(wanted: FeatureSet) -> None:
    rows = prepare([row(0, 1.0), row(1, None, None), row(2, math.nan, None), row(3, 0.0)], Names(), wanted)
    assert rows.unlabelled == 2
    assert rows.y.tolist() == [1.0, 0.0]
    assert rows.asked["event_timestamp"].to_list() == ["2026-01-01T00:00:00Z", "2026-01-01T03:00:00Z"]


def test_only_what_a_request_brings_is_asked_with(wanted: FeatureSet) -> None:
    rows = prepare([row(0, note="late"), row(1, 0, note="early")], Names(), wanted)
    assert rows.asked.columns == ["k", "rate", "event_timestamp"]


def test_a_label_is_trained_on_only_if_it_was_known_at_the_split(wanted: FeatureSet) -> None:
    late = [row(0, 0), row(1, 1), row(2, 0, "2026-01-01T03:00:00.000001Z"), row(2, 1, "2026-01-01T03:00:00Z"), row(3, 1), row(4, 0)]
    rows = prepare(late, Names(), wanted)
    found = split(rows, "2026-01-01T03:00:00")
    assert (found.train.tolist(), found.test.tolist(), found.unknown_yet) == ([0, 1, 3], [4, 5], 1)


@pytest.mark.parametrize("made", [str, dt.date.fromisoformat], ids=["text", "dates"])
def test_a_label_that_has_only_a_date_is_known_when_its_day_is_over(wanted: FeatureSet, made: Any) -> None:
    dated = [row(hour, hour % 2) | {"label_time": made("2026-01-01")} for hour in range(4)]
    asked_later = [row(0, hour % 2) | {"event_timestamp": f"2026-01-03T0{hour}:00:00", "label_time": made("2026-01-03")} for hour in (1, 2)]
    rows = prepare([*dated, *asked_later], Names(), wanted)
    assert rows.known.tolist() == [to_micros("2026-01-02")] * 4 + [to_micros("2026-01-04")] * 2
    assert split(rows, "2026-01-02").train.tolist() == [0, 1, 2, 3]
    with pytest.raises(RequestError, match="no label was known before the split"):
        split(rows, "2026-01-01T23:59:59.999999")


def test_a_fraction_splits_by_time_and_not_by_place(wanted: FeatureSet) -> None:
    rows = prepare([row(3, 1), row(1, 1), row(2, 0), row(0, 0)], Names(), wanted)
    found = split(rows, "0.5")
    assert found.at == to_micros("2026-01-01T02:00:00")
    assert (sorted(found.train), sorted(found.test)) == ([1, 3], [0, 2])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"k": "a", "rate": 1.0, "event_timestamp": "2026-01-01", "label": 1}], "no column 'label_time', the instant at which the label"),
        ([{"k": "a", "rate": 1.0, "event_timestamp": "2026-01-01"}], "no column 'label', the label; it has k, rate, event_timestamp"),
        ([row(0, None, None)], "no row has a label: 1 rows were given"),
        ([row(0, "yes")], "label is a column of String: give booleans or 0 and 1"),
        ([row(0, math.inf)], "label holds inf"),
        ([row(0), row(1, 1, None)], "1 rows have a label and no label_time"),
        ([row(0), row(1, 1, "later")], "label_time is 'later'"),
        ([row(0), row(2, 1, "2026-01-01T01:59:59Z")], "1 labels are known before they are asked for, the first with event_timestamp"),
        ([row(0) | {"event_timestamp": None}], "event_timestamp is None"),
    ],
)  # fmt: skip
def test_a_frame_that_cannot_be_used_is_refused_by_name(wanted: FeatureSet, rows: Any, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        prepare(rows, Names(), wanted)
    assert said in str(caught.value)


def test_a_label_that_the_features_read_is_refused(wanted: FeatureSet) -> None:
    with pytest.raises(RequestError, match="'rate' is a column that the features read, and the one that tells the label"):
        prepare(FOUR, Names(label="rate"), wanted)


def test_three_classes_are_a_regression_unless_somebody_says_two(wanted: FeatureSet) -> None:
    rows = [row(0, 0), row(1, 1), row(2, 2)]
    assert prepare(rows, Names(), wanted).kind == "regressor"
    assert prepare(FOUR, Names(), wanted).kind == "classifier"
    assert prepare(FOUR, Names(), wanted, "regressor").kind == "regressor"
    with pytest.raises(RequestError, match="label holds 2: two classes are 0 and 1"):
        prepare(rows, Names(), wanted, "classifier")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("2025-12-31", "no labelled row lies before the split, 2025-12-31T00:00:00+00:00: they go from 2026-01-01T00:00:00+00:00 to"),
        ("2026-01-02", "no labelled row lies after the split"),
        ("2026-01-01T01:00:00", "all 1 labels to train on are 0"),
        ("2026-01-01T03:00:00", "all 1 labels to test on are 1"),
        ("soon", "split is 'soon': give an instant, such as 2013-09-01, or a fraction between 0 and 1"),
        ("2013", "split is '2013'"),
        (1.0, "split is 1.0"),
        ("nan", "split is 'nan'"),
    ],
)
def test_a_split_that_leaves_a_side_empty_or_of_one_class_is_refused(wanted: FeatureSet, where: Any, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        split(prepare(FOUR, Names(), wanted), where)
    assert said in str(caught.value)


def test_a_split_before_any_label_was_known_is_refused(wanted: FeatureSet) -> None:
    rows = prepare([row(h, h % 2, "2026-01-02") for h in range(4)], Names(), wanted)
    with pytest.raises(RequestError, match=r"no label was known before the split, .* of the 2 rows asked before it: split later"):
        split(rows, 0.5)


def test_files_of_each_kind_hold_the_same_rows(walked: Walk, wanted: FeatureSet, tmp_path: Path) -> None:
    frame = walked.frame.head(20).with_columns(k=pl.Series(["007"] * 20))  # text that looks like a number stays text in CSV
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_csv(tmp_path / "a.csv")
    frame.with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_ndjson(tmp_path / "a.jsonl")
    first, *others = (prepare(read_labelled(tmp_path / f"a.{kind}", wanted), Names(), wanted) for kind in ("parquet", "csv", "jsonl"))
    for other in others:
        assert np.array_equal(first.y, other.y)
        assert np.array_equal(first.at, other.at)
        assert np.array_equal(first.known, other.known)
        assert other.asked["k"].to_list() == ["007"] * 20
    assert (first.known - first.at).tolist() == [HOUR] * 20


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "x", "must end in .parquet, .csv or .jsonl"),
        ("a.parquet", "no", "a.parquet is not parquet"),
        ("a.csv", "", "a.csv is not csv"),
        ("a.jsonl", "{", "a.jsonl is not jsonl"),
        ("gone/a.csv", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(wanted: FeatureSet, tmp_path: Path, name: str, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(RequestError) as caught:
        read_labelled(tmp_path / name, wanted)
    assert said in str(caught.value)
