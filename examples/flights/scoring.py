"""The scorer and the learner beside the stream: flights are scored over HTTP at scheduled departure, and what came of them is learned.

`tidemill serve` answers, `tidemill learn` learns from the predictions that it logs and from the arrivals that come hours later, and
publishes versions of the model, which the service takes up. The sections [log] and [learner] of tidemill.toml say how.

    python scoring.py --project servers              # registers a model that knows nothing yet, unless there is one, and promotes it
    python produce.py --project servers --speed 1440 --ask http://localhost:8080
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl

import tidemill as tm
from tidemill.apps.examples.flights.labels import labelled
from tidemill.apps.examples.flights.replay import Replay, Told
from tidemill.definitions import resolve_features
from tidemill.errors import TidemillError
from tidemill.journals import entries, journal_files
from tidemill.journals.reader import read_file
from tidemill.measures import measure
from tidemill.prediction_log import PREDICTIONS
from tidemill.testing import identical
from tidemill.times import BEGINNING, HOUR, from_micros, to_micros

MODEL, SERVICE = "delay", "delay_at_departure"
#: In microseconds: in a replay, flights are asked about that leave within so long.
WIDTH = HOUR
#: In seconds: so long a process may take to begin, to write what it was asked, to end.
PATIENCE = 60.0


def begin(store: tm.FeatureStore, flights: pl.DataFrame | None = None) -> str:
    """Register a logistic regression of River and promote it; its version.

    It has learned from `flights`, as `labels.labelled` makes them; without any it says 0.5 of every flight, until it has learned.
    """
    from tidemill.apps.examples.flights.learning import new_model

    model = new_model()
    wanted = resolve_features(SERVICE, store.env.definitions)
    usual = dict.fromkeys(wanted.columns, 0.0)
    if flights is not None:
        keys = flights.select(*wanted.keys, *wanted.request, "event_timestamp")
        found = store.get_historical_features(keys, SERVICE).to_polars().select(pl.col(wanted.columns).cast(pl.Float64))
        middle = found.median().row(0, named=True)
        usual = {name: 0.0 if middle[name] is None else middle[name] for name in wanted.columns}
        for row, label in zip(found.iter_rows(named=True), flights["label"], strict=True):
            model.learn_one({k: usual[k] if v is None else v for k, v in row.items()}, label)
    version = store.models.register(MODEL, model, service=SERVICE, fill=usual, positive=True).version
    store.models.promote(MODEL, version, why="the flights example begins")
    return version


class Airline:
    """Asks about flights before they leave, each once. `flights`: as `labels.labelled` makes them; those without a tail number stay out."""

    def __init__(self, url: str, flights: pl.DataFrame) -> None:
        self.client = tm.ScoringClient(url)
        self._flights = flights.drop_nulls("tailnum").sort("event_timestamp")
        #: What was answered: flight_id, at, the keys, score, status, version.
        self.told: list[dict[str, Any]] = []
        self._asked = BEGINNING

    def close(self) -> None:
        self.client.close()

    def ask(self, at: int, until: int) -> int:
        """Ask about flights that are scheduled to leave from the instant `at` on, and before `until` (UTC microseconds); how many."""
        times = self._flights["event_timestamp"]
        first, end = (int(times.search_sorted(from_micros(t))) for t in (max(at, self._asked), until))
        self._asked = max(until, self._asked)
        for part in self._flights[first:end].iter_slices(1000):
            rows = part.select("carrier", "origin", "dest", "tailnum", "distance", "scheduled_hour").to_dicts()
            answer = self.client.score(MODEL, rows, at=at)
            for row, flight, score, status in zip(rows, part["flight_id"], answer.score, answer.status, strict=True):
                self.told.append({"flight_id": flight, "at": at, **row, "score": score, "status": status, "version": answer.version})
        return max(end - first, 0)


@dataclass(frozen=True)
class Scored:
    """What came of a season.

    How many flights were scored, and how many of them got no score of the model; the AUC of what was served; how many versions of the
    model answered, and how many labels were learned; how many features were behind the scores, and which are not the training set's.
    """

    flights: int
    unscored: int
    auc: float | None
    versions: int
    learned: int
    features: int
    different: list[str]


class Processes:
    """`tidemill serve` and `tidemill learn` of a project."""

    def __init__(self, project: Path) -> None:
        self._project = project
        self._running: list[subprocess.Popen[str]] = []

    def start(self) -> str:
        """Start both; where the service is."""
        serve = self._start("serve", "--port", "0", "--json", "--model", MODEL, stdout=subprocess.PIPE)
        assert serve.stdout is not None
        line = serve.stdout.readline()
        if not line:
            raise TidemillError(f"tidemill serve did not begin: {self._said('serve')}")
        self._start("learn")
        return str(json.loads(line)["url"])

    def stop(self) -> None:
        """End both, the service first: what it has answered is in its log then."""
        for process in self._running:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._running.clear()

    def check(self) -> None:
        """Raises `TidemillError` where one of them has ended."""
        for process, name in zip(self._running, ("serve", "learn"), strict=True):
            if process.poll() is not None:
                raise TidemillError(f"tidemill {name} ended with {process.returncode}: {self._said(name)}")

    def learn_the_rest(self) -> Mapping[str, Any]:
        """What the learner says when it has learned all that there is, after `stop`."""
        done = subprocess.run(
            [sys.executable, "-m", "tidemill", "learn", "--once", "--json"],
            cwd=self._project,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise TidemillError(f"tidemill learn --once: {done.stderr.strip()}")
        found: Mapping[str, Any] = json.loads(done.stdout)
        return found

    def _start(self, command: str, *arguments: str, stdout: int | None = None) -> subprocess.Popen[str]:
        with (self._project / f"{command}.log").open("w") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "tidemill", command, *arguments],
                cwd=self._project,
                stdout=stdout or log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._running.append(started)
        return started

    def _said(self, command: str) -> str:
        return (self._project / f"{command}.log").read_text().strip()[-500:]


class Season:
    """A part of a replay in which flights are scored: called with each step of it, from the day `first` on. To be used in a `with`.

    The model begins with every `every`-th flight before that day, whose label was known by then. Each step waits until the stream has
    taken all that there is: what is measured is the model, not how fast a year can be replayed.
    """

    def __init__(self, replay: Replay, first: str, tell: Callable[[str], object] = lambda _: None, every: int = 20) -> None:
        self._replay, self._first, self._every = replay, dt.datetime.fromisoformat(first).replace(tzinfo=dt.UTC), every
        self._frame = labelled(replay.plan.delivery)
        self.store = tm.FeatureStore(replay.project)
        self._processes = Processes(replay.project)
        self._airline: Airline | None = None
        self._tell = tell
        self._logged, self._read = 0, set[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._processes.stop()
        if self._airline is not None:
            self._airline.close()
        self.store.close()

    @property
    def began(self) -> bool:
        """Whether the replay came to the first day."""
        return self._airline is not None

    def __call__(self, told: Told) -> None:
        if told.now < self._first:
            return
        self._replay.catch_up()
        if self._airline is None:
            known = self._frame.filter(pl.col("label_time") < told.now, pl.col("tailnum").is_not_null())
            begin(self.store, known[:: self._every])
            url = self._processes.start()
            self._tell(f"{told.now:%Y-%m-%d}  tidemill serve scores flights at {url}, and tidemill learn learns what becomes of them")
            self._airline = Airline(url, self._frame)
        # All that the logs have by now came before this instant.
        at = to_micros(told.now) - 1
        self._airline.ask(at, at + WIDTH)
        self._wait_until_logged(len(self._airline.told))
        self._processes.check()

    def end(self) -> Scored:
        """Stop the processes, and look at what they did."""
        self._processes.stop()
        told = pl.DataFrame(self._airline.told if self._airline else [], infer_schema_length=None)
        learned = self._processes.learn_the_rest()
        labels = told.join(self._frame.select("flight_id", "label"), on="flight_id", how="left", maintain_order="left")["label"]
        flown = labels.is_not_null()
        asked = told.filter(flown)
        return Scored(
            flights=len(told),
            unscored=told.filter(pl.col("status") == "fallback").height,
            auc=measure("classifier", labels.filter(flown).cast(pl.Float64).to_numpy(), asked["score"].to_numpy())["auc"],
            versions=told["version"].n_unique(),
            learned=learned["counts"]["learned"],
            features=len(self._vectors()[0]) * len(told),
            different=self._different(),
        )

    def _vectors(self) -> tuple[list[str], list[tuple[int, dict[str, Any], list[Any]]]]:
        """The model's columns, and of each logged prediction the instant, the keys and request columns, and what the model was given."""
        names: list[str] = []
        found = []
        for entry in entries(self.store.env.offline, PREDICTIONS):
            names = entry["features"]
            for row, x in enumerate(entry["x"]):
                found.append((entry["at"]["$time"], {n: c[row] for n, c in entry["columns"].items()}, x))
        return names, found

    def _different(self) -> list[str]:
        """Features behind scores that are not those of the training set of the same instant; both as the log writes them."""
        names, vectors = self._vectors()
        frame = pl.DataFrame([{"event_timestamp": from_micros(at), **row} for at, row, _ in vectors], infer_schema_length=None)
        right = self.store.get_historical_features(frame, SERVICE).to_polars().select(names)
        return [
            f"{name} of {row} at {from_micros(at)}: {served!r} was served, and a training set has {value!r}"
            for (at, row, x), values in zip(vectors, right.iter_rows(), strict=True)
            for name, served, value in zip(names, x, values, strict=True)
            if not identical(served, value)
        ]

    def _wait_until_logged(self, count: int) -> None:
        """Until so many predictions are in the log: then the learner cannot miss them, however soon their labels come."""
        give_up, store = time.monotonic() + PATIENCE, self.store.env.offline
        while self._logged < count:
            for file in journal_files(store, PREDICTIONS):
                if file.key not in self._read:
                    self._read.add(file.key)
                    self._logged += sum(len(entry["ids"]) for entry in read_file(store, file))
            if time.monotonic() > give_up:
                raise TidemillError(f"{count} predictions were made, and {self._logged} of them are logged after {PATIENCE:.0f} s")
            time.sleep(0.02)


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="Registers the model that the flights are scored with, unless there is one.")
    parser.add_argument("--project", type=Path, default=Path(__file__).parent / "servers", help="the folder of the tidemill.toml")
    return parser


def main() -> int:
    """The command line; an exit code."""
    store = tm.FeatureStore(parser().parse_args().project)
    try:
        if MODEL in store.models.names():
            print(f"{MODEL} is there")
        else:
            print(f"{MODEL} {begin(store)} is champion, and knows nothing yet")
    except TidemillError as error:
        print(f"scoring: {error}", file=sys.stderr)
        return 1
    finally:
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
