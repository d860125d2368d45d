"""A Kafka broker and a Redis server of their own for a benchmark, a topic of the events of `benchmarks.stream`, and a project over both."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.stream import FEATURES, write_log
from tests.servers.kafka import Broker, libraries
from tests.servers.redis import RedisServer
from tidemill.environment import Environment
from tidemill.logs.kafka import KafkaAdmin
from tidemill.online.base import SlotId

TOPIC = "events"
TOPIC_FEATURES = FEATURES.replace("path=", f'topic="{TOPIC}",\n    path=')


@dataclass
class Machine:
    """Both servers, in a folder that is gone afterwards. Redis writes its file as it would for real: appended, synced every second."""

    folder: Path
    broker: Broker
    redis: RedisServer

    def project(self, name: str, stream: str = "", features: str = TOPIC_FEATURES) -> Environment:
        """A project over both, applied; with a prefix of its own in Redis. `stream`: more lines of its section."""
        root = self.folder / name
        root.mkdir()
        online = f"{self.redis.url}?prefix={name}"
        text = f'[project]\nname = "{name}"\n[online]\nurl = "{online}"\n[stream]\nbrokers = "{self.broker.address}"\n{stream}\n'
        (root / "tidemill.toml").write_text(text)
        (root / "features.py").write_text(features)
        env = Environment.load(root)
        env.apply()
        return env

    def topic(self, events: int, partitions: int, topic: str = TOPIC) -> None:
        """A topic with so many events, keyed by user and compressed with lz4; an entity has one partition."""
        admin = KafkaAdmin(self.broker.address)
        admin.create_topic(topic, partitions, configs={"retention.ms": "-1"})
        admin.close()
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            write_log(Path(folder), events, partitions)
            producer = producer_of(self.broker.address, compression="lz4")
            for file in sorted(Path(folder).glob("partition=*/*.jsonl")):
                partition = int(file.parent.name.removeprefix("partition="))
                users = pl.read_ndjson(file)["user"].to_list()
                for number, (line, user) in enumerate(zip(file.read_bytes().splitlines(), users, strict=True)):
                    producer.produce(topic, line, key=user, partition=partition)
                    if number % 100_000 == 0:
                        producer.flush()
                producer.flush()


def producer_of(address: str, compression: str = "none", linger_ms: int = 5) -> Any:
    """A confluent-kafka producer."""
    from confluent_kafka import Producer

    return Producer(
        {
            "bootstrap.servers": address,
            "compression.type": compression,
            "linger.ms": linger_ms,
            "queue.buffering.max.messages": 500_000,
            "batch.size": 1 << 18,
        }
    )


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Both servers, inside `with`."""
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as name:
        folder = Path(name)
        broker = Broker(folder / "kafka", libraries(), os.getpid(), heap="1g", compiler="full")
        broker.start()
        redis = RedisServer(folder / "redis")
        try:
            yield Machine(folder, broker, redis)
        finally:
            broker.stop()
            redis.kill(signal.SIGKILL)


def applied(env: Environment) -> Callable[[], int]:
    """What tells how many events all of a project's slots have taken."""
    now = env.applied()
    slots: Sequence[SlotId] = [SlotId(b.bundle.id, s) for b in now.bundles for s in range(now.shards)]

    def count() -> int:
        states = env.online.slots(slots)
        partitions = {p for s in states for p in s.positions}
        return sum(min(s.positions.get(p, 0) for s in states) for p in partitions)

    return count
