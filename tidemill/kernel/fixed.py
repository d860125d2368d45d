"""The fixed table: all state of a bundle that has a fixed size, in one record per tile.

A record is `span, tag`, then words that merge by adding, then words that merge by taking the minimum. It is put together from
**parts**; aggregations that need the same part (a mean and a sum of one column) share it.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.kernel import digits
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

_WORD, _DOUBLE = struct.Struct("<q"), struct.Struct("<d")
_NOTHING = np.iinfo(np.int64).max  # the minimum of nothing; whether there was something, the count tells


@dataclass(frozen=True, slots=True)
class Part(ABC):
    """A few words of state: over the non-null values of a column (None: over events) that pass a filter (None: all)."""

    column: str | None = None
    type: ColumnType | None = None
    where: str | None = None

    kind: ClassVar[str]
    adds: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The part's column in frames and partials, in the user's unit: `dep_delay_sum`."""
        base = self.kind if self.column is None else f"{self.column}_{self.kind}"
        return base if self.where is None else f"{base}_where_{digest(self.where)[:8]}"

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The part's columns in frames: first the plain one, then exact digits."""

    @property
    @abstractmethod
    def words(self) -> int:
        """How many int64 it takes in a record."""

    @abstractmethod
    def prepare(self, values: pl.Series | None, valid: pl.Series | None) -> list[pl.Series | None]:
        """Per event, what `reduce` adds or compares, in the order and under the names of `columns`; None where it is 0 for all.

        `valid` is None where every event counts.
        """

    def reduce(self) -> list[pl.Expr]:
        """How groups become one row; the same expressions merge tiles."""
        return [pl.col(c).sum() for c in self.columns]

    @abstractmethod
    def pack(self, frame: pl.DataFrame) -> Int64s:
        """Columns to words, shape (n, words)."""


def _zero_where_invalid(values: pl.Series, valid: pl.Series | None, dtype: pl.DataType) -> npt.NDArray[np.generic]:
    """Values as NumPy, 0 where they do not count."""
    values = values.cast(dtype)
    filled: npt.NDArray[np.generic] = (values if valid is None else values.zip_with(valid, pl.Series([0], dtype=dtype))).to_numpy()
    return filled


class Count(Part):
    """How many: events, or non-null values."""

    kind = "count"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def words(self) -> int:
        return 1

    def prepare(self, values: pl.Series | None, valid: pl.Series | None) -> list[pl.Series | None]:
        return [None if valid is None else valid.cast(pl.Int64).alias(self.name)]

    def pack(self, frame: pl.DataFrame) -> Int64s:
        return frame[self.name].to_numpy().reshape(-1, 1)


class _Digits(Part):
    """A sum of integers in digits: which integers, one per event, the subclasses say."""

    @property
    @abstractmethod
    def width(self) -> int:
        """The number of digits."""

    @abstractmethod
    def terms(self, values: npt.NDArray[np.generic]) -> list[digits.Digit]:
        """The digits of each event's term."""

    @property
    def floating(self) -> bool:
        return self.type is not None and self.type.name == "float"

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_d{i}" for i in range(self.width))

    @property
    def words(self) -> int:
        return self.width

    def prepare(self, values: pl.Series | None, valid: pl.Series | None) -> list[pl.Series | None]:
        assert values is not None
        plain = _zero_where_invalid(values, valid, pl.Float64() if self.floating else pl.Int64())
        return [None if d is None else pl.Series(c, d) for c, d in zip(self.columns, self.terms(plain), strict=True)]

    def pack(self, frame: pl.DataFrame) -> Int64s:
        return frame.select(self.columns).to_numpy()


class Sum(_Digits):
    """The exact sum: integers and booleans as they are, floats on the grid 2**-60."""

    kind = "sum"

    @property
    def width(self) -> int:
        return digits.SUM_DIGITS if self.floating else digits.INT_DIGITS

    def terms(self, values: npt.NDArray[np.generic]) -> list[digits.Digit]:
        return digits.float_digits(values, digits.SUM_BITS, self.width) if self.floating else digits.int_digits(values)  # type: ignore[arg-type]  # the dtype follows `floating`


class Moment(_Digits):
    """The exact sum on the variance's own grid: 2**-30 for floats. Integers share `Sum` instead."""

    kind = "moment"

    @property
    def width(self) -> int:
        return digits.MOMENT_DIGITS

    def terms(self, values: npt.NDArray[np.generic]) -> list[digits.Digit]:
        return digits.float_digits(values, digits.MOMENT_BITS, self.width)  # type: ignore[arg-type]  # floats only


