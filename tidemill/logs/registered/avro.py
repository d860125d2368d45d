"""A writer's schema, made ready: what fastavro reads with, and what kind of value each field of its record has.

fastavro is kept from interpreting logical types: a time that no `datetime` holds would be an error of the whole record. They are read as
the integers that they are; what those mean, `fields` says.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import polars as pl

from tidemill.logs.registered.written import HEADER, NOT_UTF8, NOTHING, Columns, Dead, Field, Reference, SchemaRefusedError, cut_off

_NAMED = ("record", "error", "enum", "fixed")
_DECIMAL = "an Avro decimal, which no column holds exactly; write it as a double, a long or a string"
_AMBIGUOUS = "an Avro union of integers that mean different things"

_PYTHON: dict[str, tuple[type, pl.DataType]] = {
    "null": (type(None), pl.Null()),
    "boolean": (bool, pl.Boolean()),
    "int": (int, pl.Int64()),
    "long": (int, pl.Int64()),
    "float": (float, pl.Float64()),
    "double": (float, pl.Float64()),
    "string": (str, pl.String()),
    "enum": (str, pl.String()),
    "bytes": (bytes, NOTHING),
    "fixed": (bytes, NOTHING),
    "array": (list, NOTHING),
    "map": (dict, NOTHING),
    "record": (dict, NOTHING),
    "error": (dict, NOTHING),
}
# By the type that they are made of; elsewhere the specification wants them ignored. A local time is taken as UTC, as everywhere.
_LOGICAL: dict[tuple[str, str], pl.DataType | str] = {
    ("int", "date"): pl.Date(),
    ("int", "time-millis"): NOTHING,
    ("long", "time-micros"): NOTHING,
    ("bytes", "decimal"): _DECIMAL,
    ("bytes", "big-decimal"): _DECIMAL,
    ("fixed", "decimal"): _DECIMAL,
    ("long", "timestamp-millis"): pl.Datetime("ms", "UTC"),
    ("long", "timestamp-micros"): pl.Datetime("us", "UTC"),
    ("long", "timestamp-nanos"): pl.Datetime("ns", "UTC"),
    ("long", "local-timestamp-millis"): pl.Datetime("ms", "UTC"),
    ("long", "local-timestamp-micros"): pl.Datetime("us", "UTC"),
    ("long", "local-timestamp-nanos"): pl.Datetime("ns", "UTC"),
}

# fastavro keeps attributes that it does not know.
_HIDDEN = "tidemill.logicalType"
# It recurses in C, without a limit: 20 KB of a value whose schema contains itself end the process.
_DEEPEST = 64
_DEEPEST_JSON = 4 * _DEEPEST
# So many values may be made of one byte. An array of nulls takes no bytes at all, and so a few bytes would fill the memory.
_PER_BYTE = 4
_MOST_OF_NOTHING = 1 << 16


@dataclass(frozen=True, slots=True)
class AvroSchema:
    """`parsed`: for fastavro. `fields`: by name."""

    parsed: Any
    fields: Mapping[str, Field]

    def messages(self, values: Sequence[bytes], rows: Sequence[int], number: int) -> tuple[list[tuple[AvroSchema, list[int]]], list[Dead]]:
        """A schema of Avro's is that of one kind of record."""
        return [(self, list(rows))], []

    def columns(
        self, values: Sequence[bytes], rows: Sequence[int], names: Collection[str], number: int
    ) -> tuple[Columns, list[int], list[Dead]]:
        """See `Message`."""
        from fastavro import schemaless_reader

        read_one: Any = schemaless_reader
        records: list[dict[str, Any]] = []
        kept: list[int] = []
        dead: list[Dead] = []
        for row in rows:
            value = values[row]
            stream = BytesIO(value)
            stream.seek(HEADER)
            try:
                record = read_one(stream, self.parsed, None)
            except UnicodeDecodeError:
                dead.append((row, NOT_UTF8))
            except Exception:  # noqa: BLE001  (fastavro checks nothing, so anything may happen to it; the value is to blame)
                dead.append((row, cut_off(number)))
            else:
                if stream.tell() != len(value):
                    dead.append((row, f"longer than its schema (id {number}) says"))
                else:
                    records.append(record)
                    kept.append(row)
        return {name: [record[name] for record in records] for name in names if name in self.fields}, kept, dead


