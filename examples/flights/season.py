"""Nine months to train on and a quarter to score, at scheduled departure: what old and fresh features are worth to a batch-trained model.

`scored` is a short `tidemill backtest`, for the end of the demo: it trains on every fifth flight, at two freshnesses. What it returns has
the rows themselves too, so that an online learner can go through the same quarter, flight by flight, and be measured beside them:
a flight's label may be learned from `known` on, and no sooner.

    python season.py [PROJECT]     # a folder with a tidemill.toml and data/; default: this one
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import tidemill as tm
from tidemill.apps.examples.flights.labels import labelled
from tidemill.backtest import Names
from tidemill.backtest.models import predictions
from tidemill.definitions import resolve_features
from tidemill.estimators import ESTIMATORS, estimator_factory
from tidemill.labelled import prepare, split
from tidemill.matrix import matrix
from tidemill.measures import measure

SERVICE = "delay_at_departure"
SPLIT = "2013-10-01"
#: Of the flights before the split, every so many are trained on: enough for the second digit of an AUC, in a fifth of the time.
EVERY = 5


@dataclass(frozen=True)
class Quarter:
    """One freshness: features as a model gets them, float64 (rows, columns), null is NaN; labels 0.0 and 1.0.

    `x`, `y` are the flights to train on, whose labels were known at the split. Of those to score, in the order of the table: `asked` and
    `told` (their features and labels), and when they were asked about (`at`) and their label was `known`, UTC microseconds. `scores` by
    model: the probability that the flight is late.
    """

    freshness: str
    columns: tuple[str, ...]
    x: Any
    y: Any
    asked: Any
    told: Any
    at: Any
    known: Any
    scores: dict[str, Any]

    def auc(self, scores: Any) -> float:
        """Of any finite scores of the flights asked about."""
        found = measure("classifier", self.told, scores)["auc"]
        assert found is not None, "a quarter has flights that were late, and flights that were not"
        return found


def scored(
    store: tm.FeatureStore,
    frame: pl.DataFrame | None = None,
    *,
    freshness: Sequence[str] = ("1d", "0s"),
    models: Sequence[str] = ESTIMATORS["classifier"],
    where: str = SPLIT,
    every: int = EVERY,
) -> list[Quarter]:
    """Train before the split and score after it, once per freshness. `frame`: as `labels.labelled` makes it, which is the default."""
    wanted = resolve_features(SERVICE, store.env.definitions)
    rows = prepare(labelled() if frame is None else frame, Names(), wanted)
    found = split(rows, where)
    train, test = found.train[::every], found.test
    asked = rows.asked[np.concatenate([train, test])]
    quarters = []
    for age in freshness:
        features = matrix(store.get_historical_features(asked, SERVICE, freshness=age).to_polars(), wanted.columns)
        x, y, of = features.values[: len(train)], rows.y[train], features.values[len(train) :]
        scores = {}
        for name in models:
            scores[name], _ = predictions(name, estimator_factory(name, "classifier", store.env.project.directory), x, y, of, "classifier")
        quarters.append(Quarter(age, features.columns, x, y, of, rows.y[test], rows.at[test], rows.known[test], scores))
    return quarters


if __name__ == "__main__":
    began = time.monotonic()
    for quarter in scored(tm.FeatureStore(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)):
        for model, scores in quarter.scores.items():
            print(f"features at least {quarter.freshness} old, {model}: AUC {quarter.auc(scores):.3f} of {len(scores):,} flights")
    print(f"{len(quarter.y):,} flights trained on, {len(quarter.columns)} features, {time.monotonic() - began:.1f} s")
