"""A few threads for reads that block, with a short way there and back: a queue and a future, and nothing between them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar, cast

T = TypeVar("T")
_Task = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[Any], Any], Any]


class Threads:
    """`count` threads, begun at once. They end with `close`, or with the process: who waits for an answer then gets none.

    (An executor of `concurrent.futures` does the same with a condition, two locks and a future more: measured, twice the time of a hop.)
    """

    def __init__(self, count: int) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"read-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def run(self, work: Callable[[T], Any], given: T) -> asyncio.Future[Any]:
        """What `work` makes of what is given, to be awaited. For the event loop's thread."""
        if self._closed:
            raise RuntimeError("the threads have ended: nobody would answer")
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._tasks.put((loop, future, work, given))
        return future

    def close(self) -> None:
        """Let every thread end once it is done with what it does."""
        self._closed = True
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            loop, future, work, given = task
            try:
                found, error = work(given), cast("BaseException | None", None)
            except BaseException as raised:  # noqa: BLE001 - whoever awaits it gets it, and the thread goes on
                found, error = None, raised
                # No future takes a StopIteration; and what is no Exception would end the caller's loop.
                if isinstance(raised, StopIteration) or not isinstance(raised, Exception):
                    error = RuntimeError(f"{type(raised).__name__}: {raised}")
            try:
                loop.call_soon_threadsafe(_settle, future, found, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            del task, future, work, given, found, error  # or the last request lives on until the next


def _settle(future: asyncio.Future[Any], found: Any, error: BaseException | None) -> None:
    if future.done():  # cancelled: the caller is gone
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(found)
