"""A project with values of every type and a model, and the service around it: in process, where no socket is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import tidemill as tm
from tests.project import Folder
from tidemill.apps import load
from tidemill.journal import Journal
from tidemill.times import from_micros, to_micros

app = load("serving.app")
counts = load("serving.counts")
keys = load("serving.keys")
service = load("serving.service")
settings = load("serving.settings")

NOW = "2026-05-01T12:00:00"
DEFINITIONS = """
import numpy as np

events = tm.Source("events", schema={"k": str, "x": float, "n": int, "word": str, "flag": bool, "seen": tm.Timestamp, "at": tm.Timestamp},
                   timestamp="at", path="log/**/*.jsonl")
k = tm.Entity("k")
v = tm.FeatureView("v", source=events, entity=k, aggregations=[
    tm.count(windows=["1h", "1d", "lifetime"]), tm.sum("x", windows=["1d"]), tm.mean("x", windows=["1d"]), tm.max("n", windows=["1d"]),
    tm.sum("n", windows=["1d"])])
lasts = tm.FeatureView("lasts", source=events, entity=k, aggregations=[
    tm.last("x", windows=["lifetime"]), tm.last("n", windows=["lifetime"]), tm.last("word", windows=["lifetime"]),
    tm.last("flag", windows=["lifetime"]), tm.last("seen", windows=["lifetime"]),
    tm.last_n("seen", 3, windows=["lifetime"]), tm.last_n("n", 3, windows=["lifetime"])])


@tm.on_demand(inputs=[v, tm.Request(amount=float, booked=tm.Timestamp, name=str, many=int, sure=bool)])
def mixed(amount, x_mean_1d, booked, name, many, sure):
    return np.where(np.isnat(booked), 0.0, amount / x_mean_1d) + np.nan_to_num(many) + np.nan_to_num(sure)


@tm.on_demand(inputs=[v])
def busy(count_1h):
    return count_1h / 2


everything = tm.FeatureService("everything", features=[v, lasts, mixed])
plain = tm.FeatureService("plain", features=[v["count_1h"], v["x_mean_1d"], busy])
"""
MODEL = """
import numpy as np


def score(x):
    return 1 / (1 + np.exp(-np.nan_to_num(x).sum(axis=1) / 100))
"""
ROW = {"k": "a", "amount": 1.5, "booked": "2026-04-01T00:00:00Z", "name": "Ann", "many": 3, "sure": True}


def event(key: str, minutes: int, **values: Any) -> dict[str, Any]:
    """An event so long before NOW."""
    at = from_micros(to_micros(NOW) - minutes * 60_000_000).isoformat()
    return {"k": key, "x": 0.5, "n": 7, "word": "w", "flag": True, "seen": at, "at": at} | values


class Served(Folder):
    """A project, and what is needed to serve it in this process."""

    def store(self) -> tm.FeatureStore:
        return tm.FeatureStore(self.path, clock=lambda: to_micros(NOW))

    def service(self, **changes: Any) -> Any:
        """A service whose clock stands at NOW."""
        given = {"directory": str(self.path), **changes}
        api_keys = keys.Keys(given.pop("api_keys", []))
        self.lines: list[str] = []
        store = given.pop("store", None) or self.store()
        return service.Service(store, settings.Settings(**given), api_keys, Journal("worker 0", self.lines.append), counts.Counts())

    def model(self) -> None:
        """A champion named `m`."""
        (self.path / "made.py").write_text(MODEL)
        store = self.store()
        store.models.register("m", "made:score", service="plain")
        store.models.promote("m", "1")
        store.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "p", DEFINITIONS)
    served.log([event("a", m, x=m / 10, n=m, word=f"w{m}", flag=m % 2 == 0) for m in range(1, 120, 7)] + [event("b", 5)])
    served.stream()
    yield served
    served.env.online.close()


@pytest.fixture
def start(served: Served) -> Iterator[Callable[..., TestClient]]:
    """Starts the app in this process, with settings of the service; gives a client for it."""
    opened: list[TestClient] = []

    def start(**changes: Any) -> TestClient:
        client = TestClient(app.make_app(served.service(**changes)), raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        return client

    yield start
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(start: Callable[..., TestClient]) -> TestClient:
    return start()
