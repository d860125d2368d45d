"""What every format of a schema registry has in common: schemas made ready, and the records that are read with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import polars as pl

#: What a field's values are, by the Python type that its reader gives them: a Polars type, or the reason why no column can have them.
Field = Mapping[type, "pl.DataType | str"]

#: Values of no type that any column has: arrays, maps, records, bytes, times of day.
NOTHING = pl.Binary()

#: Before every value: a zero byte, and the id of its schema in 4 bytes.
HEADER = 5

#: The values of fields, by name, each with one for every record.
Columns = Mapping[str, Sequence[Any]]

#: A row of the batch, and why it is a dead letter.
Dead = tuple[int, str]


class SchemaRefusedError(Exception):
    """A schema that no record can be read with; the text says why, and does not name it."""


class Reference(NamedTuple):
    """A schema that another one uses: the name that it is used by, and its text."""

    name: str
    text: str


class Message(Protocol):
    """One kind of record. `fields`: by name."""

    @property
    def fields(self) -> Mapping[str, Field]: ...

    def columns(
        self, values: Sequence[bytes], rows: Sequence[int], names: Collection[str], number: int
    ) -> tuple[Columns, list[int], list[Dead]]:
        """Of the records in these rows of `values`: the fields of `names` that they have; their rows; and the rows that are none.

        `number`: the schema's id, for what is said.
        """
        ...


class WrittenSchema(Protocol):
    """A schema as a registry has it, made ready."""

    def messages(self, values: Sequence[bytes], rows: Sequence[int], number: int) -> tuple[Sequence[tuple[Message, list[int]]], list[Dead]]:
        """Which of these rows of `values` are which kind of record, and which are none. `number`: the schema's id, for what is said."""
        ...


def cut_off(number: int) -> str:
    """Why a value is no record."""
    return f"cut off, or not written with its schema (id {number})"


NOT_UTF8 = "not UTF-8"
