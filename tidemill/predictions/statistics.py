"""What the checks know of a run: counts, and how its scores are distributed. Exact in any order, so parts add up as they come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from tidemill.kernel.buckets import buckets_of
from tidemill.predictions.scorer import DEGRADED, OK, STATUSES

#: In how many parts the last run's scores are cut, each of about as many, to compare the next run's.
PSI_BINS = 10


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the rows of a part, or of a run. `statuses`: rows by status. `history`: how many rows' features came from the history.

    `low`, `high`: of the scores; None where there are none. `buckets`: scores by `tidemill.kernel.buckets.buckets_of`.
    """

    rows: int = 0
    scored: int = 0
    history: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    buckets: dict[int, int] = field(default_factory=dict)

    def __add__(self, other: Statistics) -> Statistics:
        lows = [v for v in (self.low, other.low) if v is not None]
        highs = [v for v in (self.high, other.high) if v is not None]
        return Statistics(
            self.rows + other.rows,
            self.scored + other.scored,
            self.history + other.history,
            dict(Counter(self.statuses) + Counter(other.statuses)),
            min(lows, default=None),
            max(highs, default=None),
            dict(Counter(self.buckets) + Counter(other.buckets)),
        )

    @property
    def covered(self) -> int:
        """Rows that the model itself scored."""
        return self.statuses.get(OK, 0) + self.statuses.get(DEGRADED, 0)


def of_part(frame: pl.DataFrame) -> Statistics:
    """The statistics of a part: its columns `score`, `status` and `features_from`."""
    scores = frame["score"].drop_nulls().to_numpy()
    assert np.isfinite(scores).all(), "a score that is not finite is never written"
    counted = Counter(frame["status"].to_list())
    buckets, counts = np.unique(buckets_of(scores), return_counts=True)
    return Statistics(
        frame.height,
        len(scores),
        int((frame["features_from"] == "history").sum()),
        {status: counted[status] for status in STATUSES if counted[status]},
        float(scores.min()) if len(scores) else None,
        float(scores.max()) if len(scores) else None,
        dict(zip(buckets.tolist(), counts.tolist(), strict=True)),
    )


def population_stability(before: Statistics, after: Statistics, bins: int = PSI_BINS) -> float:
    """The population stability index of the scores: the sum over bins of (a - b) * ln(a / b), b and a the shares before and after.

    The bins are those that cut the scores before into about as many each, and two for what lies below and above them all; half a score is
    added to each, so that an empty bin is no infinity. 0 where the scores lie alike; people look closer from 0.1 on, and take 0.25 for
    another population.

    >>> same, other = (of_part(pl.DataFrame({"score": s, "status": "ok", "features_from": "online"})) for s in ([.1, .2] * 50, [.8] * 100))
    >>> population_stability(same, same), round(population_stability(same, other), 1)
    (0.0, 9.7)
    """
    edges = _edges(before.buckets, bins)
    b, a = _shares(before.buckets, edges), _shares(after.buckets, edges)
    return float(((a - b) * np.log(a / b)).sum())


def _edges(buckets: dict[int, int], bins: int) -> list[int]:
    """Buckets at which a new bin begins: each holds about as many, but for the first and the last, which hold what lies beyond them all."""
    edges = {min(buckets), max(buckets) + 1}
    total, seen, i = sum(buckets.values()), 0, 1
    for bucket in sorted(buckets):
        if seen * bins >= total * i:
            edges.add(bucket)
            i = seen * bins // total + 1
        seen += buckets[bucket]
    return sorted(edges)


def _shares(buckets: dict[int, int], edges: list[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    keys = np.array(list(buckets), dtype=np.int64)
    weights = np.array(list(buckets.values()), dtype=np.float64)
    counts = np.bincount(np.searchsorted(np.array(edges, dtype=np.int64), keys, side="right"), weights=weights, minlength=len(edges) + 1)
    shares: np.ndarray[tuple[int], np.dtype[np.float64]] = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return shares
