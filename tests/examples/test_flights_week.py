"""A week of the demo: real workers, one of them killed, and every value served along the way equal to brute force."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tidemill.apps.examples.flights import demo
from tidemill.apps.examples.flights.audit import Difference, RawLog, Served, differences, right_values
from tidemill.apps.examples.flights.make_logs import PARTITIONS, Delivery
from tidemill.apps.examples.flights.replay import Outcome, Plan
from tidemill.apps.streaming.status import read_status
from tidemill.environment import Environment
from tidemill.testing import brute_force
from tidemill.times import DAY, HOUR, MINUTE, to_micros

# A snowstorm closed the airports on the 9th. Late events are frequent, and the logs grow in small pieces.
WEEK = Plan(delivery=Delivery(first="2013-02-06", last="2013-02-12", late=0.1, twice=0.01), instants=170, hours=5, ahead=1_000, fold_days=1)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, Path]:
    """The demo's exit code, what it showed, and its project."""
    directory = tmp_path_factory.mktemp("demo")
    screen = io.StringIO()
    code = demo.main(directory, WEEK, Console(file=screen, width=200, highlight=False))
    return code, screen.getvalue(), directory / "flights"


def test_all_that_was_served_while_a_worker_was_killed_equals_the_oracle(shown):
    code, text, _ = shown
    assert "170 instants x 52 features: 8,840 values served while streaming, 8,840 equal to the oracle" in text, text
    assert "with SIGKILL" in text
    assert "the workers run again" in text
    assert code == 0


def test_the_demo_leaves_no_process_behind(shown):
    assert [s for s in read_status(shown[2]) if s.alive] == []


def test_flights_without_an_aircraft_are_counted_as_dead_letters(shown):
    assert "of the departures are dead letters (null key tailnum)" in shown[1]


@pytest.fixture(scope="module")
def logs(shown) -> tuple[Any, dict[str, RawLog]]:
    definitions = Environment.load(shown[2]).definitions
    return definitions, {name: RawLog(source, shown[2] / "data") for name, source in definitions.sources.items()}


def instants(rng: random.Random) -> int:
    at = to_micros("2013-02-06") + rng.randrange(9 * DAY // MINUTE) * MINUTE
    return rng.choice([at, at // HOUR * HOUR, at // DAY * DAY, at + 1, at - 1])


def test_the_audits_oracle_equals_the_librarys(logs):
    definitions, raw = logs
    rng = random.Random(5)
    compared = 0
    for view in definitions.views.values():
        log = raw[view.source.name]
        for _ in range(3):
            # A frequent entity would take the library's oracle long: those of few events, of a part of the log.
            key = [log.frame[k].drop_nulls()[rng.randrange(len(log.frame) // 2)] for k in view.entity.keys]
            positions = {p: rng.randrange(1, len(log.frame) // PARTITIONS // 4) for p in range(PARTITIONS)}
            rows, _ = log.rows_of(view.entity.keys, key)
            events = log.frame[rows[log.known(rows, positions) & log.passing(view.where)[rows]].tolist()].to_dicts()
            at = instants(rng)
            for feature in view.features.values():
                options = {"schema": view.source.schema, "timestamp": view.source.timestamp, "event_id": view.source.event_id}
                right = brute_force(feature.aggregation, feature.window, events, at, **options)
                assert log.value(view, feature, key, at, positions) == right
                compared += 1
    assert compared == 150


def test_an_event_more_or_less_is_found(logs, shown):
    definitions, raw = logs
    flight = raw["arrivals"].frame.row(1000, named=True)
    row = {
        "origin": flight["origin"],
        "carrier": flight["carrier"],
        "tailnum": flight["tailnum"],
        "dest": flight["dest"],
        "distance": 1400.0,
    }
    known = {name: dict.fromkeys(range(PARTITIONS), 400) for name in definitions.views}
    answer = Served(to_micros(flight["arr_utc"]), row, known, {})
    answer = replace(answer, values=right_values(answer, definitions, raw))
    assert differences([answer], definitions, shown[2] / "data") == (55, [])
    wrong = replace(answer, values={**answer.values, "origin_departures__count_1d": answer.values["origin_departures__count_1d"] + 1})
    compared, found = differences([answer, wrong], definitions, shown[2] / "data")
    assert (compared, [d.column for d in found]) == (110, ["origin_departures__count_1d"])
    assert "origin_departures__count_1d: served" in str(found[0])


def test_one_wrong_value_makes_the_demo_fail_and_is_shown():
    answer = Served(0, {"origin": "JFK"}, {"origin_departures": {0: 7}}, {"origin_departures__count_1h": 3})
    outcome = Outcome(Path(), Path(), [answer], kills=1, restarts=1)
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    assert demo.verdict(console, outcome, 260, [Difference("origin_departures__count_1h", 3, 2, answer)]) == 1
    assert "origin_departures__count_1h: served 3, right 2; {'origin': 'JFK'} at 1970-01-01T00:00:00+00:00" in screen.getvalue()
    assert "259 equal to the oracle" in screen.getvalue()
    assert demo.verdict(console, outcome, 260, []) == 0


def test_workers_that_do_not_come_back_make_the_demo_fail():
    outcome = Outcome(Path(), Path(), [Served(0, {}, {}, {})], kills=2, restarts=1)
    assert demo.verdict(Console(file=io.StringIO()), outcome, 52, []) == 1


def test_ctrl_c_ends_the_demo_and_its_workers(tmp_path):
    command = [sys.executable, demo.__file__, "--directory", str(tmp_path), "--last", "2013-01-07"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    project = tmp_path / "flights"
    deadline = time.monotonic() + 60
    while not any(s.alive for s in read_status(project)):
        assert running.poll() is None
        assert time.monotonic() < deadline
    os.kill(running.pid, signal.SIGINT)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "no process is left behind" in said
    assert [s for s in read_status(project) if s.alive] == []
