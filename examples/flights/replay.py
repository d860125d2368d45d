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

import numpy as np
import polars as pl

import tidemill as tm
from tidemill.apps import load
from tidemill.apps.examples.flights.audit import Served
from tidemill.apps.examples.flights.make_logs import PARTITIONS, Delivery, make_logs
from tidemill.environment import Environment
from tidemill.errors import HorizonError, TidemillError
from tidemill.online.base import SlotId, SlotState
from tidemill.times import DAY, END, HOUR, MINUTE, floor_to, from_micros

PROJECT = Path(__file__).parent
SERVICE = "delay_v1"

#: The stream may stand still for so long, of which a restart of all workers takes a few.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """What a replay does.

    `hours`: by so much the logs grow at a time; 55 make it another time of day each time. `ahead`: so many events may wait for the stream
    before the logs grow further. `fold_days`: after so many batch cuts, folds and publishes. `kills` are spread over the year.
    """

    delivery: Delivery = field(default_factory=Delivery)
    instants: int = 2_000
    kills: int = 1
    workers: int = 2
    hours: int = 55
    ahead: int = 8_000
    fold_days: int = 10
    seed: int = 2013


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

    `seconds`: from the first event to the last one applied, with everything else that went on meanwhile. `end`: the moment up to which
    the logs have grown, and `latest`: the largest event time; both UTC microseconds.
    """

    project: Path
    answers: list[Served]
    events: int = 0
    seconds: float = 0.0
    folds: int = 0
    kills: int = 0
    restarts: int = 0
    end: int = 0
    latest: int = 0


