"""The workers on real servers: events from Kafka, values in Redis, and every value equal to brute force."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

import tidemill as tm
from tests.servers.kafka import kafka_broker
from tests.servers.redis import RedisServer
from tests.streaming import shop
from tests.streaming.conftest import Crew
from tidemill.apps import load
from tidemill.environment import Environment
from tidemill.errors import LogChangedError
from tidemill.logs.kafka import KafkaAdmin
from tidemill.offline.dead import count_dead
from tidemill.replay import replay
from tidemill.times import from_micros, to_micros

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


@pytest.mark.parametrize("lost", ["the end", "everything"])
def test_what_redis_has_lost_comes_back_though_no_event_comes(env: Environment, crew: Crew, redis_server: RedisServer, lost: str) -> None:
    """As after a failover between two heartbeats: no worker meets an error, and no flush is refused, because there is none."""
    known = {"orders": shop.events("orders", 0, 900), "visits": shop.events("visits", 0, 300)}

    def read(orders: int, visits: int) -> None:
        crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1)) == orders)
        crew.until(lambda: sum(shop.position(env, "interest", p) for p in (0, 1)) == visits)

    produce(env, "orders", known["orders"][:600])
    produce(env, "visits", known["visits"][:299])
    crew.supervise(2)
    read(600, 299)
    with redis.Redis.from_url(redis_server.url) as client:
        kept = {key: client.dump(key) for key in client.scan_iter()} if lost == "the end" else {}
        produce(env, "orders", known["orders"][600:])
        produce(env, "visits", known["visits"][299:])
        read(900, 300)
        with client.pipeline(transaction=True) as step:
            step.flushdb()
            for key, value in kept.items():
                step.restore(key, 0, value)
            step.execute()
    assert sum(shop.position(env, "spending", p) for p in (0, 1)) == (600 if kept else 0)
    read(900, 300)
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
    with (
        closing(Environment.load(env.project.directory).log(source)) as log,
        pytest.raises(LogChangedError, match="was deleted and created again"),
    ):
        log.partitions()


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


def without_their_beginning(env: Environment, events: list[shop.Event], before: dict[int, int]) -> list[shop.Event]:
    """Produce orders, and have the brokers drop what lies before an offset; what is left."""
    produce(env, "orders", events)
    admin = KafkaAdmin(env.project.brokers or "")
    admin.delete_records(env.applied().sources["orders"].topic or "", before)
    admin.close()
    seen = {0: 0, 1: 0}
    left = []
    for event in events:
        partition = int(event["customer"][1:]) % 2
        if seen[partition] >= before.get(partition, 0):
            left.append(event)
        seen[partition] += 1
    return left


def test_a_topic_that_has_lost_its_beginning_is_refused_until_the_source_says_where_to_start(env: Environment, crew: Crew) -> None:
    known = {"orders": shop.events("orders", 0, 3000), "visits": shop.events("visits", 0, 50)}
    produce(env, "visits", known["visits"])
    left = without_their_beginning(env, known["orders"][:2000], {0: 300, 1: 1})
    supervisor = crew.supervise(1)
    crew.until(lambda: any("such as with start='earliest'" in line for line in crew.lines))
    supervisor.stop()
    features = env.project.directory / "features.py"
    features.write_text(features.read_text().replace('event_id="id",', 'event_id="id", start="earliest",'))
    Environment.load(env.project.directory).apply()
    second = crew.supervise(2, archive_seconds=0.2)
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1)) == 2000)
    assert shop.differences(env.project.directory, known | {"orders": left}) == []
    os.kill(second.pids[0], signal.SIGKILL)
    load("batch.job").run(env)
    produce(env, "orders", known["orders"][2000:])
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1)) == 3000)
    crew.until(lambda: sum(shop.position(env, "interest", p) for p in (0, 1)) == 50)
    load("batch.job").run(env)
    assert shop.differences(env.project.directory, known | {"orders": left + known["orders"][2000:]}) == []


def test_a_source_may_start_at_an_instant_and_what_comes_before_is_not_counted(env: Environment, crew: Crew) -> None:
    known = {"orders": shop.events("orders", 0, 400), "visits": shop.events("visits", 0, 50)}
    at = sorted(to_micros(e["at"]) for e in known["orders"])[200]
    features = env.project.directory / "features.py"
    features.write_text(features.read_text().replace('event_id="id",', f'event_id="id", start="{from_micros(at).isoformat()}",'))
    Environment.load(env.project.directory).apply()
    for source, events in known.items():
        produce(env, source, events)
    crew.supervise(1)
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1)) == 400)
    crew.until(lambda: sum(shop.position(env, "interest", p) for p in (0, 1)) == 50)
    left = []
    for partition in (0, 1):  # Kafka's rule: from the first record on whose timestamp, in milliseconds, is not before
        mine = [e for e in known["orders"] if int(e["customer"][1:]) % 2 == partition]
        first = next(i for i, e in enumerate(mine) if to_micros(e["at"]) // 1000 >= -(-at // 1000))
        left += mine[first:]
    assert 100 < len(left) < 300
    assert shop.differences(env.project.directory, known | {"orders": left}) == []


def test_dead_letters_are_replayed_into_their_topic_once(env: Environment, crew: Crew) -> None:
    orders = shop.events("orders", 0, 200)
    bad = [event | {"price": "12"} for event in orders[50:60]]  # a text, where a number is declared
    known = {"orders": orders[:50] + orders[60:], "visits": shop.events("visits", 0, 20)}
    produce(env, "visits", known["visits"])
    produce(env, "orders", orders[:50] + bad + orders[60:])
    supervisor = crew.supervise(1, archive_seconds=0.1)
    crew.until(lambda: sum(count_dead(env.offline, "orders").values()) == 10)
    crew.until(lambda: sum(shop.position(env, "spending", p) for p in (0, 1)) == 200)
    assert supervisor.stop()
    source = env.applied().sources["orders"]
    assert replay(env, source).written == 0  # still no number
    features = env.project.directory / "features.py"
    features.write_text(
        features.read_text().replace('"price": float', '"price": str').replace("tm.sum(", "tm.first(").replace("tm.max(", "tm.first(")
    )
    text = (
        features.read_text()
        .replace('        tm.stddev("price", windows=["1d"]),\n', "")
        .replace('        tm.first("price", windows=["1d"]),\n', "")
    )
    features.write_text(text)
    newer = Environment.load(env.project.directory)
    newer.apply()
    done = replay(newer, newer.applied().sources["orders"])
    assert (done.written, done.delivered, dict(done.failing)) == (10, True, {})
    assert replay(newer, newer.applied().sources["orders"]).written == 0
    crew.supervise(1)
    with closing(newer.log(source)) as log:
        ends = {p: log.end(p) for p in log.partitions()}  # a transaction ends with a marker, which has an offset too
    assert sum(ends.values()) > 210
    crew.until(lambda: all(shop.position(newer, "spending", p) == end for p, end in ends.items()))
    store = tm.FeatureStore(env.project.directory)
    counts = store.get_online_features(["spending:count_lifetime"], [{"customer": f"c{i}"} for i in range(shop.CUSTOMERS)]).to_dict()
    store.close()
    newer.online.close()
    assert counts["spending__count_lifetime"] == [sum(e["customer"] == f"c{i}" for e in orders) for i in range(shop.CUSTOMERS)]
