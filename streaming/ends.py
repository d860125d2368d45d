"""Where the logs end, for the lag. Asked in a thread of its own: an end may have to be counted out of files, or fetched from a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from tidemill.errors import TidemillError
from tidemill.logs.base import Log

Part = tuple[str, int]

#: In seconds between two looks at the same log, and how large a share of the time the looks may take.
_EVERY = 2.0
_SHARE = 0.05


class LogEnds:
    """The ends of some partitions as they were a moment ago. `wanted` says of which; `open_log` opens a log for this thread alone."""

    def __init__(self, wanted: Callable[[], Iterable[Part]], open_log: Callable[[str], Log]) -> None:
        self._wanted, self._open_log = wanted, open_log
        self._ends: dict[Part, int] = {}
        self._thread = threading.Thread(target=self._look, name="log-ends", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def of(self, part: Part) -> int | None:
        """The end of this partition, None while it is not known."""
        return self._ends.get(part)

    def _look(self) -> None:
        logs: dict[str, Log] = {}
        while True:
            begun = time.monotonic()
            for part in list(self._wanted()):
                source, partition = part
                try:
                    if source not in logs:
                        logs[source] = self._open_log(source)
                    self._ends[part] = logs[source].end(partition)
                except TidemillError:
                    self._ends.pop(part, None)  # whoever reads this log meets the same error, and says so
            time.sleep(max(_EVERY, (time.monotonic() - begun) / _SHARE))