class Squares(_Digits):
    """The exact sum of squares: floats on the grid 2**-30, integers as they are."""

    kind = "squares"

    @property
    def width(self) -> int:
        return digits.SQUARE_DIGITS if self.floating else digits.INT_SQUARE_DIGITS

    def terms(self, values: npt.NDArray[np.generic]) -> list[digits.Digit]:
        if self.floating:
            return digits.float_squares(values, digits.MOMENT_BITS, self.width)  # type: ignore[arg-type]  # the dtype follows `floating`
        return digits.int_squares(values)  # type: ignore[arg-type]


class Min(Part):
    """The smallest value; null of nothing. Records hold it as an int64 that sorts as the value does."""

    kind = "min"
    adds = False

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def words(self) -> int:
        return 1

    def prepare(self, values: pl.Series | None, valid: pl.Series | None) -> list[pl.Series | None]:
        assert values is not None
        return [
            values.alias(self.name) if valid is None else values.zip_with(valid, pl.Series([None], dtype=values.dtype)).alias(self.name)
        ]

    def reduce(self) -> list[pl.Expr]:
        return [pl.col(self.name).min()]

    def pack(self, frame: pl.DataFrame) -> Int64s:
        column = frame[self.name]
        words = (
            sortable(column.cast(pl.Float64).fill_null(0.0).to_numpy())
            if column.dtype == pl.Float64
            else column.cast(pl.Int64).fill_null(0).to_numpy()
        )
        return np.where(column.is_null().to_numpy(), _NOTHING, self.ordered(words)).reshape(-1, 1)

    def ordered(self, words: Int64s) -> Int64s:
        return words


class Max(Min):
    """The largest value: the minimum of the bitwise complement."""

    kind = "max"

    def reduce(self) -> list[pl.Expr]:
        return [pl.col(self.name).max()]

    def ordered(self, words: Int64s) -> Int64s:
        return ~words


def sortable(x: npt.NDArray[np.float64]) -> Int64s:
    """The float's bits as an int64 that sorts as the float does.

    >>> sortable(np.array([-2.0, -1.0, 0.0, 1.0])).argsort().tolist()
    [0, 1, 2, 3]
    """
    bits = np.ascontiguousarray(x).view(np.int64)
    return bits ^ ((bits >> 63) & np.int64(2**63 - 1))


def from_sortables(words: Int64s) -> npt.NDArray[np.float64]:
    """The floats of sortable words.

    >>> from_sortables(sortable(np.array([-2.5, 0.0, 1.0]))).tolist()
    [-2.5, 0.0, 1.0]
    """
    return np.ascontiguousarray(words ^ ((words >> 63) & np.int64(2**63 - 1))).view(np.float64)


def from_sortable(word: int) -> float:
    """The float of one sortable word.

    >>> from_sortable(int(sortable(np.array([-2.5]))[0]))
    -2.5
    """
    value: float = _DOUBLE.unpack(_WORD.pack(word ^ ((word >> 63) & (2**63 - 1))))[0]
    return value


