"""Quantiles: counts of values per bucket of a float's bits, in tables.

A bucket is a row of a frame, and a record of 24 bytes, `span, tag, bucket << 46 | count`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.kernel.table import (
    OVERFLOW,
    RECORD_VERSION,
    Int64s,
    Overflow,
    Reach,
    Records,
    Stored,
    Table,
    counted_events,
    group_starts,
    grouped,
    join_blobs,
    split_blobs,
    stored_words,
)
from tidemill.stable import digest
from tidemill.types import ColumnType

_BUCKET_SHIFT = 46  # a double's exponent and the top 6 bits of its mantissa: 17 bits, and the sign
_COUNT_BITS = 46
_COUNT_MASK = (1 << _COUNT_BITS) - 1
#: A counter that is full says that the true number is at least that, however tiles were merged on the way.
FULL = _COUNT_MASK

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
    from tidemill.kernel import windowed  # Numba: what only writes does without it

    bits = np.empty(len(buckets), dtype=np.int64)
    windowed.middles(buckets, _BUCKET_SHIFT, bits)
    return bits.view(np.float64)


class QuantileTable(Table[Int64s]):
    """Counts per bucket. Counters saturate at 2**46 - 1, in any order alike, and then the answer is `overflow`. A body is int64 (n,)."""

    record_bytes = 24
    cell = ("_bucket",)
    columns = ("_bucket", "_count")

    def __init__(self, column: str, type_: ColumnType, where: str | None) -> None:
        self.column, self.type, self.where = column, type_, where
        self.key = f"{column}_quantile-" + digest([RECORD_VERSION, "quantile", column, str(type_), where])

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

    def states(self, stored: Stored, reach: Reach) -> QuantileStates:
        from tidemill.kernel import windowed  # Numba: what only writes does without it

        words, ends = stored_words(stored.blobs, 3)
        return QuantileStates(windowed.histograms(words, ends, *stored.versions, *reach, _COUNT_BITS))


class QuantileStates:
    """The histograms of every entity in every window, as `windowed.histograms` makes them."""

    def __init__(self, histograms: tuple[Int64s, Int64s, Int64s, Int64s]) -> None:
        self._histograms = histograms
        self._found: dict[tuple[int, int], list[list[Answer]]] = {}

    def quantiles(self, part: int, whole: int, window: int) -> list[Answer]:
        """The quantile `part / whole`, one number per entity; None of nothing; OVERFLOW where a counter was full."""
        found = self._found.get((part, whole))
        if found is None:  # all windows at once: one that asks for a window asks for the others too
            found = self._found[part, whole] = self._of_all_windows(part, whole)
        return found[window]

    def _of_all_windows(self, part: int, whole: int) -> list[list[Answer]]:
        from tidemill.kernel import windowed

        begin, _, _, counts = self._histograms
        bits, n = np.empty((len(counts), len(begin)), dtype=np.int64), np.empty((len(counts), len(begin)), dtype=np.int64)
        lowest = windowed.of_rank(*self._histograms, part, whole, _COUNT_BITS, _BUCKET_SHIFT, bits, n)
        found: npt.NDArray[Any] = bits.view(np.float64)
        if lowest < 1:
            found = found.astype(object)
            found[n < 1] = None
        if lowest < 0:
            found[n < 0] = OVERFLOW
        answers: list[list[Answer]] = found.tolist()
        return answers
