"""What both readers of a partition do alike: keep the position, make batches, and find out why a broker refuses an offset."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tidemill.errors import LogChangedError, LogError
from tidemill.logs.base import Int64s, RecordBatch
from tidemill.logs.kafka.batches import record_batch
from tidemill.logs.kafka.watch import TopicWatch

#: At most so many messages are handed out at once: as objects they take several times the memory of their bytes.
MOST = 65_536


@dataclass(frozen=True, slots=True)
class Fetched:
    """Messages as they came: offsets, values, timestamps in milliseconds; and the position after them."""

    offsets: Int64s
    values: list[bytes | None]
    millis: Iterable[int]
    end: int


class Form(NamedTuple):
    """In which form values are handed out: up to how many bytes, and whether as lines."""

    max_bytes: int
    lines: bool


class Topics(Protocol):
    """What a reader needs of its log."""

    def place(self, partition: int, offset: int) -> None:
        """Raise, unless a reader can stand there."""
        ...

    def left(self, reader: KafkaReader) -> None:
        """A reader has closed."""
        ...


class KafkaReader(ABC):
    """A `PartitionReader` over one partition of a topic.

    `read` gives None when nothing has come *yet*: a fetch may be under way. Whether the log was read to its end, `at_end` says.
    `position` is the offset that is read next.
    """

    def __init__(self, log: Topics, watch: TopicWatch, topic: str, partition: int, offset: int, form: Form) -> None:
        self.partition = partition
        self.position = offset
        self.closed = False
        self._log = log
        self._watch = watch
        self._topic = topic
        self._form = form
        self._heard = time.monotonic()
        self._refused = False
        #: When the last records were fetched, by the watch's clock.
        self._fetched: float | None = None
        self._fault: LogError | None = None
        self._process = os.getpid()

    @property
    def at_end(self) -> bool:
        """Whether everything was read that was there when the brokers were last asked, a second ago or so."""
        return self._watch.is_end(self.partition, self.position)

    @property
    def end_age(self) -> float:
        """Seconds since the look at the log's end that `at_end` goes by began."""
        return self._watch.age

    def read(self, max_records: int) -> RecordBatch | None:
        """Up to `max_records` records, or None: nothing has come yet. Never blocks, but to find out why an offset is refused.

        Goes on by itself when brokers come back. Raises `LogUnavailableError` when there was no contact for longer than the time-out,
        and may be called again after that.
        """
        if self.closed:
            raise LogError(f"topic {self._topic}, partition {self.partition}: the reader was closed")
        fetched = None if self._refused or self._fault is not None else self._fetch(min(max_records, MOST))
        if fetched is None or fetched.end == self.position:
            if self._fault is not None:
                raise self._fault
            if self._refused:
                self._log.place(self.partition, self.position)  # raises the reason
                self._refused = False
                self._stand(self.position)
            self._watch.check(self.partition, heard=self._heard)
            return None
        self._watch.check(self.partition, heard=self._heard)  # of a topic that was created again, nothing is handed out
        self._fetched = self._watch.now()
        start, self.position = self.position, fetched.end
        values, (most, lines) = fetched.values, self._form
        return record_batch(self.partition, start, fetched.end, fetched.offsets, values, fetched.millis, most, lines=lines)

    def confirm(self) -> None:
        """Ask for the topic's id, unless that was done since the last records came: of another topic, they must not be counted.

        Raises `LogChangedError`, `LogError`, and `LogUnavailableError` where nobody answers.
        """
        if self._fetched is not None:
            self._watch.confirm(self._fetched)

    def seek(self, offset: int) -> None:
        """Go on from this offset instead. Raises what `KafkaLog.open` raises."""
        self._log.place(self.partition, offset)
        self._stand(offset)
        self.position, self._refused, self._fault = offset, False, None

    def close(self) -> None:
        """Give back connections and threads, if they are this process's."""
        if not self.closed:
            self.closed = True
            if self._process == os.getpid():
                self._close()
            self._log.left(self)

    def _fail(self, fault: LogError) -> None:
        """`read` raises this from now on, until a `seek`; but first it hands out what came before. A client may have gone past it."""
        self._fault = fault

    def _hear(self) -> None:
        """The brokers have answered."""
        self._heard = time.monotonic()

    def _refuse(self) -> None:
        """The brokers do not have the position: the next `read` finds out why."""
        self._refused = True

    def _lost(self, why: str) -> LogChangedError:
        """A broker that lagged behind has become the leader, and the records before the position are no longer those that were read."""
        return LogChangedError(
            f"topic {self._topic}, partition {self.partition}: records before offset {self.position} were lost by the brokers after they "
            f"had been read ({why}); set unclean.leader.election.enable=false, and read the topic as a source with another name"
        )

    @abstractmethod
    def _fetch(self, most: int) -> Fetched | None:
        """What has come by now."""

    @abstractmethod
    def _stand(self, offset: int) -> None:
        """Fetch from this offset on; forget what was fetched."""

    @abstractmethod
    def _close(self) -> None:
        """Give back what the client holds."""
