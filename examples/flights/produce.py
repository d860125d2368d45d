"""Flights into Kafka: replays the two logs that make_logs.py makes into the topics `departures` and `arrivals`.

Every line becomes one record, in the partition of its file and in its order, with the time when it became known as the record's
timestamp. What the topics hold already is not sent again, so the producer may be stopped, killed and started at will.

    python produce.py --project servers --topics            # creates the topics, and that is all
    python produce.py --project servers --days 7            # a week of flights, as fast as it goes
    python produce.py --project servers --speed 3600        # an hour of them every second
    python produce.py --project servers --speed 3600 --ask http://localhost:8080    # and scores of those that leave next
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import polars as pl

from tidemill.apps.examples.flights.make_logs import PARTITIONS, SOURCES, Delivery, make_logs
from tidemill.definitions import Project
from tidemill.errors import TidemillError
from tidemill.logs.kafka import KafkaAdmin, Message
from tidemill.times import MINUTE, SECOND, from_micros

#: At this many records, or after this many seconds, what is due is sent.
_RECORDS, _TICK = 5_000, 1.0


@dataclass(frozen=True)
class Line:
    """A line of a log, and when it became known (UTC microseconds)."""

    known: int
    topic: str
    partition: int
    value: bytes


def create_topics(admin: KafkaAdmin) -> list[str]:
    """Those that are not there yet. They keep everything: by Kafka's retention, a flight of 2013 would have expired as it came."""
    missing = [topic for topic in SOURCES if topic not in admin.topics()]
    for topic in missing:
        admin.create_topic(topic, PARTITIONS, configs={"retention.ms": "-1"})
    return missing


def left_over(logs: Path, admin: KafkaAdmin) -> list[Line]:
    """The lines that the topics do not hold yet, in the order in which they became known.

    A partition holds the first lines of its file, because nobody else writes there. Raises `TidemillError` where it holds more.
    """
    found = []
    for topic in SOURCES:
        sent = admin.ends(topic, range(PARTITIONS))
        for partition in range(PARTITIONS):
            lines = _lines(logs, topic, partition)
            if sent[partition] > len(lines):
                raise TidemillError(
                    f"topic {topic}, partition {partition} holds {sent[partition]} records, and the log has {len(lines)} lines: "
                    "it was filled with more days, or by somebody else; delete the topics, or ask for as many days as then"
                )
            found += lines[sent[partition] :]
    # Stable: lines of one partition stay in their order.
    return sorted(found, key=lambda line: line.known)


def _lines(logs: Path, topic: str, partition: int) -> list[Line]:
    found = []
    for file in sorted((logs / topic / f"partition={partition}").glob("*.jsonl")):
        known = pl.read_ndjson(file)["known_utc"].str.to_datetime(time_zone="UTC", time_unit="us").dt.epoch("us").to_list()
        found += [Line(at, topic, partition, value) for at, value in zip(known, file.read_bytes().splitlines(), strict=True)]
    return found


def paced(
    lines: Sequence[Line],
    speed: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Sequence[Line]]:
    """The lines in stretches, each when it is due: `speed` seconds of flights a second, 0 for as fast as it goes."""
    begun, first, sent = clock(), 0, lines[0].known if lines else 0
    while first < len(lines):
        due = len(lines) if not speed else _due(lines, first, sent + (clock() - begun) * speed * SECOND)
        if due == first:
            sleep(max(0.0, min(_TICK, (lines[first].known - sent) / SECOND / speed - (clock() - begun))))
            continue
        stretch = lines[first : min(due, first + _RECORDS)]
        first += len(stretch)
        yield stretch
        if speed and first == due:
            sleep(_TICK)


def _due(lines: Sequence[Line], first: int, now: float) -> int:
    """The index after the last line that is known by now."""
    while first < len(lines) and lines[first].known <= now:
        first += 1
    return first


def send(admin: KafkaAdmin, lines: Iterable[Line]) -> None:
    """Produce, and wait until the brokers have it."""
    by_topic = sorted(lines, key=lambda line: line.topic)
    for topic, mine in groupby(by_topic, key=lambda line: line.topic):
        admin.produce(topic, [Message(line.partition, None, line.value, line.known) for line in mine], compression="lz4")


class _Asking:
    """Asks for scores of the flights that leave within half an hour. A service that does not answer is told of, and asked again."""

    def __init__(self, url: str, delivery: Delivery) -> None:
        from tidemill.apps.examples.flights.labels import labelled
        from tidemill.apps.examples.flights.scoring import Airline

        self._airline = Airline(url, labelled(delivery))
        self._refused = ""

    def __call__(self, now: int) -> None:
        try:
            self._airline.ask(now, now + 30 * MINUTE)
            self._refused = ""
        except TidemillError as error:
            self._refused = f", and now no answer: {error}"

    def said(self) -> str:
        told = self._airline.told
        return f"{len(told):,} flights scored" + (f", by version {told[-1]['version']}" if told else "") + self._refused


def _delivery(days: int | None) -> Delivery:
    if days is None:
        return Delivery()
    first = dt.date.fromisoformat(Delivery().first)
    return Delivery(last=(first + dt.timedelta(days=days - 1)).isoformat())


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description="Replays a year of flights into the Kafka topics `departures` and `arrivals`.",
        epilog="Example: python produce.py --project servers --days 7 --speed 3600",
    )
    parser.add_argument("--project", type=Path, default=Path(__file__).parent / "servers", help="the folder of the tidemill.toml")
    parser.add_argument(
        "--logs", type=Path, default=Path(__file__).parent / "data", help="where make_logs.py puts the logs (made if missing)"
    )
    parser.add_argument("--days", type=int, choices=range(1, 366), metavar="N", help="the first N days of 2013; default: all of it")
    parser.add_argument(
        "--speed", type=float, default=0.0, metavar="X", help="X seconds of flights a second; 0, the default: as fast as it goes"
    )
    parser.add_argument("--ask", metavar="URL", help="ask `tidemill serve` there for the scores of the flights that leave next")
    parser.add_argument("--topics", action="store_true", help="create the topics, and stop")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; an exit code."""
    told = parser().parse_args(arguments)
    try:
        return _run(told)
    except TidemillError as error:
        print(f"produce: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(told: argparse.Namespace) -> int:
    project = Project.load(told.project)
    if project.brokers is None:
        raise TidemillError(f"{told.project}/tidemill.toml names no brokers: set [stream] brokers")
    admin = KafkaAdmin(project.brokers, dict(project.settings.get("kafka", {})))
    try:
        created = create_topics(admin)
        print(f"created {', '.join(created)}" if created else f"{', '.join(SOURCES)} are there")
        if told.topics:
            return 0
        lines = left_over(make_logs(told.logs, _delivery(told.days)), admin)
        print(f"{len(lines):,} records to send", flush=True)
        done, begun, said = 0, time.monotonic(), 0.0
        asking = None if told.ask is None else _Asking(told.ask, _delivery(told.days))
        for stretch in paced(lines, told.speed):
            send(admin, stretch)
            done += len(stretch)
            if asking is not None:
                asking(stretch[-1].known)
            if time.monotonic() - said > 10 or done == len(lines):
                said = time.monotonic()
                asked = "" if asking is None else f", {asking.said()}"
                print(f"{from_micros(stretch[-1].known):%Y-%m-%d %H:%M}  {done:,} sent in {said - begun:.0f} s{asked}", flush=True)
        return 0
    finally:
        admin.close()


if __name__ == "__main__":
    sys.exit(main())
