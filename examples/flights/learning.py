"""The last quarter once more, with a model that goes on learning: asked at scheduled departure, told when the flight's arrival is known.

The model is River's, begun on the same flights as the batch-trained one. A label teaches it at the instant at which it was known, and so
counts in every prediction after that, and in none before. `tidemill learn` does the same in a process of its own, from logged
predictions and a source of labels (see scoring.py); here the whole quarter takes some seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np
from river import linear_model, optim, preprocessing

from tidemill.apps.examples.flights.season import Quarter


def new_model() -> Any:
    """A logistic regression that knows nothing yet."""
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.AdaGrad(0.05), l2=0.0)


def learned(quarter: Quarter) -> tuple[Any, Any]:
    """The scores of the flights asked about, in their order: the probability that each is late, as the model had it at that instant.

    The first are those of the model as the quarter begins, which learns no more; the second those of the model that goes on learning.
    """
    begun, asked = _rows(quarter, quarter.x), list(_rows(quarter, quarter.asked))
    model = new_model()
    for row, label in zip(begun, quarter.y.tolist(), strict=True):
        model.learn_one(row, bool(label))
    still = np.array([model.predict_proba_one(row)[True] for row in asked])
    scores = np.empty(len(asked))
    waiting: list[tuple[int, int]] = []  # (known, number) of flights whose label nobody knows yet
    for i in np.argsort(quarter.at, kind="stable").tolist():
        while waiting and waiting[0][0] <= quarter.at[i]:
            _, before = heapq.heappop(waiting)
            model.learn_one(asked[before], bool(quarter.told[before]))
        scores[i] = model.predict_proba_one(asked[i])[True]
        heapq.heappush(waiting, (int(quarter.known[i]), i))
    return still, scores


def _rows(quarter: Quarter, values: Any) -> Iterator[dict[str, float]]:
    """Rows as River wants them: nulls filled with the median, because it would keep a NaN for ever, and a column that says which were."""
    usual, holes = np.nan_to_num(np.nanmedian(quarter.x, axis=0)), np.isnan(quarter.x).any(axis=0)
    names = [*quarter.columns, *(f"{c} is null" for c, some in zip(quarter.columns, holes, strict=True) if some)]
    null = np.isnan(values)
    filled = np.hstack([np.where(null, usual, values), null[:, holes]])
    return (dict(zip(names, row, strict=True)) for row in filled.tolist())
