"""SIGTERM, for commands that run until they are stopped. Ctrl-C is a KeyboardInterrupt, and ends them with 130."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """Instead of ending the process, SIGTERM makes what is yielded true. For the main thread."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
