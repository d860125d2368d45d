"""A project whose predictions were logged and labelled, for a learner to learn from."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tidemill as tm
from tests.project import Folder
from tidemill.environment import Environment
from tidemill.learning.settings import LearnerSettings
from tidemill.models.registry import Models
from tidemill.prediction_log import PredictionLog
from tidemill.times import DAY, HOUR, MINUTE, from_micros, to_micros

DEFINITIONS = """
events = tm.Source("events", schema={"k": str, "x": float, "at": tm.Timestamp}, timestamp="at", path="log/**/*.jsonl")
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=["1h"]), tm.mean("x", windows=["1h", "1d"])])


@tm.on_demand(inputs=[tm.Request(amount=float)])
def twice(amount):
    return 2 * amount


s = tm.FeatureService("s", features=[v, twice])
outcomes = tm.Source(
    "outcomes", schema={"prediction_id": str, "k": str, "bad": bool, "at": tm.Timestamp}, timestamp="at", arrival="known",
    path="labels/**/*.jsonl",
)
"""
LEARNER = """
[learner]
model = "m"
labels = "outcomes"
label = "bad"
horizon = "2h"
publish_examples = 50
"""
START = to_micros("2026-05-01T12:00:00")
COLUMNS = ("v__count_1h", "v__x_mean_1h", "v__x_mean_1d", "twice")
FILL = dict.fromkeys(COLUMNS, 0.0)


def river_model() -> Any:
    """Version 1: it has seen a few examples, so that its scores differ."""
    from river import linear_model, preprocessing

    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    dice = random.Random(3)
    for _ in range(30):
        row = {name: dice.gauss(0, 1) for name in COLUMNS}
        model.learn_one(row, row["twice"] + dice.gauss(0, 1) > 0)
    return model


class World:
    """Predictions of 12 entities, one a minute from START on; `labels` has the label of each, an hour or so later."""

    def __init__(self, path: Path, count: int = 260) -> None:
        self.path = path
        folder = Folder(path, DEFINITIONS)
        dice = random.Random(7)
        folder.log(
            [
                {"k": f"k{dice.randrange(10)}", "x": dice.gauss(0, 2), "at": from_micros(START + (i - 400) * MINUTE // 2).isoformat()}
                for i in range(1000)
            ]
        )
        folder.stream()
        (path / "labels").mkdir()
        with (path / "tidemill.toml").open("a") as toml:
            toml.write(LEARNER)
        log = PredictionLog(folder.env.offline)
        store = tm.FeatureStore(path, prediction_log=log)
        store.models.register("m", river_model(), service="s", fill=FILL)
        store.models.promote("m", "1")
        self.labels: list[dict[str, Any]] = []
        for i in range(count):
            at = START + i * MINUTE
            scores = store.score("m", [{"k": f"k{dice.randrange(12)}", "amount": dice.gauss(0, 1)}], at=at)
            known = at + HOUR + dice.randrange(30 * MINUTE)
            bad = dice.random() < 1 / (1 + 2.0 ** -(scores.features.columns["twice"][0] or 0.0))
            self.labels.append({"prediction_id": scores.prediction_id[0], "bad": bad, "at": known - 1, "known": known})
        store.close()
        folder.env.online.close()

    def copied(self, path: Path) -> World:
        """The same in another folder."""
        shutil.copytree(self.path, path)
        other = World.__new__(World)
        other.path, other.labels = path, self.labels
        return other

    def write(self, labels: Sequence[dict[str, Any]], file: str = "a.jsonl", *, end: bool = True) -> None:
        """Labels at the end of the log; and one of nobody, long after, so that all before it are decided."""
        file_path = self.path / "labels" / file
        file_path.parent.mkdir(exist_ok=True)
        some = list(labels)
        if end:
            some.append({"prediction_id": "nobody", "bad": True, "at": START + 60 * DAY, "known": START + 60 * DAY})
        with file_path.open("a") as lines:
            lines.writelines(
                json.dumps({**x, "at": from_micros(x["at"]).isoformat(), "known": from_micros(x["known"]).isoformat()}) + "\n" for x in some
            )

    def env(self) -> Environment:
        return Environment.load(self.path)

    def settings(self, **changed: Any) -> LearnerSettings:
        from dataclasses import replace

        return replace(LearnerSettings.of(self.env()), **changed)

    def models(self) -> Models:
        return Models(self.env(), lambda: START)


def weights(model: Any) -> Any:
    """What a scaled logistic regression has learned, to the bit."""
    scaler, regression = (model[name] for name in model.steps)
    return (
        {k: v.hex() for k, v in regression.weights.items()},
        float(regression.intercept).hex(),
        {k: float(v).hex() for k, v in scaler.means.items()},
        {k: float(v).hex() for k, v in scaler.vars.items()},
        dict(scaler.counts),
    )
