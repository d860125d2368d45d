"""Distinct counts: HyperLogLog registers, in tables.

In frames a register is a row. In records 32 neighbouring registers share one, `span, tag, chunk, four words`, so that one value takes
little (56 bytes), and a full sketch of 4,096 registers is dense (7 KiB).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from tidemill.kernel.table import (
    RECORD_VERSION,
    Int64s,
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

Ranks = npt.NDArray[np.uint8]

PRECISION = 12
REGISTERS = 1 << PRECISION
REST_BITS = 64 - PRECISION

_WORDS = 4  # of a record, for its registers
_LANES = 8 * _WORDS


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


class RegisterTable(Table[Int64s]):
    """HyperLogLog, precision 12 (Flajolet et al., 2007): standard error 1.6 %. A body is int64 (n, 5): a chunk, its registers."""

    record_bytes = 8 * (3 + _WORDS)
    sparse = True
    cell = ("_register",)
    columns = ("_register", "_rank")

    def __init__(self, column: str, type_: ColumnType, where: str | None) -> None:
        self.column, self.type, self.where = column, type_, where
        self.key = f"{column}_distinct-" + digest([RECORD_VERSION, "distinct", column, str(type_), where])

    def cells(self, values: pl.Series) -> tuple[Int64s, Int64s]:
        """The register of each non-null value, and the rank that it gets at least: shape (n,) each."""
        hashes = stable_hashes(values)
        rest = hashes & np.uint64((1 << REST_BITS) - 1)
        bits = np.frexp(rest.astype(np.float64))[1].astype(np.int64)  # the bit length: exact, the rest has 52 bits
        return (hashes >> np.uint64(REST_BITS)).astype(np.int64), REST_BITS + 1 - bits

    # ---- frames -----------------------------------------------------------------------------------------------------------------

    def fold(self, events: pl.DataFrame, masks: Mapping[str, pl.Series], by: Sequence[str]) -> pl.DataFrame:
        counted = counted_events(events, masks, self.column, self.where)
        rows = events if counted is None else events.filter(counted)
        register, rank = self.cells(rows[self.column])
        return self.merge(
            rows.select(by).hstack([pl.Series("_register", register, dtype=pl.Int32), pl.Series("_rank", rank, dtype=pl.Int64)]), by
        )

    def merge(self, frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        return grouped(frame, [*by, "_register"], [pl.col("_rank").max()])

    def pack(self, frame: pl.DataFrame) -> Int64s:
        register = frame["_register"].cast(pl.Int64).to_numpy()
        body = np.zeros((len(frame), 1 + _WORDS), dtype=np.int64)
        body[:, 0] = register // _LANES
        body[:, 1:].view(np.uint8)[np.arange(len(register)), register % _LANES] = frame["_rank"].to_numpy()
        return body

    # ---- records ----------------------------------------------------------------------------------------------------------------

    def decode(self, blobs: Sequence[bytes]) -> Records[Int64s]:
        entity, words = join_blobs(blobs, 3 + _WORDS)
        return Records(entity, words[:, 0], words[:, 1], words[:, 2:])

    def encode(self, records: Records[Int64s], count: int) -> list[bytes]:
        return split_blobs(np.column_stack([records.span, records.tag, records.body]), records.entity, count)

    def take(self, body: Int64s, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Int64s:
        return body[rows]

    def merge_records(self, records: Records[Int64s]) -> Records[Int64s]:
        order, starts = group_starts(records.entity, records.span, records.tag, records.body[:, 0])
        if len(starts) == 0:
            return records
        first = order[starts]
        ranks = np.maximum.reduceat(_ranks(records.body[order]), starts, axis=0)
        body = np.column_stack([records.body[first, 0], np.ascontiguousarray(ranks).view(np.int64)])
        return Records(records.entity[first], records.span[first], records.tag[first], body)

    def states(self, stored: Stored, reach: Reach) -> RegisterStates:
        from tidemill.kernel import windowed  # Numba: what only writes does without it

        words, ends = stored_words(stored.blobs, 3 + _WORDS)
        window = np.empty(len(words), dtype=np.int64)
        windowed.narrowest(words[:, 0], words[:, 1], ends, *stored.versions, *reach, window)
        out = np.zeros((len(ends) // 2, len(reach.edges), REST_BITS + 2), dtype=np.int64)
        windowed.registers(words[:, 2], words.view(np.uint8)[:, -_LANES:], window, ends, REGISTERS, out)
        return RegisterStates(out)


def _ranks(body: Int64s) -> Ranks:
    return np.ascontiguousarray(body[:, 1:]).view(np.uint8)


class RegisterStates:
    """How many registers hold each rank: (entities, windows, ranks)."""

    def __init__(self, histograms: Int64s) -> None:
        self._histograms = histograms

    def estimates(self, window: int) -> list[int]:
        """The number of distinct values per entity."""
        return [estimate(histogram) for histogram in self._histograms[:, window].tolist()]


def estimate(histogram: Sequence[int]) -> int:
    """The cardinality from how many registers hold each rank 1, 2, ...; registers not mentioned hold 0.

    Ertl's improved estimator ("New cardinality estimation algorithms for HyperLogLog sketches", 2017, section 4): no tables, no
    thresholds, and only additions, products and square roots, which every machine rounds alike.

    >>> estimate([0, 0]), estimate([0, 1])
    (0, 1)
    """
    m = float(REGISTERS)
    used = sum(histogram[1:])
    z = m * _tau(1.0 - histogram[REST_BITS + 1] / m if len(histogram) > REST_BITS + 1 else 1.0)
    for rank in range(REST_BITS, 0, -1):
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
