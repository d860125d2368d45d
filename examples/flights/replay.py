"""The year again, as fast as it goes: log files that grow while real workers stream them, batch folds them, and requests are answered.

`Replay` is all of that without a word on the screen; `demo.py` tells it to people, and the tests run a week of it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tidemill as tm
from tidemill.apps import load
from tidemill.apps.examples.flights.audit import SERVICE, Served
from tidemill.apps.examples.flights.growing import GrowingFiles, GrowingLogs, GrowingTopics
from tidemill.apps.examples.flights.make_logs import PARTITIONS, Delivery, make_logs
from tidemill.environment import Environment
from tidemill.errors import HorizonError, StoreUnavailableError, TidemillError
from tidemill.online.base import SlotId, SlotState
from tidemill.times import DAY, END, HOUR, MINUTE, floor_to, from_micros

PROJECT = Path(__file__).parent


@dataclass(frozen=True)
class Plan:
    """What a replay does.

    `hours`: by so much the logs grow at a time; 55 make it another time of day each time. `ahead`: so many events may wait for the stream
    before the logs grow further. `fold_days`: after so many batch cuts, folds and publishes; 0: somebody else does. `kills` are spread
    over the year. `patience`: for so many seconds the stream may stand still, of which a restart of all workers takes a few.
    `seconds`: the logs take at least so long to grow. `torn`: the newest line of a file is not complete yet, mostly.
    """

    delivery: Delivery = field(default_factory=Delivery)
    instants: int = 2_000
    kills: int = 1
    workers: int = 2
    hours: int = 55
    ahead: int = 8_000
    fold_days: int = 10
    patience: float = 60.0
    seconds: float = 0.0
    torn: bool = True
    seed: int = 2013


@dataclass(frozen=True)
class Servers:
    """Kafka and Redis, in the place of files and SQLite. What the topics and the store have of these flights is removed first."""

    brokers: str
    online: str


@dataclass(frozen=True)
class Told:
    """Where a replay stands: `now` is the moment up to which the logs have grown; `news` is what happened to the workers since the last."""

    now: dt.datetime
    piece: int
    pieces: int
    events: int
    answers: int
    folds: int
    news: list[str]


@dataclass
class Outcome:
    """What a replay did.

    `logs`: the raw logs, for the audit. `unready`: requests that said that something is missing, because a shard was being rebuilt.
    `refused`: requests and folds that said that a server does not answer.
    `seconds`: from the first event to the last one applied, with everything else that went on meanwhile. `end`: the moment up to which
    the logs have grown, and `latest`: the largest event time; both UTC microseconds.
    """

    project: Path
    logs: Path
    answers: list[Served]
    unready: int = 0
    refused: int = 0
    events: int = 0
    seconds: float = 0.0
    folds: int = 0
    kills: int = 0
    restarts: int = 0
    end: int = 0
    latest: int = 0


class Requests:
    """Asks for all features of flights, at instants where an answer could go wrong, and keeps the answers with what they knew."""

    def __init__(self, project: Path, seed: int) -> None:
        self.store = tm.FeatureStore(project)
        self.answers: list[Served] = []
        self._random = random.Random(seed)  # noqa: S311 - which flights to ask about
        applied = self.store.env.applied()
        self._slots = [SlotId(b.bundle.id, shard) for b in applied.bundles for shard in range(applied.shards)]
        self._sources = [b.source for b in applied.bundles for _ in range(applied.shards)]
        counting = ("count", "sum")
        self._counts = [
            f"{name}__{feature}"
            for name, view in applied.views.items()
            for feature, declared in view.view.features.items()
            if declared.aggregation.function in counting
        ]
        self.unready = self.refused = 0
        self._lengths = sorted({f.window.length for v in applied.views.values() for f in v.view.features.values() if f.window.length})
        self._views = list(applied.views)

    def close(self) -> None:
        self.store.close()

    def slots(self) -> list[SlotState]:
        """The state of every slot."""
        return self.store.env.online.slots(self._slots)

    def applied(self) -> int:
        """How many events of all logs every slot has taken; -1 while the store does not answer."""
        try:
            states = self.slots()
        except StoreUnavailableError:
            return -1
        least: dict[tuple[str, int], int] = {}
        for source, state in zip(self._sources, states, strict=True):
            for partition in range(PARTITIONS):
                least[source, partition] = min(least.get((source, partition), END), state.positions.get(partition, 0))
        return sum(least.values())

    def ask(self, flight: dict[str, Any]) -> bool:
        """One request for all features, at an instant that the store still answers. False: not every shard knows its part just now."""
        try:
            for _ in range(100):
                states = self.slots()
                if not all(state.serving for state in states):
                    return False
                at = self._instant(max(s.horizon for s in states), max(s.latest for s in states))
                try:
                    answer = self.store.get_online_features(SERVICE, [flight], at=at)
                except HorizonError:  # the stream went on between the two reads
                    continue
                if any(answer.columns[name][0] is None and answer.status[name][0] == "missing" for name in self._counts):
                    self.unready += 1  # a shard was lost since: of nothing they are 0, and null says that it does not know
                    return False
                values = {name: column[0] for name, column in answer.columns.items() if name not in flight}
                self.answers.append(Served(at, flight, {view: answer.as_of.positions(view) for view in self._views}, values))
                return True
        except StoreUnavailableError:
            self.refused += 1
            return False
        raise TidemillError("a hundred reads in a row were refused, because the horizon overtook each: is online.slack too small?")

    def _instant(self, horizon: int, latest: int) -> int:
        """The live head, the oldest instant allowed, and every kind of edge: of the event, the hop, the window and the day."""
        dice = self._random
        match dice.randrange(6):
            case 0:
                at = latest + dice.randrange(5 * MINUTE)
            case 1:
                at = horizon
            case 2:  # flights leave on the minute
                at = floor_to(latest, MINUTE) + dice.choice([-1, 0, 1])
            case 3:
                at = floor_to(latest, MINUTE) + dice.choice(self._lengths) + dice.choice([-1, 0, 1])
            case 4:
                at = floor_to(latest, dice.choice([HOUR, DAY])) + dice.choice([HOUR, DAY]) + dice.choice([-1, 0, 1])
            case _:
                at = horizon + dice.randrange(3 * DAY)
        return max(at, horizon)


class Batch:
    """Cuts, folds and publishes in a thread, whenever the logs have grown by some days; or as often as it can, where that is less."""

    def __init__(self, project: Path, days: int) -> None:
        self.folds = self.refused = 0
        self._project = project
        self._days = days
        self._last = 0
        self._error: BaseException | None = None
        self._wake, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="batch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over = True
        self._wake.set()
        self._thread.join()

    def until(self, now: int) -> None:
        """The logs have grown up to this moment."""
        if self._days and now - self._last >= self._days * DAY:
            self._last = now
            self._wake.set()

    def check(self) -> None:
        """Raises what stopped the batch job, if anything did."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        job = load("batch.job")
        env = Environment.load(self._project)
        try:
            while True:
                self._wake.wait()
                self._wake.clear()
                if self._over:
                    return
                try:
                    job.run(env)
                    self.folds += 1
                except StoreUnavailableError:  # the next run does what this one left
                    self.refused += 1
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody sees it
            self._error = error
        finally:
            env.online.close()


