"""Keeps the workers of a service alive: starts them, starts one again that has died, and replaces them one by one when asked.

Workers share nothing but the address and a folder in which each tells its counts; so one that dies takes nothing with it but the
requests that it was answering. They hold the read end of a pipe as their standard input, and end when its other end is gone: none
outlives this process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tidemill.errors import TidemillError
from tidemill.journal import Journal

from .counts import read_counts, remove_carried
from .settings import Settings
from .sockets import address, reserve

#: In seconds: the first and the longest pause before a worker is started again; after so long without a death, the next pause is the first.
FIRST_PAUSE, LONGEST_PAUSE, HEALTHY = 0.1, 10.0, 30.0
#: In seconds: what workers get beyond their grace, before they are killed; and for how long one may take to begin to listen.
_MARGIN, _BEGIN = 5.0, 60.0
_TICK = 0.05


@dataclass
class _Worker:
    """One worker process. `replaces`: another of the same index, which is told to end once this one listens."""

    index: int
    life: int
    process: subprocess.Popen[bytes]
    began: float
    ready: bool = False
    ending: bool = False
    replaces: _Worker | None = None


@dataclass
class _Place:
    """What is known of an index over all its workers. `again`: when to start the next one."""

    pause: float = FIRST_PAUSE
    again: float | None = None
    ended: list[str] = field(default_factory=list)


class Supervisor:
    """The workers of one service. Used by one thread. The address is taken when this is made; see `url`."""

    def __init__(self, settings: Settings, journal: Journal, clock: Callable[[], float] = time.monotonic) -> None:
        self._socket = reserve(settings.host, settings.port)
        self.url = address(self._socket)
        self.settings = msgspec.structs.replace(settings, port=self._socket.getsockname()[1])
        self.journal = journal
        self._clock = clock
        self._folder = tempfile.TemporaryDirectory(prefix="tidemill-serve-")
        self._workers: list[_Worker] = []
        self._places = [_Place() for _ in range(settings.workers)]
        self._lives = 0
        self._to_replace: list[_Worker] = []

    @property
    def pids(self) -> list[int]:
        """Of the workers that run."""
        return [w.process.pid for w in self._workers]

    @property
    def ready(self) -> bool:
        """Whether every worker listens."""
        return {w.index for w in self._workers if w.ready} == set(range(self.settings.workers))

    def start(self) -> None:
        """Start all workers, and wait until they listen. Raises `TidemillError`, with the reason, where one ends before that."""
        for index in range(self.settings.workers):
            self._start(index)
        end = self._clock() + _BEGIN
        while not self.ready:
            self._look()
            for worker in self._workers:
                if worker.process.poll() is not None:
                    raise TidemillError(self._reason(worker))
            if self._clock() > end:
                raise TidemillError(f"a worker did not begin to listen within {_BEGIN:.0f} s; the machine may be too busy")
            time.sleep(_TICK)

    def poll(self) -> None:
        """Look after the workers. To be called some times a second."""
        self._look()
        for worker in [w for w in self._workers if w.process.poll() is not None]:
            self._ended(worker)
        now = self._clock()
        for index, place in enumerate(self._places):
            if place.again is not None and now >= place.again:
                place.again = None
                self._start(index)
        self._replace_next()

    def replace(self) -> None:
        """Replace every worker by a new one, one after the other, without a moment in which nobody listens."""
        self.journal.info("replacing all workers")
        self._to_replace = list(self._workers)

    def stop(self) -> bool:
        """Let requests end, then end; by force after the grace. Whether all ended by themselves, with 0."""
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        end = time.monotonic() + self.settings.grace + _MARGIN
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))
        clean = all(worker.process.poll() == 0 for worker in self._workers)
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()
            _close(worker.process)
        self._workers = []
        return clean

    def close(self) -> None:
        """Stop, and give back the address and the folder."""
        self.stop()
        self._socket.close()
        self._folder.cleanup()

    # ---- one worker -------------------------------------------------------------------------------------------------------------

    def _start(self, index: int, replaces: _Worker | None = None) -> None:
        place = self._places[index]
        self._lives += 1
        # -P: what lies in the current directory must not stand in for what a worker imports.
        command = [sys.executable, "-P", "-m", f"{__package__}.worker", msgspec.json.encode(self.settings).decode()]
        command += ["--index", str(index), "--life", str(self._lives), "--folder", self._folder.name, "--carry", ",".join(place.ended)]
        # Several Polars threads in each of several workers only disturb each other.
        environment = {"POLARS_MAX_THREADS": "1", **os.environ}
        # In a session of its own: Ctrl-C is for the supervisor, which stops its workers in order.
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
        place.ended = []
        self._workers.append(_Worker(index, self._lives, process, self._clock(), replaces=replaces))

    def _look(self) -> None:
        """Which workers listen by now."""
        waiting = [w for w in self._workers if not w.ready]
        if not waiting:
            return
        listening = {counts.pid for counts in read_counts(Path(self._folder.name)) if counts.ready}
        for worker in waiting:
            if worker.process.pid in listening:
                worker.ready = True
                remove_carried(Path(self._folder.name))
                if worker.replaces is not None:
                    self._end(worker.replaces)

    def _end(self, worker: _Worker) -> None:
        worker.ending = True
        if worker.process.poll() is None:
            worker.process.terminate()

    def _ended(self, worker: _Worker) -> None:
        """A worker is no more: it was told to, or it is to be started again."""
        self._workers.remove(worker)
        _close(worker.process)
        place, now = self._places[worker.index], self._clock()
        place.ended.append(f"worker-{worker.life}.json")
        if worker.ending or any(w.index == worker.index for w in self._workers):
            return
        if now - worker.began >= HEALTHY:
            place.pause = FIRST_PAUSE
        place.again = now + place.pause
        self.journal.warning(f"{self._reason(worker)}; starting another", in_seconds=round(place.pause, 1))
        place.pause = min(2 * place.pause, LONGEST_PAUSE)

    def _replace_next(self) -> None:
        """Go on with `replace`, unless one replacement is under way."""
        if any(w.replaces is not None and (not w.ready or w.replaces in self._workers) for w in self._workers):
            return
        while self._to_replace:
            worker = self._to_replace.pop(0)
            if worker in self._workers:
                self._start(worker.index, replaces=worker)
                return

    def _reason(self, worker: _Worker) -> str:
        code, who = worker.process.returncode, f"worker {worker.index} (pid {worker.process.pid})"
        told = next((c.failed for c in read_counts(Path(self._folder.name)) if c.pid == worker.process.pid), "")
        if told:
            return told
        if code < 0:
            return f"{who} was killed by {_signal_name(-code)}"
        return f"{who} ended with exit code {code}"


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
