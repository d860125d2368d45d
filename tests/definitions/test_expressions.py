"""Filters: SQL over the columns of one event, that decides alike in every replay."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from tidemill.definitions import Filter
from tidemill.errors import ExpressionError
from tidemill.types import ColumnType

SCHEMA = {
    "amount": ColumnType("float"),
    "n": ColumnType("int"),
    "s": ColumnType("str"),
    "b": ColumnType("bool"),
    "at": ColumnType("timestamp"),
    "select": ColumnType("int"),
}
FIVE = dt.datetime(2013, 1, 1, 5, tzinfo=dt.UTC)
FRAME = pl.DataFrame(
    {
        "amount": [10.0, 20.0, None, float("nan")],
        "n": [1, 2, 3, None],
        "s": ["a", "b", None, "1"],
        "b": [True, False, None, True],
        "at": [FIVE, FIVE + dt.timedelta(days=1), None, FIVE],
        "select": [1, 2, 3, 4],
    },
    schema={column: kind.polars for column, kind in SCHEMA.items()},
)


def passing(sql: str) -> list[bool]:
    """Which of the four events pass, after the check that a definition would make."""
    condition = Filter(sql)
    condition.check(SCHEMA)
    return FRAME.select(condition.mask(FRAME).alias("pass"))["pass"].to_list()


@pytest.mark.parametrize(
    ("sql", "events"),
    [
        ("amount > 15", [1]),
        ("b", [0, 3]),
        ("NOT b", [1]),
        ("s = 'a' OR n = 3", [0, 2]),
        ("amount BETWEEN 1 AND 12", [0]),
        ("s IN ('a', '1')", [0, 3]),
        ("n NOT IN (1, 2)", [2]),
        ("s LIKE 'a%'", [0]),
        ("upper(s) = 'B'", [1]),
        ("CASE WHEN amount > 15 THEN n ELSE 0 END = 2", [1]),
        ("coalesce(n, 0) = 0", [3]),
        ('"select" > 3', [3]),
        ("b = 1", [0, 3]),
        ("n > 1.5", [1, 2]),
        ("sqrt(n * 4.0) = 2", [0]),
        ("amount > 15 -- only the large", [1]),
    ],
)
def test_rows_pass_where_the_condition_is_true(sql: str, events: list[int]) -> None:
    assert passing(sql) == [i in events for i in range(4)]


@pytest.mark.parametrize(
    ("sql", "events"),
    [
        ("at >= '2013-01-01'", [0, 1, 3]),
        ("at > '2013-01-01T05:00:00Z'", [1]),
        ("at = '2013-01-01 06:00:00+01:00'", [0, 3]),
        ("'2013-01-02' < at", [1]),
        ("at BETWEEN '2013-01-01' AND '2013-01-02'", [0, 3]),
        ("at > TIMESTAMP '2013-01-01 05:00:00'", [1]),
        ("at > DATE '2013-01-02'", [1]),
        ("at IN (TIMESTAMP '2013-01-01 05:00:00')", [0, 3]),
        ("EXTRACT(hour FROM at) = 5", [0, 1, 3]),
        ("at - INTERVAL '1 day' > '2013-01-01'", [1]),
    ],
)
def test_times_are_utc_and_compare_with_text(sql: str, events: list[int]) -> None:
    assert passing(sql) == [i in events for i in range(4)]


def test_null_is_not_true_and_neither_is_not_null() -> None:
    assert passing("amount > 15") == [False, True, False, False]
    assert passing("NOT amount > 15") == [True, False, False, False]
    assert passing("n > 0 OR b") == [True, True, True, True]


def test_nan_is_null_also_when_the_filter_makes_it() -> None:
    assert passing("amount IS NULL") == [False, False, True, True]
    assert passing("(n - n) / 0 > 1") == [False] * 4
    assert passing("((n - n) / 0) IS NULL") == [True] * 4
    assert passing("coalesce(amount, 99.0) = 99") == [False, False, True, True]


@pytest.mark.parametrize(
    "sql",
    [
        "zero / zero NOT IN (7)",
        "NOT (zero / zero IN (7))",
        "CASE WHEN zero = 0 THEN zero / zero ELSE 1 END NOT IN (7)",
        "NULLIF(zero / zero, 7) NOT IN (7)",
        "zero / zero <> 1.5",
        "zero / zero BETWEEN -1 AND 1",
        "zero / zero NOT BETWEEN -1 AND 1",
        "one NOT BETWEEN 0 AND zero / zero",
        "GREATEST(zero / zero, zero / zero) <> 7",
        "LEAST(zero / zero, 1) = zero / zero",
        "CAST(zero / zero AS BOOLEAN)",
        "CAST(zero / zero AS VARCHAR) = 'NaN'",
        "CONCAT(zero / zero, 'x') = 'NaNx'",
    ],
)
def test_a_nan_that_the_filter_makes_passes_no_condition(sql: str) -> None:
    frame = pl.DataFrame({"zero": [0.0], "one": [1.0]})
    assert not frame.select(Filter(sql).mask(frame)).item()


def test_greatest_and_least_pass_over_a_nan_that_the_filter_makes_as_over_null() -> None:
    frame = pl.DataFrame({"zero": [0.0], "empty": [None]}, schema={"zero": pl.Float64, "empty": pl.Float64})
    for nothing in ("zero / zero", "empty"):
        condition = Filter(f"GREATEST({nothing}, 1) = 1 AND LEAST({nothing}, 1) = 1 AND CASE {nothing} WHEN 1 THEN false ELSE true END")
        assert frame.select(condition.mask(frame)).item()


def test_a_value_that_cannot_be_cast_is_null_and_stops_nothing() -> None:
    assert passing("CAST(s AS INT) = 1") == [False, False, False, True]
    assert passing("DATE(s, '%Y') IS NULL") == [True, True, True, True]


def test_the_mask_is_the_same_however_the_events_are_batched() -> None:
    condition = Filter("amount > 15 OR s = 'a'")
    whole = FRAME.filter(condition.mask(FRAME))
    parts = pl.concat([FRAME[i : i + 1].filter(condition.mask(FRAME)) for i in range(4)])
    lazily = FRAME.lazy().filter(condition.mask(FRAME.lazy())).collect()
    assert whole.equals(parts)
    assert whole.equals(lazily)
    assert FRAME.clear().filter(condition.mask(FRAME)).is_empty()


def test_a_long_chain_of_conditions_is_fine() -> None:
    assert passing(" OR ".join(f"n = {i}" for i in range(2, 300))) == [False, True, True, False]


def test_columns_are_those_that_the_filter_reads() -> None:
    assert Filter("amount > 15 AND s = 'n' OR amount < n").columns(SCHEMA) == ("amount", "s", "n")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("amount >", r"where='amount >': does not parse"),
        ("amount = ", "does not parse"),
        ("amount > 15; drop", r"where='amount > 15; drop' at character 12: does not parse .*unexpected token ';'"),
        ("amount > 15, n", "at character 12: does not parse"),
        ("amount > 15 LIMIT 3", "does not parse"),
        ("rand() > 0.5", "does not parse .*unsupported function 'rand'"),
        ("random() > 0.5", "unsupported function 'random'"),
        ("amount > ?", "does not parse"),
        ("", "the filter is empty"),
        ("  ", "the filter is empty"),
        ("1", "must be true or false, and is int"),
        ("amount", "must be true or false, and is float: compare it with something"),
        ("s", "must be true or false, and is str"),
        ("b AND n", "must be true or false, and is int"),
        ("NULL", "must be true or false"),
        ("1 = 1", "names no column"),
        ("amuont > 15", "at character 1: there is no column 'amuont'; did you mean 'amount'"),
        ("n > 1 AND Amount > 15", "at character 11: there is no column 'Amount'; did you mean 'amount'"),
        ("s > 3", "compares str with int: compare values of one type, or TRY_CAST one"),
        ("n = '3'", "compares int with str"),
        ("b = 'x'", "compares bool with str"),
        ("at > 5", "compares timestamp with int: write the time as text"),
        ("at > s", "compares timestamp with str: write the time as text"),
        ("at > 'yesterday'", "at character 6: 'yesterday' is not a time: write ISO 8601"),
        ("s IN (1)", "does not fit the columns' types"),
        ("upper(n) = 'A'", "compares int with str"),
        ("amount = NULL", "which is never true: write IS NULL"),
        ("sum(amount) > 3", "uses an aggregate"),
        ("amount > avg(amount)", "uses an aggregate"),
        ("count(*) > 1", "counts rows"),
        ("row_number() OVER () > 2", "uses the function IntRange"),
        ("lag(amount) OVER (ORDER BY n) > 2", "uses a window function"),
        ("rank() OVER (ORDER BY n) > 1", "uses the function Rank"),
        ("unnest(s) = 'a'", "makes several rows of one"),
        ("amount > (SELECT 3)", "holds a subquery"),
        ("amount IN (SELECT 3)", "function Length|subquery"),
        ("EXISTS (SELECT 1)", "holds a subquery"),
        ("COLUMNS('a.*') > 3", "selects several columns"),
        ("amount > 15 AS late", "gives a result a name"),
        ("now() > at", "at character 1: reads the clock"),
        ("at < CURRENT_TIMESTAMP", "at character 6: reads the clock"),
        ("at::date = current_date", "reads the clock"),
        ("ln(amount) > 1", "uses the function Log"),
        ("pow(amount, 2) > 1", "not known to be the same for each event on every machine"),
        ("date(s) > DATE '2013-01-01'", "without its format"),
        ("s ~ '('", "cannot be computed for every event"),
        ("amount > 1e400", "too large"),
        ("NOT " * 100 + "b", "nested too deeply|does not parse"),
        ("(" * 300 + "b" + ")" * 300, "does not parse"),
    ],
)
def test_what_cannot_decide_about_one_event_is_refused(sql: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        Filter(sql).check(SCHEMA)


def test_the_clock_may_be_named_in_text() -> None:
    assert passing("s = 'now() current_date'") == [False] * 4


def test_only_text_is_a_filter() -> None:
    with pytest.raises(ExpressionError, match=r"a filter is SQL text.*got function"):
        Filter(lambda row: True)


def test_a_long_filter_is_cut_short_in_its_error() -> None:
    with pytest.raises(ExpressionError) as caught:
        Filter("amount > 1 AND " * 1000)
    assert len(str(caught.value)) < 600


def test_a_frame_without_the_column_says_so() -> None:
    with pytest.raises(ExpressionError, match="there is no column 'amount'"):
        Filter("amount > 15").mask(FRAME.drop("amount"))
