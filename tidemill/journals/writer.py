"""The writer of a journal: a bounded queue and a thread, so that whoever has something to note never waits."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tidemill.journals.values import plain
from tidemill.offline.store import OfflineStore
from tidemill.times import from_micros

FORMAT = 1
#: An entry, or what makes one when the thread comes to it, so that it costs the caller nothing.
Entry = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

#: A store that did not take a file is asked again so often, in seconds.
_AGAIN = 1.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the entries: in files, waiting, dropped because the queue was full, and failed: what could not be made a line."""

    written: int = 0
    waiting: int = 0
    dropped: int = 0
    failed: int = 0
    files: int = 0


class _Line(NamedTuple):
    at: int
    text: bytes


class _Attempt(NamedTuple):
    """A file that is to be created: of so many entries, and telling of so many that were lost by then."""

    key: str
    data: bytes
    entries: int
    lost: int


class Journal:
    """Writes one journal. `put` from any thread; it returns at once, whatever the store does.

    A file is written when its first entry is `seconds` old, or its entries have `bytes`; a process that is killed loses what is younger.
    At most `most` entries (by their `weight`) wait; what comes then is dropped and counted. While the store does not answer, the very
    file that it did not take is tried again: it may have taken it, and only its answer was lost. `clock` gives wall-clock UTC
    microseconds, of which the files are named.
    """

    def __init__(
        self,
        store: OfflineStore,
        name: str,
        *,
        most: int = 10_000,
        seconds: float = 10.0,
        bytes: int = 8 << 20,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.name = name
        self._store, self._most, self._seconds, self._bytes, self._clock = store, most, seconds, bytes, clock
        self._begin()
        _ALIVE.add(self)

    def _begin(self) -> None:
        """At first; and again in a fork: the thread stayed in the parent, which writes what waits, and may have held the lock."""
        self._writer, self._number = secrets.token_hex(4), 0
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._queue: deque[tuple[int, Entry, int]] = deque()
        self._waiting = self._dropped = self._failed = self._written = self._files = 0
        self._told = 0  # drops and failures that a file's first line has said
        self._lines: list[_Line] = []
        self._attempt: _Attempt | None = None
        self._size, self._since = 0, 0.0
        self._busy = 0  # taken from the queue, and not yet lines
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
            return Counts(self._written, len(self._queue) + self._busy + len(self._lines), self._dropped, self._failed, self._files)

    def flush(self, timeout: float = 10.0) -> bool:
        """Write what waits now; whether it is written. Waits for the store."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while (self._queue or self._busy or self._lines) and self._thread is not None and time.monotonic() < deadline:
                self._hurried = True
                self._news.notify_all()
                self._news.wait(0.02)
            return not (self._queue or self._busy or self._lines)

    def close(self, timeout: float = 10.0) -> Counts:
        """Write what waits, and end the thread. What the store does not take within `timeout` seconds is lost, and counts as dropped."""
        with self._lock:
            self._closing = True
            self._news.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
            atexit.unregister(self.close)
        with self._lock:
            self._dropped += len(self._queue) + self._busy + len(self._lines)
            self._queue.clear()
            self._lines.clear()
            self._thread = None
        return self.counts

    # ---- the thread -------------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"journal-{self.name}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue and self._attempt is None and not self._due():
                    if self._closing and not self._lines:
                        return
                    self._news.wait(self._pause())
                taken = self._queue.popleft() if self._queue and self._size < self._bytes and self._attempt is None else None
                if taken is not None:
                    self._waiting -= taken[2]
                    self._busy = 1
            if taken is not None:
                self._gather(taken[0], taken[1])
                self._busy = 0
            if (self._attempt is not None or self._due()) and not self._write():
                with self._lock:
                    if self._closing:
                        return  # it was tried a last time
                    self._news.wait(_AGAIN)

    def _pause(self) -> float | None:
        return max(self._since + self._seconds - time.monotonic(), 0.0) if self._lines else None

    def _due(self) -> bool:
        if not self._lines:
            self._hurried = False
            return False
        late = time.monotonic() - self._since >= self._seconds
        return late or self._size >= self._bytes or ((self._closing or self._hurried) and not self._queue)

    def _gather(self, at: int, entry: Entry) -> None:
        try:
            made = entry() if callable(entry) else entry
            text = json.dumps({"logged": at, **plain(made)}, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        except Exception:  # noqa: BLE001 - one entry that cannot be written must not end the journal
            with self._lock:
                self._failed += 1
            return
        with self._lock:
            if not self._lines:
                self._since = time.monotonic()
            self._lines.append(_Line(at, text))
        self._size += len(text)

    def _write(self) -> bool:
        """What was gathered as one file; False where the store did not take it now."""
        attempt = self._attempt = self._attempt or self._file()
        try:
            self._store.create(attempt.key, attempt.data)  # False: an earlier attempt did write it
        except Exception:  # noqa: BLE001 - whatever a store's library raises: the thread must go on, and this is tried again
            return False
        with self._lock:
            self._number += 1
            self._written += attempt.entries
            self._files += 1
            self._told = attempt.lost
            self._lines, self._attempt = [], None
            self._size = 0
            self._news.notify_all()
        return True

    def _file(self) -> _Attempt:
        lines, lost = self._lines, self._dropped + self._failed
        first, last = min(line.at for line in lines), max(line.at for line in lines)
        key = f"journals/{self.name}/{from_micros(first):%Y-%m-%d}/{first:016d}-{last:016d}-{self._writer}-{self._number:06d}.jsonl"
        head = {"journal": self.name, "format": FORMAT, "entries": len(lines), "lost": lost - self._told}
        return _Attempt(key, json.dumps(head).encode() + b"\n" + b"".join(line.text for line in lines), len(lines), lost)


_ALIVE: weakref.WeakSet[Journal] = weakref.WeakSet()


def _forked() -> None:
    for journal in list(_ALIVE):
        journal._begin()


os.register_at_fork(after_in_child=_forked)
