"""Quantiles: counts of values per bucket of a float's bits, in tables.

A bucket is a row of a frame, and a record of 24 bytes, `span, tag, bucket << 46 | count`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.kernel.table import (
    OVERFLOW,
    RECORD_VERSION,
    Int64s,
    Overflow,
    Records,
    Table,
    by_small,
    counted_events,
    group_starts,
    grouped,
    join_blobs,
    split_blobs,
)
from tidemill.stable import digest
from tidemill.types import ColumnType

_BUCKET_SHIFT = 46  # a double's exponent and the top 6 bits of its mantissa: 17 bits, and the sign
_COUNT_BITS = 46
_COUNT_MASK = (1 << _COUNT_BITS) - 1
#: A counter that is full says that the true number is at least that, however tiles were merged on the way.
FULL = _COUNT_MASK
#: Histograms are made of so many counters at a time (8 bytes each), and summed in runs of so many buckets.
_DENSE_CELLS = 1 << 20
_RUN = 16

Float64s = npt.NDArray[np.float64]
Answer = float | Overflow | None


def buckets_of(x: npt.NDArray[np.float64]) -> Int64s:
    """The bucket of each number, from its bits: ordered as the numbers are, 0 for zero (and what is too small for a normal float).

    A bucket is 2**-6 of a power of two wide, so its middle is within 2**-7 of every number in it. Like DDSketch (Masson et al., VLDB
    2019) but for the logarithm, whose last bit differs between libraries.

    >>> buckets_of(np.array([-1.0, -0.0, 0.0, 1.0, 1.01, 1.02])).tolist()
    [-65472, 0, 0, 65472, 65472, 65473]
    """
    magnitude = np.abs(x).view(np.int64) >> _BUCKET_SHIFT
    magnitude[magnitude < 64] = 0  # subnormal: its bits are no longer relative to its size
    return np.where(x < 0, -magnitude, magnitude)


def bucket_middles(buckets: Int64s) -> npt.NDArray[np.float64]:
    """The numbers that stand for buckets.

    >>> bucket_middles(np.array([65472, 0, -65472])).tolist()
    [1.0078125, 0.0, -1.0078125]
    """
    bits = (np.abs(buckets) << _BUCKET_SHIFT) | (1 << (_BUCKET_SHIFT - 1))
    return np.where(buckets == 0, 0.0, np.copysign(bits.view(np.float64), buckets))


class QuantileTable(Table[Int64s]):
    """Counts per bucket. Counters saturate at 2**46 - 1, in any order alike, and then the answer is `overflow`. A body is int64 (n,)."""

    record_bytes = 24
    cell = ("_bucket",)
    columns = ("_bucket", "_count")

    def __init__(self, column: str, type_: ColumnType, where: str | None) -> None:
        self.column, self.type, self.where = column, type_, where
        self.key = f"{column}_quantile-" + digest([RECORD_VERSION, "quantile", column, str(type_), where])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuantileTable) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    # ---- frames -----------------------------------------------------------------------------------------------------------------

    def fold(self, events: pl.DataFrame, masks: Mapping[str, pl.Series], by: Sequence[str]) -> pl.DataFrame:
        counted = counted_events(events, masks, self.column, self.where)
        rows = events if counted is None else events.filter(counted)
        bucket = buckets_of(rows[self.column].cast(pl.Float64).to_numpy())
        frame = rows.select(by).hstack([pl.Series("_bucket", bucket, dtype=pl.Int32)])
        return grouped(frame, [*by, "_bucket"], [pl.len().cast(pl.Int64).alias("_count")])

    def merge(self, frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        return grouped(frame, [*by, "_bucket"], [pl.col("_count").sum()])

    def pack(self, frame: pl.DataFrame) -> Int64s:
        bucket = frame["_bucket"].cast(pl.Int64).to_numpy()
        body: Int64s = (bucket << _COUNT_BITS) | np.minimum(frame["_count"].to_numpy(), FULL)
        return body

    # ---- records ----------------------------------------------------------------------------------------------------------------

    def decode(self, blobs: Sequence[bytes]) -> Records[Int64s]:
        entity, words = join_blobs(blobs, 3)
        return Records(entity, words[:, 0], words[:, 1], words[:, 2])

    def encode(self, records: Records[Int64s], count: int) -> list[bytes]:
        return split_blobs(np.column_stack([records.span, records.tag, records.body]), records.entity, count)

    def take(self, body: Int64s, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Int64s:
        return body[rows]

    def merge_records(self, records: Records[Int64s]) -> Records[Int64s]:
        bucket = records.body >> _COUNT_BITS
        order, starts = group_starts(records.entity, records.span, records.tag, bucket)
        if len(starts) == 0:
            return records
        first = order[starts]
        count = np.minimum(np.add.reduceat((records.body & _COUNT_MASK)[order], starts), FULL)
        return Records(records.entity[first], records.span[first], records.tag[first], (bucket[first] << _COUNT_BITS) | count)

    def states(self, body: Int64s, slot: Int64s, entities: int, windows: int) -> QuantileStates:
        buckets, index = _numbered(body >> _COUNT_BITS)
        counts = (body & _COUNT_MASK).astype(np.float64)  # a sum of doubles is exact below 2**53, and a bin count needs no sorting
        entity, window = np.divmod(slot, windows)
        step = max(1, _DENSE_CELLS // (len(buckets) * windows))
        if step < entities:
            order = by_small(entity, entities)
            entity, window, index, counts = entity[order], window[order], index[order], counts[order]
        slices = []
        for low in range(0, entities, step):
            high = min(low + step, entities)
            own = slice(*entity.searchsorted((low, high))) if step < entities else slice(None)
            slices.append(Histograms(buckets, index[own], window[own], entity[own] - low, counts[own], windows, high - low))
        return QuantileStates(slices, windows)


def _numbered(buckets: Int64s) -> tuple[Int64s, Int64s]:
    """Buckets ascending, at least one, and the place of each record's among them. Where they lie close, all between them too."""
    if len(buckets) == 0:
        return np.zeros(1, dtype=np.int64), buckets
    low, high = int(buckets.min()), int(buckets.max())
    if high - low < 4 * len(buckets):  # a few empty ones cost less than sorting
        return np.arange(low, high + 1), buckets - low
    return np.unique(buckets, return_inverse=True)


