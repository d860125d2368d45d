"""Canonical keys: the same from a frame and from a request, and different for different keys."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import examples, ints, moments, texts
from tidemill.entities import MAX_KEY_BYTES, entity_key, key_expr
from tidemill.errors import RequestError
from tidemill.times import from_micros
from tidemill.types import ColumnType

KINDS = ("str", "int", "bool", "timestamp")
#: Text that tries to pass for the length of another key, or for a key's end.
_TRICKY = st.text(st.sampled_from("0123:é\U0001f30a"), max_size=5)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "str": texts() | _TRICKY,
    "int": ints(),
    "bool": st.booleans(),
    "timestamp": moments().map(from_micros),
}


@st.composite
def keys(draw: st.DrawFn, rows: int) -> tuple[dict[str, ColumnType], list[dict[str, Any]]]:
    """Key columns and some rows."""
    types = {f"k{i}": ColumnType(kind) for i, kind in enumerate(draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3)))}
    return types, [{c: draw(VALUES[t.name]) for c, t in types.items()} for _ in range(rows)]


def from_frame(rows: list[dict[str, Any]], types: dict[str, ColumnType]) -> list[str]:
    frame = pl.DataFrame({c: pl.Series([row[c] for row in rows], dtype=t.polars) for c, t in types.items()})
    return frame.select(key_expr(list(types), types).alias("key"))["key"].to_list()


@examples(300)
@given(drawn=keys(rows=3))
def test_a_frame_and_a_request_give_one_entity_the_same_key(drawn: tuple[dict[str, ColumnType], list[dict[str, Any]]]) -> None:
    types, rows = drawn
    assert from_frame(rows, types) == [entity_key(row, list(types), types) for row in rows]


@examples(300)
@given(drawn=keys(rows=2))
def test_different_keys_never_share_a_canonical_key(drawn: tuple[dict[str, ColumnType], list[dict[str, Any]]]) -> None:
    types, (a, b) = drawn
    assert (entity_key(a, list(types), types) == entity_key(b, list(types), types)) == (a == b)


@examples(200)
@given(a=st.tuples(_TRICKY, _TRICKY, _TRICKY), b=st.tuples(_TRICKY, _TRICKY, _TRICKY))
def test_keys_of_digits_and_colons_do_not_run_into_one_another(a: tuple[str, ...], b: tuple[str, ...]) -> None:
    types = {c: ColumnType("str") for c in "xyz"}
    texts = [entity_key(dict(zip("xyz", key, strict=True)), "xyz", types) for key in (a, b)]
    assert (texts[0] == texts[1]) == (a == b)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("str", "", ""),
        ("str", "é\U0001f30a", "é\U0001f30a"),
        ("int", -(2**63), "-9223372036854775808"),
        ("int", np.int32(-7), "-7"),
        ("bool", True, "true"),
        ("bool", np.bool_(False), "false"),
        ("timestamp", dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC), "-1"),
        ("timestamp", dt.datetime(1970, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))), "0"),
        ("timestamp", "1970-01-01T00:00:00.000001", "1"),
        ("timestamp", np.datetime64("1970-01-02"), "86400000000"),
    ],
)
def test_a_request_writes_a_key_as_it_likes(kind: str, value: Any, text: str) -> None:
    types = {"k": ColumnType(kind)}
    assert entity_key({"k": value}, ["k"], types) == text
    assert entity_key({"k": value, "l": "x"}, ["k", "l"], {**types, "l": ColumnType("str")}) == f"{len(text.encode())}:{text}1:x"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("str", v) for v in (None, 7, True, b"JFK", "\ud800")),
        *(("int", v) for v in (None, "7", 7.0, True, np.bool_(True))),
        *(("bool", v) for v in (None, 1, "true")),
        *(("timestamp", v) for v in (None, 7, 7.5, True, "yesterday", dt.date(2024, 1, 1), np.datetime64("NaT"), pd.NaT)),
    ],
)
def test_a_key_of_the_wrong_type_is_refused_with_its_name(kind: str, value: Any) -> None:
    for keys in (["k"], ["k", "l"]):
        with pytest.raises(RequestError, match="key 'k'"):
            entity_key({"k": value, "l": "x"}, keys, {"k": ColumnType(kind), "l": ColumnType("str")})


def test_a_missing_key_is_refused() -> None:
    with pytest.raises(RequestError, match="no key 'k'"):
        entity_key({}, ["k"], {"k": ColumnType("str")})


@pytest.mark.parametrize("letter", ["a", "é", "\U0001f30a"])
def test_a_key_is_measured_in_bytes(letter: str) -> None:
    types = {"k": ColumnType("str")}
    longest = letter * (MAX_KEY_BYTES // len(letter.encode()))
    assert entity_key({"k": longest}, ["k"], types) == longest
    with pytest.raises(RequestError, match="longer than 4096 bytes"):
        entity_key({"k": longest + letter}, ["k"], types)
