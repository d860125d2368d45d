"""What is asked of Kafka beside reading: topics and their ids, offsets and ends, and producing. With kafka-python.

Used by the log, by tests, by replays of dead letters and by the demo. Every call is over after about the time-out, and every error is
one of tidemill's.
"""

from __future__ import annotations

import difflib
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from tidemill.errors import LogError, LogUnavailableError
from tidemill.logs.kafka.settings import PASSWORDS, Settings

_PASSWORD = PASSWORDS["sasl.password"]


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now. `id` is another one after the topic was deleted and created again; "" where brokers are too old for ids.

    `leaderless`: the partitions that nobody serves at the moment.
    """

    name: str
    id: str
    partitions: tuple[int, ...]
    leaderless: frozenset[int]


class Place(NamedTuple):
    """Where a record lies."""

    partition: int
    offset: int


class Message(NamedTuple):
    """What to produce. `partition`: None lets the key decide. `timestamp_us`: UTC microseconds, cut to Kafka's milliseconds."""

    partition: int | None
    key: bytes | None
    value: bytes | None
    timestamp_us: int | None = None


class MissingTopicError(LogError):
    """There is no such topic. Tells this from every other `LogError`, for a watch that must not believe it at once."""


class KafkaAdmin:
    """Topics and offsets. Connects when first used, in the process that uses it; may be used by several threads."""

    def __init__(self, brokers: str, settings: Mapping[str, str] | None = None, timeout: float = 10.0) -> None:
        self._settings = Settings(brokers, settings or {}, timeout)
        self._lock = threading.Lock()
        self._client: Any = None
        self._process = 0

    @property
    def brokers(self) -> str:
        """As given."""
        return self._settings.brokers

    def topics(self) -> list[str]:
        """The names of all topics."""
        with self._asking("listing topics") as client:
            return sorted(client.list_topics())

    def describe(self, topic: str) -> Topic:
        """Raises `LogError` if there is no such topic."""
        with self._asking(f"topic {topic}") as client:
            found = client.describe_topics([topic])[0]
        code, partitions = found["error_code"], found["partitions"]
        if code == 3 or (code == 0 and not partitions):  # UNKNOWN_TOPIC_OR_PARTITION
            near = difflib.get_close_matches(topic, self.topics(), 3, 0.5)
            hint = f"; there is {', '.join(near)}" if near else ""
            raise MissingTopicError(f"there is no topic {topic!r} at {self.brokers}{hint}")
        if code:
            raise _translated(_error_for(code)(), f"topic {topic}", self.brokers)
        numbers = tuple(sorted(p["partition_index"] for p in partitions))
        leaderless = frozenset(p["partition_index"] for p in partitions if p["leader_id"] < 0)
        name = str(found.get("topic_id") or "")
        return Topic(topic, "" if name.strip("0-") == "" else name, numbers, leaderless)

    def starts(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """The first offsets that the brokers still have."""
        return self._offsets(topic, dict.fromkeys(partitions, -2))

    def ends(self, topic: str, partitions: Iterable[int], *, committed: bool = True) -> dict[int, int]:
        """The offsets after the last record: `committed`, before the first transaction that is still open."""
        return self._offsets(topic, dict.fromkeys(partitions, -1), committed=committed)

    def offsets_at(self, topic: str, partitions: Iterable[int], time_us: int) -> dict[int, int]:
        """The first offsets at or after a time (UTC microseconds), the ends where there is nothing as late."""
        wanted = list(partitions)
        found = self._offsets(topic, dict.fromkeys(wanted, max(0, -(-time_us // 1000))))
        later = [p for p in wanted if found[p] < 0]
        return found | (self.ends(topic, later) if later else {})

    def create_topic(self, name: str, partitions: int = 1, *, replicas: int = -1, configs: Mapping[str, str] | None = None) -> None:
        """Create a topic; `replicas` -1 is the brokers' default."""
        wanted = {"num_partitions": partitions, "replication_factor": replicas, "configs": dict(configs or {})}
        with self._asking(f"creating topic {name}") as client:
            client.create_topics({name: wanted})
            client.wait_for_topics([name])

    def delete_topic(self, name: str) -> None:
        """Delete a topic and all that is in it."""
        with self._asking(f"deleting topic {name}") as client:
            client.delete_topics([name])

    def grow_topic(self, name: str, partitions: int) -> None:
        """Have so many partitions from now on."""
        with self._asking(f"adding partitions to {name}") as client:
            client.create_partitions({name: partitions})

    def delete_records(self, topic: str, before: Mapping[int, int]) -> None:
        """Drop what lies before an offset, by partition."""
        from kafka import TopicPartition

        with self._asking(f"deleting records of {topic}") as client:
            client.delete_records({TopicPartition(topic, p): offset for p, offset in before.items()})

    def produce(
        self, topic: str, messages: Sequence[Message | tuple[Any, ...]], *, compression: str | None = None, at_once: bool = False
    ) -> list[Place]:
        """Write records, and wait until all in-sync replicas have them; where each lies. `compression`: gzip, snappy, lz4 or zstd.

        `at_once`: in a transaction, so that readers get all of them or none.
        """
        from kafka import KafkaProducer

        what = f"producing to {topic}"
        with translating(what, self.brokers):
            options = self._settings.python(reading=False, strict=False)
            wait = self._settings.timeout
            # A batch's time-out must be at least the request's.
            options |= {"delivery_timeout_ms": int(wait * 2000), "max_block_ms": int(wait * 1000)}
            # What is too large, the topic says, not the client.
            options |= {"max_request_size": 64 << 20, "compression_type": compression}
            if at_once:
                options["transactional_id"] = f"tidemill-{uuid.uuid4().hex}"
            producer = KafkaProducer(**options, linger_ms=5, metrics_enabled=False)
            try:
                if at_once:
                    producer.init_transactions()
                    producer.begin_transaction()
                sent = []
                for message in messages:
                    partition, key, value, time_us = Message(*message)
                    millis = None if time_us is None else time_us // 1000
                    sent.append(producer.send(topic, value=value, key=key, partition=partition, timestamp_ms=millis))
                producer.flush(wait)
                if at_once:
                    producer.commit_transaction()
                return [Place(written.partition, written.offset) for written in (future.get(wait) for future in sent)]
            finally:
                producer.close(wait)

    def close(self) -> None:
        """Give back the connections. Used again, it connects again."""
        with self._lock:
            client, self._client = self._client, None
            if client is not None and self._process == os.getpid():
                client.close()

    def _offsets(self, topic: str, wanted: Mapping[int, int], *, committed: bool = True) -> dict[int, int]:
        from kafka import IsolationLevel, TopicPartition

        if not wanted:
            return {}
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        with self._asking(f"offsets of topic {topic}") as client:
            specs = {TopicPartition(topic, p): at for p, at in wanted.items()}
            found = client.list_partition_offsets(specs, isolation_level=level, timeout_ms=int(self._settings.timeout * 1000))
        return {place.partition: entry.offset for place, entry in found.items()}

    @contextmanager
    def _asking(self, what: str) -> Iterator[Any]:
        with translating(what, self.brokers):
            yield self._connected()

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None or self._process != os.getpid():
                from kafka import KafkaAdminClient
                from kafka.errors import KafkaTimeoutError

                client: Any = KafkaAdminClient.__new__(KafkaAdminClient)
                try:
                    client.__init__(**self._settings.python(reading=False, strict=False))
                except BaseException as error:
                    client._closed = False  # it has started a thread by now, and would leave it running
                    client.close()
                    if "sasl.username" in self._settings.given and isinstance(error, KafkaTimeoutError):
                        # It tries a refused password again until the time-out, and then speaks of that alone.
                        raise KafkaTimeoutError(f"{error}, or it refuses the user name or the password (from {_PASSWORD})") from None
                    raise
                self._client, self._process = client, os.getpid()
            return self._client


@contextmanager
def translating(what: str, brokers: str) -> Iterator[None]:
    """Whatever kafka-python raises, as one of tidemill's errors."""
    try:
        from kafka.errors import KafkaError
    except ImportError:
        raise LogError("reading from Kafka needs the package kafka-python: pip install 'tidemill[kafka]'") from None
    try:
        yield
    except KafkaError as error:
        raise _translated(error, what, brokers) from error
    except (OSError, TimeoutError) as error:
        raise LogUnavailableError(f"{what}: no answer from Kafka at {brokers}: {_text(error)}") from error


def _translated(error: Exception, what: str, brokers: str) -> LogError:
    from kafka import errors

    if isinstance(error, errors.UnknownTopicOrPartitionError):
        return MissingTopicError(f"{what}: there is no such topic or partition at {brokers}")
    if isinstance(error, errors.SaslAuthenticationFailedError):
        return LogError(f"{what}: Kafka at {brokers} refuses the user name or the password (from {_PASSWORD})")
    if isinstance(error, errors.RetriableError):
        return LogUnavailableError(f"{what}: no answer from Kafka at {brokers}: {_text(error)}")
    return LogError(f"{what}: Kafka at {brokers} refuses: {_text(error)}")


def _error_for(code: int) -> Any:
    from kafka import errors

    return errors.for_code(code)


def _text(error: Exception) -> str:
    """The error in one line, without what the environment keeps secret."""
    text = " ".join(str(error).split()) or type(error).__name__
    for variable in PASSWORDS.values():
        secret = os.environ.get(variable)
        if secret:
            text = text.replace(secret, "***")
    return text
