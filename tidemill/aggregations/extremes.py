"""min and max: of numbers, booleans, instants and text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tidemill.aggregations.base import ORDERED, Aggregation, Compiled, Many
from tidemill.aggregations.ordered import shown
from tidemill.kernel.entries import EntriesTable, Order
from tidemill.kernel.fixed import Count, Max, Min, from_sortable, from_sortables
from tidemill.kernel.table import Int64s
from tidemill.types import ColumnType


@dataclass(frozen=True, kw_only=True)
class MinOf(Aggregation):
    """The smallest non-null value; text by code points. Of nothing: null."""

    function: ClassVar[str] = "min"
    takes = ORDERED
    largest: ClassVar[bool] = False

    def compile(self, schema: Mapping[str, ColumnType], event_id: str | None) -> Compiled:
        kind = self.column_type(schema)
        if kind.name == "str":
            table = EntriesTable(self.column or "", kind, self.where, Order(1, last=self.largest, by_value=True), None)
            return Compiled(kind, table=table, read=lambda states, window: [row[window][0] if row[window] else None for row in states])
        part = Max if self.largest else Min
        show = _shown_word(kind)
        complement = self.largest

        def extreme(words: Sequence[int]) -> Any:
            return show(~words[1] if complement else words[1]) if words[0] else None

        def extremes(words: Int64s) -> Many:
            found = ~words[:, 1] if complement else words[:, 1]
            return Many(from_sortables(found) if kind.name == "float" else found, words[:, 0] == 0)

        return Compiled(kind, (Count(self.column, kind, self.where), part(self.column, kind, self.where)), extreme, many=extremes)


@dataclass(frozen=True, kw_only=True)
class MaxOf(MinOf):
    """The largest non-null value; text by code points. Of nothing: null."""

    function: ClassVar[str] = "max"
    largest: ClassVar[bool] = True


def _shown_word(kind: ColumnType) -> Callable[[int], Any]:
    return from_sortable if kind.name == "float" else shown(kind)
