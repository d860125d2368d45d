"""The two logs of the flights example: what they hold, and in which order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tidemill.apps.examples.flights.make_logs import Delivery, arrivals, delivered, departures, dice, make_logs, read_flights

WEEK = Delivery(first="2013-02-06", last="2013-02-12")  # a snowstorm closed the airports on the 9th


@pytest.fixture(scope="module")
def flights() -> pl.DataFrame:
    return read_flights(WEEK)


def moments(log: pl.DataFrame, column: str) -> pl.Series:
    return log[column].str.to_datetime(time_zone="UTC", time_unit="us")


def test_every_flight_is_a_departure_and_only_those_that_got_there_are_arrivals(flights):
    assert len(departures(flights)) == len(flights)
    assert departures(flights)["cancelled"].sum() == flights["dep_time"].is_null().sum() > 0
    assert len(arrivals(flights)) == flights["arr_delay"].is_not_null().sum()


def test_an_arrival_comes_after_its_time_in_the_air_and_some_taxiing_and_at_the_scheduled_time_plus_the_delay(flights):
    both = arrivals(flights).join(flights.select("flight_id", "departed", "sched_arr_time", "tz"), on="flight_id")
    taxiing = (both["arr_utc"] - both["departed"]).dt.total_minutes() - both["air_time"]
    assert taxiing.is_between(5, 240).all()
    for (zone,), part in both.group_by("tz"):
        local = part["arr_utc"].dt.convert_time_zone(zone)
        clock = local.dt.hour().cast(pl.Int64) * 60 + local.dt.minute()
        scheduled = part["sched_arr_time"] // 100 * 60 + part["sched_arr_time"] % 100
        assert ((clock - scheduled - part["arr_delay"].cast(pl.Int64)) % (24 * 60) == 0).all()


def test_a_log_is_in_the_order_in_which_events_became_known_which_is_not_that_of_their_times(flights):
    log = delivered(departures(flights), WEEK)
    known, times = moments(log, "known_utc"), moments(log, "dep_utc")
    assert known.is_sorted()
    assert not times.is_sorted()
    assert (known > times).all()


def test_two_in_a_hundred_come_hours_to_days_late_and_a_few_twice(flights):
    log = delivered(departures(flights), Delivery(twice=0.01))
    delays = (moments(log, "known_utc") - moments(log, "dep_utc")).dt.total_hours(fractional=True).filter(~log["cancelled"])
    assert 0.01 < (delays >= 1).mean() < 0.04
    assert delays.max() > 24
    assert 0 < log["flight_id"].is_duplicated().sum() // 2 < 0.03 * len(log)


def test_the_dice_depend_on_the_flight_the_seed_and_the_throw_alone():
    ids = np.arange(10_000)
    thrown = dice(ids, 1, 1)
    assert (dice(ids[::-1], 1, 1)[::-1] == thrown).all()
    assert thrown[0] == dice(np.array([0]), 1, 1)[0] != dice(np.array([0]), 2, 1)[0] != dice(np.array([0]), 1, 2)[0]
    assert abs(thrown.mean() - 0.5) < 0.02
    assert thrown.min() >= 0
    assert thrown.max() < 1


def test_logs_are_made_once_and_anew_when_the_delivery_is_another(tmp_path: Path):
    day = Delivery(first="2013-05-01", last="2013-05-01")
    first = sorted(make_logs(tmp_path, day).glob("*/*/*.jsonl"))
    stamps = [file.stat().st_mtime_ns for file in first]
    make_logs(tmp_path, day)
    assert [file.stat().st_mtime_ns for file in first] == stamps
    assert {file.parent.name for file in first} == {"partition=0", "partition=1"}
    make_logs(tmp_path, Delivery(first="2013-05-02", last="2013-05-02"))
    assert "2013-05-02" in first[0].read_text()
