"""Bad weather for a replay of the flights: faults at random instants of a printed seed, for as long as the logs grow.

A drill is a replay (real workers, Kafka, Redis, batch), a weather, and one question in the end: does every value that was served,
before, between and after the faults, equal brute force over the raw log up to the positions that the answer named?
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tidemill.apps.examples.flights.audit import differences
from tidemill.apps.examples.flights.replay import Outcome, Plan, Replay, Servers
from tidemill.environment import Environment

#: What one fault does; it returns how many processes, servers or connections it hit.
Fault = Callable[["Weather"], int]


class Weather:
    """A replay's troubles: `faults`, one of them at random, with pauses between `pauses[0]` and `pauses[1]` seconds.

    `calm` puts everything back in the end. `struck` counts, by the fault's name.
    """

    def __init__(self, seed: int, faults: Sequence[Fault], pauses: tuple[float, float], calm: Callable[[], object] = lambda: None) -> None:
        self.dice = random.Random(seed)
        self.struck: dict[str, int] = {}
        self.replay: Any = None
        self.over = threading.Event()
        self._faults, self._pauses, self._calm = faults, pauses, calm
        self._error = ""
        self._next: list[Fault] = []

    @contextlib.contextmanager
    def __call__(self, replay: Replay) -> Iterator[None]:
        self.replay = replay
        thread = threading.Thread(target=self._run, name="weather", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join()
            self._calm()
        assert not self._error, self._error

    def pids(self) -> list[int]:
        """The workers that run now."""
        return [pid for pid in self.replay.supervisor.pids if _is_mine(pid)]

    def _run(self) -> None:
        try:
            while not self.over.wait(self.dice.uniform(*self._pauses)):
                if not self._next:  # each in turn, in an order of its own
                    self._next = self.dice.sample(self._faults, len(self._faults))
                fault = self._next.pop()
                name = getattr(fault, "__name__", type(fault).__name__)
                self.struck[name] = self.struck.get(name, 0) + fault(self)
        except BaseException:  # noqa: BLE001 - raised where the test sees it
            self._error = traceback.format_exc()


def one_worker_killed(weather: Weather) -> int:
    """At whatever it is doing: reading, flushing, compacting, archiving, starting."""
    pids = weather.pids()
    return _signal(weather.dice.sample(pids, min(1, len(pids))), signal.SIGKILL)


def all_workers_killed(weather: Weather) -> int:
    return _signal(weather.pids(), signal.SIGKILL)


def killed_once_they_stream(weather: Weather) -> int:
    """Wait until the workers have applied something since they were last started, then, within half a second, kill one or all."""
    until_it_moves(weather)
    if weather.over.wait(weather.dice.uniform(0.0, 0.5)):
        return 0
    return one_worker_killed(weather) if weather.dice.random() < 0.7 else all_workers_killed(weather)


def until_it_moves(weather: Weather) -> None:
    """Wait until the stream has applied something more."""
    start = weather.replay.progress
    while weather.replay.progress == start and not weather.over.wait(0.01):
        pass


class BatchKilled:
    """`tidemill batch`, again and again, killed at a random instant of what it takes; then once to its end."""

    def __init__(self, longest: float = 4.0) -> None:
        self.longest = longest
        self.whole = 0
        self._runs = 0

    def __call__(self, weather: Weather) -> int:
        self._runs += 1
        process = _batch(weather.replay.project)
        patience = 120.0 if self._runs % 4 == 0 else weather.dice.uniform(0.8, self.longest)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return 1
        self.whole += process.returncode == 0
        return 0


def _batch(project: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-c", "from tidemill.cli import main; main()", "batch"]
    with (project / "batch.log").open("ab") as log:
        return subprocess.Popen(command, cwd=project, stdout=log, stderr=log)


def drill(folder: Path, plan: Plan, servers: Servers, weather: Weather, **supervision: Any) -> Outcome:
    """Replay in that weather, and hold every value that was served against the oracle."""
    supervision = {"longest_pause": 0.4, **supervision}
    replay = Replay(folder, plan, servers, **supervision)
    outcome = replay.run(trouble=weather)
    compared, wrong = differences(outcome.answers, Environment.load(outcome.project).definitions, outcome.logs)
    sys.stdout.write(  # shown by `pytest -rP`, and where a drill fails
        f"seed {plan.seed}: {outcome.events} events, {outcome.restarts} restarts, {outcome.folds} folds, "
        f"{len(outcome.answers)} answers, {outcome.unready} unready, {outcome.refused} refused; struck {weather.struck}; "
        f"{compared} values compared, {len(wrong)} wrong; {outcome.seconds:.1f} s\n"
    )
    assert [str(w) for w in wrong[:10]] == []
    assert len(outcome.answers) >= plan.instants, replay.lines[-10:]
    assert compared == len(outcome.answers) * 52
    return outcome


def _signal(pids: Sequence[int], number: int) -> int:
    hit = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            hit += 1
    return hit


def _is_mine(pid: int) -> bool:
    """Whether it is still a child of this process: a number may be somebody else's by now."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    state, parent = stat.rpartition(")")[2].split()[:2]
    return int(parent) == os.getpid() and state not in "ZX"


def pause(weather: Weather, low: float, high: float) -> None:
    """Some time between, unless it is over."""
    weather.over.wait(weather.dice.uniform(low, high))


def stop_and_go(pids: Sequence[int]) -> contextlib.AbstractContextManager[None]:
    """Processes that do not run inside `with`, as on a machine that is suspended."""

    @contextlib.contextmanager
    def stopped() -> Iterator[None]:
        _signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(pids, signal.SIGCONT)

    return stopped()


def wait(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Look again and again until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