def avro_schema(text: str, references: Sequence[Reference] = ()) -> AvroSchema:
    """A schema, made ready. `references`: the schemas whose names it uses, each after those that it uses itself.

    Raises `SchemaRefusedError`.

    >>> parsed = avro_schema('{"type": "record", "name": "R", "fields": [{"name": "n", "type": ["null", "long"]}]}')
    >>> parsed.fields["n"]
    {<class 'NoneType'>: Null, <class 'int'>: Int64}
    """
    from fastavro import parse_schema

    named: dict[str, Any] = {}
    try:
        for reference in references:
            parse_schema(_hidden(json.loads(reference.text)), named_schemas=named)
        parsed: Any = parse_schema(_hidden(json.loads(text)), named_schemas=named)
    except SchemaRefusedError:
        raise
    except Exception as error:  # noqa: BLE001  (whatever fastavro makes of something that is no schema)
        raise SchemaRefusedError(f"is no Avro schema: {type(error).__name__}: {str(error)[:200]}") from None
    if not isinstance(parsed, dict) or parsed.get("type") != "record":
        raise SchemaRefusedError("is not that of a record")
    weight, _ = _Weights(named).of(parsed, 0)
    if weight > _MOST_OF_NOTHING:
        raise SchemaRefusedError("has too many fields that take no bytes")
    return AvroSchema(parsed, {field["name"]: _field(field["type"], named) for field in parsed["fields"]})


def _hidden(schema: Any, depth: int = 0) -> Any:
    """The schema as JSON, with its logical types under another name."""
    if depth > _DEEPEST_JSON:
        raise SchemaRefusedError(f"is nested deeper than {_DEEPEST}")
    if isinstance(schema, list):
        return [_hidden(item, depth + 1) for item in schema]
    if isinstance(schema, dict):
        return {_HIDDEN if key == "logicalType" else key: _hidden(value, depth + 1) for key, value in schema.items()}
    return schema


def _field(kind: Any, named: Mapping[str, Any]) -> dict[type, pl.DataType | str]:
    if isinstance(kind, list):
        field: dict[type, pl.DataType | str] = {}
        for branch in kind:
            for python, values in _field(branch, named).items():
                if field.setdefault(python, values) != values:
                    field[python] = _AMBIGUOUS if python is int else NOTHING
        return field
    definition = named[kind] if isinstance(kind, str) and kind in named else kind
    if isinstance(definition, str):
        definition = {"type": definition}
    python, plain = _PYTHON[definition["type"]]
    return {python: _LOGICAL.get((definition["type"], str(definition.get(_HIDDEN))), plain)}


class _Weights:
    """How many values fastavro makes of a type at most, less `_PER_BYTE` for every byte that they take; and how deep it is nested."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._known: dict[str, tuple[int, int]] = {}
        self._inside: list[str] = []

    def of(self, kind: Any, depth: int) -> tuple[int, int]:
        """Raises `SchemaRefusedError`."""
        if isinstance(kind, str) and kind in self._named:
            kind = self._named[kind]
        name = kind["name"] if isinstance(kind, dict) and kind["type"] in _NAMED else None
        if name in self._inside:
            raise SchemaRefusedError(f"contains itself ({name})")
        if name not in self._known or not isinstance(name, str):
            if depth > _DEEPEST:
                raise SchemaRefusedError(f"is nested deeper than {_DEEPEST}")
            if not isinstance(name, str):
                return self._of(kind, depth)
            self._inside.append(name)
            self._known[name] = self._of(kind, depth)
            self._inside.pop()
        weight, deep = self._known[name]
        if depth + deep > _DEEPEST:
            raise SchemaRefusedError(f"is nested deeper than {_DEEPEST}")
        return weight, deep

    def _of(self, kind: Any, depth: int) -> tuple[int, int]:
        below = depth + 1
        if isinstance(kind, list):
            branches = [self.of(branch, below) for branch in kind]
            return max((weight for weight, _ in branches), default=0) - _PER_BYTE, 1 + max((deep for _, deep in branches), default=0)
        word = kind["type"] if isinstance(kind, dict) else kind
        if word in ("record", "error"):
            fields = [self.of(field["type"], below) for field in kind["fields"]]
            return 1 + sum(weight for weight, _ in fields), 1 + max((deep for _, deep in fields), default=0)
        if word in ("array", "map"):
            weight, deep = self.of(kind["items" if word == "array" else "values"], below)
            if weight + (1 - _PER_BYTE if word == "map" else 0) > 0:
                raise SchemaRefusedError(f"has an {word} of values that take no bytes" if word == "array" else f"has a {word} of nothing")
            return 1 - _PER_BYTE, 1 + deep
        size = kind["size"] if word == "fixed" else 0 if word == "null" else 1
        return 1 - _PER_BYTE * size, 1
