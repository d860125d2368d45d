"""A schema registry over HTTP: what it says, what it does not know, and that it does not answer are three things."""

from __future__ import annotations

import gc
import json
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import certificates
from tests.servers.registry import Registry, registry
from tidemill.errors import LogError, LogUnavailableError
from tidemill.logs.registered import registry as module
from tidemill.logs.registered.avro import AvroSchema
from tidemill.logs.registered.formats import AVRO, PROTOBUF, Format
from tidemill.logs.registered.registry import SchemaRegistry

pytest.importorskip("confluent_kafka.schema_registry")

__all__ = ["registry"]

PAYMENT = {"type": "record", "name": "Payment", "fields": [{"name": "card", "type": "string"}]}
UNKNOWN = "schema id 7 is not in the schema registry"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """A connection that was left open is a warning, and so an error of the test that left it."""
    yield
    gc.collect()


def asked(registry: Registry, **settings: str) -> SchemaRegistry:
    return SchemaRegistry({"url": registry.url, **settings})


def only(found: Any) -> Any:
    (value,) = found.values()
    return value


def test_a_schema_is_asked_for_once(registry: Registry) -> None:
    number = registry.register("payments-value", PAYMENT)
    schemas = asked(registry)
    for _ in range(3):
        assert set(only(schemas.schemas([number])).fields) == {"card"}
    assert registry.asked == [f"/schemas/ids/{number}"]
    registry.stop()
    assert isinstance(only(schemas.schemas([number])), AvroSchema)


def test_an_id_that_the_registry_does_not_know_is_an_answer_and_is_asked_for_again_a_second_later(registry: Registry) -> None:
    clock = Clock()
    schemas = SchemaRegistry({"url": registry.url}, clock=clock)
    for _ in range(3):
        assert schemas.schemas([1]) == {1: "schema id 1 is not in the schema registry"}
    assert len(registry.asked) == 1
    registry.register("payments-value", PAYMENT)
    clock.now += module.UNKNOWN_FOR
    assert isinstance(only(schemas.schemas([1])), AvroSchema)


def test_what_the_registry_knows_that_is_no_avro_record_is_said_by_its_id(registry: Registry) -> None:
    numbers = [
        registry.register("a", "{}", "JSON"),
        registry.register("b", 'syntax = "proto3";', "PROTOBUF"),
        registry.register("c", '"string"'),
        registry.register("d", PAYMENT, references=[{"name": "X", "subject": "gone", "version": 1}]),
    ]
    assert list(asked(registry).schemas(numbers).values()) == [
        "schema id 1 is JSON, and not Avro",
        "schema id 2 is PROTOBUF, and not Avro",
        "schema id 3 is not that of a record",
        "schema id 4 refers to gone, version 1, which the registry does not have",
    ]


def test_a_schema_of_the_other_format_is_said_by_its_id(registry: Registry) -> None:
    numbers = [
        registry.register("a", PAYMENT),
        registry.register("b", 'syntax = "proto3"; message R { int64 n = 1 }', "PROTOBUF"),
        registry.register(
            "c", "syntax = \"proto3\"; import 'gone.proto';", "PROTOBUF", [{"name": "gone.proto", "subject": "x", "version": 1}]
        ),
    ]
    first, second, third = SchemaRegistry({"url": registry.url}, PROTOBUF).schemas(numbers).values()
    assert first == "schema id 1 is AVRO, and not Protobuf"
    assert isinstance(second, str)
    assert second.startswith("schema id 2 is no Protobuf schema: tidemill.registered.proto:1:")
    assert third == "schema id 3 refers to x, version 1, which the registry does not have"


def test_references_are_followed_by_their_names(registry: Registry) -> None:
    registry.register("cents", 'syntax = "proto3"; package m; message Cents { int64 n = 1; }', "PROTOBUF")
    to_cents = {"name": "deep/cents.proto", "subject": "cents", "version": 1}
    registry.register("price", 'syntax = "proto3"; import "deep/cents.proto"; message Price { m.Cents of = 1; }', "PROTOBUF", [to_cents])
    to_price = {"name": "price.proto", "subject": "price", "version": 1}
    order = 'syntax = "proto3"; import "price.proto"; import "deep/cents.proto"; message Order { Price price = 1; m.Cents tax = 2; }'
    number = registry.register("order", order, "PROTOBUF", [to_price, to_cents])
    schemas = SchemaRegistry({"url": registry.url}, PROTOBUF)
    for _ in range(2):
        [(message, rows)], dead = only(schemas.schemas([number])).messages([bytes(6)], [0], number)
        assert (set(message.fields), rows, dead) == ({"price", "tax"}, [0], [])
    assert len(registry.asked) == 3


