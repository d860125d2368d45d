"""quantile and approx_count_distinct: answers with a stated error, which are nevertheless the same bit for bit everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from tidemill.aggregations.base import ORDERED, Aggregation, Compiled
from tidemill.errors import DefinitionError
from tidemill.kernel.buckets import QuantileTable
from tidemill.kernel.registers import RegisterTable
from tidemill.types import ColumnType


@dataclass(frozen=True, kw_only=True)
class Quantile(Aggregation):
    """The q-quantile of the non-null values, 0 <= q <= 1, within 2**-7 (0.8 %) of the value of rank floor(q (n - 1)). Of nothing: null."""

    q: float = 0.5

    function: ClassVar[str] = "quantile"

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.q, (int, float)) and not isinstance(self.q, bool)
        if not number or not 0 <= self.q <= 1 or (self.fraction * 10**6).denominator != 1:
            raise DefinitionError(f"quantile({self.column!r}, {self.q!r}): q is from 0 to 1, with at most six decimals, such as 0.9")

    @property
    def suffix(self) -> str:
        """`p90`, `p99_9`."""
        percent = self.fraction * 100
        return "p" + (str(percent.numerator) if percent.denominator == 1 else str(float(percent)).replace(".", "_"))

    @property
    def fraction(self) -> Fraction:
        """The q as it was written, not as the nearest float."""
        return Fraction(str(float(self.q)))

    def options(self) -> dict[str, Any]:
        return {"q": float(self.q)}

    def compile(self, schema: Mapping[str, ColumnType], event_id: str | None) -> Compiled:
        kind, q = self.column_type(schema), self.fraction
        table = QuantileTable(self.column or "", kind, self.where)
        part, whole = q.numerator, q.denominator
        return Compiled(ColumnType("float"), table=table, read=lambda states, window: states.quantiles(part, whole, window))


@dataclass(frozen=True, kw_only=True)
class ApproxCountDistinct(Aggregation):
    """How many different non-null values, by HyperLogLog: standard error 1.6 %, nearly exact for small numbers. Of nothing: null."""

    function: ClassVar[str] = "approx_count_distinct"
    takes = ORDERED

    def compile(self, schema: Mapping[str, ColumnType], event_id: str | None) -> Compiled:
        table = RegisterTable(self.column or "", self.column_type(schema), self.where)
        return Compiled(ColumnType("int"), table=table, read=lambda states, window: [n or None for n in states.estimates(window)])
