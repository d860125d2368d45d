"""The writer of a journal in a topic: the same entries as in files, a message each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tidemill.journals.background import Background, Entry

#: A longer entry is not sent, and counts as failed; nor would a reader take it.
MAX_ENTRY = 8 << 20

#: In seconds: between two looks at what was delivered; before a topic that is not there is looked for again; between two warnings.
_POLL, _AGAIN, _WARN = 0.05, 1.0, 60.0
_LOGGER = logging.getLogger("tidemill.journals")


class Producer(Protocol):
    """What delivers messages. Used by one thread."""

    def send(self, key: bytes, value: bytes, done: Callable[[str | None], object]) -> bool:
        """Take a message on; False where there is no room now. Raises `LogError` where it will never deliver anything again.

        `done` is called once, later and by any thread: with None, or with why the message was not delivered.
        """
        ...

    def poll(self) -> None:
        """See what was delivered. Does not wait."""
        ...

    def close(self) -> None:
        """End, at once: what is under way is given up."""
        ...


class TopicJournal(Background):
    """Writes one journal. `put` from any thread; it returns at once, whatever the brokers do.

    `connect` makes the producer, in the thread, and raises `LogError` while there is no topic; then entries wait, and so they do while no
    broker answers: at most `most` of them (by their `weight`), and `bytes` on their way. `key` names an entry, so that keys spread over
    partitions. What was not acknowledged is not written: a process that is killed loses it, or does not.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Producer],
        key: Callable[[Mapping[str, Any]], str],
        *,
        most: int = 10_000,
        bytes: int = 8 << 20,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._connect, self._key, self._bytes = connect, key, bytes
        self._producer: Producer | None = None
        super().__init__(name, most, clock)

    def _begin(self) -> None:
        super()._begin()
        if self._producer is not None:
            _STAYED.append(self._producer)
            self._producer = None
        self._sent = self._size = 0  # entries, and their bytes, that are on their way
        self._line: tuple[bytes, bytes] | None = None  # what the producer had no room for
        self._over = False
        self._why = "the queue was full"
        self._warned, self._warn_at = 0, 0.0

    def _held(self) -> int:
        return self._sent + (self._line is not None)

    def _forget(self) -> None:
        self._over = True
        self._sent, self._line = 0, None
        self._news.notify_all()

    def _run(self) -> None:
        try:
            while self._step():
                self._warn()
        finally:
            if self._producer is not None:
                self._producer.close()
                self._producer = None
            self._warn(last=True)

    def _step(self) -> bool:
        """One entry sent, or a look at what was delivered; False when it is over."""
        if self._producer is None and not self._connected():
            return not self._closing and not self._over
        taken = None
        with self._lock:
            idle = not self._queue and self._line is None
            if self._over or (self._closing and idle and not self._sent):
                return False
            if idle or self._size >= self._bytes:
                self._news.wait(_POLL if self._sent else _AGAIN)  # a client has things to say even so
            if self._queue and self._line is None and self._size < self._bytes:
                taken = self._queue.popleft()
                self._waiting -= taken[2]
                self._busy = 1
        if taken is not None:
            line = self._made(taken[0], taken[1])
            with self._lock:
                self._busy = 0
                self._line = None if self._over else line
        assert self._producer is not None
        waiting = self._line  # whoever closes may take it away meanwhile
        if waiting is not None:
            self._send(self._producer, *waiting)
        if self._producer is not None:
            self._producer.poll()
        return True

    def _made(self, at: int, entry: Entry) -> tuple[bytes, bytes] | None:
        """The entry's key and value; None where it is not to be sent, which is counted."""
        found = self._text(at, entry)
        if found is None:
            self._why = "an entry could not be made"
            return None
        made, text = found
        try:
            key = self._key(made).encode("utf-8", "replace")
        except Exception as error:  # noqa: BLE001 - an entry without a key must not end the journal
            why = f"an entry has no key: {type(error).__name__}: {error}"
        else:
            if len(text) <= MAX_ENTRY:
                return key, text.rstrip(b"\n")
            why = f"an entry has {len(text):,} bytes, and {MAX_ENTRY:,} are the most"
        with self._lock:
            self._failed, self._why = self._failed + 1, why
        return None

    def _connected(self) -> bool:
        try:
            self._producer = self._connect()
        except Exception as error:  # noqa: BLE001 - whatever a client's library raises: the thread must go on, and this is tried again
            with self._lock:
                self._why = str(error)
                if not self._closing:
                    self._news.wait(_AGAIN)
            return False
        return True

    def _send(self, producer: Producer, key: bytes, value: bytes) -> None:
        with self._lock:
            if self._over:
                return
            self._line = None
            self._sent, self._size = self._sent + 1, self._size + len(value)
        size, said = len(value), False

        def done(why: str | None) -> None:
            nonlocal said
            with self._lock:
                if self._over or said:
                    return
                said = True
                self._sent, self._size = self._sent - 1, self._size - size
                if why is None:
                    self._written += 1
                else:
                    self._dropped, self._why = self._dropped + 1, why
                self._news.notify_all()

        try:
            room = producer.send(key, value, done)
        except Exception as error:  # noqa: BLE001 - as above; what is on its way is given up with it
            producer.close()
            done(str(error))
            self._producer = None
            return
        if not room:
            with self._lock:
                self._sent, self._size, said = self._sent - 1, self._size - size, True
                self._line = None if self._over else (key, value)
                self._news.wait(_POLL)

    def _warn(self, *, last: bool = False) -> None:
        """Say that entries were dropped: at once, and then once a minute at most."""
        gone = self._dropped + self._failed
        if gone > self._warned and (last or time.monotonic() >= self._warn_at):
            _LOGGER.warning("%d entries of the log of %s were lost: %s", gone - self._warned, self.name, self._why)
            self._warned, self._warn_at = gone, time.monotonic() + _WARN


#: Producers of a process that this one is a fork of. Their threads stayed there, so that who ends one here waits for ever.
_STAYED: list[Producer] = []
