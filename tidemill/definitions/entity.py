"""Entities: what a feature is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.definitions.names import check_name, suggestion
from tidemill.errors import DefinitionError
from tidemill.types import ColumnType

#: A float is no key: two engines print, parse and round it differently, and NaN is not even equal to itself.
KEY_TYPES = ("int", "str", "bool", "timestamp")


@dataclass(frozen=True, init=False)
class Entity:
    """What a feature is about: one or more key columns. Without `keys`, the column of the entity's own name.

    Raises `DefinitionError` for a name that is no identifier, no keys, or a key named twice.

    >>> Entity("origin").keys, Entity("route", keys=["origin", "dest"]).keys
    (('origin',), ('origin', 'dest'))
    """

    name: str
    keys: tuple[str, ...]

    def __init__(self, name: str, keys: Sequence[str] | None = None) -> None:
        check_name(name, "an entity's name")
        columns = (name,) if keys is None else (keys,) if isinstance(keys, str) else tuple(keys)
        if not columns:
            raise DefinitionError(f"entity {name!r} has no keys: name its key columns, such as keys=['{name}']")
        for key in columns:
            check_name(key, f"entity {name!r}: a key")
        if len(set(columns)) != len(columns):
            raise DefinitionError(f"entity {name!r} names a key twice: keys={list(columns)}; name each column once")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "keys", columns)

    def key_types(self, schema: Mapping[str, ColumnType]) -> dict[str, ColumnType]:
        """The type of each key, in order. Raises `DefinitionError` where a key is not in `schema`, or is a float."""
        for key in self.keys:
            if key not in schema:
                raise DefinitionError(f"entity {self.name!r}: key {key!r} is not a column of the source; {suggestion(key, schema)}")
            if schema[key].name not in KEY_TYPES:
                raise DefinitionError(
                    f"entity {self.name!r}: key {key!r} is a {schema[key]}; a key is one of {', '.join(KEY_TYPES)}: "
                    "declare the column as int or str"
                )
        return {key: schema[key] for key in self.keys}

    def spec(self) -> dict[str, Any]:
        """The definition as JSON, which `from_spec` reads back."""
        return {"name": self.name, "keys": list(self.keys)}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Entity:
        """The entity that `spec` describes."""
        return cls(spec["name"], keys=spec["keys"])
