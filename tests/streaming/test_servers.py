"""The workers on real servers: events from Kafka, values in Redis, and every value equal to brute force."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.kafka import kafka_broker
from tests.servers.redis import RedisServer
from tests.streaming import shop
from tests.streaming.conftest import Crew
from tidemill.environment import Environment
from tidemill.errors import LogChangedError
from tidemill.logs.kafka import KafkaAdmin
from tidemill.times import to_micros

__all__ = ["kafka_broker"]

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning")
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What a test leaves is collected while its own filters hold."""
    yield
    gc.collect()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
def env(tmp_path: Path, kafka_broker: str, redis_server: RedisServer) -> Iterator[Environment]:
    """The shop on servers, applied, its topics empty; the topics' names are the test's own."""
    folder = tmp_path / "shop"
    shop.make(folder).online.close()
    tag = f"t{os.getpid()}-{next(_numbers)}"
    configuration = (
        shop.CONFIGURATION.replace("[online]", f'[online]\nurl = "{redis_server.url}"') + f'[stream]\nbrokers = "{kafka_broker}"\n'
    )
    (folder / "tidemill.toml").write_text(configuration)
    definitions = shop.DEFINITIONS
    admin = KafkaAdmin(kafka_broker)
    for source in ("orders", "visits"):
        definitions = definitions.replace(f'path="{source}/**/*.jsonl"', f'topic="{tag}-{source}"')
        admin.create_topic(f"{tag}-{source}", 2)
    admin.close()
    (folder / "features.py").write_text(definitions)
    env = Environment.load(folder)
    env.apply()
    yield env
    env.online.close()


def produce(env: Environment, source: str, events: list[shop.Event], partitions: int = 2) -> None:
    """Each customer's events go to one partition; the record's timestamp is the event's own."""
    admin = KafkaAdmin(env.project.brokers or "")
    messages = [(int(e["customer"][1:]) % partitions, None, shop.lines([e]).encode().rstrip(), to_micros(e["at"])) for e in events]
    admin.produce(env.applied().sources[source].topic or "", messages)
    admin.close()


def test_values_are_equal_to_brute_force_though_a_worker_is_killed_and_redis_is_restarted(
    env: Environment, crew: Crew, redis_server: RedisServer
) -> None:
    known = {"orders": shop.events("orders", 0, 3000), "visits": shop.events("visits", 0, 1500)}
    produce(env, "orders", known["orders"][:2000])
    produce(env, "visits", known["visits"][:700])
    crew.supervise(2)
    crew.until(lambda: shop.position(env, "spending") > 0)
    os.kill(min(crew.pids), signal.SIGKILL)
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1)) == 2000)
    redis_server.kill()
    produce(env, "orders", known["orders"][2000:])
    redis_server.start()
    produce(env, "visits", known["visits"][700:])
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1)) == 3000)
    crew.until(lambda: sum(shop.position(env, "interest", p) for p in (0, 1)) == 1500)
    assert shop.differences(env.project.directory, known) == []


def test_a_topic_that_was_created_again_while_nothing_ran_is_noticed(env: Environment, crew: Crew) -> None:
    produce(env, "orders", shop.events("orders", 0, 50))
    supervisor = crew.supervise(1)
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1)) == 50)
    assert supervisor.stop()
    source = env.applied().sources["orders"]
    admin = KafkaAdmin(env.project.brokers or "")
    admin.delete_topic(source.topic or "")
    crew.until(lambda: source.topic not in admin.topics())
    admin.create_topic(source.topic or "", 2)
    admin.close()
    produce(env, "orders", shop.events("orders", 0, 100))
    log = Environment.load(env.project.directory).log(source)
    with pytest.raises(LogChangedError, match="was deleted and created again"):
        log.partitions()
    log.close()  # type: ignore[attr-defined]  # a KafkaLog


def test_partitions_that_a_topic_gets_are_read_too_and_the_number_of_workers_may_change(env: Environment, crew: Crew) -> None:
    known = {"orders": shop.events("orders", 0, 1500), "visits": shop.events("visits", 0, 500)}
    produce(env, "orders", known["orders"][:800])
    produce(env, "visits", known["visits"])
    supervisor = crew.supervise(2)
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1)) == 800)
    admin = KafkaAdmin(env.project.brokers or "")
    admin.grow_topic(env.applied().sources["orders"].topic or "", 3)
    admin.close()
    produce(env, "orders", known["orders"][800:1200], partitions=3)
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1, 2)) == 1200)
    assert any("there are new partitions (orders:2)" in line for line in crew.lines), crew.lines
    assert supervisor.stop()
    crew.supervise(3)
    produce(env, "orders", known["orders"][1200:], partitions=3)
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1, 2)) == 1500)
    crew.until(lambda: sum(shop.position(env, "interest", p) for p in (0, 1)) == 500)
    assert shop.differences(env.project.directory, known) == []


def test_told_to_stop_in_full_flow_the_workers_end_cleanly_within_two_seconds(env: Environment, crew: Crew) -> None:
    known = {"orders": shop.events("orders", 0, 40_000), "visits": shop.events("visits", 0, 100)}
    produce(env, "orders", known["orders"])
    produce(env, "visits", known["visits"])
    supervisor = crew.supervise(2)
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1)) > 0)
    begun = time.monotonic()
    assert supervisor.stop(timeout=60.0)
    assert time.monotonic() - begun < 4.0  # twice what is promised: other tests may run beside this one
    crew.supervise(1)
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1)) == 40_000)
    crew.until(lambda: sum(shop.position(env, "interest", p) for p in (0, 1)) == 100)
    assert shop.differences(env.project.directory, known, instants=1) == []