class Replay:
    """A project of its own in `directory/flights`, made afresh, and the year (or less) replayed in it.

    Over files and SQLite, or over `servers`. `supervision`: what the supervisor of the workers is told beside.
    """

    def __init__(self, directory: Path, plan: Plan = Plan(), servers: Servers | None = None, **supervision: Any) -> None:
        self.plan = plan
        self.project = directory / "flights"
        made = make_logs(directory / "logs", plan.delivery)
        for leftover in (self.project / ".tidemill", self.project / "data"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.project.mkdir(parents=True, exist_ok=True)
        for name in ("features.py", "tidemill.toml"):
            shutil.copy(PROJECT / name, self.project / name)
        settings = self.project / "tidemill.toml"
        settings.write_text(settings.read_text().replace("[log]", '[log]\nevery = "100ms"'))  # a day goes by in a tenth of a second
        self.logs: GrowingLogs
        if servers is None:
            self.logs = GrowingFiles(made, self.project / "data", plan.hours * HOUR, torn=plan.torn)
        else:
            _use(servers, settings)
            self.logs = GrowingTopics(made, servers.brokers, plan.hours * HOUR)
        env = Environment.load(self.project)
        if servers is not None:
            _forget(env, servers.online)
        env.apply()
        # What the workers log. They archive every second: only what is archived can be folded, and a month goes by in five.
        self.lines: list[str] = []
        supervisor = load("streaming.supervisor").Supervisor
        given: dict[str, Any] = {"archive_seconds": 1.0, "on_line": self.lines.append, **supervision}
        self.supervisor = supervisor(self.project, plan.workers, **given)
        self._requests = Requests(self.project, plan.seed)
        self._batch = Batch(self.project, plan.fold_days)
        #: How many events the store had when it was last looked at; -1 while it does not answer.
        self.progress = 0
        self._dice = random.Random(plan.seed)  # noqa: S311 - which flights to ask about, and which worker to kill
        self._outcome = Outcome(self.project, directory / "raw", self._requests.answers)
        self._news: list[str] = []

    def run(
        self,
        tell: Callable[[Told], object] = lambda _: None,
        trouble: Callable[[Replay], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> Outcome:
        """Replay it all; `tell` hears how it goes, and `trouble` lasts while the logs grow. Leaves no process behind, however it ends.

        Raises `TidemillError` when the stream does not get on.
        """
        plan, steps = self.plan, len(self.logs)
        kills = {steps * (i + 1) // (plan.kills + 1) for i in range(plan.kills)}
        began = time.monotonic()
        with contextlib.closing(self.logs), contextlib.closing(self._requests), _running(self.supervisor), self._batch:
            with trouble(self):
                for step in range(steps):
                    self._outcome.end = self.logs.grow(step)
                    self._batch.until(self._outcome.end)
                    if step in kills:
                        self._kill()
                    self._ask(step, plan.instants * (step + 1) // steps)
                    if step + 1 < steps:
                        self._wait(plan.ahead)
                    time.sleep(max(began + plan.seconds * (step + 1) / steps - time.monotonic(), 0.0))
                    tell(self._told(step))
            self._wait(0)
            tell(self._told(steps - 1))
            self._outcome.seconds = time.monotonic() - began
            give_up = time.monotonic() + plan.patience
            while len(self._requests.answers) < plan.instants and time.monotonic() < give_up:
                self._ask(steps - 1, plan.instants)
            self._outcome.logs = self.logs.raw(self._outcome.logs)
            self._outcome.latest = max(state.latest for state in self._requests.slots())
            self._outcome.unready = self._requests.unready
            self._outcome.refused = self._requests.refused + self._batch.refused
        return self._outcome

    def catch_up(self) -> None:
        """Wait until the stream has taken all that the logs have."""
        self._wait(0)

    def _ask(self, step: int, until: int) -> None:
        """Ask about flights of this piece, until there are so many answers; not before every shard has events, and answers."""
        while len(self._requests.answers) < until and self._requests.ask(self.logs.flight(step, self._dice)):
            pass

    def _kill(self) -> None:
        """Kill a worker the hard way, as a machine that fails would."""
        self._wait(self.plan.ahead, running=True)
        pid = self._dice.choice(self.supervisor.pids)
        os.kill(pid, signal.SIGKILL)
        self._outcome.kills += 1
        self._news.append(f"killed worker process {pid} with SIGKILL")

    def _wait(self, ahead: int, *, running: bool = False) -> None:
        """Until no more than `ahead` events wait for the stream; and all workers run, if `running` or if somebody was killed at the end."""
        seen, since = -1, time.monotonic()
        while True:
            self._look_after_workers()
            self._batch.check()
            applied = self.progress = self._requests.applied()
            dead = self._outcome.restarts < self._outcome.kills
            if self.logs.grown - applied <= ahead and not ((running or ahead == 0) and dead):
                return
            if applied != seen:
                seen, since = applied, time.monotonic()
            elif time.monotonic() - since > self.plan.patience:
                said = "; ".join(self.lines[-5:])
                raise TidemillError(f"the stream stands still, and {self.logs.grown - applied} events wait. The workers said: {said}")
            time.sleep(0.01)

    def _look_after_workers(self) -> None:
        event = self.supervisor.poll()
        if event is not None and event.kind == "died":
            self._news.append(f"{event.reason}; all start again")
        if event is not None and event.kind == "started":
            self._outcome.restarts += 1
            self._news.append(f"the workers run again, as {' and '.join(map(str, self.supervisor.pids))}")

    def _told(self, step: int) -> Told:
        self._outcome.events, self._outcome.folds = self.logs.grown, self._batch.folds
        news, self._news = self._news, []
        answers = len(self._requests.answers)
        return Told(from_micros(self._outcome.end), step + 1, len(self.logs), self.logs.grown, answers, self._batch.folds, news)


def _use(servers: Servers, settings: Path) -> None:
    """Have a project's tidemill.toml name servers. The definitions stay as they are."""
    text = settings.read_text()
    for line, instead in (
        ('url = "sqlite:///.tidemill/online.db"', f'url = "{servers.online}"'),
        ("[stream]", f'[stream]\nbrokers = "{servers.brokers}"'),
    ):
        assert line in text, f"{settings} has no line {line}"
        text = text.replace(line, instead)
    settings.write_text(text)


def _forget(env: Environment, online: str) -> None:
    """Remove what Redis has of an earlier replay, whose positions are those of topics that are no longer.

    `Environment.forget` keeps each slot's horizon, before which no instant is answered again; but this year begins again. (Not on a
    cluster: a replay over one wants a new one.)
    """
    import redis

    bundles = [b.bundle.id for b in env.planned().bundles]
    if not env.forget(bundles, env.planned().shards) or "cluster" in online:
        return
    with redis.Redis.from_url(online.partition("?")[0]) as client:
        for bundle in bundles:
            for key in client.scan_iter(f"*{bundle}", count=1000):
                client.unlink(key)


@contextlib.contextmanager
def _running(supervisor: Any) -> Iterator[None]:
    try:
        supervisor.start()
        yield
    finally:
        supervisor.stop()
