"""What the flights' labels say, and that fresh features tell them better than old ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

import tidemill as tm
from tidemill.apps.examples.flights.labels import labelled
from tidemill.apps.examples.flights.make_logs import Delivery, arrivals, make_logs, read_flights
from tidemill.apps.examples.flights.season import SERVICE, scored
from tidemill.backtest import Names
from tidemill.definitions import resolve_features
from tidemill.labelled import prepare

FLIGHTS = Path(__file__).resolve().parents[2] / "examples" / "flights"
#: Two weeks with good days and bad ones.
WEEKS = Delivery(first="2013-07-01", last="2013-07-14")


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return labelled(WEEKS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tm.FeatureStore:
    project = tmp_path_factory.mktemp("flights")
    for file in ("features.py", "tidemill.toml"):
        shutil.copy(FLIGHTS / file, project / file)
    make_logs(project / "data", WEEKS)
    return tm.FeatureStore(project)


def test_every_flight_has_a_row_and_those_that_never_arrived_have_no_label(frame: pl.DataFrame) -> None:
    flights = read_flights(WEEKS)
    assert frame["flight_id"].to_list() == flights["flight_id"].to_list()
    never = flights["arr_delay"].is_null()
    assert never.sum() > 0
    assert (frame["label"].is_null() == never).all()
    assert (frame["label_time"].is_null() == never).all()
    assert (frame["label"] == (flights["arr_delay"] >= 15)).filter(~never).all()


def test_a_label_is_known_when_the_arrival_is_and_not_before(frame: pl.DataFrame) -> None:
    landed = arrivals(read_flights(WEEKS)).select("flight_id", "arr_utc")
    both = frame.join(landed, on="flight_id")
    after = (both["label_time"] - both["arr_utc"]).dt.total_seconds()
    assert after.min() == 5
    assert after.median() < 180
    assert (both["label_time"] > both["event_timestamp"]).all()


def test_the_question_is_asked_at_scheduled_departure_or_so_long_before(frame: pl.DataFrame) -> None:
    flights = read_flights(WEEKS)
    assert (frame["event_timestamp"] == flights["scheduled"]).all()
    assert (labelled(WEEKS, lead_minutes=30)["event_timestamp"] == flights["scheduled"].dt.offset_by("-30m")).all()
    assert frame["scheduled_hour"].is_between(0, 24).all()
    first = frame.row(0, named=True)
    assert first["event_timestamp"].hour == (int(first["scheduled_hour"]) + 4) % 24  # New York in summer


def test_fresh_features_tell_delays_better_than_day_old_ones(store: tm.FeatureStore, frame: pl.DataFrame) -> None:
    old, fresh = scored(store, frame, models=["logistic_regression"], where="2013-07-10", every=1)
    rows = prepare(frame, Names(), resolve_features(SERVICE, store.env.definitions))
    assert len(fresh.told) == sum(rows.at >= tm.times.to_micros("2013-07-10"))
    assert (fresh.known > fresh.at).all()
    assert fresh.auc(fresh.scores["logistic_regression"]) > old.auc(old.scores["logistic_regression"]) + 0.04
    assert fresh.auc(fresh.told) == 1.0
    assert fresh.auc(1 - fresh.told) == 0.0


def test_the_service_of_the_model_has_numbers_only(store: tm.FeatureStore, frame: pl.DataFrame) -> None:
    asked = frame.filter(pl.col("tailnum").is_not_null()).head(5)
    wanted = resolve_features(SERVICE, store.env.definitions)
    found = store.get_historical_features(asked, SERVICE).to_polars()
    assert all(found.schema[name].is_numeric() for name in wanted.columns)
    assert list(wanted.request) == ["scheduled_hour", "distance"]
