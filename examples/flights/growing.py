"""The logs, as their producers would write them: files that grow, or topics of Kafka."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tidemill.apps.examples.flights.make_logs import PARTITIONS, SOURCES
from tidemill.errors import LogUnavailableError, TidemillError

#: In seconds: so long a broker may take to acknowledge a piece. One that was killed is back by then.
PATIENCE_SECONDS = 120.0

# librdkafka would write to stderr that a broker is away, which the drills know.
_QUIET = logging.getLogger("tidemill.examples.flights")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


class GrowingLogs:
    """The two logs of `made`, in pieces of `width` microseconds of the time at which events became known."""

    def __init__(self, made: Path, width: int) -> None:
        self._steps: dict[int, list[tuple[Path, int, int, int]]] = {}
        self.total = self.grown = 0
        self.width = width
        self._made = made
        flights = []
        for file in sorted(made.glob("*/partition=*/*.jsonl")):
            lines = pl.read_ndjson(file)
            known = lines["known_utc"].str.to_datetime(time_zone="UTC", time_unit="us").dt.epoch("us").to_numpy()
            self.total += len(known)
            ends = np.flatnonzero(np.frombuffer(file.read_bytes(), dtype=np.uint8) == ord("\n")) + 1
            numbers, counts = np.unique(known // width, return_counts=True)
            stops, counts = self._pieces(ends, counts)
            for number, start, stop, count in zip(numbers.tolist(), [0, *stops], stops, counts.tolist(), strict=False):
                self._steps.setdefault(number, []).append((file, start, stop, count))
            if file.parent.parent.name == "departures":
                asked = lines.select("origin", "carrier", "tailnum", "dest", "distance", _piece=pl.Series(known // width))
                flights.append(asked.drop_nulls("tailnum"))
        self.numbers = sorted(self._steps)
        self.flights = {number: part.drop("_piece") for (number,), part in pl.concat(flights).group_by("_piece")}

    def __len__(self) -> int:
        return len(self.numbers)

    def grow(self, step: int) -> int:
        """Append one piece to every log; the moment up to which they know now, UTC microseconds."""
        pieces = []
        for file, start, stop, count in self._steps[self.numbers[step]]:
            self.grown += count
            with file.open("rb") as whole:
                whole.seek(start)
                pieces.append((file, whole.read(stop - start)))
        self._append(pieces)
        return (self.numbers[step] + 1) * self.width

    def flight(self, step: int, random: random.Random) -> dict[str, Any]:
        """The keys and the distance of a flight of this piece, or of any: what a model would be asked about."""
        here = self.flights.get(self.numbers[step])
        if here is None or random.random() < 0.1:
            here = self.flights[random.choice(list(self.flights))]
        return here.row(random.randrange(len(here)), named=True)

    def _pieces(self, ends: Any, counts: Any) -> tuple[list[int], Any]:
        """Where the pieces of a file end, in bytes, and how many events each completes."""
        return ends[np.cumsum(counts) - 1].tolist(), counts

    def _append(self, pieces: list[tuple[Path, bytes]]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing grows any more."""

    def raw(self, target: Path) -> Path:
        """The folder with what the logs hold, line by line; made at `target`, if it has to be."""
        raise NotImplementedError


class GrowingFiles(GrowingLogs):
    """Files below `target`. `torn`: mostly their newest line is not complete yet."""

    def __init__(self, made: Path, target: Path, width: int, *, torn: bool = True) -> None:
        self._torn = torn
        super().__init__(made, width)
        self._target = target
        # All partitions are there from the beginning, as a topic's would be: workers begin anew when they find another.
        for partition in made.glob("*/partition=*"):
            first = target / min(partition.iterdir()).relative_to(made)
            first.parent.mkdir(parents=True)
            first.touch()

    def _pieces(self, ends: Any, counts: Any) -> tuple[list[int], Any]:
        if not self._torn:
            return super()._pieces(ends, counts)
        stops = (ends[np.cumsum(counts) - 1] - 20).tolist()  # in the middle of the last line
        stops[-1] += 20
        # The line that was cut belongs to the next piece; the file's last line is whole.
        counts[0] -= 1
        counts[-1] += 1
        return stops, counts

    def _append(self, pieces: list[tuple[Path, bytes]]) -> None:
        for file, data in pieces:
            target = self._target / file.relative_to(self._made)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab") as part:
                part.write(data)

    def raw(self, target: Path) -> Path:
        return self._target