class GrowingLogs:
    """Log files that grow piece by piece, as their producers would write them: mostly the newest line is not complete yet."""

    def __init__(self, made: Path, target: Path, width: int) -> None:
        self._steps: dict[int, list[tuple[Path, Path, int, int, int]]] = {}
        self.total = self.grown = 0
        flights = []
        for file in sorted(made.glob("*/partition=*/*.jsonl")):
            lines = pl.read_ndjson(file)
            known = lines["known_utc"].str.to_datetime(time_zone="UTC", time_unit="us").dt.epoch("us").to_numpy()
            self.total += len(known)
            ends = np.flatnonzero(np.frombuffer(file.read_bytes(), dtype=np.uint8) == ord("\n")) + 1
            numbers, counts = np.unique(known // width, return_counts=True)
            stops = (ends[np.cumsum(counts) - 1] - 20).tolist()  # in the middle of the last line
            stops[-1] += 20
            # The line that was cut belongs to the next piece; the file's last line is whole.
            counts[0] -= 1
            counts[-1] += 1
            for number, start, stop, count in zip(numbers.tolist(), [0, *stops], stops, counts.tolist(), strict=False):
                self._steps.setdefault(number, []).append((file, target / file.relative_to(made), start, stop, count))
            if file.parent.parent.name == "departures":
                asked = lines.select("origin", "carrier", "tailnum", "dest", "distance", _piece=pl.Series(known // width))
                flights.append(asked.drop_nulls("tailnum"))
        self.numbers = sorted(self._steps)
        self.flights = {number: part.drop("_piece") for (number,), part in pl.concat(flights).group_by("_piece")}
        self.width = width
        # All partitions are there from the beginning, as a topic's would be: workers begin anew when they find another.
        for partition in made.glob("*/partition=*"):
            first = target / min(partition.iterdir()).relative_to(made)
            first.parent.mkdir(parents=True)
            first.touch()

    def __len__(self) -> int:
        return len(self.numbers)

    def grow(self, step: int) -> int:
        """Append one piece to every log; the moment up to which they know now, UTC microseconds."""
        for source, target, start, stop, count in self._steps[self.numbers[step]]:
            self.grown += count
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as whole, target.open("ab") as part:
                whole.seek(start)
                part.write(whole.read(stop - start))
        return (self.numbers[step] + 1) * self.width

    def flight(self, step: int, random: random.Random) -> dict[str, Any]:
        """The keys and the distance of a flight of this piece, or of any: what a model would be asked about."""
        here = self.flights.get(self.numbers[step])
        if here is None or random.random() < 0.1:
            here = self.flights[random.choice(list(self.flights))]
        return here.row(random.randrange(len(here)), named=True)


class Requests:
    """Asks for all features of flights, at instants where an answer could go wrong, and keeps the answers with what they knew."""

    def __init__(self, project: Path, seed: int) -> None:
        self.store = tm.FeatureStore(project)
        self.answers: list[Served] = []
        self._random = random.Random(seed)  # noqa: S311 - which flights to ask about
        applied = self.store.env.applied()
        self._slots = [SlotId(b.bundle.id, shard) for b in applied.bundles for shard in range(applied.shards)]
        self._sources = [b.source for b in applied.bundles for _ in range(applied.shards)]
        self._lengths = sorted({f.window.length for v in applied.views.values() for f in v.view.features.values() if f.window.length})
        self._views = list(applied.views)

    def close(self) -> None:
        self.store.close()

    def slots(self) -> list[SlotState]:
        """The state of every slot."""
        return self.store.env.online.slots(self._slots)

    def applied(self) -> int:
        """How many events of all logs every slot has taken."""
        least: dict[tuple[str, int], int] = {}
        for source, state in zip(self._sources, self.slots(), strict=True):
            for partition in range(PARTITIONS):
                least[source, partition] = min(least.get((source, partition), END), state.positions.get(partition, 0))
        return sum(least.values())

    def ready(self) -> bool:
        """Whether every slot answers."""
        return all(state.serving for state in self.slots())

    def ask(self, flight: dict[str, Any]) -> None:
        """One request for all features, at an instant that the store still answers."""
        for _ in range(100):
            states = self.slots()
            at = self._instant(max(s.horizon for s in states), max(s.latest for s in states))
            try:
                answer = self.store.get_online_features(SERVICE, [flight], at=at)
            except HorizonError:  # the stream went on between the two reads
                continue
            values = {name: column[0] for name, column in answer.columns.items() if name not in flight}
            self.answers.append(Served(at, flight, {view: answer.as_of.positions(view) for view in self._views}, values))
            return
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
        self.folds = 0
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
        if now - self._last >= self._days * DAY:
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
                job.run(env)
                self.folds += 1
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody sees it
            self._error = error
        finally:
            env.online.close()


class Replay:
    """A project of its own in `directory/flights`, made afresh, and the year (or less) replayed in it."""

    def __init__(self, directory: Path, plan: Plan = Plan()) -> None:
        self.plan = plan
        self.project = directory / "flights"
        made = make_logs(directory / "logs", plan.delivery)
        for leftover in (self.project / ".tidemill", self.project / "data"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.project.mkdir(parents=True, exist_ok=True)
        for name in ("features.py", "tidemill.toml"):
            shutil.copy(PROJECT / name, self.project / name)
        Environment.load(self.project).apply()
        self.logs = GrowingLogs(made, self.project / "data", plan.hours * HOUR)
        # What the workers log. They archive every second: only what is archived can be folded, and a month goes by in five.
        self.lines: list[str] = []
        supervisor = load("streaming.supervisor").Supervisor
        self._supervisor = supervisor(self.project, plan.workers, archive_seconds=1.0, on_line=self.lines.append)
        self._requests = Requests(self.project, plan.seed)
        self._batch = Batch(self.project, plan.fold_days)
        self._dice = random.Random(plan.seed)  # noqa: S311 - which flights to ask about, and which worker to kill
        self._outcome = Outcome(self.project, self._requests.answers)
        self._news: list[str] = []

    def run(self, tell: Callable[[Told], object] = lambda _: None) -> Outcome:
        """Replay it all; `tell` hears how it goes. Leaves no process behind, however it ends.

        Raises `TidemillError` when the stream does not get on.
        """
        plan, steps = self.plan, len(self.logs)
        kills = {steps * (i + 1) // (plan.kills + 1) for i in range(plan.kills)}
        began = time.monotonic()
        with contextlib.closing(self._requests), _running(self._supervisor), self._batch:
            for step in range(steps):
                self._outcome.end = self.logs.grow(step)
                self._batch.until(self._outcome.end)
                if step in kills:
                    self._kill()
                self._ask(step, plan.instants * (step + 1) // steps)
                self._wait(plan.ahead if step + 1 < steps else 0)
                tell(self._told(step))
            self._outcome.seconds = time.monotonic() - began
            self._ask(steps - 1, plan.instants)
            self._outcome.latest = max(state.latest for state in self._requests.slots())
        return self._outcome

    def _ask(self, step: int, until: int) -> None:
        """Ask about flights of this piece, until there are so many answers; not before every shard has events, and answers."""
        if len(self._requests.answers) < until and self._requests.ready():
            while len(self._requests.answers) < until:
                self._requests.ask(self.logs.flight(step, self._dice))

    def _kill(self) -> None:
        """Kill a worker the hard way, as a machine that fails would."""
        self._wait(self.plan.ahead, running=True)
        pid = self._dice.choice(self._supervisor.pids)
        os.kill(pid, signal.SIGKILL)
        self._outcome.kills += 1
        self._news.append(f"killed worker process {pid} with SIGKILL")

    def _wait(self, ahead: int, *, running: bool = False) -> None:
        """Until no more than `ahead` events wait for the stream; and all workers run, if `running` or if somebody was killed at the end."""
        seen, since = -1, time.monotonic()
        while True:
            self._look_after_workers()
            self._batch.check()
            applied = self._requests.applied()
            dead = self._outcome.restarts < self._outcome.kills
            if self.logs.grown - applied <= ahead and not ((running or ahead == 0) and dead):
                return
            if applied != seen:
                seen, since = applied, time.monotonic()
            elif time.monotonic() - since > PATIENCE_SECONDS:
                said = "; ".join(self.lines[-5:])
                raise TidemillError(f"the stream stands still, and {self.logs.grown - applied} events wait. The workers said: {said}")
            time.sleep(0.01)

    def _look_after_workers(self) -> None:
        event = self._supervisor.poll()
        if event is not None and event.kind == "died":
            self._news.append(f"{event.reason}; all start again")
        if event is not None and event.kind == "started":
            self._outcome.restarts += 1
            self._news.append(f"the workers run again, as {' and '.join(map(str, self._supervisor.pids))}")

    def _told(self, step: int) -> Told:
        self._outcome.events, self._outcome.folds = self.logs.grown, self._batch.folds
        news, self._news = self._news, []
        answers = len(self._requests.answers)
        return Told(from_micros(self._outcome.end), step + 1, len(self.logs), self.logs.grown, answers, self._batch.folds, news)


@contextlib.contextmanager
def _running(supervisor: Any) -> Iterator[None]:
    try:
        supervisor.start()
        yield
    finally:
        supervisor.stop()
