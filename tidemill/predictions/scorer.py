"""What a batch prediction asks of a model: features and scores of many rows at one instant, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl

from tidemill.definitions import FeatureSet

#: A row's status. `ok`: the model scored it, and nothing was missing. `degraded`: the model scored it with some features missing, stale or
#: overflown. `fallback`: the stated default score stands in. `missing`: no score. `nonfinite`: the model returned NaN or an infinity, and
#: there is no score.
OK, DEGRADED, FALLBACK, MISSING, NONFINITE = STATUSES = ("ok", "degraded", "fallback", "missing", "nonfinite")


@dataclass(frozen=True)
class Scored:
    """Scores of some rows, one item per row everywhere: null where there is none. `features`: a typed frame, columns as `view__feature`."""

    ids: Sequence[str]
    score: Sequence[float | None]
    label: Sequence[Any]
    status: Sequence[str]
    features: pl.DataFrame


class Scorer(Protocol):
    """One version of a model, and the features that it reads.

    `range`: between what scores must lie, where the model says so, as the probabilities of a classifier do.
    """

    model: str
    version: str
    wanted: FeatureSet
    range: tuple[float, float] | None

    def score(self, rows: list[dict[str, Any]], at: int) -> Scored:
        """Scores of features read online, as of `at` (UTC microseconds). Raises `HorizonError` where the store has compacted past it."""
        ...

    def score_past(self, rows: pl.DataFrame, at: int) -> Scored:
        """Scores of features as they were known at `at`, from `get_historical_features`. `rows`: key and request columns."""
        ...
