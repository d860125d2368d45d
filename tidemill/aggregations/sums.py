"""count, sum, mean, variance and stddev: everything that exact sums answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar

import numpy as np

from tidemill.aggregations.base import Aggregation, Compiled, Many
from tidemill.kernel import digits
from tidemill.kernel.fixed import Count, Moment, Part, Squares, Sum
from tidemill.kernel.table import OVERFLOW, Int64s
from tidemill.types import ColumnType

_INT, _FLOAT = ColumnType("int"), ColumnType("float")


@dataclass(frozen=True, kw_only=True)
class CountOf(Aggregation):
    """How many events. Of nothing: 0."""

    function = "count"

    def compile(self, schema: Mapping[str, ColumnType], event_id: str | None) -> Compiled:
        return Compiled(_INT, (Count(where=self.where),), lambda words: words[0], many=lambda words: Many(words[:, 0]))


@dataclass(frozen=True, kw_only=True)
class SumOf(Aggregation):
    """The exact sum of the non-null values, of floats rounded once at the end. Of nothing: 0."""

    function = "sum"

    def compile(self, schema: Mapping[str, ColumnType], event_id: str | None) -> Compiled:
        kind = self.column_type(schema)
        parts = (Count(self.column, kind, self.where), Sum(self.column, kind, self.where))
        if kind.name == "float":
            return Compiled(_FLOAT, parts, _float_sum, many=_float_sums)
        return Compiled(_INT, parts, _int_sum, many=_int_sums)


def _float_sum(words: Sequence[int]) -> Any:
    """n, four digits."""
    if words[0] >= digits.MAX_TERMS:
        return OVERFLOW
    return digits.to_int(words[1:]) / (1 << digits.SUM_BITS)  # int / int is correctly rounded


def _int_sum(words: Sequence[int]) -> Any:
    """n, two digits."""
    total = digits.to_int(words[1:])
    return total if words[0] < digits.MAX_TERMS and -(2**63) <= total < 2**63 else OVERFLOW


def _float_sums(words: Int64s) -> Many:
    from tidemill.kernel.ratios import ratios  # Numba takes a third of a second to import

    overflow = words[:, 0] >= digits.MAX_TERMS
    return Many(ratios(words[:, 1:], np.ones(len(words), dtype=np.int64), digits.SUM_BITS), overflow, overflow)


def _int_sums(words: Int64s) -> Many:
    low, high = words[:, 1], words[:, 2] + (words[:, 1] >> digits.BASE_BITS)
    total = (high << digits.BASE_BITS) | (low & ((1 << digits.BASE_BITS) - 1))
    overflow = (words[:, 0] >= digits.MAX_TERMS) | (high < -(2**31)) | (high >= 2**31)
    return Many(total, overflow, overflow)


@dataclass(frozen=True, kw_only=True)
class MeanOf(Aggregation):
    """The exact sum by the count of the non-null values, rounded once. Of nothing: null."""

    function = "mean"

    def compile(self, schema: Mapping[str, ColumnType], event_id: str | None) -> Compiled:
        kind = self.column_type(schema)
        bits = digits.SUM_BITS if kind.name == "float" else 0

        def mean(words: Sequence[int]) -> Any:
            n = words[0]
            if n >= digits.MAX_TERMS:
                return OVERFLOW
            return digits.to_int(words[1:]) / (n << bits) if n else None

        def means(words: Int64s) -> Many:
            from tidemill.kernel.ratios import ratios  # Numba takes a third of a second to import

            overflow = words[:, 0] >= digits.MAX_TERMS
            counts = np.where(overflow, 1, words[:, 0])
            return Many(ratios(words[:, 1:], counts, bits), overflow | (counts == 0), overflow)

        return Compiled(_FLOAT, (Count(self.column, kind, self.where), Sum(self.column, kind, self.where)), mean, many=means)


@dataclass(frozen=True, kw_only=True)
class VarianceOf(Aggregation):
    """The variance of the non-null values: the sample's (n - 1), or the population's (n). Of too few: null.

    From the exact sums of values and squares on the grid 2**-30, rounded once: never negative, and not sensitive to a large mean.
    """

    population: bool = False

    function: ClassVar[str] = "variance"

    @property
    def suffix(self) -> str:
        return f"{self.function}_pop" if self.population else self.function

    def options(self) -> dict[str, Any]:
        return {"population": self.population}

    def compile(self, schema: Mapping[str, ColumnType], event_id: str | None) -> Compiled:
        kind = self.column_type(schema)
        floating = kind.name == "float"
        total = Moment(self.column, kind, self.where) if floating else Sum(self.column, kind, self.where)
        parts: tuple[Part, ...] = (Count(self.column, kind, self.where), total, Squares(self.column, kind, self.where))
        split = 1 + total.words
        bits = 2 * digits.MOMENT_BITS if floating else 0
        fewest = 1 if self.population else 2
        root = self.rounded()

        def variance(words: Sequence[int]) -> Any:
            n = words[0]
            if n >= digits.MAX_TERMS:
                return OVERFLOW
            if n < fewest:
                return None
            sums, squares = digits.to_int(words[1:split]), digits.to_int(words[split:])
            return root(n * squares - sums * sums, (n * (n - fewest + 1)) << bits)

        return Compiled(_FLOAT, parts, variance)

    def rounded(self) -> Callable[[int, int], float]:
        """From the exact fraction to the float."""
        return lambda a, b: a / b


@dataclass(frozen=True, kw_only=True)
class StddevOf(VarianceOf):
    """The square root of the variance, correctly rounded."""

    function: ClassVar[str] = "stddev"

    def rounded(self) -> Callable[[int, int], float]:
        return fraction_sqrt


def fraction_sqrt(a: int, b: int) -> float:
    """The float nearest to sqrt(a / b), for integers a >= 0 and b > 0.

    The root is taken of an integer with at least 64 significant bits; its last bit is made odd where anything was cut off, so
    that the one rounding, of the division by a power of two, goes the right way.

    >>> fraction_sqrt(2, 1) == 2**0.5, fraction_sqrt(1, 4)
    (True, 0.5)
    """
    if a == 0:
        return 0.0
    shift = max(0, 130 - (a.bit_length() - b.bit_length()))
    shift += shift & 1
    quotient, rest = divmod(a << shift, b)
    root = isqrt(quotient)
    if rest or root * root != quotient:
        root |= 1
    return root / (1 << (shift >> 1))
