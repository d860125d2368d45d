"""What an aggregation is: a commutative monoid whose merge is exact, and one function that turns its state into a number.

The state itself is made of building blocks that have both forms, frames and records: **parts** of the fixed table
(`tidemill.kernel.fixed`), or a table of its own (`tidemill.kernel.buckets`, `registers`, `entries`). An aggregation names its
blocks and finalizes them; it never adds anything up itself, so that there is one algebra.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy.typing as npt

from tidemill.errors import DefinitionError
from tidemill.kernel.fixed import Part
from tidemill.kernel.table import Bools, Int64s, Table
from tidemill.times import Window
from tidemill.types import ColumnType

NUMBERS = ("int", "float", "bool")
ORDERED = ("int", "float", "bool", "timestamp", "str")


@dataclass(frozen=True, slots=True)
class Compiled:
    """An aggregation on a given schema: its output type and state, and how to read it.

    With `parts`: `finalize(words)` gets the parts' words, one after the other, as Python integers. With `table`: `read(states, window)`
    gets what the table's `states` made, and returns one value per entity. Values are int, float, bool, str, aware datetime, list, None
    (null) or OVERFLOW.
    """

    output: ColumnType
    parts: tuple[Part, ...] = ()
    finalize: Callable[[Sequence[int]], Any] | None = None
    table: Table[Any] | None = None
    read: Callable[[Any, int], list[Any]] | None = None
    listed: bool = False
    #: `finalize` of many states at once, where that is worth a second form: words (n, words) to n values; see `Many`.
    many: Callable[[Int64s], Many] | None = None


class Many(NamedTuple):
    """n values as NumPy, which of them are null (None: none), and which are OVERFLOW (None: none; null too)."""

    values: npt.NDArray[Any]
    null: Bools | None = None
    overflow: Bools | None = None


@dataclass(frozen=True, kw_only=True)
class Aggregation(ABC):
    """One function over one column, for some windows. Make them with `tidemill.count`, `tidemill.mean`, ...

    `where` is an SQL expression over the source's columns; `name` replaces `column_function` in the features' names; `hop`, a rung,
    makes the old edge of its windows move in finer steps.
    """

    column: str | None = None
    windows: tuple[Window, ...] = field(default=())
    where: str | None = None
    name: str | None = None

    function: ClassVar[str]
    #: The types of column that make sense.
    takes: ClassVar[tuple[str, ...]] = NUMBERS

    def __post_init__(self) -> None:
        if not self.windows:
            raise DefinitionError(f"{self.label}: give at least one window, such as windows=['1h', '30d']")
        if len(set(self.windows)) < len(self.windows):
            raise DefinitionError(f"{self.label}: a window is listed twice")

    @property
    def label(self) -> str:
        """The feature's name without its window: `dep_delay_mean`, or the `name` that was given."""
        if self.name is not None:
            return self.name
        return self.suffix if self.column is None else f"{self.column}_{self.suffix}"

    @property
    def suffix(self) -> str:
        """The function in the feature's name."""
        return self.function

    def features(self) -> list[tuple[str, Window]]:
        """The names of its features, with their windows.

        >>> from tidemill.aggregations import mean
        >>> [name for name, _ in mean("dep_delay", windows=["1h", "30d"]).features()]
        ['dep_delay_mean_1h', 'dep_delay_mean_30d']
        """
        return [(f"{self.label}_{w.name}", w) for w in self.windows]

    def check(self, schema: Mapping[str, ColumnType]) -> ColumnType:
        """The type of its features on this schema. Raises `DefinitionError` where the column is missing or does not fit."""
        return self.compile(schema, None).output

    def column_type(self, schema: Mapping[str, ColumnType]) -> ColumnType:
        """The type of its column."""
        assert self.column is not None
        found = schema.get(self.column)
        if found is None:
            raise DefinitionError(
                f"{self.function}({self.column!r}): the source has no column {self.column!r}; it has {', '.join(sorted(schema))}"
            )
        if found.name not in self.takes:
            raise DefinitionError(
                f"{self.function}({self.column!r}): the column is {found}, and {self.function} takes {', '.join(self.takes)}"
            )
        return found

    @abstractmethod
    def compile(self, schema: Mapping[str, ColumnType], event_id: str | None) -> Compiled:
        """Its state and how to read it, on a source with this schema and event id column. Raises `DefinitionError`."""

    def options(self) -> dict[str, Any]:
        """Parameters beyond column, windows, where and name."""
        return {}

    def spec(self) -> dict[str, Any]:
        """What the registry keeps; `aggregation_from_spec` reads it back."""
        windows = [[w.length, w.hop] for w in self.windows]
        return {
            "function": self.function,
            "column": self.column,
            "where": self.where,
            "name": self.name,
            "windows": windows,
            **self.options(),
        }

    def with_windows(self, windows: Sequence[Window]) -> Aggregation:
        """The same aggregation over other windows."""
        from dataclasses import replace

        return replace(self, windows=tuple(windows))
