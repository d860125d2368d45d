"""The writer of a journal in files."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from tidemill.journals.background import Background, Entry
from tidemill.offline.store import OfflineStore
from tidemill.times import from_micros

FORMAT = 1

#: A store that did not take a file is asked again so often, in seconds.
_AGAIN = 1.0


class _Line(NamedTuple):
    at: int
    text: bytes


class _Attempt(NamedTuple):
    """A file that is to be created: of so many entries, and telling of so many that were lost by then."""

    key: str
    data: bytes
    entries: int
    lost: int


class Journal(Background):
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
        self._store, self._seconds, self._bytes = store, seconds, bytes
        super().__init__(name, most, clock)

    def _begin(self) -> None:
        super()._begin()
        self._writer, self._number = secrets.token_hex(4), 0
        self._told = 0  # drops and failures that a file's first line has said
        self._lines: list[_Line] = []
        self._attempt: _Attempt | None = None
        self._size, self._since = 0, 0.0

    def _held(self) -> int:
        return len(self._lines)

    def _forget(self) -> None:
        self._lines.clear()

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
        made = self._text(at, entry)
        if made is None:
            return
        with self._lock:
            if not self._lines:
                self._since = time.monotonic()
            self._lines.append(_Line(at, made[1]))
        self._size += len(made[1])

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