def test_references_are_followed_each_once_and_in_order(registry: Registry) -> None:
    cents = {"type": "record", "name": "m.Cents", "fields": [{"name": "n", "type": "long"}]}
    price = {"type": "record", "name": "m.Price", "fields": [{"name": "of", "type": "m.Cents"}]}
    tax = {"type": "record", "name": "m.Tax", "fields": [{"name": "of", "type": "m.Cents"}]}
    order = {"type": "record", "name": "Order", "fields": [{"name": "price", "type": "m.Price"}, {"name": "tax", "type": "m.Tax"}]}

    def to(name: str) -> dict[str, Any]:
        return {"name": f"m.{name}", "subject": name.lower(), "version": 1}

    registry.register("cents", cents)
    registry.register("price", price, references=[to("Cents")])
    registry.register("tax", tax, references=[to("Cents")])
    number = registry.register("order", order, references=[to("Price"), to("Tax")])
    assert set(only(asked(registry).schemas([number])).fields) == {"price", "tax"}
    assert len(registry.asked) == 4


def test_a_registry_that_is_away_is_no_answer_and_when_it_is_back_it_goes_on(registry: Registry) -> None:
    number = registry.register("payments-value", PAYMENT)
    clock = Clock()
    schemas = SchemaRegistry({"url": registry.url}, clock=clock)
    registry.stop()
    with pytest.raises(LogUnavailableError, match=rf"schema id {number}: no answer from the schema registry at {registry.url}"):
        schemas.schemas([number])
    registry.start()
    assert isinstance(only(schemas.schemas([number])), AvroSchema)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_registry_in_trouble_is_no_answer(registry: Registry, status: int) -> None:
    registry.broken = status, json.dumps({"error_code": status * 100 + 1, "message": "Error in the backend data store"}).encode()
    with pytest.raises(LogUnavailableError, match=f"answers {status}: Error in the backend data store"):
        asked(registry).schemas([7])


@pytest.mark.parametrize("body", [b"", b"<html>sorry</html>", b"[]", b"{"])
def test_what_is_no_answer_of_a_registry_is_none(registry: Registry, body: bytes) -> None:
    registry.broken = 200, body
    with pytest.raises(LogUnavailableError, match="no answer from the schema registry"):
        asked(registry).schemas([7])


@pytest.mark.parametrize("status", [404, 301, 400])
def test_an_address_that_is_not_a_registry_s_is_a_mistake_and_no_unknown_id(registry: Registry, status: int) -> None:
    registry.broken = status, b"<html>nothing here</html>"
    with pytest.raises(LogError, match=rf"answers {status}: .*the address of a registry\?") as caught:
        asked(registry).schemas([7])
    assert not isinstance(caught.value, LogUnavailableError)


def test_a_registry_that_hangs_takes_at_most_half_of_the_time() -> None:
    clock = Clock()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        schemas = SchemaRegistry({"url": url}, timeout=0.2, clock=clock)
        ask = schemas._ask

        def slowly(*arguments: Any) -> Any:
            clock.now += 5
            return ask(*arguments)

        schemas._ask = slowly  # type: ignore[method-assign]
        with pytest.raises(LogUnavailableError, match="Timeout"):
            schemas.schemas([7])
        began = clock.now
        for now in (began, began + 4.9):
            clock.now = now
            with pytest.raises(LogUnavailableError, match="Timeout"):
                schemas.schemas([7])
            assert clock.now == now  # it was not asked
        clock.now = began + 5
        with pytest.raises(LogUnavailableError, match="Timeout"):
            schemas.schemas([7])
        assert clock.now == began + 10


def test_a_second_address_is_asked_where_the_first_is_away(registry: Registry) -> None:
    number = registry.register("payments-value", PAYMENT)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    schemas = SchemaRegistry({"url": f"http://127.0.0.1:{port}, {registry.url}/"})
    assert isinstance(only(schemas.schemas([number])), AvroSchema)


