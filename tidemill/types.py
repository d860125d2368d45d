"""Column types of a source's schema, and what they are in Polars."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tidemill.errors import DefinitionError
from tidemill.times import to_micros

_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True, slots=True)
class Timestamp:
    """An instant: ISO 8601 text (naive is read as UTC) or a typed timestamp column; with a unit, also epoch numbers.

    `Timestamp` itself, without parentheses, is the common case; `Timestamp("ms")` reads integers as milliseconds since 1970.

    >>> Timestamp("ms").unit
    'ms'
    """

    unit: str | None = None

    def __post_init__(self) -> None:
        if self.unit is not None and self.unit not in _UNITS:
            raise DefinitionError(f"Timestamp({self.unit!r}): the unit of epoch numbers is one of {', '.join(map(repr, _UNITS))}")

    @property
    def micros(self) -> int | None:
        """Microseconds in one unit."""
        return None if self.unit is None else _UNITS[self.unit]


@dataclass(frozen=True, slots=True)
class ColumnType:
    """A type by its stable name: int, float, str, bool or timestamp. `unit` only for timestamps of epoch numbers."""

    name: str
    unit: str | None = None

    @classmethod
    def of(cls, declared: object) -> ColumnType:
        """The type that a schema declares: `int`, `float`, `str`, `bool`, `Timestamp`, `Timestamp("ms")`, `datetime`.

        >>> ColumnType.of(float), ColumnType.of(Timestamp("s"))
        (ColumnType(name='float', unit=None), ColumnType(name='timestamp', unit='s'))
        """
        if isinstance(declared, ColumnType):
            return declared
        if declared is Timestamp or declared is dt.datetime:
            return cls("timestamp")
        if isinstance(declared, Timestamp):
            return cls("timestamp", declared.unit)
        names: dict[object, str] = {int: "int", float: "float", str: "str", bool: "bool"}
        if isinstance(declared, type) and declared in names:
            return cls(names[declared])
        raise DefinitionError(f"{declared!r} is not a column type: use int, float, str, bool or tidemill.Timestamp")

    @property
    def polars(self) -> pl.DataType:
        """The type of the decoded column. Timestamps are microseconds, UTC."""
        return _POLARS[self.name]

    @property
    def numeric(self) -> bool:
        """Whether sums make sense: numbers, and booleans as 0 and 1."""
        return self.name in ("int", "float", "bool")

    @property
    def micros_per_unit(self) -> int:
        """Microseconds in one unit of an epoch number; 1 where no unit is declared."""
        return Timestamp(self.unit).micros or 1

    def instant(self, value: Any) -> int:
        """What a request brings for a column of this type, as UTC microseconds: ISO 8601 text, a datetime, or an epoch number in its unit.

        Raises `ValueError`, `TypeError`.

        >>> ColumnType("timestamp", "ms").instant(1500), ColumnType("timestamp").instant("1970-01-01T00:00:01.5")
        (1500000, 1500000)
        """
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            value = int(value) * self.micros_per_unit
        return to_micros(value)

    def __str__(self) -> str:
        return self.name


_POLARS: dict[str, pl.DataType] = {
    "int": pl.Int64(),
    "float": pl.Float64(),
    "str": pl.String(),
    "bool": pl.Boolean(),
    "timestamp": pl.Datetime("us", "UTC"),
}
