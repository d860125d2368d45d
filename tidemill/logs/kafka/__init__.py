"""Kafka topics as logs: a topic's partitions are the log's, and so are its offsets.

Offsets may have gaps (transactions, compaction). What is read is what was committed. No consumer group is used and no offset is
committed: positions lie in the online store, beside the values.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Literal

from tidemill.errors import LogChangedError, LogError, LogTruncatedError
from tidemill.logs.kafka.admin import KafkaAdmin, Message, Place, Topic
from tidemill.logs.kafka.reader import Form, KafkaReader
from tidemill.logs.kafka.settings import Settings
from tidemill.logs.kafka.watch import TopicWatch, changed
from tidemill.logs.records import MAX_RECORD
from tidemill.times import to_micros

__all__ = ["KafkaAdmin", "KafkaLog", "KafkaReader", "Message", "Place", "Topic"]

Client = Literal["confluent", "python"]


class KafkaLog:
    """The `Log` over one topic. Connects when first used, in the process that uses it.

    `client`: "confluent" (librdkafka, fast) or "python" (kafka-python); by default the fast one, if it is installed. `settings`:
    passed through, under librdkafka's names (see `tidemill.logs.kafka.settings`). `timeout` in seconds: for an answer, and for
    readers without contact. `topic_id`: what the topic's id must be, where it is known from before. `max_bytes`: longer values are broken.
    `lines`: values are JSON and are handed out as lines; else one by one, whatever they hold (Avro, Protobuf).

    Errors: `LogUnavailableError` when no broker answers, `LogError` for a missing topic, `LogChangedError` when the topic is another
    one than before, `LogTruncatedError` for offsets that the brokers no longer have.

    >>> KafkaLog("localhost:9092", "orders", settings={"group.id": "mine"})
    Traceback (most recent call last):
    ...
    tidemill.errors.LogError: Kafka setting group.id: tidemill sets it itself, because exact results rest on it; leave it out
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        *,
        client: Client | None = None,
        settings: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        topic_id: str | None = None,
        max_bytes: int = MAX_RECORD,
        lines: bool = True,
    ) -> None:
        if client is None:
            client = "confluent" if importlib.util.find_spec("confluent_kafka") else "python"
        if client not in ("confluent", "python"):
            raise LogError(f"Kafka client {client!r} is not known: use confluent or python")
        self._settings = Settings(brokers, dict(settings or {}), timeout)
        if client == "python":
            self._settings.python(reading=True, strict=True)  # to say what is wrong at once
        self._client = client
        self._topic = topic
        self._expected = topic_id
        self._form = Form(max_bytes, lines)
        self._admin = KafkaAdmin(brokers, settings, timeout)
        self._lock = threading.RLock()
        self._known: Topic | None = None
        self._watch: TopicWatch | None = None
        self._readers: set[KafkaReader] = set()
        self._process = os.getpid()

    @property
    def topic_id(self) -> str:
        """The id that the cluster gave this topic when it was created; "" from brokers before 2.8, which have none."""
        return self._look().id

    def partitions(self) -> list[int]:
        """The partitions that exist now (while a reader is open: a second ago), ascending. Raises `LogError`."""
        watch = self._watch
        if watch is not None and self._process == os.getpid():
            return list(watch.seen.topic.partitions)
        return list(self._look().partitions)

    def start(self, partition: int) -> int:
        """The first offset that the brokers still have."""
        self._require(partition)
        return self._admin.starts(self._topic, [partition])[partition]

    def end(self, partition: int) -> int:
        """The offset after the last record that can be read: before the first transaction that is still open."""
        return self.ends([partition])[partition]

    def ends(self, partitions: list[int] | None = None) -> dict[int, int]:
        """The ends of these partitions, or of all, in one request."""
        topic = self._look()
        for partition in partitions or ():
            self._require(partition, topic)
        return self._admin.ends(self._topic, topic.partitions if partitions is None else partitions)

    def offsets_at(self, time_us: int) -> dict[int, int]:
        """By partition, the first offset at or after a time (UTC microseconds; the log's own times), its end if there is none."""
        return self._admin.offsets_at(self._topic, self._look().partitions, time_us)

    def begin(self, start: str) -> dict[int, int]:
        """By partition, the offset that `Source(start=...)` names: "earliest", "latest", or an instant."""
        partitions = self._look().partitions
        if start == "earliest":
            return self._admin.starts(self._topic, partitions)
        return self._admin.ends(self._topic, partitions) if start == "latest" else self.offsets_at(to_micros(start))

    def deliver(self, messages: Sequence[tuple[int, bytes]]) -> None:
        """Write records, each to its partition, with the time at which the brokers get them; readers get all of them or none."""
        self._admin.produce(self._topic, [Message(partition, None, value) for partition, value in messages], at_once=True)

    def open(self, partition: int, offset: int) -> KafkaReader:
        """A reader that begins at `offset`. Raises `LogTruncatedError`, and `LogChangedError` if the topic does not reach so far."""
        self.place(partition, offset)
        with self._lock:
            watch = self._watching()
            try:
                reader = self._reader(watch, partition, offset)
            except BaseException:
                self.left(None)
                raise
            self._readers.add(reader)
        watch.hurry()
        return reader

    def _reader(self, watch: TopicWatch, partition: int, offset: int) -> KafkaReader:
        if self._client == "confluent":
            from tidemill.logs.kafka.confluent import ConfluentReader

            return ConfluentReader(self, self._settings, watch, self._topic, partition, offset, self._form)
        from tidemill.logs.kafka.python import PythonReader

        return PythonReader(self, self._settings, watch, self._topic, partition, offset, self._form)

    def place(self, partition: int, offset: int) -> None:
        """Whether a reader can stand here: raises what `open` raises, if not. For readers."""
        if offset < 0:
            raise ValueError(f"an offset is not negative, but {offset} was asked for")
        self._require(partition)
        first = self._admin.starts(self._topic, [partition])[partition]
        if offset < first:
            raise LogTruncatedError(f"topic {self._topic}, partition {partition}: offset {offset} is gone; the topic now begins at {first}")
        end = self._admin.ends(self._topic, [partition], committed=False)[partition]
        if offset > end:
            raise LogChangedError(
                f"topic {self._topic}, partition {partition} ends at offset {end}, and offset {offset} was asked for: it was probably "
                "deleted and created again, or a broker has lost records; read it as a source with another name"
            )

    def left(self, reader: KafkaReader | None) -> None:
        """A reader has closed, or none came to be: without readers nobody watches. For readers."""
        with self._lock:
            self._readers -= {reader}
            if self._watch is None or self._readers:
                return
            watch, self._watch = self._watch, None
        if self._process == os.getpid():
            watch.stop()

    def close(self) -> None:
        """Close all readers and connections. Used again, it connects again."""
        for reader in list(self._readers):
            reader.close()
        self._admin.close()

    def _look(self) -> Topic:
        now = self._admin.describe(self._topic)
        with self._lock:
            known = self._known
            if known is None:
                known = Topic(self._topic, self._expected or now.id, (), frozenset())
            fault = changed(known, now)
            if fault is not None:
                raise fault
            self._known = now
        return now

    def _require(self, partition: int, topic: Topic | None = None) -> None:
        topic = topic or self._look()
        if partition not in topic.partitions:
            last = max(topic.partitions)
            raise LogError(f"topic {self._topic} has no partition {partition}: it has 0 to {last}")

    def _reading(self) -> set[int]:
        return {reader.partition for reader in list(self._readers)}

    def _watching(self) -> TopicWatch:
        if self._watch is None or self._process != os.getpid():
            assert self._known is not None
            self._process = os.getpid()
            self._watch = TopicWatch(self._admin, self._known, self._reading, self._settings.timeout)
        return self._watch