# ---- settings -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded() -> Iterator[Registry]:
    server = Registry("miller:very secret")
    yield server
    server.stop()


def test_with_its_password_it_answers_and_without_it_the_fix_is_named(guarded: Registry) -> None:
    number = guarded.register("payments-value", PAYMENT)
    schemas = SchemaRegistry(
        {"url": guarded.url, "basic.auth.credentials.source": "USER_INFO", "basic.auth.user.info": "miller:very secret"}
    )
    assert isinstance(only(schemas.schemas([number])), AvroSchema)
    with pytest.raises(LogError, match=r"answers 401: .*basic\.auth\.user\.info"):
        asked(guarded).schemas([number])


def test_a_token_is_sent(guarded: Registry) -> None:
    number = guarded.register("payments-value", PAYMENT)
    guarded.authorization = "Bearer abc"
    token = {"bearer.auth.credentials.source": "STATIC_TOKEN", "bearer.auth.token": "abc", "bearer.auth.logical.cluster": "lsrc-1"}
    pool = {"bearer.auth.identity.pool.id": "pool-1"}
    assert isinstance(only(asked(guarded, **token, **pool).schemas([number])), AvroSchema)


def test_over_tls_it_must_be_the_one_whose_certificate_is_known(tmp_path: Path) -> None:
    (authority, *own), (other, *_) = certificates.make(tmp_path), certificates.make(tmp_path, "other")
    server = Registry(certificate=own)
    try:
        number = server.register("payments-value", PAYMENT)
        found = asked(server, **{"ssl.ca.location": str(authority)}).schemas([number])
        assert isinstance(only(found), AvroSchema)
        for settings in ({"ssl.ca.location": str(other)}, {}):
            with pytest.raises(LogUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
                asked(server, **settings).schemas([number])
    finally:
        server.stop()


def test_secrets_are_in_no_error_and_no_repr(guarded: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    schemas = SchemaRegistry({"url": guarded.url, "basic.auth.user.info": "miller:wrong secret"})
    said = [repr(schemas), str(vars(schemas)["where"])]
    for trouble in ((401, b"{}"), (503, b"{}"), (404, b""), None):
        guarded.broken = trouble
        if trouble is None:
            guarded.stop()
        try:
            schemas.schemas([7])
        except LogError as error:
            said += traceback.format_exception(error)
    assert len(said) > 5
    assert not [text for text in said if "wrong secret" in text or "bWlsbGVy" in text]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"schema.registry.url must begin with http:// or https://"),
        ({"url": "localhost:8081"}, r"schema.registry.url must begin with http:// or https://"),
        ({"url": "http://a, mock://b"}, r"schema.registry.url must begin with http:// or https://"),
        ({"url": "http://a:hushhush@b"}, r"schema.registry.url holds a password: put it into .*user.info"),
        ({"url": "http://a", "max.retries": "3"}, r"schema.registry.max.retries: tidemill does not know it; it takes basic.auth"),
        ({"url": "http://a", "basic.auth.credentials.source": "SASL_INHERIT"}, r"SASL_INHERIT is not supported, only USER_INFO"),
    ],
)
def test_settings_that_cannot_be_meant_so_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(LogError, match=message) as caught:
        SchemaRegistry(settings)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"ssl.ca.location": "/nowhere.pem"}, {"ssl.key.location": "/k"}, {"basic.auth.user.info": "miller"}])
def test_settings_that_the_client_refuses_are_refused_with_its_words(registry: Registry, settings: dict[str, str]) -> None:
    with pytest.raises(LogError, match=r"schema\.registry settings: .+"):
        asked(registry, **settings).schemas([7])


@pytest.mark.parametrize(
    ("format", "package"),
    [
        (AVRO, "fastavro"),
        (AVRO, "confluent_kafka.schema_registry"),
        (PROTOBUF, "google.protobuf"),
        (PROTOBUF, "grpc_tools"),
        (PROTOBUF, "confluent_kafka.schema_registry"),
    ],
)
def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch, format: Format, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LogError, match=rf"{format.title} topics need packages .* pip install 'tidemill\[{format.extra}\]'"):
        SchemaRegistry({"url": "http://localhost:8081"}, format)
