"""Nothing that was not known at a question's instant changes what a backtest finds, and no label is trained on before it is known."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tests.backtest.conftest import DEFINITIONS, START, Walk, event
from tests.project import Folder
from tests.strategies import examples
from tidemill.backtest import Plan, backtest
from tidemill.times import DAY, HOUR, MINUTE, SECOND, from_micros, parse_duration

QUESTIONS = 240
PLAN = Plan(split=0.6, models=["logistic_regression"], freshness=["0s", "10m", "1d"])


#: When an event that tells the label is planted: microseconds after the question, of its happening and of its arrival.
PLANTED = {
    "at the instant": (0, 0),
    "just after it": (1, 1),
    "days later": (2 * DAY, 2 * DAY),
    "before it, and arrived after it": (-5 * MINUTE, 1),
    "before it, and arrived days later": (-5 * MINUTE, 2 * DAY),
    "after it, by a clock that is ahead": (MINUTE, -MINUTE),
}
SEEN = (-5 * MINUTE, -4 * MINUTE)


class Asked:
    """One question per entity, so that what is planted beside it is seen by no other question; values and labels are tossed."""

    def __init__(self, path: Path, *planted: tuple[int, int]) -> None:
        self._folder, events, rows = Folder(path, DEFINITIONS), [], []
        for i in range(QUESTIONS):
            k, at = f"e{i}", START + i * HOUR
            value, label = (dice(i, throw) for throw in (1, 2))
            events.append(event(at - 40 * MINUTE, k, float(value)))
            events += [event(at + happens, k, 100.0 if label else -100.0, at + arrives) for happens, arrives in planted]
            rows.append({"k": k, "rate": 2.0, "event_timestamp": at, "label": label, "label_time": at + HOUR})
        self._folder.log(sorted(events, key=lambda e: str(e["known"])))
        self.frame = pl.DataFrame(rows)

    def found(self, plan: Plan = PLAN) -> dict[str, Any]:
        return backtest(tm.FeatureStore(self._folder.path), self.frame, "s", plan).to_dict()


def dice(i: int, throw: int) -> int:
    return int(np.random.default_rng([i, throw]).integers(2))


def auc(found: dict[str, Any]) -> list[float]:
    return [p["models"]["logistic_regression"]["auc"]["value"] for p in found["points"]]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Asked(tmp_path_factory.mktemp("clean") / "p").found()


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_what_happened_or_arrived_after_the_instant_changes_nothing(
    tmp_path: Path, clean: dict[str, Any], planted: tuple[int, int]
) -> None:
    assert Asked(tmp_path / "p", planted).found() == clean
    assert auc(clean)[0] < 0.65  # the tossed values tell nothing


def test_what_had_arrived_tells_the_label_until_it_is_too_fresh(tmp_path: Path, clean: dict[str, Any]) -> None:
    fresh, ten, day = auc(Asked(tmp_path / "p", SEEN).found())
    assert fresh == 1.0
    assert (ten, day) == tuple(auc(clean)[1:])  # at ten minutes an event that arrived four before is not known


def test_what_arrived_later_is_seen_only_by_who_asks_what_had_happened(tmp_path: Path, clean: dict[str, Any]) -> None:
    asked = Asked(tmp_path / "p", PLANTED["before it, and arrived days later"])
    assert auc(asked.found(dataclasses.replace(PLAN, knowledge="event_time")))[0] == 1.0
    assert asked.found() == clean


def test_on_demand_features_see_no_more_than_the_stored_ones(tmp_path: Path) -> None:
    plans = Plan(split=0.6, models=["logistic_regression"], freshness=["0s"])
    later = Asked(tmp_path / "later", *PLANTED.values())
    found = backtest(tm.FeatureStore(later._folder.path), later.frame, ["scaled"], plans)
    seen = Asked(tmp_path / "seen", SEEN)
    told = backtest(tm.FeatureStore(seen._folder.path), seen.frame, ["scaled"], plans)
    assert found.points[0].scores["logistic_regression"]["auc"].estimate.value < 0.65
    assert told.points[0].scores["logistic_regression"]["auc"].estimate.value == 1.0


def test_a_label_that_is_known_too_late_is_not_trained_on(walked: Walk) -> None:
    middle = walked.frame["event_timestamp"][600]
    late = pl.Series([i % 2 == 0 and i < 600 for i in range(900)])
    told_late = walked.frame.with_columns(
        label=pl.when(late).then(~pl.col("label")).otherwise(pl.col("label")),  # trained on, these would turn the model around
        label_time=pl.when(late).then(middle + pl.duration(microseconds=1)).otherwise(pl.col("label_time")),
    )
    plan = Plan(split=middle.isoformat(), models=["logistic_regression"], freshness=["0s", "6h"])
    found = backtest(walked.store, told_late, "s", plan)
    without = backtest(walked.store, walked.frame.filter(~late), "s", plan)
    assert found.unknown_yet == without.unknown_yet + 300
    assert found.points == without.points
    trained_on_them = backtest(walked.store, told_late.with_columns(label_time="event_timestamp"), "s", plan)
    assert trained_on_them.points != without.points


@examples(25)
@given(data=st.data())
def test_what_is_known_never_grows_with_its_age(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    ages = ["0s", "1us", "1m", "10m", "1h", "6h", "1d", "7d"]
    edges = sorted({sign * parse_duration(age) + beside for age in ages for sign in (-1, 0, 1) for beside in (-1, 0, 1)})
    times = st.sampled_from([START + edge for edge in edges])
    delays = st.sampled_from([0, 1, SECOND, HOUR, 2 * DAY, -SECOND])
    events = data.draw(st.lists(st.tuples(times, delays, st.sampled_from("ab")), min_size=1, max_size=15), "events")
    rows = data.draw(st.lists(st.tuples(times, st.sampled_from("abc")), min_size=1, max_size=6), "rows")
    knowledge = data.draw(st.sampled_from(["arrival", "event_time"]), "knowledge")
    folder = Folder(tmp_path_factory.mktemp("ages") / "p", DEFINITIONS)
    folder.log([event(at, k, 1.0, at + delay) for at, delay, k in events])
    store = tm.FeatureStore(folder.path)
    frame = [{"k": k, "event_timestamp": from_micros(at)} for at, k in rows]
    counts = []
    for age in ages:
        found = store.get_historical_features(frame, ["v:count_lifetime"], knowledge=knowledge, freshness=age).to_polars()
        counts.append(found["v__count_lifetime"].to_list())
        for count, (t, k) in zip(counts[-1], rows, strict=True):
            known = (at + (delay if knowledge == "arrival" else 0) for at, delay, e in events if e == k and at < t)
            assert count == sum(instant + parse_duration(age) <= t for instant in known)
    for fresher, older in pairwise(counts):
        assert all(a >= b for a, b in zip(fresher, older, strict=True))
