"""How a topic is doing, asked about once a second in a thread, so that readers never wait for an answer.

It notices what a consumer does not say: that the topic is another one than before (deleted and created again, so offsets would name
other events), that it is gone, that no broker answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tidemill.errors import LogChangedError, LogError, LogUnavailableError
from tidemill.logs.kafka.admin import KafkaAdmin, MissingTopicError, Topic

#: In seconds between two looks.
EVERY = 1.0
#: So often in a row must a topic be missing before it counts as gone: a broker that has just started may not know it yet.
_GONE = 3


@dataclass(frozen=True, slots=True)
class Seen:
    """One look. `at`: by the clock, before it began. `ends`: the offset after the last committed record, where it is known."""

    at: float
    topic: Topic
    ends: dict[int, int]


class TopicWatch:
    """Looks while it is started. `known`: the topic as it must be. `wanted` says which partitions' ends are of interest.

    `timeout` and `clock` in seconds.
    """

    def __init__(
        self,
        admin: KafkaAdmin,
        known: Topic,
        wanted: Callable[[], set[int]],
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seen = Seen(clock(), known, {})
        self._admin = admin
        self._known = known
        self._wanted = wanted
        self._timeout = timeout
        self._clock = clock
        self._fault: LogError | None = None
        #: When the last look began that got the topic's id.
        self._confirmed = self.seen.at
        self._why = ""
        self._served = dict.fromkeys(known.partitions, clock())
        self._missing = 0
        self._stopped = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{known.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A look that is under way is not waited for longer than the time-out."""
        self._stopped = True
        self._wake.set()
        self._thread.join(2 * self._timeout)

    def hurry(self) -> None:
        """Look now: there is a new reader, which may be at the end already."""
        self._wake.set()

    def check(self, partition: int, *, heard: float) -> None:
        """Raise what is wrong with the topic, if anything.

        `LogChangedError`: it is no longer the same; `LogError`: it is gone; `LogUnavailableError`: nobody has served the partition for
        longer than the time-out, nor has it been `heard` of otherwise since.
        """
        if self._fault is not None:
            raise type(self._fault)(*self._fault.args)
        last = max(heard, self._served.get(partition, 0.0))
        if self._clock() - last > self._timeout:
            raise LogUnavailableError(
                f"topic {self._known.name}, partition {partition}: no answer from Kafka at {self._admin.brokers} "
                f"for {self._timeout:g} seconds; reading goes on when there is one{self._why}"
            )

    def now(self) -> float:
        """What its clock says."""
        return self._clock()

    def confirm(self, since: float) -> None:
        """Raise what is wrong with the topic as of a look that began at `since` or later, which is made now if there was none.

        `LogUnavailableError`: nobody could say.
        """
        if self._confirmed < since:
            at = self._clock()
            try:
                self._found(at, self._admin.describe(self._known.name))
            except MissingTopicError as error:
                raise LogUnavailableError(f"{error}; it was there when reading began") from error
        if self._fault is not None:
            raise type(self._fault)(*self._fault.args)

    def _found(self, at: float, topic: Topic) -> None:
        if self._fault is None or isinstance(self._fault, LogChangedError):
            self._fault = changed(self._known, topic)
        self._confirmed = max(self._confirmed, at)

    def is_end(self, partition: int, position: int) -> bool:
        """Whether the log ended here when it was last looked at, and that was just now."""
        seen = self.seen
        return partition in seen.ends and position >= seen.ends[partition] and self._clock() - seen.at < self._timeout

    @property
    def age(self) -> float:
        """Seconds since the last look began."""
        return max(self._clock() - self.seen.at, 0.0)

    def _run(self) -> None:
        while True:
            self._wake.wait(EVERY)
            self._wake.clear()
            if self._stopped:
                return
            self._look()

    def _look(self) -> None:
        at = self._clock()
        try:
            topic = self._admin.describe(self._known.name)
        except MissingTopicError as error:
            self._missing += 1
            if self._missing >= _GONE:
                self._fault = LogError(f"{error}; it was there when reading began, and has been deleted since")
            return
        except LogError as error:
            self._why = f" ({error})"
            return
        self._missing = 0
        self._found(at, topic)
        ends: dict[int, int] = {}
        try:
            wanted = self._wanted() & set(topic.partitions) - topic.leaderless
            ends = self._admin.ends(topic.name, wanted)
        except LogError as error:  # some broker does not answer: the readers of its partitions will notice
            self._why = f" ({error})"
        self._served.update(dict.fromkeys(set(topic.partitions) - topic.leaderless, self._clock()))
        self.seen = Seen(at, topic, ends)


def changed(known: Topic, now: Topic) -> LogChangedError | None:
    """The error, if this is another topic under the same name, or one that has lost partitions."""
    if known.id and now.id and known.id != now.id:
        return LogChangedError(
            f"topic {known.name} was deleted and created again (its id was {known.id}, and is {now.id}), so offsets would name other "
            "events; read it as a source with another name"
        )
    gone = sorted(set(known.partitions) - set(now.partitions))
    if gone:
        return LogChangedError(
            f"topic {known.name} had partition {gone[0]}, and no longer has: it was probably deleted and created again; "
            "read it as a source with another name"
        )
    return None
