"""first, last and last_n, by (event time, event id, value): never by their place in the log, which other files do not share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tidemill.aggregations.base import ORDERED, Aggregation, Compiled
from tidemill.errors import DefinitionError
from tidemill.kernel.entries import EntriesTable, Order
from tidemill.times import from_micros
from tidemill.types import ColumnType

_MOST = 1000


def shown(kind: ColumnType) -> Callable[[Any], Any]:
    """From a stored value to what users see: instants as aware datetimes (UTC), booleans as such."""
    known: dict[str, Callable[[Any], Any]] = {"timestamp": from_micros, "bool": bool}
    return known.get(kind.name, lambda value: value)


@dataclass(frozen=True, kw_only=True)
class FirstOf(Aggregation):
    """The value of the earliest event with a non-null one. Of nothing: null."""

    function: ClassVar[str] = "first"
    takes = ORDERED
    last: ClassVar[bool] = False

    def compile(self, schema: Mapping[str, ColumnType], event_id: str | None) -> Compiled:
        kind = self.column_type(schema)
        show = shown(kind)

        def read(states: Any, window: int) -> list[Any]:
            return [show(row[window][0]) if row[window] else None for row in states]

        return Compiled(kind, table=EntriesTable(self.column or "", kind, self.where, Order(1, last=self.last), event_id), read=read)


@dataclass(frozen=True, kw_only=True)
class LastOf(FirstOf):
    """The value of the latest event with a non-null one. Of nothing: null."""

    function: ClassVar[str] = "last"
    last: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class LastN(Aggregation):
    """The values of the latest n events with a non-null one, the latest first. Of nothing: null."""

    n: int = 1

    function: ClassVar[str] = "last_n"
    takes = ORDERED

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.n, bool) or not isinstance(self.n, int) or not 1 <= self.n <= _MOST:
            raise DefinitionError(f"last_n({self.column!r}, {self.n!r}): n is a whole number from 1 to {_MOST}")

    @property
    def suffix(self) -> str:
        return f"last{self.n}"

    def options(self) -> dict[str, Any]:
        return {"n": self.n}

    def compile(self, schema: Mapping[str, ColumnType], event_id: str | None) -> Compiled:
        kind = self.column_type(schema)
        show = shown(kind)

        def read(states: Any, window: int) -> list[Any]:
            return [[show(v) for v in row[window]] or None for row in states]

        return Compiled(
            kind, table=EntriesTable(self.column or "", kind, self.where, Order(self.n, last=True), event_id), read=read, listed=True
        )
