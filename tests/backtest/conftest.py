"""A project whose labels depend on what happened in the last hour, and a frame of questions about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

import tidemill as tm
from tests.project import Folder
from tidemill.times import HOUR, MINUTE, SECOND, from_micros, to_micros

DEFINITIONS = """
events = tm.Source("events", schema={"k": str, "x": float, "at": tm.Timestamp}, timestamp="at", arrival="known", path="log/*.jsonl")
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=["1h", "lifetime"]), tm.mean("x", windows=["2h", "7d"]), tm.last("x", windows=["1d", "lifetime"]),
    tm.last("at", windows=["1d"])])

@tm.on_demand(inputs=[v, tm.Request(rate=float)])
def scaled(x_last_lifetime, rate):
    return x_last_lifetime * rate

s = tm.FeatureService("s", features=[v, scaled])
plain = tm.Source("plain", schema={"k": str, "x": float, "at": tm.Timestamp}, timestamp="at", path="log/*.jsonl")
p = tm.FeatureView("p", source=plain, entity=tm.Entity("k"), aggregations=[tm.mean("x", windows=["2h"])])
"""
START = to_micros("2026-01-01")
KEYS = "abc"


class Walk(NamedTuple):
    """A project, and the labelled frame: one question every 20 minutes, half an hour after an event of its entity."""

    folder: Folder
    frame: pl.DataFrame

    @property
    def store(self) -> tm.FeatureStore:
        return tm.FeatureStore(self.folder.path)


def event(at: int, k: str, x: float, known: int | None = None) -> dict[str, Any]:
    late = from_micros(at + SECOND if known is None else known)
    return {"k": k, "x": x, "at": from_micros(at).isoformat(), "known": late.isoformat()}


def walk(path: Path, count: int = 900) -> Walk:
    """Values wander; a label says whether its entity's value, with some noise, is above zero, and becomes known an hour later."""
    dice = np.random.default_rng(7)
    folder, events, rows = Folder(path, DEFINITIONS), [], []
    value = dict.fromkeys(KEYS, 0.0)
    for i in range(count):
        k, t = KEYS[i % 3], START + i * 20 * MINUTE
        value[k] = 0.9 * value[k] + dice.normal()
        events.append(event(t, k, value[k]))
        asked = t + 30 * MINUTE
        label = bool(value[k] + 0.5 * dice.normal() > 0)
        rows.append({"k": k, "rate": 2.0, "event_timestamp": from_micros(asked), "label": label, "label_time": from_micros(asked + HOUR)})
    folder.log(events)
    return Walk(folder, pl.DataFrame(rows))


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return walk(tmp_path_factory.mktemp("walk") / "p")
