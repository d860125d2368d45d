"""Flights into Kafka: every line once, in its partition and order, at its time; also by a producer that was killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.servers.kafka import Broker, broker_to_stop
from tidemill.apps.examples.flights import produce
from tidemill.apps.examples.flights.make_logs import Delivery, make_logs
from tidemill.logs.kafka import KafkaAdmin, KafkaLog
from tidemill.times import HOUR, SECOND

__all__ = ["broker_to_stop"]

DAY = Delivery(last="2013-01-01")
PROJECT = Path(produce.__file__).parent / "servers"


class Clock:
    """Seconds that pass only where someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def lines(*known: int) -> list[Any]:
    return [produce.Line(at, "departures", 0, str(at).encode()) for at in known]


def test_flights_come_at_the_speed_that_was_asked_for() -> None:
    clock, sent = Clock(), []
    begin = 1_000 * HOUR
    for stretch in produce.paced(lines(begin, begin + HOUR - SECOND, begin + HOUR, begin + 10 * HOUR), 3600, clock, clock.sleep):
        sent += [(round(clock.now, 3), (line.known - begin) // HOUR) for line in stretch]
    assert [hours for _, hours in sent] == [0, 0, 1, 10]
    assert all(hours <= at <= hours + 2.0 for at, hours in sent)  # never before its time, and soon after


def test_without_a_speed_nothing_is_waited_for() -> None:
    clock = Clock()
    stretches = list(produce.paced(lines(*range(12_000)), 0, clock, clock.sleep))
    assert [len(stretch) for stretch in stretches] == [5_000, 5_000, 2_000]
    assert clock.now == 0


@pytest.fixture
def brokers(broker_to_stop: Broker, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in (("KAFKA", broker_to_stop.address), ("REDIS", "redis://nowhere"), ("OFFLINE", "/nowhere")):
        monkeypatch.setitem(os.environ, f"FLIGHTS_{name}", value)
    return broker_to_stop.address


def test_the_topics_hold_the_files_also_after_a_producer_that_was_killed(
    brokers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--project", str(PROJECT), "--logs", str(tmp_path), "--days", "1"]
    assert produce.main(["--project", str(PROJECT), "--topics"]) == 0
    assert capsys.readouterr().out == "created departures, arrivals\n"
    logs = make_logs(tmp_path, DAY)
    admin = KafkaAdmin(brokers)
    produce.send(admin, produce.left_over(logs, admin)[:700])
    assert produce.main(arguments) == 0
    assert "there" in capsys.readouterr().out
    for topic in ("departures", "arrivals"):
        for partition in (0, 1):
            written = b"".join(file.read_bytes() for file in sorted((logs / topic / f"partition={partition}").iterdir()))
            known = [line.known for line in produce._lines(logs, topic, partition)]
            found, times = _records(KafkaLog(brokers, topic), partition)
            assert found == written.splitlines()
            assert times == known
    assert admin.starts("departures", [0, 1]) == {0: 0, 1: 0}  # flights of 2013 have not expired
    assert produce.main(arguments) == 0
    assert "0 records to send" in capsys.readouterr().out
    admin.produce("departures", [(0, None, b"{}")])
    assert produce.main(arguments) == 1
    assert "topic departures, partition 0 holds" in capsys.readouterr().err
    admin.close()


def _records(log: KafkaLog, partition: int) -> tuple[list[bytes], list[int]]:
    reader = log.open(partition, 0)
    found: list[bytes] = []
    times: list[int] = []
    end = log.end(partition)
    while reader.position < end:
        batch = reader.read(10_000)
        if batch is not None:
            assert isinstance(batch.payload, bytes)
            found += batch.payload.splitlines()
            assert batch.arrival is not None
            times += batch.arrival.tolist()
    log.close()
    return found, times