class Histograms:
    """The counts of some entities per window and bucket, in memory as (windows, buckets, entities), with sums of runs of buckets.

    The sums are what makes it fast: the run in which a rank lies is found among them, and only that run is looked at one by one.
    """

    def __init__(
        self, buckets: Int64s, index: Int64s, window: Int64s, entity: Int64s, counts: Float64s, windows: int, entities: int
    ) -> None:
        """Counted is one number per record: its bucket's index, the narrowest window that it lies in, its entity, its count."""
        self.buckets = buckets
        runs = -(-len(buckets) // _RUN)
        place = (window * (runs * _RUN) + index) * entities + entity
        size = windows * runs * _RUN * entities
        dense: Float64s = np.bincount(place, weights=counts, minlength=size).astype(np.float64, copy=False)
        self._counts = dense.reshape(windows, runs, _RUN, entities)
        for w in reversed(range(windows - 1)):  # a record counts in all longer windows too
            self._counts[w] += self._counts[w + 1]
        self._sums = self._counts.sum(axis=2)
        self._below = self._sums.cumsum(axis=1)
        #: Where a counter was full: (windows, entities); None: nowhere.
        self.full = self._counts.max(axis=(1, 2)) >= FULL if counts.sum() >= FULL else None

    def of_rank(self, q: Fraction) -> tuple[Float64s, Int64s]:
        """The middle of the bucket that holds the value of rank floor(q * (n - 1)), and n: each (windows, entities)."""
        totals = self._below[:, -1].astype(np.int64)
        ranks = np.maximum(totals - 1, 0) * q.numerator // q.denominator
        windows, runs, _, entities = self._counts.shape
        run = np.minimum((self._below <= ranks[:, None]).sum(axis=1), runs - 1)
        window, entity = np.arange(windows)[:, None], np.arange(entities)
        before = self._below[window, run, entity] - self._sums[window, run, entity]
        inside = self._counts[window, run, :, entity].cumsum(axis=2)  # (windows, entities, _RUN)
        index = run * _RUN + (inside <= (ranks - before)[:, :, None]).sum(axis=2)
        return bucket_middles(self.buckets[np.minimum(index, len(self.buckets) - 1)]), totals


class QuantileStates:
    """The states of all entities, in slices."""

    def __init__(self, slices: Sequence[Histograms], windows: int) -> None:
        self._slices, self._windows = slices, windows
        self._found: dict[Fraction, list[list[Answer]]] = {}

    def quantiles(self, q: Fraction, window: int) -> list[Answer]:
        """One number per entity; None of nothing; OVERFLOW where a counter was full."""
        found = self._found.get(q)
        if found is None:  # all windows at once: one that asks for a window asks for the others too
            found = self._found[q] = self._of_all_windows(q)
        return found[window]

    def _of_all_windows(self, q: Fraction) -> list[list[Answer]]:
        out: list[list[Answer]] = [[] for _ in range(self._windows)]
        for histograms in self._slices:
            middles, totals = histograms.of_rank(q)
            found = middles.astype(object)
            found[totals == 0] = None
            if histograms.full is not None:
                found[histograms.full] = OVERFLOW
            for answers, row in zip(out, found.tolist(), strict=True):
                answers.extend(row)
        return out
