"""Avro in a real Kafka topic, with a real registry client, into SQLite: every value equal to brute force."""

from __future__ import annotations

import gc
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.servers.kafka import kafka_broker
from tests.servers.registry import Registry, registry
from tests.streaming import shop
from tests.streaming.conftest import Crew
from tidemill.apps import load
from tidemill.environment import Environment
from tidemill.errors import DefinitionError, LogError, LogUnavailableError
from tidemill.logs.kafka import KafkaAdmin
from tidemill.offline.dead import count_dead, list_dead
from tidemill.replay import replay
from tidemill.status import project_status
from tidemill.times import to_micros

pytest.importorskip("confluent_kafka.schema_registry.avro")
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

__all__ = ["kafka_broker", "registry"]

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning")
_numbers = itertools.count()

FIRST = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "customer", "type": "string"},
        {"name": "price", "type": ["null", "double"], "default": None},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
#: In another order, with a field that nobody asked for, and the time as text.
SECOND = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {"name": "at", "type": "string"},
        {
            "name": "basket",
            "type": {"type": "array", "items": {"type": "record", "name": "Item", "fields": [{"name": "n", "type": "int"}]}},
        },
        {"name": "price", "type": ["double", "null"]},
        {"name": "customer", "type": "string"},
        {"name": "id", "type": "int"},
    ],
}


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What a test leaves is collected while its own filters hold."""
    yield
    gc.collect()


def configure(folder: Path, broker: str, registry: Registry, topic: str, **more: str) -> None:
    definitions = shop.DEFINITIONS.replace('path="orders/**/*.jsonl"', f'topic="{topic}", value_format="avro"')
    (folder / "features.py").write_text(definitions)
    kafka = {"schema.registry.url": registry.url} | more
    lines = "".join(f"{json.dumps(name)} = {json.dumps(value)}\n" for name, value in kafka.items())
    (folder / "tidemill.toml").write_text(shop.CONFIGURATION + f'[stream]\nbrokers = "{broker}"\n[kafka]\n{lines}')


@pytest.fixture
def env(tmp_path: Path, kafka_broker: str, registry: Registry) -> Iterator[Environment]:
    """The shop, applied; its orders are a topic of the test's own, and its visits files."""
    folder = tmp_path / "shop"
    shop.make(folder).online.close()
    topic = f"avro{os.getpid()}-{next(_numbers)}"
    admin = KafkaAdmin(kafka_broker)
    admin.create_topic(topic, 1)
    admin.close()
    configure(folder, kafka_broker, registry, topic)
    env = Environment.load(folder)
    env.apply()
    yield env
    env.online.close()


class Producer:
    """Orders into the topic, as Confluent's serializer writes them."""

    def __init__(self, env: Environment, registry: Registry) -> None:
        self.env, self.topic = env, env.applied().sources["orders"].topic or ""
        self._registry = registry

    def values(self, orders: list[shop.Event], schema: Any) -> list[bytes]:
        context = SerializationContext(self.topic, MessageField.VALUE)
        with SchemaRegistryClient({"url": self._registry.url, "timeout": 10}) as client:
            serialize = AvroSerializer(client, json.dumps(schema))
            found = [
                serialize({**o, "at": to_micros(o["at"]) if schema is FIRST else o["at"], "basket": [{"n": 1}]}, context) for o in orders
            ]
        return [value for value in found if value is not None]

    def send(self, values: list[bytes | None], times: list[str] | None = None) -> None:
        admin = KafkaAdmin(self.env.project.brokers or "")
        at = [to_micros("2026-03-01")] * len(values) if times is None else list(map(to_micros, times))
        admin.produce(self.topic, [(0, b"key", value, t) for value, t in zip(values, at, strict=True)])
        admin.close()

    def orders(self, orders: list[shop.Event], schema: Any) -> None:
        self.send([*self.values(orders, schema)], [o["at"] for o in orders])


def part(env: Environment) -> Any:
    """The topic in the hands of this process."""
    source = env.applied().sources["orders"]
    return load("streaming.ingest").PartitionIngest(
        source,
        0,
        env.log(source),
        env.decoder(source),
        env.online,
        env.offline,
        env.applied().of_source("orders"),
        env.applied().shards,
        env.project.slack,
        now=lambda: 0,
    )


def test_two_versions_through_a_worker_are_equal_to_brute_force_though_the_registry_was_away(
    env: Environment, crew: Crew, registry: Registry
) -> None:
    known = {"orders": shop.events("orders", 0, 1200), "visits": []}
    producer = Producer(env, registry)
    producer.orders(known["orders"][:400], FIRST)
    crew.supervise(1)
    crew.until(lambda: shop.position(env, "spending") == 400)
    later = [*producer.values(known["orders"][400:800], SECOND), *producer.values(known["orders"][800:], FIRST)]
    times = [o["at"] for o in known["orders"][400:]]
    registry.stop()
    producer.send([*later[:10]], times[:10])
    crew.until(lambda: any("no answer from the schema registry" in line for line in crew.lines))
    bad: list[bytes | None] = [b'{"id": 1}', later[10][:-3], later[11] + b"x", b"\0\0\0\x03\xe7abc", None]
    producer.send(bad)
    producer.send([*later[10:]], times[10:])
    assert shop.position(env, "spending") == 400
    registry.start()
    crew.until(lambda: shop.position(env, "spending") == 1205)
    assert crew.events == []  # the worker only waited
    crew.until(lambda: sum(count_dead(env.offline, "orders").values()) == 4)
    letters = list_dead(env.offline, "orders")
    assert letters.select("offset", "raw").rows() == list(zip(range(410, 414), bad[:4], strict=True))
    assert [reason[:24] for reason in letters["reason"]] == [
        "not in Confluent's wire ",
        "cut off, or not written ",
        "longer than its schema (",
        "schema id 999 is not in ",
    ]
    known["visits"] = shop.events("visits", 0, 1)
    assert [d for d in shop.differences(env.project.directory, known) if d.startswith("spending")] == []


