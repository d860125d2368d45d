"""Entities and their keys."""

from __future__ import annotations

import pytest

from tidemill.definitions import Entity
from tidemill.errors import DefinitionError
from tidemill.types import ColumnType

SCHEMA = {kind: ColumnType(kind) for kind in ("int", "str", "bool", "timestamp", "float")}


def test_the_key_is_by_default_the_column_of_the_same_name() -> None:
    assert Entity("origin").keys == ("origin",)
    assert Entity("origin", keys="airport").keys == ("airport",)
    assert Entity("route", keys=["origin", "dest"]).keys == ("origin", "dest")


def test_keys_are_of_any_type_but_float() -> None:
    assert Entity("e", keys=["str", "int", "bool", "timestamp"]).key_types(SCHEMA) == {
        k: SCHEMA[k] for k in ("str", "int", "bool", "timestamp")
    }
    with pytest.raises(DefinitionError, match="entity 'e': key 'float' is a float; a key is one of int, str, bool, timestamp"):
        Entity("e", keys=["int", "float"]).key_types(SCHEMA)


def test_a_key_that_the_source_does_not_have_is_refused_with_the_near_one() -> None:
    with pytest.raises(DefinitionError, match="entity 'e': key 'timestanp' is not a column of the source; did you mean 'timestamp'"):
        Entity("e", keys=["timestanp"]).key_types(SCHEMA)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("a b", None, "an entity's name"),
        ("e", [], "has no keys"),
        ("e", ["a", "a"], "names a key twice"),
        ("e", ["a b"], "entity 'e': a key"),
    ],
)
def test_a_wrong_entity_is_refused(name: str, keys: list[str] | None, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        Entity(name, keys=keys)


def test_an_entity_survives_json() -> None:
    entity = Entity("route", keys=["origin", "dest"])
    assert Entity.from_spec(entity.spec()) == entity