class GrowingTopics(GrowingLogs):
    """Topics named as the sources, made afresh: a record's timestamp is when the event became known."""

    def __init__(self, made: Path, brokers: str, width: int) -> None:
        from confluent_kafka import Producer

        super().__init__(made, width)
        self._brokers = brokers
        _create_topics(brokers)
        self._ends: dict[tuple[str, int], int] = {}
        self._failed = ""
        self._producer = Producer(
            {
                "bootstrap.servers": brokers,
                "enable.idempotence": True,
                "message.timeout.ms": int(PATIENCE_SECONDS * 1000),
                "linger.ms": 5,
                "queue.buffering.max.messages": 1_000_000,
            },
            logger=_QUIET,
        )

    def _append(self, pieces: list[tuple[Path, bytes]]) -> None:
        for file, data in pieces:
            topic, partition = file.parent.parent.name, int(file.parent.name.removeprefix("partition="))
            known = pl.read_ndjson(data)["known_utc"].str.to_datetime(time_zone="UTC", time_unit="us").dt.epoch("ms")
            for line, millis in zip(data.splitlines(), known.to_list(), strict=True):
                self._producer.produce(topic, line, partition=partition, timestamp=millis, on_delivery=self._placed)
        if self._producer.flush(PATIENCE_SECONDS):
            raise LogUnavailableError(f"the brokers did not acknowledge what was produced within {PATIENCE_SECONDS:.0f} s")
        if self._failed:
            raise TidemillError(f"the brokers refused a record: {self._failed}")
        # A broker that was killed may have written a record and not said so; then the topic has it twice.
        self.grown = sum(self._ends.values())

    def _placed(self, error: Any, message: Any) -> None:
        if error is not None:
            self._failed = str(error)
            return
        place = message.topic(), message.partition()
        self._ends[place] = max(self._ends.get(place, 0), message.offset() + 1)

    def close(self) -> None:
        self._producer.flush(0)

    def raw(self, target: Path) -> Path:
        """What the topics hold, as files like those of `made`: read by a consumer that shares nothing with tidemill's."""
        from confluent_kafka import Consumer, TopicPartition

        for (topic, partition), end in self._ends.items():
            consumer = Consumer({"bootstrap.servers": self._brokers, "group.id": "audit", "enable.auto.commit": False}, logger=_QUIET)
            consumer.assign([TopicPartition(topic, partition, 0)])
            lines: list[bytes] = []
            while len(lines) < end:
                messages = consumer.consume(min(end - len(lines), 10_000), PATIENCE_SECONDS)
                for message in messages:
                    if message.error() is None:
                        assert message.offset() == len(lines), "the flights' topics have no gaps"
                        lines.append(message.value())
                if not messages:
                    raise LogUnavailableError(f"topic {topic}, partition {partition} cannot be read back")
            consumer.close()
            file = target / topic / f"partition={partition}" / "all.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"\n".join(lines) + b"\n")
        return target


def _create_topics(brokers: str) -> None:
    """The sources' topics, empty. They keep what is in them: the brokers' clock says that flights of 2013 are past any retention."""
    from tidemill.logs.kafka import KafkaAdmin

    admin = KafkaAdmin(brokers)
    try:
        there = set(admin.topics())
        for topic in SOURCES:
            if topic in there:
                admin.delete_topic(topic)
        give_up = time.monotonic() + PATIENCE_SECONDS
        while set(admin.topics()) & set(SOURCES) and time.monotonic() < give_up:  # deleting takes a moment
            time.sleep(0.05)
        for topic in SOURCES:
            admin.create_topic(topic, PARTITIONS, configs={"retention.ms": "-1"})
    finally:
        admin.close()
