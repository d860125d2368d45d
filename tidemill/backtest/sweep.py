"""The backtest itself: once per freshness a training set, models trained before the split, and tested after it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import polars as pl

from tidemill.backtest.models import predictions
from tidemill.backtest.result import COVERAGE, Aged, Backtest, Estimate, Point, Score
from tidemill.client import Features, FeatureStore
from tidemill.datasets import HistoricalFeatures
from tidemill.datasets.questions import TIMESTAMP, instants
from tidemill.definitions import resolve_features
from tidemill.definitions.names import suggestion
from tidemill.errors import DefinitionError, RequestError
from tidemill.estimators import ESTIMATORS, estimator_factory
from tidemill.labelled import Float64s, Labelled, Names, Split, prepare, split
from tidemill.matrix import Matrix, matrix, nulls
from tidemill.measures import METRICS, Metric, Statistic, blocks, draws
from tidemill.models.manifest import Kind
from tidemill.times import format_duration, parse_duration

#: How old the newest event that the features know may be, where nobody says otherwise.
FRESHNESS = ("0s", "1m", "10m", "1h", "6h", "1d", "7d")
_RESAMPLED = 1_000
#: With fewer resampled test periods that have the metric at all, there is no interval.
_ENOUGH = 100


@dataclass(frozen=True)
class Plan:
    """What a backtest does: see `backtest`.

    `aged`: what a freshness of 1h means. "events": events of the last hour are unknown, and windows still end at the request, as
    `get_historical_features(freshness="1h")` has it. "values": the values were computed an hour before, windows and all, as a table is
    that a job fills every hour and that is read until it does so again.
    """

    split: str | float
    freshness: Sequence[str] = FRESHNESS
    models: Sequence[str] | None = None
    metric: str | None = None
    kind: Kind | None = None
    knowledge: str | None = None
    aged: Aged = "events"
    names: Names = field(default_factory=Names)
    seed: int = 0


def backtest(
    store: FeatureStore, labelled: Any, features: Features, plan: Plan, progress: Callable[[str, int, int], object] = lambda *_: None
) -> Backtest:
    """What freshness is worth to a model that reads these features.

    `labelled`: any frame that `get_historical_features` takes, with a label and the instant at which it became known (`plan.names`).
    For each of `plan.freshness` the features are computed so that nothing newer is known; models are trained on the rows asked before
    `plan.split` whose label was known by then, and tested on all rows from the split on. Intervals are a paired bootstrap over blocks of
    time of the test rows (1,000 draws). The same input gives the same result.

    Raises `RequestError` for a frame, a split or a model that cannot be used, and whatever `get_historical_features` raises.
    """
    wanted = resolve_features(features, store.env.definitions)
    ages = _ages(plan.freshness)
    if plan.aged not in ("events", "values"):
        raise RequestError(f"aged is {plan.aged!r}: say events (newer ones are unknown) or values (they were computed that long before)")
    if plan.aged == "values" and TIMESTAMP in wanted.request:
        raise RequestError(f"{TIMESTAMP} is a request column of these features: aged values move it; say aged='events'")
    rows = prepare(labelled, plan.names, wanted, plan.kind)
    metric = _metric(plan.metric, rows.kind)
    models = tuple(dict.fromkeys(plan.models or ESTIMATORS[rows.kind]))
    factories = {name: estimator_factory(name, rows.kind, store.env.project.directory, plan.seed) for name in models}
    where = split(rows, plan.split)
    # Training rows first, then test rows; what is used by neither is not asked for.
    asked = rows.asked[np.concatenate([where.train, where.test])]
    held = _Held(rows, where, plan.seed)
    points: list[Point] = []
    knowledge: Mapping[str, str] = {}
    left_out: Mapping[str, str] = {}
    total = len(ages) * (1 + len(models))
    for age in ages:
        progress("backtest", len(points) * (1 + len(models)), total)
        answers, hypothetical = _answers(store, asked, features, plan, age)
        knowledge = answers.knowledge
        found = matrix(answers.to_polars(), wanted.columns)
        left_out = found.left_out
        scores: dict[str, Mapping[str, Score]] = {}
        warned: dict[str, list[str]] = {}
        for name, factory in factories.items():
            progress("backtest", len(points) * (1 + len(models)) + 1 + len(scores), total)
            predicted, said = predictions(name, factory, *held.sides(found), rows.kind)
            scores[name] = held.scores(name, predicted)
            if said:
                warned[name] = said
        shares = nulls(found.values[len(where.train) :])
        points.append(Point(age, hypothetical, dict(zip(found.columns, shares.tolist(), strict=True)), scores, warned))
    progress("backtest", total, total)
    return Backtest(
        features=wanted.service or _named(features),
        kind=rows.kind,
        metric=metric,
        models=models,
        points=tuple(points),
        knowledge=knowledge,
        split=where.at,
        train=len(where.train),
        test=len(where.test),
        unlabelled=rows.unlabelled,
        unknown_yet=where.unknown_yet,
        positives=float(rows.y[where.test].mean()) if rows.kind == "classifier" else None,
        blocks=held.blocks.text,
        seed=plan.seed,
        left_out=left_out,
        versions=_versions(),
        aged=plan.aged,
    )


def _answers(store: FeatureStore, asked: pl.DataFrame, features: Features, plan: Plan, age: int) -> tuple[HistoricalFeatures, str | None]:
    """The features at one freshness, and why no live request could have answered so."""
    if plan.aged == "events" or age == 0:
        found = store.get_historical_features(asked, features, knowledge=plan.knowledge, freshness=format_duration(age))
        return found, found.hypothetical
    then = asked.with_columns(instants(asked[TIMESTAMP]).alias(TIMESTAMP) - age)
    found = store.get_historical_features(then, features, knowledge=plan.knowledge)
    reasons = [found.hypothetical, f"values were computed {format_duration(age)} before the request"]
    return found, "; ".join(r for r in reasons if r)


class _Held:
    """The test rows: what each model made of them, and of the freshest features first of all."""

    def __init__(self, rows: Labelled, where: Split, seed: int) -> None:
        self._train = len(where.train)
        self._y = rows.y[where.train]
        self._tested = rows.y[where.test]
        self._metrics = METRICS[rows.kind]
        self.blocks = blocks(rows.at[where.test])
        self._once = np.ones((1, self.blocks.count))
        self._drawn = draws(self.blocks.count, _RESAMPLED, seed)
        self._freshest: dict[tuple[str, str], tuple[float, Float64s]] = {}

    def sides(self, found: Matrix) -> tuple[Float64s, Float64s, Float64s]:
        """What to train on, its labels, and what to ask about."""
        return found.values[: self._train], self._y, found.values[self._train :]

    def scores(self, model: str, predicted: Float64s) -> Mapping[str, Score]:
        """Every metric; the first call for a model is of the freshest features."""
        return {name: self._score((model, name), metric.of(self._tested, predicted, self.blocks)) for name, metric in self._metrics.items()}

    def _score(self, key: tuple[str, str], statistic: Statistic) -> Score:
        value, resampled = float(statistic.over(self._once)[0]), statistic.over(self._drawn)
        first = self._freshest.setdefault(key, (value, resampled))
        difference = None if first[1] is resampled else _estimate(value - first[0], resampled - first[1])
        return Score(_estimate(value, resampled), difference)


def _estimate(value: float, resampled: Float64s) -> Estimate:
    there = resampled[~np.isnan(resampled)]
    if len(there) < _ENOUGH:
        return Estimate(value, None, None)
    low, high = np.quantile(there, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(value, float(low), float(high))


def _named(features: Features) -> str:
    """What was asked for, for people; a long list by its length."""
    listed = list(features) if isinstance(features, (list, tuple)) else [features]
    names = [str(getattr(f, "name", f)) for f in listed]
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} features"


def _ages(freshness: Sequence[str]) -> list[int]:
    """Each age once, the freshest first."""
    try:
        ages = sorted({parse_duration(text) for text in freshness})
    except DefinitionError as error:
        raise RequestError(f"freshness: {error}") from None
    if not ages:
        raise RequestError("no freshness is named: say how old features may be, such as 0s and 1d")
    return ages


def _metric(name: str | None, kind: Kind) -> Metric:
    metrics = METRICS[kind]
    if name is None:
        return next(iter(metrics.values()))
    if name not in metrics:
        what = "two classes" if kind == "classifier" else "a regression"
        raise RequestError(f"there is no metric {name!r} of {what}; {suggestion(name, metrics)}")
    return metrics[name]


def _versions() -> dict[str, str]:
    """What the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("tidemill", "numpy", "scikit-learn"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