class FixedTable(Table[Int64s]):
    """See the module's text. A body is int64 of shape (n, words): what adds, then what takes the minimum."""

    def __init__(self, parts: Iterable[Part]) -> None:
        unique = list(dict.fromkeys(parts))
        self.parts: list[Part] = [p for p in unique if p.adds] + [p for p in unique if not p.adds]
        self.key = "tiles-" + digest([RECORD_VERSION, [[p.kind, p.column, str(p.type), p.where] for p in self.parts]])
        self.columns = tuple(c for p in self.parts for c in p.columns)
        self.adds = sum(p.words for p in self.parts if p.adds)
        self.words = sum(p.words for p in self.parts)
        self.record_bytes = 8 * (self.words + 2)
        self.at: dict[Part, int] = {}
        position = 0
        for part in self.parts:
            self.at[part] = position
            position += part.words
        self._digits = [(self.at[p], self.at[p] + p.words) for p in self.parts if p.adds and p.words > 1]

    # ---- frames -----------------------------------------------------------------------------------------------------------------

    def fold(self, events: pl.DataFrame, masks: Mapping[str, pl.Series], by: Sequence[str]) -> pl.DataFrame:
        series: list[pl.Series] = []
        reduced: list[pl.Expr] = []
        for part, prepared in self._prepared(self.parts, events, masks):
            for column, values, expr in zip(part.columns, prepared, part.reduce(), strict=True):
                if values is not None:
                    series.append(values)
                    reduced.append(expr)
                elif isinstance(part, Count):  # every event counts
                    reduced.append(pl.len().cast(pl.Int64).alias(column))
                else:
                    reduced.append(pl.lit(0, dtype=pl.Int64).alias(column))
        return grouped(events.select(by).hstack(series), by, reduced)

    def of_events(self, parts: Sequence[Part], events: pl.DataFrame, masks: Mapping[str, pl.Series]) -> Int64s:
        """The words of some parts for each event by itself, shape (n, words): what `fold` would make of one event."""
        found = []
        for part, prepared in self._prepared(parts, events, masks):
            nothing = 1 if isinstance(part, Count) else 0
            filled = [
                pl.repeat(nothing, len(events), dtype=pl.Int64, eager=True).alias(c) if v is None else v
                for c, v in zip(part.columns, prepared, strict=True)
            ]
            found.append(part.pack(pl.DataFrame(filled)))
        return np.ascontiguousarray(np.column_stack(found))

    def _prepared(
        self, parts: Iterable[Part], events: pl.DataFrame, masks: Mapping[str, pl.Series]
    ) -> Iterator[tuple[Part, list[pl.Series | None]]]:
        valid: dict[tuple[str | None, str | None], pl.Series | None] = {}
        for part in parts:
            key = part.column, part.where
            if key not in valid:
                valid[key] = counted_events(events, masks, *key)
            yield part, part.prepare(events[part.column] if part.column is not None else None, valid[key])

    def merge(self, frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        return grouped(frame, by, [e for p in self.parts for e in p.reduce()])

    def pack(self, frame: pl.DataFrame) -> Int64s:
        body = np.empty((len(frame), self.words), dtype=np.int64)
        for part, at in self.at.items():
            body[:, at : at + part.words] = part.pack(frame)
        self._carry(body)
        return body

    def _carry(self, body: Int64s) -> None:
        for a, b in self._digits:
            digits.carry(body[:, a:b])

    # ---- records ----------------------------------------------------------------------------------------------------------------

    def decode(self, blobs: Sequence[bytes]) -> Records[Int64s]:
        entity, words = join_blobs(blobs, self.words + 2)
        return Records(entity, words[:, 0], words[:, 1], words[:, 2:])

    def encode(self, records: Records[Int64s], count: int) -> list[bytes]:
        words = np.column_stack([records.span, records.tag, records.body])
        return split_blobs(words, records.entity, count)

    def take(self, body: Int64s, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Int64s:
        return body[rows]

    def merge_records(self, records: Records[Int64s]) -> Records[Int64s]:
        order, starts = group_starts(records.entity, records.span, records.tag)
        if len(starts) == 0:
            return records
        body = self._reduce(records.body[order], starts)
        self._carry(body)
        first = order[starts]
        return Records(records.entity[first], records.span[first], records.tag[first], body)

    def _reduce(self, body: Int64s, starts: Int64s) -> Int64s:
        out = np.empty((len(starts), self.words), dtype=np.int64)
        np.add.reduceat(body[:, : self.adds], starts, axis=0, out=out[:, : self.adds])
        if self.adds < self.words:
            np.minimum.reduceat(body[:, self.adds :], starts, axis=0, out=out[:, self.adds :])
        return out

    def states(self, stored: Stored, reach: Reach) -> FixedStates:
        from tidemill.kernel import windowed  # Numba: what only writes does without it

        words, ends = stored_words(stored.blobs, self.words + 2)
        out = np.empty((len(ends) // 2, len(reach.edges), self.words), dtype=np.int64)
        windowed.sums(words, ends, *stored.versions, *reach, self.adds, out)
        return FixedStates(out)


class FixedStates:
    """The words of every entity in every window, int64 of shape (entities, windows, words). `found`: what readers have made of them."""

    def __init__(self, words: Int64s) -> None:
        self.words = words
        self.found: dict[Any, list[list[Any]]] = {}

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def rows(self) -> list[list[list[int]]]:
        """The same as Python integers: `[window][entity][word]`."""
        rows: list[list[list[int]]] = self.words.swapaxes(0, 1).tolist()
        return rows
