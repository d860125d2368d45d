"""What a worker measures of its flushes, as histograms: small enough to be written into its status file every second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

#: Upper bounds. Seconds from a record's arrival in the log until it is applied: from a live stream's linger up to hours of catching up.
LATENCY = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
#: Seconds that the stores take for a flush.
APPLY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
#: Records in a flush; the last but one is about what is read at once where there is enough (`ingest.ROWS`).
FLUSH = (1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 250_000.0)


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[i]` values were at most the i-th bound and above the one before; the last count is of those above all. `total`: their sum.

    >>> Histogram((1, 0), 0.5) + Histogram((0, 2), 9.0)
    Histogram(counts=(1, 2), total=9.5)
    """

    counts: tuple[int, ...]
    total: float = 0.0

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)), self.total + other.total)


@dataclass(frozen=True, slots=True)
class Measured:
    """The histograms of a partition's flushes, since its worker began: `latency`, `apply` and `flush` as above.

    `latency` counts events whose log has arrival times, each when it was first applied by this worker; `flush` and `apply` every flush.
    """

    latency: Histogram = Histogram((0,) * (len(LATENCY) + 1))
    apply: Histogram = Histogram((0,) * (len(APPLY) + 1))
    flush: Histogram = Histogram((0,) * (len(FLUSH) + 1))

    def __add__(self, other: Measured) -> Measured:
        return Measured(self.latency + other.latency, self.apply + other.apply, self.flush + other.flush)


class Measures:
    """Takes the measures of one partition's flushes. `now` gives wall-clock UTC microseconds."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._latency, self._apply, self._flush = _Counts(LATENCY), _Counts(APPLY), _Counts(FLUSH)

    def took(self, seconds: float, records: int, arrivals: pl.Series) -> None:
        """A flush of so many records was applied in so many seconds. `arrivals`: UTC microseconds (or null) of what was new in it."""
        self._apply.add(seconds)
        self._flush.add(records)
        # Clocks differ: what has not arrived yet by ours has arrived just now.
        self._latency.add(np.maximum(self._now() - arrivals.drop_nulls().to_numpy(), 0) / 1e6)

    def told(self) -> Measured:
        """What was measured by now."""
        return Measured(self._latency.told(), self._apply.told(), self._flush.told())


class _Counts:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = np.array(bounds)
        self._counts: NDArray[np.int64] = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._total = 0.0

    def add(self, values: ArrayLike) -> None:
        found = np.atleast_1d(np.asarray(values, dtype=np.float64))
        self._counts += np.bincount(np.searchsorted(self._bounds, found, side="left"), minlength=len(self._counts))
        self._total += float(found.sum())

    def told(self) -> Histogram:
        return Histogram(tuple(self._counts.tolist()), self._total)
