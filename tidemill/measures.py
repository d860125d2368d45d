"""How good predictions are, and how sure that is: metrics that can be computed again over resampled blocks of time.

Rows of one day share its weather, so a bootstrap over single rows (or DeLong's formula, which takes them for independent) would make
the intervals too narrow. Whole blocks of time are drawn instead, the same ones for every freshness, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tidemill.labelled import Float64s, Int64s
from tidemill.models.manifest import Kind
from tidemill.times import DAY, format_duration

#: Blocks of a test period: at least so many days, else pieces of rows; and at most so many, else several days at a time.
_MIN_DAYS, _MAX_BLOCKS = 20, 200


@dataclass(frozen=True)
class Blocks:
    """Which block each row is of, int64 (n,) in [0, count), and what a block is, for people."""

    of: Int64s
    count: int
    text: str


def blocks(at: Int64s) -> Blocks:
    """Days (UTC) of the rows' instants, several at a time if there are many; of a short period, pieces with as many rows each.

    >>> blocks(np.arange(90) * DAY).text, blocks(np.arange(1000) * DAY).text, blocks(np.arange(500)).text
    ('90 blocks of 1d', '200 blocks of 5d', '200 blocks of rows')
    """
    days = at // DAY
    distinct = len(np.unique(days))
    if distinct >= _MIN_DAYS:
        width = 1
        while len(np.unique(days // width)) > _MAX_BLOCKS:
            width += 1
        _, of = np.unique(days // width, return_inverse=True)
        count = int(of.max()) + 1
        return Blocks(of, count, f"{count} blocks of {format_duration(width * DAY)}")
    count = min(_MAX_BLOCKS, len(at))
    of = np.empty(len(at), dtype=np.int64)
    of[np.argsort(at, kind="stable")] = np.arange(len(at)) * count // len(at)
    return Blocks(of, count, f"{count} blocks of rows")


def draws(count: int, times: int, seed: int) -> Float64s:
    """How often each block is in each resampled test period: float64 of shape (times, count)."""
    drawn: Float64s = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=times).astype(np.float64)
    return drawn


class Statistic(Protocol):
    """A metric of some predictions, block by block."""

    def over(self, drawn: Float64s) -> Float64s:
        """Its values with each block counted as often as `drawn` (times, blocks) says: (times,), NaN where there is none."""
        ...


@dataclass(frozen=True)
class Metric:
    """A metric: its name for programs and for people, which way is better, and how it is computed."""

    name: str
    text: str
    higher: bool
    of: Callable[[Float64s, Float64s, Blocks], Statistic]

    def gain(self, difference: float) -> float:
        """A difference of two values, positive where the first is the better one."""
        return difference if self.higher else -difference


class _Pairs:
    """AUC: of all pairs of a positive and a negative, the share that is ranked right; ties count half.

    The pairs are counted once per pair of blocks, so a resampled AUC is a quadratic form in how often each block was drawn.
    """

    def __init__(self, y: Float64s, predicted: Float64s, blocks: Blocks) -> None:
        positive = y == 1
        up, of_up = predicted[positive], blocks.of[positive]
        order = np.lexsort((predicted[~positive], blocks.of[~positive]))
        down, of_down = predicted[~positive][order], blocks.of[~positive][order]
        ends = np.searchsorted(of_down, np.arange(blocks.count + 1))
        self._right = np.zeros((blocks.count, blocks.count))
        for b in range(blocks.count):
            below = down[ends[b] : ends[b + 1]]
            ranks = (np.searchsorted(below, up, side="left") + np.searchsorted(below, up, side="right")) / 2
            self._right[:, b] = np.bincount(of_up, weights=ranks, minlength=blocks.count)
        self._positives = np.bincount(of_up, minlength=blocks.count).astype(np.float64)
        self._negatives = np.diff(ends).astype(np.float64)

    def over(self, drawn: Float64s) -> Float64s:
        pairs = (drawn @ self._positives) * (drawn @ self._negatives)
        right: Float64s = ((drawn @ self._right) * drawn).sum(axis=1)
        return _ratio(right, pairs)


class _Mean:
    """The mean of a loss per row, or its root."""

    def __init__(self, loss: Float64s, blocks: Blocks, *, root: bool = False) -> None:
        self._sums = np.bincount(blocks.of, weights=loss, minlength=blocks.count)
        self._counts = np.bincount(blocks.of, minlength=blocks.count).astype(np.float64)
        self._root = root

    def over(self, drawn: Float64s) -> Float64s:
        mean = _ratio(drawn @ self._sums, drawn @ self._counts)
        return np.sqrt(mean) if self._root else mean


def _ratio(a: Float64s, b: Float64s) -> Float64s:
    ratio: Float64s = np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)
    return ratio


def _log_loss(y: Float64s, p: Float64s, blocks: Blocks) -> Statistic:
    # A certainty that proves wrong costs much, not infinitely much; as scikit-learn has it.
    p = np.clip(p, np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
    return _Mean(-np.log(np.where(y == 1, p, 1 - p)), blocks)


METRICS: dict[Kind, dict[str, Metric]] = {
    "classifier": {
        "auc": Metric("auc", "AUC", True, _Pairs),
        "log_loss": Metric("log_loss", "log loss", False, _log_loss),
        "brier": Metric("brier", "Brier score", False, lambda y, p, b: _Mean((y - p) ** 2, b)),
    },
    "regressor": {
        "rmse": Metric("rmse", "RMSE", False, lambda y, p, b: _Mean((y - p) ** 2, b, root=True)),
        "mae": Metric("mae", "MAE", False, lambda y, p, b: _Mean(np.abs(y - p), b)),
    },
}


def measure(kind: Kind, y: Float64s, predicted: Float64s) -> dict[str, float | None]:
    """Every metric of some predictions, float64 of shape (n,), by name. AUC is None where all labels are the same.

    >>> measure("regressor", np.array([1.0, 2.0]), np.array([1.0, 4.0]))["mae"]
    1.0
    """
    whole = Blocks(np.zeros(len(y), dtype=np.int64), 1, "")
    found = {m.name: float(m.of(y, predicted, whole).over(np.ones((1, 1)))[0]) for m in METRICS[kind].values()}
    return {name: None if np.isnan(value) else value for name, value in found.items()}
