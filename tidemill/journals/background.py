"""What takes entries from any thread at once, and has a thread of its own write them: a bounded queue between the two.

Where they are written is the subclass's: files of a store (`Journal`), or a topic (`TopicJournal`).
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.journals.values import plain

#: An entry, or what makes one when the thread comes to it, so that it costs the caller nothing.
Entry = Mapping[str, Any] | Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the entries. `dropped`: the queue was full, or nobody took them; `failed`: what could not be made a line.

    `files`: so many were written, of a journal in files.
    """

    written: int = 0
    waiting: int = 0
    dropped: int = 0
    failed: int = 0
    files: int = 0


class Background(ABC):
    """See the module's text. At most `most` entries (by their `weight`) wait; what comes then is dropped and counted.

    `clock` gives wall-clock UTC microseconds.
    """

    def __init__(self, name: str, most: int, clock: Callable[[], int]) -> None:
        self.name = name
        self._most, self._clock = most, clock
        self._begin()
        _ALIVE.add(self)

    def _begin(self) -> None:
        """At first; and again in a fork: the thread stayed in the parent, which writes what waits, and may have held the lock."""
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._queue: deque[tuple[int, Entry, int]] = deque()
        self._waiting = self._dropped = self._failed = self._written = self._files = 0
        self._busy = 0  # taken from the queue, and not held yet
        self._thread: threading.Thread | None = None
        self._closing = self._hurried = False

    def put(self, entry: Entry, weight: int = 1) -> bool:
        """Note an entry; False where it was dropped. An entry that is a function is called later, by the writer's thread."""
        at = self._clock()
        with self._lock:
            if self._closing or self._waiting + weight > self._most:
                self._dropped += 1
                return False
            self._waiting += weight
            self._queue.append((at, entry, weight))
            if self._thread is None:
                self._start()
            self._news.notify()
        return True

    @property
    def counts(self) -> Counts:
        """What became of the entries so far."""
        with self._lock:
            return Counts(self._written, self._left(), self._dropped, self._failed, self._files)

    def flush(self, timeout: float = 10.0) -> bool:
        """Write what waits now; whether it is written. Waits for whoever takes it."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while self._left() and self._thread is not None and time.monotonic() < deadline:
                self._hurried = True
                self._news.notify_all()
                self._news.wait(0.02)
            return not self._left()

    def close(self, timeout: float = 10.0) -> Counts:
        """Write what waits, and end the thread. What is not taken within `timeout` seconds is lost, and counts as dropped."""
        with self._lock:
            self._closing = True
            self._news.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
            atexit.unregister(self.close)
        with self._lock:
            self._dropped += self._left()
            self._queue.clear()
            self._forget()
            self._thread = None
        return self.counts

    def _left(self) -> int:
        """How many entries are neither written nor given up."""
        return len(self._queue) + self._busy + self._held()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"journal-{self.name}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _text(self, at: int, entry: Entry) -> tuple[Mapping[str, Any], bytes] | None:
        """The entry, and the line that it is; None where it cannot be made one, which is counted."""
        try:
            made = entry() if callable(entry) else entry
            return made, json.dumps({"logged": at, **plain(made)}, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        except Exception:  # noqa: BLE001 - one entry that cannot be written must not end the journal
            with self._lock:
                self._failed += 1
            return None

    @abstractmethod
    def _held(self) -> int:
        """How many entries were taken from the queue and made lines, and are not written yet."""

    @abstractmethod
    def _forget(self) -> None:
        """Let go of them: the time to write them is over."""

    @abstractmethod
    def _run(self) -> None:
        """The thread: until it is closing, and nothing is left."""


_ALIVE: weakref.WeakSet[Background] = weakref.WeakSet()


def _forked() -> None:
    for journal in list(_ALIVE):
        journal._begin()


os.register_at_fork(after_in_child=_forked)
