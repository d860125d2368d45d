"""One partition in the hands of a runtime that asks for its records again and again, and must never be kept waiting.

`PartitionIngest` does the work; here is when to do it: how long to wait for more records, when to say that there are none, and what
to do while a store or the log does not answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tidemill.errors import LogUnavailableError, StoreUnavailableError
from tidemill.journal import Journal

from .ingest import Flush, PartitionIngest, Polled, nothing

#: In seconds, unless `[stream] linger` says otherwise. At the end of the log, more is waited for: a flush of one event costs nearly as much
#: as one of thousands. What is longer makes answers older, and leaves more of the machine to others.
LINGER = 0.05
#: In seconds: how soon to look again at the end of a log.
_LOOK = 0.01
#: In seconds: how soon to look again where more is on its way.
_ON_ITS_WAY = 0.005
#: In seconds: how often to say that the partition is read to its end.
BEAT = 1.0
#: In seconds: how soon after the last flush, and how often, to see whether the store still has what it was given.
CHECK = 5.0
#: In seconds: the first and the longest pause before a store that does not answer is asked again.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
#: So many refused flushes in a row are no reason to wait: what was in flight when one is refused, is refused with it.
_IN_A_ROW = 3
#: What trying again later may help against.
NOT_NOW = (StoreUnavailableError, LogUnavailableError)
#: Looking for new records takes at most this share of the time: listing a folder of many files is slow.
_LOOKING = 0.1


@dataclass
class Orders:
    """What the worker process was told, by its command line, by a signal, or by something it saw. Read by all, in any thread.

    `until_end`: stop at the end of every log. `stop`: stop now. `exit_code`: what to say to whoever started the process.
    """

    until_end: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    exit_code: int = 0


@dataclass
class Reading:
    """A partition's reading, from the first `turn` until `ended`. `clock` gives seconds, and need not be a wall clock.

    `linger`: in seconds, between two flushes at the end of the log.
    """

    ingest: PartitionIngest
    orders: Orders
    journal: Journal
    clock: Callable[[], float] = time.monotonic
    linger: float = LINGER
    #: The log was read to its end, as of the last look.
    following: bool = field(default=False, init=False)
    #: A store or the log does not answer.
    waiting: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)
    #: Nothing is to be done before this instant of `clock`.
    awake_at: float = field(default=0.0, init=False)
    _restored: bool = field(default=False, init=False)
    #: Newer definitions that could not be taken up while a store did not answer.
    _change: Callable[[], object] | None = field(default=None, init=False)
    _in_flight: int = field(default=0, init=False)
    _beat_at: float = field(default=0.0, init=False)
    _check_at: float = field(default=0.0, init=False)
    _pause: float = field(default=FIRST_PAUSE, init=False)
    _refused: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        """`source:partition`."""
        return f"{self.ingest.source.name}:{self.ingest.partition}"

    def turn(self) -> Polled | None:
        """The next records, or None: nothing now. Never blocks.

        Raises StopIteration when it is over: told to stop, or at the end of a log that is read only until its end. Everything that was
        applied is archived by then.
        """
        if self.orders.stop.is_set() and not self._in_flight:
            self._end()
        if self.clock() < self.awake_at:
            return None
        try:
            if not self._restored:
                self._restore()
            self._make_change()
            return self._poll()
        except NOT_NOW as error:
            self._wait(error)
            return None

    def tile(self, polled: Polled) -> Flush:
        """See `PartitionIngest.tile`. While a schema registry does not answer, a flush that `apply` drops: the log still has it all."""
        try:
            flush = self.ingest.tile(polled)
        except NOT_NOW as error:
            self._wait(error)
            return nothing(polled)
        self._pause = FIRST_PAUSE
        return flush

    def apply(self, flush: Flush) -> bool:
        """Apply a flush; whether it was. While one of them does not answer, what is in flight is dropped: the log still has it."""
        self._in_flight -= 1
        if not self._restored:
            return False
        try:
            done = self.ingest.apply(flush)
        except NOT_NOW as error:
            self._wait(error)
            return False
        self._refused = 0 if done else self._refused + 1
        self._check_at = self.clock() + CHECK
        if self._refused > _IN_A_ROW:
            self._yield()
        return done

    def _yield(self) -> None:
        """Refused again and again, as when two workers have one partition by mistake: let the other one get on, and say so."""
        beyond = self._refused - _IN_A_ROW
        self.awake_at = self.clock() + min(_LOOK * 2.0 ** min(beyond, 20), FIRST_PAUSE * 5)
        if beyond in (5, 50) or beyond % 500 == 0:
            self.journal.warning(f"{self.name}: {self._refused} flushes in a row were refused: does another worker write this partition?")

    def drop(self) -> None:
        """Instead of `apply`: leave it to a later start."""
        self._in_flight -= 1

    def admit(self) -> None:
        """See `PartitionIngest.admit`. Should a store not answer, the reading is begun anew when it is back, which admits what can be."""
        try:
            self.ingest.admit()
        except NOT_NOW as error:
            self._wait(error)

    def redefine(self, change: Callable[[], object]) -> None:
        """Go on with newer definitions by making this change; if a store does not answer, when it is back. Of several the last counts."""
        self._change = change
        try:
            self._make_change()
        except NOT_NOW as error:
            self._wait(error)

    def _make_change(self) -> None:
        if self._change is not None:
            self._change()
            self._change = None

    def _restore(self) -> None:
        self.ingest.restore()
        self._restored, self.waiting = True, False
        self._check_at = self.clock() + CHECK
        waiting = ",".join(self.ingest.counters.waiting)
        self.journal.info(f"{self.name} from offset {self.ingest.position}", **{"waiting_for_batch": waiting} if waiting else {})

    def _poll(self) -> Polled | None:
        begun = self.clock()
        polled = self.ingest.poll()
        if polled is not None:
            if polled.drained and self.ingest.at_end:
                self._beat()  # now, because where events trickle in without end, no look finds none
            else:
                self.following = False
            self._in_flight += 1
            self.awake_at = begun + self.linger if polled.drained else begun
            return polled
        if self._in_flight:
            return None  # what is on its way may yet be refused, and then the log is not at its end
        self._pause = FIRST_PAUSE
        now = self.clock()
        if not self.ingest.at_end:
            self.awake_at = now + _ON_ITS_WAY  # nothing yet
            return None
        if self.orders.until_end and not self.ingest.admit():
            self.ingest.archive()
            self.ingest.idle()
            self._end()
        if now >= self._check_at and not self._stands():
            return None
        self._beat()
        self.awake_at = now + max(_LOOK, (now - begun) / _LOOKING)
        return None

    def _stands(self) -> bool:
        """Whether the store still has what it was given. False: the reading has begun anew, and says so."""
        self._check_at = self.clock() + CHECK
        if self.ingest.stands():
            return True
        self.following = False
        self.journal.warning(f"{self.name}: the store is not where it was left, and goes on from offset {self.ingest.position}")
        return False

    def _beat(self) -> None:
        """The log ends where it was read to: say so, if that was not said within the last second."""
        if self.clock() >= self._beat_at or not self.following:
            self.ingest.idle()
            self._beat_at = self.clock() + BEAT
        self.following = True

    def _wait(self, error: Exception) -> None:
        self.awake_at = self.clock() + self._pause
        self.journal.warning(f"{self.name}: {error}", again_in_seconds=self._pause)
        self._restored, self.waiting, self.following = False, True, False
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _end(self) -> None:
        """End, with everything archived. Not in a `close`: runtimes close after failures too, when archiving would be a lie."""
        if not self.ended:
            try:
                self.ingest.archive()
            except NOT_NOW as error:
                if not self.orders.stop.is_set():
                    raise
                self.journal.warning(f"{self.name}: what waits for the archive will be read again: {error}")
            self.ingest.close()
            self.ended = True
        raise StopIteration
