"""Processes that are gone when the test is, however it ended; and waiting for them, but not for ever."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.streaming import shop
from tidemill.apps import load
from tidemill.environment import Environment

#: Long enough for a machine that is busy with other things.
PATIENCE = 60.0


def wait_for(condition: Callable[[], Any], watch: Callable[[], object] = lambda: None) -> Any:
    """Look again and again until the condition holds, and return what it gave; `watch` is called between."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        watch()
        time.sleep(0.02)
    raise AssertionError(f"it did not happen within {PATIENCE:.0f} s")


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    return bool(load("streaming.status").birth_of(pid))


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Environment]:
    """The shop, applied, without any event."""
    env = shop.make(tmp_path / "shop")
    yield env
    env.online.close()


class Crew:
    """Supervisors of one test, and every process that they ever had."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._supervisors: list[Any] = []
        self.pids: set[int] = set()
        self.lines: list[str] = []
        self.events: list[Any] = []

    def supervise(self, workers: int = 2, **options: Any) -> Any:
        supervisor = load("streaming.supervisor").Supervisor(self._directory, workers, on_line=self.lines.append, **options)
        self._supervisors.append(supervisor)
        supervisor.start()
        self.watch()
        return supervisor

    def watch(self) -> None:
        """Let every supervisor look after its workers."""
        for supervisor in self._supervisors:
            event = supervisor.poll()
            if event is not None:
                self.events.append(event)
            self.pids.update(supervisor.pids)

    def until(self, condition: Callable[[], Any]) -> Any:
        try:
            return wait_for(condition, self.watch)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.lines])) from None

    def finish(self, supervisor: Any) -> None:
        """Until everything is read."""
        self.until(lambda: any(e.kind in ("finished", "failed") for e in self.events))
        assert [e.reason for e in self.events if e.kind == "failed"] == []
        assert supervisor.stop()

    def end(self) -> None:
        for supervisor in self._supervisors:
            supervisor.stop(timeout=0.0)
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                if is_running(pid):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def crew(env: Environment) -> Iterator[Crew]:
    crew = Crew(env.project.directory)
    yield crew
    crew.end()
