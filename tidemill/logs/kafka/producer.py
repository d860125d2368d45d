"""A producer that goes on in the background: idempotent, with all in-sync replicas' word for each message.

It never gives up a message for want of an answer, so that brokers that come back get what waited. What they refuse (too large for the
topic, no right to write) is over. It is librdkafka's, whichever client reads: an idempotent producer of kafka-python (3.0.12) takes all
that is under way, and itself, down with one message that is refused.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from tidemill.errors import LogError
from tidemill.journals.topic import MAX_ENTRY, Producer
from tidemill.logs.kafka.admin import KafkaAdmin
from tidemill.logs.kafka.confluent import LOGGER, ignore
from tidemill.logs.kafka.settings import Settings

Done = Callable[[str | None], object]

_DEFAULTS: dict[str, Any] = {
    "client.id": "tidemill",
    "compression.type": "lz4",
    "linger.ms": 50,
    "reconnect.backoff.max.ms": 1000,
}
_OURS: dict[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "message.timeout.ms": 0,  # never
    # Its own bound, before compression; what is too large for a topic the topic says.
    "message.max.bytes": MAX_ENTRY + (1 << 20),
}
_LONG = 2**31 - 1


def connecting(brokers: str, topic: str, settings: Mapping[str, str], timeout: float = 5.0) -> Callable[[], Producer]:
    """What makes a producer for a topic that is there, and raises `LogError` while it is not: producing must not create it.

    `settings`: of the client. Raises `LogError` at once for those that are not the user's to set.
    """
    given = dict(settings)
    for name in given.keys() & _OURS.keys():
        raise LogError(f"Kafka setting {name}: tidemill sets it itself, because no logged message may be lost; leave it out")
    checked = Settings(brokers, given, timeout)
    if not all(map(importlib.util.find_spec, ("kafka", "confluent_kafka"))):
        raise LogError("writing to Kafka needs the packages kafka-python and confluent-kafka: pip install 'tidemill[kafka]'")

    def connect() -> Producer:
        admin = KafkaAdmin(brokers, given, timeout)
        try:
            admin.describe(topic)
        finally:
            admin.close()
        return ConfluentProducer(checked, topic)

    return connect


class ConfluentProducer:
    """A `Producer` with librdkafka, which has threads of its own."""

    def __init__(self, settings: Settings, topic: str) -> None:
        from confluent_kafka import KafkaError, KafkaException, Producer

        self._topic, self._exception = topic, KafkaException
        self._fatal = {KafkaError._FATAL, KafkaError._STATE}
        try:
            self._producer = Producer({**_DEFAULTS, **settings.confluent(), **_OURS, "error_cb": ignore}, logger=LOGGER)
        except KafkaException as refusal:
            raise LogError(f"Kafka settings: {refusal.args[0].str()}") from None

    def send(self, key: bytes, value: bytes, done: Done) -> bool:
        """See `Producer`."""

        def delivered(error: Any, _: object) -> None:
            done(None if error is None else error.str())

        try:
            self._producer.produce(self._topic, value, key, on_delivery=delivered)
        except BufferError:
            return False
        except self._exception as failure:
            error = failure.args[0]
            if error.fatal() or error.code() in self._fatal:
                raise LogError(f"topic {self._topic}: {error.str()}") from None
            done(error.str())
        return True

    def poll(self) -> None:
        """See `Producer`."""
        self._producer.poll(0)

    def close(self) -> None:
        """See `Producer`."""
        self._producer.purge()
        self._producer.poll(0)
