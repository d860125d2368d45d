"""Topics that Confluent's serializers wrote, with Apicurio's registry, through real workers: every value equal to brute force."""

from __future__ import annotations

import gc
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.servers.apicurio import apicurio
from tests.servers.kafka import kafka_broker
from tests.streaming import shop
from tests.streaming.conftest import Crew
from tests.streaming.test_avro import FIRST, SECOND
from tidemill.environment import Environment
from tidemill.logs.base import RecordBatch
from tidemill.logs.kafka import KafkaAdmin
from tidemill.logs.registered.protoc import described
from tidemill.offline.dead import count_dead
from tidemill.times import to_micros

pytest.importorskip("confluent_kafka.schema_registry.avro")
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

__all__ = ["apicurio", "kafka_broker"]

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning")
_numbers = itertools.count()

#: The same events, written by two versions of their producer.
VERSIONS = (
    """
    syntax = "proto3"; package shop;
    import "google/protobuf/timestamp.proto";
    message Order { int64 id = 1; string customer = 2; optional double price = 3; google.protobuf.Timestamp at = 4; }
    """,
    """
    syntax = "proto3"; package shop;
    import "google/protobuf/wrappers.proto";
    message Basket { message Item { int32 n = 1; } repeated Item items = 1; }
    message Order { string at = 1; Basket basket = 2; google.protobuf.DoubleValue price = 3; string customer = 4; int32 id = 5; }
    """,
)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What a test leaves is collected while its own filters hold."""
    yield
    gc.collect()


def avro(client: SchemaRegistryClient, topic: str, orders: list[shop.Event], version: int) -> list[bytes]:
    serialize = AvroSerializer(client, json.dumps((FIRST, SECOND)[version]))
    context = SerializationContext(topic, MessageField.VALUE)
    return [serialize({**o, "at": o["at"] if version else to_micros(o["at"]), "basket": [{"n": 1}]}, context) or b"" for o in orders]


def protobuf(client: SchemaRegistryClient, topic: str, orders: list[shop.Event], version: int) -> list[bytes]:
    pool = DescriptorPool()
    for file in described(VERSIONS[version], ()).file:
        pool.Add(file)
    order = GetMessageClass(pool.FindMessageTypeByName("shop.Order"))
    serialize = ProtobufSerializer(order, client, {"use.deprecated.format": False})
    context = SerializationContext(topic, MessageField.VALUE)
    values = []
    for o in orders:
        message = order(id=o["id"], customer=o["customer"])
        if version:
            message.at = o["at"]
            message.basket.items.add(n=1)
            if o["price"] is not None:
                message.price.value = o["price"]
        else:
            message.at.FromMicroseconds(to_micros(o["at"]))
            if o["price"] is not None:
                message.price = o["price"]
        values.append(serialize(message, context) or b"")
    return values


WRITERS: dict[str, Callable[..., list[bytes]]] = {"avro": avro, "protobuf": protobuf}


@pytest.fixture
def env(tmp_path: Path, kafka_broker: str, apicurio: str, value_format: str) -> Iterator[Environment]:
    """The shop, applied; its orders are a topic of the test's own."""
    folder = tmp_path / "shop"
    shop.make(folder).online.close()
    topic = f"registered{os.getpid()}-{next(_numbers)}"
    admin = KafkaAdmin(kafka_broker)
    admin.create_topic(topic, 1)
    admin.close()
    changed = shop.DEFINITIONS.replace('path="orders/**/*.jsonl"', f'topic="{topic}", value_format="{value_format}"')
    (folder / "features.py").write_text(changed)
    settings = f'[stream]\nbrokers = "{kafka_broker}"\n[kafka]\n"schema.registry.url" = "{apicurio}"\n'
    (folder / "tidemill.toml").write_text(shop.CONFIGURATION + settings)
    env = Environment.load(folder)
    env.apply()
    yield env
    env.online.close()


@pytest.mark.parametrize("value_format", WRITERS)
def test_what_confluents_serializers_write_is_equal_to_brute_force(
    env: Environment, crew: Crew, kafka_broker: str, apicurio: str, value_format: str
) -> None:
    write = WRITERS[value_format]
    topic = env.applied().sources["orders"].topic or ""
    orders = shop.events("orders", 0, 900)
    assert any(o["price"] is None for o in orders)
    with SchemaRegistryClient({"url": apicurio, "timeout": 10}) as client:
        values = [write(client, topic, orders[n : n + 300], n // 300 % 2) for n in (0, 300, 600)]
        ids = {value[:5] for some in values for value in some}
    assert len(ids) == 2
    admin = KafkaAdmin(kafka_broker)
    records: list[tuple[int, bytes | None, bytes | None, int]] = []
    for value, order in zip(itertools.chain(*values), orders, strict=True):
        records.append((0, b"key", value, to_micros(order["at"])))
    unknown = b"\0\0\1\0\0" + values[0][0][5:]
    admin.produce(topic, [*records[:450], (0, b"key", unknown, records[450][3]), *records[450:]])
    admin.close()
    crew.supervise(1)
    crew.until(lambda: shop.position(env, "spending") == 901)
    known = {"orders": orders, "visits": shop.events("visits", 0, 1)}
    assert [d for d in shop.differences(env.project.directory, known) if d.startswith("spending")] == []
    crew.until(lambda: count_dead(env.offline, "orders") == {"schema id 65536 is not in the schema registry": 1})


@pytest.mark.parametrize("value_format", ["protobuf"])
def test_a_schema_that_imports_others_is_had_from_the_registry(env: Environment, apicurio: str) -> None:
    money = 'syntax = "proto3"; package m; import "google/type/date.proto"; message Money { double amount = 1; google.type.Date day = 2; }'
    order = (
        'syntax = "proto3"; import "money.proto"; '
        "message Order { m.Money paid = 1; string at = 2; string customer = 3; double price = 4; int64 id = 5; }"
    )
    with SchemaRegistryClient({"url": apicurio, "timeout": 10}) as client:
        client.register_schema("money", Schema(money, "PROTOBUF"))
        number = client.register_schema("order", Schema(order, "PROTOBUF", [SchemaReference("money.proto", "money", 1)]))
    decoder = env.decoder(env.applied().sources["orders"])
    body = b"\x0a\x09\x09" + bytes(8) + b"\x12\x0a2024-01-01\x1a\x01a\x28\x07"
    found = decoder.decode(_batch(b"\0" + number.to_bytes(4, "big") + b"\0" + body))
    assert found.frame.select("id", "customer", "price", "_time").rows() == [(7, "a", 0.0, to_micros("2024-01-01"))]


def _batch(value: bytes) -> RecordBatch:
    return RecordBatch(0, 0, 1, np.array([0]), [value], arrival=np.array([to_micros("2024-01-01")]))
