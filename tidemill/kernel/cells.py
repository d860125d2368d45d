"""Tables of cells: sketches, whose state is a sparse array of small numbers.

In frames a cell is a row. In records `_LANES` neighbouring cells share one record, `span, tag, chunk, four words`, so that one
event takes little and a full sketch is dense; every record of every sketch is 56 bytes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import sqrt
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from tidemill.kernel.table import OVERFLOW, RECORD_VERSION, Int64s, Overflow, Records, Table, group_starts, join_blobs, split_blobs
from tidemill.stable import digest
from tidemill.types import ColumnType

_PAYLOAD = 4  # words a record has for its cells
#: Dense states are made for so many cells at a time.
_DENSE_CELLS = 1 << 22


class CellTable(Table[Int64s]):
    """A sparse array of counters per tile. A body is int64 (n, 5): the chunk, then the payload."""

    sparse = True
    kind: ClassVar[str]
    lane: ClassVar[Any]  # the NumPy type of one cell in a record
    value: ClassVar[str]  # the frame's column of the cells' values

    def __init__(self, column: str, type_: ColumnType, where: str | None) -> None:
        self.column, self.type, self.where = column, type_, where
        self.key = f"{column}_{self.kind}-" + digest([RECORD_VERSION, self.kind, column, str(type_), where])
        self.lanes = _PAYLOAD * 8 // np.dtype(self.lane).itemsize

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CellTable) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @abstractmethod
    def cells(self, values: pl.Series) -> tuple[Int64s, Int64s]:
        """Non-null values to (cell, what it gets): shape (n,) each."""

    @abstractmethod
    def reduced(self, lanes: npt.NDArray[Any], starts: Int64s) -> npt.NDArray[Any]:
        """Merge runs of consecutive rows (n, lanes) of the cells' type."""

    # ---- frames -----------------------------------------------------------------------------------------------------------------

    def fold(self, events: pl.DataFrame, masks: Mapping[str, pl.Series], by: Sequence[str]) -> pl.DataFrame:
        valid = events[self.column].is_not_null()
        if self.where is not None:
            valid &= masks[self.where]
        rows = events.filter(valid)
        cell, value = self.cells(rows[self.column])
        return self.merge(
            rows.select(by).hstack([pl.Series(self.cell[0], cell, dtype=pl.Int32), pl.Series(self.value, value, dtype=pl.Int64)]), by
        )

    def pack(self, frame: pl.DataFrame) -> Int64s:
        cell = frame[self.cell[0]].cast(pl.Int64).to_numpy()
        body = np.zeros((len(frame), 1 + _PAYLOAD), dtype=np.int64)
        body[:, 0] = cell // self.lanes
        limit = np.iinfo(self.lane).max
        body[:, 1:].view(self.lane)[np.arange(len(cell)), cell % self.lanes] = np.minimum(frame[self.value].to_numpy(), limit)
        return body

    # ---- records ----------------------------------------------------------------------------------------------------------------

    def decode(self, blobs: Sequence[bytes]) -> Records[Int64s]:
        entity, words = join_blobs(blobs, 3 + _PAYLOAD)
        return Records(entity, words[:, 0], words[:, 1], words[:, 2:])

    def encode(self, records: Records[Int64s], count: int) -> list[bytes]:
        return split_blobs(np.column_stack([records.span, records.tag, records.body]), records.entity, count)

    def take(self, body: Int64s, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Int64s:
        return body[rows]

    def concat(self, bodies: Sequence[Int64s]) -> Int64s:
        return np.concatenate(bodies)

    def merge_records(self, records: Records[Int64s]) -> Records[Int64s]:
        order, starts = group_starts(records.entity, records.span, records.tag, records.body[:, 0])
        if len(starts) == 0:
            return records
        first = order[starts]
        body = np.empty((len(starts), 1 + _PAYLOAD), dtype=np.int64)
        body[:, 0] = records.body[first, 0]
        body[:, 1:] = np.ascontiguousarray(self.reduced(self._lanes(records.body[order]), starts)).view(np.int64)
        return Records(records.entity[first], records.span[first], records.tag[first], body)

    def _lanes(self, body: Int64s) -> npt.NDArray[Any]:
        return np.ascontiguousarray(body[:, 1:]).view(self.lane)

    def dense(self, body: Int64s, slot: Int64s, entities: int, windows: int) -> list[tuple[Int64s, npt.NDArray[Any]]]:
        """Slices of entities: (cell numbers ascending, values (entities, windows, cells)), each record only in its own window."""
        chunks, index = _numbered(body[:, 0])
        cells = (chunks[:, None] * self.lanes + np.arange(self.lanes)).reshape(-1)
        step = max(1, _DENSE_CELLS // max(1, len(cells) * windows))
        out = []
        for low in range(0, entities, step):
            high = min(low + step, entities)
            place = slot * len(chunks) + index
            lanes = self._lanes(body)
            if step < entities:
                mine = (slot >= low * windows) & (slot < high * windows)
                place, lanes = place[mine] - low * windows * len(chunks), lanes[mine]
            values = self.scattered(lanes, place, (high - low) * windows * len(chunks))
            out.append((cells, values.reshape(high - low, windows, -1)))
        return out

    @abstractmethod
    def scattered(self, lanes: npt.NDArray[Any], place: Int64s, size: int) -> npt.NDArray[Any]:
        """Rows (n, lanes) merged into `size` rows, each at its place; shape (size, lanes)."""


def _numbered(chunks: Int64s) -> tuple[Int64s, Int64s]:
    """Chunks ascending, at least one, and the place of each record's chunk among them. Where they lie close, all between them too."""
    if len(chunks) == 0:
        return np.zeros(1, dtype=np.int64), chunks
    low, high = int(chunks.min()), int(chunks.max())
    if high - low < 2 * len(chunks):  # a few empty ones cost less than sorting
        return np.arange(low, high + 1), chunks - low
    return np.unique(chunks, return_inverse=True)


# ---- quantiles ------------------------------------------------------------------------------------------------------------------

_FULL = 2**32 - 1
_BUCKET_SHIFT = 46  # a double's exponent and the top 6 bits of its mantissa


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


class QuantileTable(CellTable):
    """Counts per bucket. Counters saturate at 2**32 - 1, in any order alike, and then the answer is `overflow`."""

    kind = "quantile"
    lane = np.uint32
    value = "_count"
    cell = ("_bucket",)
    columns = ("_bucket", "_count")

    def cells(self, values: pl.Series) -> tuple[Int64s, Int64s]:
        bucket = buckets_of(values.cast(pl.Float64).to_numpy())
        return bucket, np.ones(len(bucket), dtype=np.int64)

    def merge(self, frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        return frame.group_by([*by, "_bucket"]).agg(pl.col("_count").sum())

    def reduced(self, lanes: npt.NDArray[Any], starts: Int64s) -> npt.NDArray[Any]:
        total = np.add.reduceat(lanes.astype(np.uint64), starts, axis=0)
        return np.minimum(total, np.uint64(_FULL)).astype(np.uint32)

    def scattered(self, lanes: npt.NDArray[Any], place: Int64s, size: int) -> npt.NDArray[Any]:
        # A count of doubles is exact below 2**53, and a bin count needs no sorting.
        cell = (place[:, None] * self.lanes + np.arange(self.lanes)).reshape(-1)
        return np.bincount(cell, weights=lanes.reshape(-1), minlength=size * self.lanes).astype(np.int64).reshape(size, self.lanes)

    def states(self, body: Int64s, slot: Int64s, entities: int, windows: int) -> QuantileStates:
        return QuantileStates(self.dense(body, slot, entities, windows), windows)


Answer = float | Overflow | None


class QuantileStates:
    """Cumulated counts per entity and window. The q-quantile is the bucket of the value of rank floor(q * (n - 1)), from 0."""

    def __init__(self, slices: list[tuple[Int64s, npt.NDArray[Any]]], windows: int) -> None:
        self._windows = windows
        self._found: dict[Fraction, list[list[Answer]]] = {}
        self._slices = []
        for cells, counts in slices:
            nested = np.add.accumulate(counts[:, ::-1], axis=1)[:, ::-1]
            # A counter that is full says that the true number is at least that, however tiles were merged on the way.
            self._slices.append((cells, np.cumsum(nested, axis=2), nested.max(axis=2) >= _FULL))

    def quantiles(self, q: Fraction, window: int) -> list[Answer]:
        """One number per entity; None of nothing; OVERFLOW where a counter was full."""
        if q not in self._found:  # all windows at once: one that asks for a window asks for the others too
            self._found[q] = self._of_all_windows(q)
        return self._found[q][window]

    def _of_all_windows(self, q: Fraction) -> list[list[Answer]]:
        out: list[list[Answer]] = [[] for _ in range(self._windows)]
        for cells, cumulated, full in self._slices:
            totals = cumulated[:, :, -1]
            ranks = np.maximum(totals - 1, 0) * q.numerator // q.denominator
            index = np.minimum((cumulated <= ranks[:, :, None]).sum(axis=2), len(cells) - 1)
            found = bucket_middles(cells[index]).astype(object)
            found[totals == 0] = None
            found[full] = OVERFLOW
            for answers, column in zip(out, found.T.tolist(), strict=True):
                answers.extend(column)
        return out


# ---- distinct counts ------------------------------------------------------------------------------------------------------------

PRECISION = 12
_REGISTERS = 1 << PRECISION
_REST_BITS = 64 - PRECISION


def stable_hashes(values: pl.Series) -> npt.NDArray[np.uint64]:
    """XXH3-64 of each value's canonical bytes: text as UTF-8, numbers, booleans and instants as 8 little-endian bytes.

    >>> stable_hashes(pl.Series([1, 1, 2])).tolist()[0] == xxhash.xxh3_64_intdigest((1).to_bytes(8, "little"))
    True
    """
    distinct = values.unique()
    if distinct.dtype == pl.String:
        hashed = [xxhash.xxh3_64_intdigest(v) for v in distinct.cast(pl.Binary).to_list()]
    else:
        number = distinct if distinct.dtype == pl.Float64 else distinct.cast(pl.Int64)
        raw = number.to_numpy().astype("<f8" if distinct.dtype == pl.Float64 else "<i8").tobytes()
        hashed = [xxhash.xxh3_64_intdigest(raw[i : i + 8]) for i in range(0, len(raw), 8)]
    table = pl.DataFrame([distinct.alias("v"), pl.Series("h", hashed, dtype=pl.UInt64)])
    out: npt.NDArray[np.uint64] = pl.DataFrame([values.alias("v")]).join(table, on="v", how="left", maintain_order="left")["h"].to_numpy()
    return out


class RegisterTable(CellTable):
    """HyperLogLog registers, precision 12 (Flajolet et al., 2007): standard error 1.6 %."""

    kind = "distinct"
    lane = np.uint8
    value = "_rank"
    cell = ("_register",)
    columns = ("_register", "_rank")

    def cells(self, values: pl.Series) -> tuple[Int64s, Int64s]:
        hashes = stable_hashes(values)
        rest = hashes & np.uint64((1 << _REST_BITS) - 1)
        bits = np.frexp(rest.astype(np.float64))[1].astype(np.int64)  # the bit length: exact, the rest has 52 bits
        return (hashes >> np.uint64(_REST_BITS)).astype(np.int64), _REST_BITS + 1 - bits

    def merge(self, frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        return frame.group_by([*by, "_register"]).agg(pl.col("_rank").max())

    def reduced(self, lanes: npt.NDArray[Any], starts: Int64s) -> npt.NDArray[Any]:
        out: npt.NDArray[Any] = np.maximum.reduceat(lanes, starts, axis=0)
        return out

    def scattered(self, lanes: npt.NDArray[Any], place: Int64s, size: int) -> npt.NDArray[Any]:
        values = np.zeros((size, self.lanes), dtype=self.lane)
        order, starts = group_starts(place)
        if len(starts):
            values[place[order[starts]]] = self.reduced(lanes[order], starts)
        return values

    def states(self, body: Int64s, slot: Int64s, entities: int, windows: int) -> RegisterStates:
        return RegisterStates(self.dense(body, slot, entities, windows))


class RegisterStates:
    """How many registers hold which rank, per entity and window."""

    def __init__(self, slices: list[tuple[Int64s, npt.NDArray[Any]]]) -> None:
        self._nested = [np.maximum.accumulate(ranks[:, ::-1], axis=1)[:, ::-1] for _, ranks in slices]

    def estimates(self, window: int) -> list[int]:
        """The number of distinct values per entity."""
        return [estimate(np.bincount(row, minlength=_REST_BITS + 2).tolist()) for ranks in self._nested for row in ranks[:, window]]


def estimate(histogram: Sequence[int]) -> int:
    """The cardinality from how many registers hold each rank 1, 2, ...; registers not mentioned hold 0.

    Ertl's improved estimator ("New cardinality estimation algorithms for HyperLogLog sketches", 2017, section 4): no tables, no
    thresholds, and only additions, products and square roots, which every machine rounds alike.

    >>> estimate([0, 0]), estimate([0, 1])
    (0, 1)
    """
    m = float(_REGISTERS)
    used = sum(histogram[1:])
    z = m * _tau(1.0 - histogram[_REST_BITS + 1] / m if len(histogram) > _REST_BITS + 1 else 1.0)
    for rank in range(_REST_BITS, 0, -1):
        z = 0.5 * (z + (histogram[rank] if rank < len(histogram) else 0))
    z += m * _sigma((m - used) / m)
    return round(0.7213475204444817 * m * m / z) if used else 0  # 1 / (2 ln 2)


def _sigma(x: float) -> float:
    if x == 1.0:
        return float("inf")
    y, z = 1.0, x
    while True:
        x *= x
        previous = z
        z += x * y
        y += y
        if z == previous:
            return z


def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z = 1.0, 1.0 - x
    while True:
        x = sqrt(x)
        previous = z
        y *= 0.5
        z -= (1.0 - x) * (1.0 - x) * y
        if z == previous:
            return z / 3.0
