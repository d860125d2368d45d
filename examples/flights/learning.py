"""The last quarter once more, with a model that goes on learning: asked at scheduled departure, told when the flight's arrival is known.

The model is River's, begun on the same flights as the batch-trained one. A label teaches it at the instant at which it was known, and so
counts in every prediction after that, and in none before. `tidemill learn` does the same in a process of its own, from logged
predictions and a source of labels; here the whole quarter takes some seconds.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from river import linear_model, optim, preprocessing

from tidemill.apps.examples.flights.season import Quarter


def learned(quarter: Quarter) -> Any:
    """The scores of the flights asked about, in their order: the probability that each is late, as the model had it at that instant."""
    usual = np.nan_to_num(np.nanmedian(quarter.x, axis=0))  # a null is filled in: River would keep a NaN for ever
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.003), l2=1e-4)
    for row, label in zip(_rows(quarter.x, usual, quarter.columns), quarter.y.tolist(), strict=True):
        model.learn_one(row, bool(label))
    scores = np.empty(len(quarter.told))
    waiting: list[tuple[int, int, dict[str, float]]] = []  # (known, number, features) of flights whose label nobody knows yet
    asked = _rows(quarter.asked, usual, quarter.columns)
    for i in np.argsort(quarter.at, kind="stable").tolist():
        while waiting and waiting[0][0] <= quarter.at[i]:
            _, before, row = heapq.heappop(waiting)
            model.learn_one(row, bool(quarter.told[before]))
        scores[i] = model.predict_proba_one(asked[i])[True]
        heapq.heappush(waiting, (int(quarter.known[i]), i, asked[i]))
    return scores


def _rows(values: Any, usual: Any, columns: tuple[str, ...]) -> list[dict[str, float]]:
    filled = np.where(np.isnan(values), usual, values)
    return [dict(zip(columns, row, strict=True)) for row in filled.tolist()]
