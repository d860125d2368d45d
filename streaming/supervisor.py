"""Keeps the worker processes of a project alive: starts them together, and together again when one dies, with back-off, saying why.

Bytewax processes form a cluster, in which nobody outlives anybody; so there is no restarting just one. Nothing is lost by it: every
worker goes on from the positions in the online store.

The workers hold the read end of a pipe as their standard input, and end when its other end is gone; so none outlives the supervisor,
even if that is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from tidemill.journal import Journal, LogFormat, is_line

from . import status
from .shares import WHOLE, Share
from .upkeep import RESTART

#: In seconds: the first and the longest pause before a restart; after so long without a death the next pause is the first again.
FIRST_PAUSE, LONGEST_PAUSE, HEALTHY = 0.2, 30.0, 60.0
#: In seconds: what the other workers are given to end by themselves, when one has died.
_GRACE = 1.5
_TICK = 0.1
#: With `once`, so many failures in a row, for a reason of their own, are enough.
_TRIES = 2


@dataclass(frozen=True, slots=True)
class Event:
    """What a supervisor saw or did. `seconds`: until the workers are started again.

    `started`; `died`: a worker did, and all will be started again; `finished`: every log is read to its end (with `once`);
    `failed`: it is no use to start them again (with `once`).
    """

    kind: Literal["started", "died", "finished", "failed"]
    reason: str = ""
    seconds: float = 0.0


@dataclass
class Supervisor:
    """The workers of the project in `directory`. `once`: until every log is read to its end; else until `stop`. Used by one thread.

    `env_overrides` go into the workers' environment, `archive_seconds` and the log's options to their command line. `on_line` gets
    every line that a worker, or the supervisor, logs: from other threads too, and without a newline. `longest_pause`: in seconds, how
    long to wait at most before workers that keep dying are started again. `share`: this host's of all partitions.
    """

    directory: Path
    workers: int
    once: bool = False
    log_level: str = "info"
    log_format: LogFormat = "text"
    env_overrides: Mapping[str, str] = field(default_factory=dict)
    archive_seconds: float = 10.0
    longest_pause: float = LONGEST_PAUSE
    on_line: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: T201  (the log of a command)
    share: Share = WHOLE
    clock: Callable[[], float] = time.monotonic
    on_end: Callable[[Sequence[status.WorkerStatus]], object] = lambda _: None
    restarts: dict[str, int] = field(default_factory=lambda: {"died": 0, "asked": 0}, init=False)

    def __post_init__(self) -> None:
        self._children: list[_Child] = []
        self._over = False
        self._started_at = 0.0
        self._start_at: float | None = None
        self._pause = FIRST_PAUSE
        self._failures = 0
        self.journal = Journal("supervisor", self.on_line, self.log_level, self.log_format)

    @property
    def pids(self) -> list[int]:
        """The workers' process ids, by index; empty while none run."""
        return [child.process.pid for child in self._children]

    def statuses(self) -> list[status.WorkerStatus]:
        """What these workers last said of themselves."""
        mine = set(self.pids)
        return [s for s in status.read_status(self.directory) if s.pid in mine]

    def start(self) -> None:
        """Start all workers."""
        self._end_all(0.0)
        ports = _free_ports(self.workers) if self.workers > 1 else []
        addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
        self._start_at, self._over, self._started_at = None, False, self.clock()
        for index in range(self.workers):
            self._children.append(_Child(self._command(index, addresses), self._environment(), self._passing_on(index)))
        share = {} if self.share == WHOLE else {"share": str(self.share)}
        self.journal.info("started", workers=self.workers, pids=",".join(map(str, self.pids)), **share)

    def poll(self) -> Event | None:
        """Look after the workers; what happened, if anything. To be called a few times a second; takes a moment when a worker has died."""
        if self._over:
            return None
        if self._start_at is not None:
            if self.clock() < self._start_at:
                return None
            self.start()
            return Event("started")
        codes = [child.process.poll() for child in self._children]
        if all(code is None or (self.once and code == 0) for code in codes):
            if None in codes or not codes:
                return None
            self._over = True
            self._settle()
            return Event("finished")
        return self._died()

    def stop(self, timeout: float = 10.0) -> bool:
        """Stop all workers, by force after `timeout` seconds; whether all ended cleanly."""
        self._over = True
        clean = self._end_all(timeout)
        self._start_at = None
        return clean

    def run(self, stop: Callable[[], bool], tick: Callable[[], object] = lambda: None) -> int:
        """Supervise until `stop()`, or until there is nothing left to do; `tick` is called ten times a second. Returns an exit code."""
        try:
            self.start()
            while not stop():
                event = self.poll()
                if event is not None and event.kind in ("finished", "failed"):
                    return 0 if event.kind == "finished" else 1
                tick()
                time.sleep(_TICK)
        finally:
            self.stop()
        return 0

    # ---- when one has died ------------------------------------------------------------------------------------------------------

    def _died(self) -> Event:
        """End the others, and say when all start again, and why."""
        healthy = self.clock() - self._started_at >= HEALTHY
        dead = {i for i, child in enumerate(self._children) if child.process.poll() is not None}
        children = self._children
        self._end_all(_GRACE)
        # Who was still alive when the first was found dead died of that, or by our hand.
        cause = min(dead, key=lambda i: _precedence(children[i].process.returncode))
        code, reason = children[cause].process.returncode, self._reason(cause, children[cause])
        if healthy:
            self._pause, self._failures = FIRST_PAUSE, 0
        self._failures += code == 1
        if self.once and self._failures >= _TRIES:
            self._over = True
            self.journal.error(reason)
            return Event("failed", reason)
        self.restarts["asked" if code == RESTART else "died"] += 1
        pause = 0.0 if code == RESTART else self._pause
        if code != RESTART:
            self._pause = min(2 * self._pause, self.longest_pause)
        self._start_at = self.clock() + pause
        if code == RESTART:
            self.journal.info(f"starting all workers again: {reason}")
        else:
            self.journal.warning(f"{reason}; starting all workers again", in_seconds=round(pause, 1))
        return Event("died", reason, pause)

    def _reason(self, index: int, child: _Child) -> str:
        code, pid = child.process.returncode, child.process.pid
        who = f"worker {index} (pid {pid})"
        said = next((s.reason for s in status.read_status(self.directory) if s.pid == pid), "")
        if code == RESTART:
            return said or f"{who} asked for it"
        if code < 0:
            return f"{who} was killed by {_signal_name(-code)}"
        if code == 0:
            return f"{who} was told to stop, but not by this supervisor"
        return f"{who} ended with exit code {code}: {said or child.last_line or 'it left no word'}"

    def _end_all(self, timeout: float) -> bool:
        """Signal every worker, wait, kill those that are left; whether all ended with 0."""
        if timeout:
            for child in self._children:
                child.terminate()
            deadline = time.monotonic() + timeout
            for child in self._children:
                child.wait(deadline - time.monotonic())
        for child in self._children:
            child.kill()
        clean = all(child.process.returncode == 0 for child in self._children)
        self._settle()
        if self._children:
            self.on_end(self.statuses())
        self._children = []
        return clean

    def _settle(self) -> None:
        """Wait until the last lines of ended workers have arrived."""
        for child in self._children:
            child.close()

    # ---- starting one -----------------------------------------------------------------------------------------------------------

    def _command(self, index: int, addresses: str) -> list[str]:
        # -P: what lies in the current directory must not stand in for what a worker imports.
        command = [sys.executable, "-P", "-m", f"{__package__}.worker", "--leash"]
        command += ["--project", str(self.directory.absolute()), "--index", str(index), "--addresses", addresses]
        command += ["--share", str(self.share)]
        command += ["--log-level", self.log_level, "--log-format", self.log_format, "--archive-seconds", str(self.archive_seconds)]
        return [*command, "--until-end"] if self.once else command

    def _passing_on(self, index: int) -> Callable[[str], object]:
        """What gets a worker's lines. One that comes before its log is open, from Python say, is no JSON yet: it is made a line of it."""
        if self.log_format == "text":
            return self.on_line
        raw = Journal(f"worker {index}", self.on_line, self.log_level, self.log_format)
        return lambda line: self.on_line(line) if is_line(line) else raw.error(line)

    def _environment(self) -> dict[str, str]:
        # Several Polars threads in each of several workers only disturb each other.
        return {"POLARS_MAX_THREADS": "1", **os.environ, **self.env_overrides}


class _Child:
    """One worker process, and the thread that reads its log."""

    def __init__(self, command: list[str], environment: Mapping[str, str], on_line: Callable[[str], object]) -> None:
        # In a session of its own: Ctrl-C is for the supervisor, which stops its workers in order.
        self.process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        self.last_line = ""
        self._on_line = on_line
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), name="worker-log", daemon=True)
        self._reader.start()

    def terminate(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(seconds, 0.0))

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """The process has ended; take its last lines, and give back the pipes."""
        self._reader.join(timeout=1.0)
        for pipe in (self.process.stdin, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()

    def _read(self, lines: IO[str]) -> None:
        with contextlib.suppress(ValueError):  # closed, because somebody else holds the pipe's other end open
            for line in lines:
                self.last_line = line.rstrip("\n")
                self._on_line(self.last_line)


def _precedence(code: int) -> int:
    """Of the workers that are dead, the one to name: killed, failed, asked for a restart; those that only lost the others come last."""
    return {1: 1, RESTART: 2, 0: 3}.get(code, 0 if code < 0 else 4)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody uses just now. Should one be taken before a worker binds it, all start again."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