def test_what_was_not_decoded_is_decoded_once_the_registry_is_back(env: Environment, registry: Registry) -> None:
    producer = Producer(env, registry)
    producer.orders(shop.events("orders", 0, 30), FIRST)
    registry.stop()
    ingest = part(env)
    ingest.restore()

    def read() -> bool:
        polled = ingest.poll()
        return polled is not None and ingest.apply(ingest.tile(polled))

    wait_for(lambda: _raises(LogUnavailableError, read))
    assert shop.position(env, "spending") == 0
    registry.start()
    ingest.restore()
    wait_for(lambda: read() and ingest.position == 30)
    assert shop.position(env, "spending") == 30
    assert ingest.counters.dead == 0
    ingest.close()
    ingest.log.close()


def test_letters_of_an_id_that_the_registry_learned_later_are_replayed_as_columns(env: Environment, registry: Registry) -> None:
    producer = Producer(env, registry)
    orders = shop.events("orders", 0, 20)
    good = producer.values(orders[:10], FIRST)
    unheard = [b"\0" + (2).to_bytes(4, "big") + value[5:] for value in producer.values(orders[10:], FIRST)]
    long = unheard[0] + b"x" * (1 << 20)
    producer.send([*good, *unheard, long])
    ingest = part(env)
    ingest.restore()
    wait_for(lambda: ingest.run() is not None and ingest.position == 21)
    ingest.archive()
    ingest.close()
    ingest.log.close()
    assert sorted(count_dead(env.offline, "orders").values()) == [1, 10]
    source = env.definitions.source("orders")
    for name in ("again.jsonl", "again.csv"):
        with pytest.raises(LogError, match=r"name a new \.parquet file"):
            replay(env, source, env.path(name))
    assert replay(env, source, env.path("none.parquet")).written == 0
    registry.register("orders-other", {**FIRST, "doc": "the same again"})
    again = Environment.load(env.project.directory)
    done = replay(again, source, env.path("again.parquet"))
    assert (done.written, list(done.failing.values()), done.delivered) == (10, [1], False)
    found = pl.read_parquet(env.path("again.parquet")).sort("id")
    assert found["id"].to_list() == [o["id"] for o in orders[10:]]
    assert found["price"].to_list() == [o["price"] for o in orders[10:]]
    assert found["at"].cast(pl.Int64).to_list() == [to_micros(o["at"]) for o in orders[10:]]


def test_status_says_how_far_behind_in_time_it_is(env: Environment, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = Producer(env, registry)
    orders = shop.events("orders", 0, 40)
    producer.orders(orders[:20], FIRST)
    ingest = part(env)
    ingest.restore()
    wait_for(lambda: ingest.run() is not None and ingest.position == 20)
    producer.orders(orders[20:], SECOND)

    def behind(env: Environment) -> Any:
        (found,) = [s for s in project_status(env).sources if s.name == "orders"]
        return found.partitions[0]

    through = max(to_micros(o["at"]) // 1000 * 1000 for o in orders[:20])  # Kafka's times are milliseconds
    expected = to_micros(orders[-1]["at"]) // 1000 * 1000 - through
    assert (behind(env).lag, expected > 0) == (20, True)
    monkeypatch.setattr("tidemill.status._PATIENCE", 30.0)  # the machine may be busy
    assert behind(env).lag_micros == expected
    registry.stop()
    fresh = Environment.load(env.project.directory)
    assert (behind(fresh).lag, behind(fresh).lag_micros) == (20, None)
    ingest.close()
    ingest.log.close()


def test_json_cannot_become_avro_once_events_are_archived(env: Environment, registry: Registry) -> None:
    producer = Producer(env, registry)
    producer.orders(shop.events("orders", 0, 5), FIRST)
    ingest = part(env)
    ingest.restore()
    wait_for(lambda: ingest.run() is not None and ingest.position == 5)
    ingest.archive()
    ingest.close()
    ingest.log.close()
    file = env.path("features.py")
    file.write_text(file.read_text().replace(', value_format="avro"', ""))
    with pytest.raises(DefinitionError, match="source 'orders': value_format was 'avro' and is now 'json', but events are archived"):
        Environment.load(env.project.directory).apply()


def test_a_project_without_a_registry_says_what_to_add(env: Environment) -> None:
    file = env.path("tidemill.toml")
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "schema.registry" not in line))
    fresh = Environment.load(env.project.directory)
    with pytest.raises(LogError, match=r'add "schema\.registry\.url" = "http://\.\.\." to \[kafka\]'):
        fresh.decoder(fresh.applied().sources["orders"])


def wait_for(condition: Any) -> Any:
    from tests.streaming.conftest import wait_for

    return wait_for(condition)


def _raises(error: type[Exception], call: Any) -> bool:
    try:
        call()
    except error:
        return True
    return False
