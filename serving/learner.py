"""The learner's process: one at a time, under a lease, again and again until it is stopped."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tidemill.environment import Environment
from tidemill.errors import LeaseError, LogUnavailableError, StoreUnavailableError
from tidemill.learning.learner import Learner, Say
from tidemill.learning.settings import LearnerSettings
from tidemill.metrics import Metric, Sample
from tidemill.offline.leases import Lease

LEASE_SECONDS = 60.0
#: In seconds: between two looks at logs that had nothing new; before a store that did not answer is tried again.
PAUSE, FIRST_WAIT, LONGEST_WAIT = 0.5, 1.0, 60.0


def once(env: Environment, settings: LearnerSettings, say: Say, *, publish: bool = True) -> dict[str, Any]:
    """Learn what can be learned by now, and publish it; the learner's status. Raises `LeaseError` if another process is the learner."""
    with _alone(env, settings) as guard:
        learner = Learner(env, settings, say=say, guard=guard)
        try:
            while learner.step() or learner.await_labels():
                guard()
            if publish and learner.fresh:
                guard()
                learner.publish()
            return learner.status()
        finally:
            learner.close()


def run(
    env: Environment,
    settings: LearnerSettings,
    say: Say,
    stop: Callable[[], bool],
    *,
    seen: Callable[[Learner], object] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Learn until `stop()`. `seen` gets the learner after each step. Raises `LeaseError` if another process is the learner.

    While a store or a log does not answer it is tried again, from the checkpoint: what was under way counts for nothing.
    """
    with _alone(env, settings) as guard:
        learner: Learner | None = None
        wait = FIRST_WAIT
        try:
            while not stop():
                try:
                    if learner is None:
                        guard.begin()
                        learner = Learner(env, settings, say=say, guard=guard)
                    guard()
                    busy = learner.step()
                    seen(learner)
                    wait = FIRST_WAIT
                except (OvertakenError, StoreUnavailableError, LogUnavailableError) as error:
                    if learner is not None:
                        learner.let_go()
                    learner = None
                    if isinstance(error, OvertakenError):
                        say("warning", "begins at the checkpoint again", reason=str(error))
                        continue
                    say("warning", "waits", seconds=wait, reason=str(error))
                    _sleep(wait, stop, sleep)
                    wait = min(2 * wait, LONGEST_WAIT)
                    continue
                if not busy:
                    sleep(PAUSE)
        finally:
            if learner is not None:
                learner.close()


class OvertakenError(LeaseError):
    """The lease had run out and was taken again: another process may have been the learner in between, so what this one knows is old."""


class _Guard:
    """Says that the lease has been held all the time since `begin`, and renews it now and then.

    Once it was lost this says so again and again: whoever ends must not write a last time what may be another's by now.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._lost: LeaseError | None = None
        self.begin()

    def begin(self) -> None:
        """From now on, for whoever knows nothing yet. Raises `LeaseError` where another process holds it."""
        self._generation = self._lease.renew()
        self._lost, self._due = None, time.monotonic() + LEASE_SECONDS / 10

    def __call__(self) -> None:
        if self._lost is None and time.monotonic() >= self._due:
            self._due = time.monotonic() + LEASE_SECONDS / 10
            try:
                if self._lease.renew() != self._generation:
                    self._lost = OvertakenError(
                        "the learner's lease had run out, and another process may have learned meanwhile: run this again"
                    )
            except LeaseError as error:
                self._lost = error
        if self._lost is not None:
            raise self._lost


@contextmanager
def _alone(env: Environment, settings: LearnerSettings) -> Iterator[_Guard]:
    """Hold the lease; what is yielded says that it still does, or raises `LeaseError`."""
    few_collections()
    with Lease(env.offline, f"learner-{settings.model}", seconds=LEASE_SECONDS) as lease:
        yield _Guard(lease)


def few_collections() -> None:
    """Let Python look for cycles less often: many objects wait here, none is part of one, and it would walk them again and again."""
    gc.set_threshold(100_000, 20, 100)


def _sleep(seconds: float, stop: Callable[[], bool], sleep: Callable[[float], None]) -> None:
    while seconds > 0 and not stop():
        sleep(min(seconds, 1.0))
        seconds -= 1.0


def collect(status: dict[str, Any]) -> Iterator[Metric]:
    """A learner's status as metrics."""
    model = (status["model"],)

    def one(name: str, kind: Any, text: str, value: float) -> Metric:
        return Metric(f"tidemill_learner_{name}", kind, text, ("model",), [Sample(model, value)])

    yield one("waiting_predictions", "gauge", "Predictions whose horizon has not passed.", status["waiting"])
    yield one("paused", "gauge", "1 while nothing is learned; the status says why.", float(status["paused"] is not None))
    for name, count in status["counts"].items():
        yield one(f"{name}_total", "counter", f"{name.replace('_', ' ').capitalize()}, over the learner's whole life.", count)
    for name, value in status["metrics"].items():
        yield one(f"prequential_{name}", "gauge", f"Of the scores served since the version it goes on from: {name}.", value)
