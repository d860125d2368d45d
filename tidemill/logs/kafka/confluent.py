"""The fast reader: librdkafka fetches ahead in threads of its own, and hands over thousands of messages in one call."""

from __future__ import annotations

import logging
from operator import itemgetter

import numpy as np

from tidemill.errors import LogError
from tidemill.logs.kafka.reader import Fetched, Form, KafkaReader, Topics
from tidemill.logs.kafka.settings import Settings
from tidemill.logs.kafka.watch import TopicWatch

# librdkafka would write to stderr. Whoever wants to know listens to this logger.
LOGGER = logging.getLogger("tidemill.logs.kafka")
LOGGER.addHandler(logging.NullHandler())

_DEFAULTS: dict[str, str | int | float | bool] = {
    "client.id": "tidemill",
    "check.crcs": True,
    "fetch.message.max.bytes": 4 << 20,
    # When the queue is full, it waits for so long before it fetches again; its default, a second, starves a fast reader.
    "fetch.queue.backoff.ms": 5,
    "queued.max.messages.kbytes": 32 << 10,
    "reconnect.backoff.max.ms": 1000,
}
_OURS: dict[str, str | int | float | bool] = {
    "group.id": "tidemill",  # it wants one, and uses it for nothing as long as partitions are assigned by hand
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
    "allow.auto.create.topics": False,
    # The only word of a position that has moved past the markers of transactions at the end.
    "enable.partition.eof": True,
}


class ConfluentReader(KafkaReader):
    """Reads with confluent-kafka. Used by one thread."""

    def __init__(self, log: Topics, settings: Settings, watch: TopicWatch, topic: str, partition: int, offset: int, form: Form) -> None:
        super().__init__(log, watch, topic, partition, offset, form)
        try:
            from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
        except ImportError:
            raise LogError("the Kafka client confluent needs its package: pip install 'tidemill[kafka]', or use client python") from None
        self._place = TopicPartition
        self._exception = KafkaException
        self._error_of, self._offset_of = Message.error, Message.offset
        self._value_of, self._timestamp_of = Message.value, Message.timestamp
        self._end_of_partition = KafkaError._PARTITION_EOF
        self._truncated = KafkaError._LOG_TRUNCATION
        self._out_of_range = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
        self._fatal = {
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError._AUTHENTICATION,
            KafkaError._BAD_MSG,
            KafkaError._BAD_COMPRESSION,
            KafkaError._NOT_IMPLEMENTED,
            KafkaError._FATAL,
        }
        try:
            # A callback for errors, so that they are not logged: those that matter come as messages too, and the watch sees the others.
            self._consumer = Consumer({**_DEFAULTS, **settings.confluent(), **_OURS, "error_cb": ignore}, logger=LOGGER)
        except KafkaException as refusal:
            raise LogError(f"Kafka settings: {refusal.args[0].str()}") from None
        self._stand(offset)

    def _fetch(self, most: int) -> Fetched | None:
        try:
            messages = self._consumer.consume(most, 0)
        except self._exception as failure:
            raise LogError(f"topic {self._topic}, partition {self.partition}: {failure.args[0].str()}") from None
        if not messages:
            return None
        self._hear()
        end = self.position
        if any(map(self._error_of, messages)):
            # A word about the end has an offset, as messages have. What comes after one that ends the reading may lie beyond a gap.
            stops = (self._truncated, *self._fatal, *self._out_of_range)
            first = next((i for i, m in enumerate(messages) if (e := m.error()) is not None and e.code() in stops), len(messages))
            messages = messages[: first + 1]
            events = [message for message in messages if message.error() is not None]
            messages = [message for message in messages if message.error() is None]
            for event in events:
                error = event.error()
                assert error is not None
                if error.code() == self._end_of_partition:
                    end = max(end, event.offset() or 0)
                elif error.code() in self._out_of_range:
                    self._refuse()
                elif error.code() == self._truncated:
                    self._fail(self._lost(error.str()))
                elif error.code() in self._fatal:
                    self._fail(LogError(f"topic {self._topic}, partition {self.partition}, offset {event.offset()}: {error.str()}"))
        offsets = np.fromiter(map(self._offset_of, messages), dtype=np.int64, count=len(messages))
        if messages:
            end = max(end, int(offsets[-1]) + 1)
        return Fetched(offsets, list(map(self._value_of, messages)), map(itemgetter(1), map(self._timestamp_of, messages)), end)

    def _stand(self, offset: int) -> None:
        # Not seek: that is refused while an assignment is young, and this empties the queue as well.
        self._consumer.assign([self._place(self._topic, self.partition, offset)])

    def _close(self) -> None:
        self._consumer.close()


def ignore(error: object) -> None:
    """For clients that are not to log errors."""
