"""A project with a service of numbers, streamed, and models to score with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tidemill as tm
from tests.project import Folder
from tests.servers.s3 import s3, s3_of_session
from tidemill.times import from_micros, to_micros

__all__ = ["s3", "s3_of_session"]

DEFINITIONS = """
import numpy as np

events = tm.Source("events", schema={"k": str, "x": float, "at": tm.Timestamp}, timestamp="at", path="log/**/*.jsonl")
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=["1h", "1d"]), tm.mean("x", windows=["1d"]), tm.max("x", windows=["1d"])])


@tm.on_demand(inputs=[v, tm.Request(amount=float)])
def ratio(amount, x_mean_1d):
    return amount / x_mean_1d


s = tm.FeatureService("s", features=[v, ratio])
"""
COLUMNS = ("v__count_1h", "v__count_1d", "v__x_mean_1d", "v__x_max_1d", "ratio")
NOW = "2026-05-01T12:00:00"


def events(count: int = 200) -> list[dict[str, Any]]:
    """Events of five entities over the hours before NOW."""
    end = to_micros(NOW)
    return [
        {"k": f"k{i % 5}", "x": (i * 37 % 101) / 10 - 3, "at": from_micros(end - (count - i) * 60_000_000).isoformat()}
        for i in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """The project, with its log streamed."""
    folder = Folder(tmp_path / "p", DEFINITIONS)
    folder.log(events())
    folder.stream()
    return folder


@pytest.fixture
def open_store(folder: Folder) -> Iterator[Callable[[], tm.FeatureStore]]:
    """Opens stores of the project, each as a process of its own would; their wall clock stands at NOW."""
    opened: list[tm.FeatureStore] = []

    def store() -> tm.FeatureStore:
        opened.append(tm.FeatureStore(folder.path, clock=lambda: to_micros(NOW)))
        return opened[-1]

    yield store
    for each in opened:
        each.close()


@pytest.fixture
def store(open_store: Callable[[], tm.FeatureStore]) -> tm.FeatureStore:
    return open_store()


def fitted(seed: int = 0, negative: bool = False) -> Any:
    """A linear pipeline that can take nulls, fitted on made-up rows; `negative` turns its scores around."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(300, len(COLUMNS))) * 3
    wanted = (rows[:, 0] + rng.normal(size=300) > 0).astype(int)
    return make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()).fit(rows, 1 - wanted if negative else wanted)
