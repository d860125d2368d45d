"""On-demand features: Python functions over stored features and request columns."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import examples
from tidemill.aggregations import count, last, last_n, mean
from tidemill.definitions import Entity, FeatureRef, FeatureView, OnDemand, Request, RequestField, Source, on_demand
from tidemill.errors import DefinitionError, RequestError
from tidemill.testing import identical
from tidemill.types import ColumnType, Timestamp

SOURCE = Source(
    "departures", schema={"origin": str, "carrier": str, "dep_delay": float, "dep_utc": Timestamp}, timestamp="dep_utc", path="d/*.csv"
)
AGGREGATIONS = [
    count(windows=["1h"]),
    count(where="dep_delay > 15", name="late", windows=["1h"]),
    last("carrier", windows=["1d"]),
    last("dep_utc", windows=["1d"]),
    last_n("dep_delay", 2, windows=["1d"]),
]
BY_ORIGIN = FeatureView("by_origin", SOURCE, Entity("origin"), AGGREGATIONS)
BY_CARRIER = FeatureView("by_carrier", SOURCE, Entity("carrier"), [count(windows=["1h"]), mean("dep_delay", windows=["1d"])])


def late_share(late_1h: Any, count_1h: Any) -> Any:
    """Late departures among all."""
    return late_1h / count_1h


def evaluated(function: Callable[..., Any], *inputs: Any, output: object = float, **columns: Any) -> list[Any]:
    values = on_demand(inputs=list(inputs), name="f", output=output)(function).evaluate(columns)
    assert all(value is None or type(value) is output for value in values)
    return values


def test_parameters_are_short_names_where_they_are_unique() -> None:
    @on_demand(inputs=[BY_ORIGIN, Request(distance=float)])
    def long_haul_late_share(late_1h: Any, count_1h: Any, distance: Any) -> Any:
        return np.where(distance > 1000, late_1h / count_1h, 0.0)

    assert isinstance(long_haul_late_share, OnDemand)
    assert long_haul_late_share.parameters == {
        "late_1h": FeatureRef("by_origin", "late_1h"),
        "count_1h": FeatureRef("by_origin", "count_1h"),
        "distance": RequestField("distance", ColumnType("float")),
    }
    assert long_haul_late_share.refs == (FeatureRef("by_origin", "late_1h"), FeatureRef("by_origin", "count_1h"))
    assert long_haul_late_share.request == {"distance": ColumnType("float")}
    columns = {"by_origin__late_1h": np.array([1.0, 3.0]), "by_origin__count_1h": np.array([4, 4]), "distance": np.array([2475.0, 100.0])}
    assert long_haul_late_share.evaluate(columns) == [0.25, 0.0]
    assert long_haul_late_share(np.array([1.0]), np.array([2.0]), np.array([2000.0])).tolist() == [0.5]


def test_a_name_that_two_views_have_is_written_in_full() -> None:
    def share(by_origin__count_1h: Any, by_carrier__count_1h: Any, dep_delay_mean_1d: Any) -> Any:
        return by_origin__count_1h / by_carrier__count_1h + dep_delay_mean_1d

    made = on_demand(inputs=[BY_ORIGIN, BY_CARRIER])(share)
    assert [str(ref) for ref in made.refs] == ["by_origin:count_1h", "by_carrier:count_1h", "by_carrier:dep_delay_mean_1d"]
    assert set(made.views) == {"by_origin", "by_carrier"}
    with pytest.raises(
        DefinitionError, match="'f': parameter 'count_1h' could be by_carrier__count_1h or by_origin__count_1h; name it in full"
    ):
        on_demand(inputs=[BY_ORIGIN, BY_CARRIER], name="f")(lambda count_1h: count_1h)
    with pytest.raises(DefinitionError, match=r"could be by_origin__count_1h or count_1h \(of the request\)"):
        on_demand(inputs=[BY_ORIGIN, Request(count_1h=float)], name="f")(lambda count_1h: count_1h)


def test_a_selection_narrows_what_a_name_can_mean() -> None:
    made = on_demand(inputs=[BY_ORIGIN["count_1h"], BY_CARRIER["dep_delay_mean_1d"]], name="f")(lambda count_1h: count_1h)
    assert made.refs == (FeatureRef("by_origin", "count_1h"),)
    assert set(made.views) == {"by_origin"}


def test_an_unknown_parameter_is_refused_with_the_near_ones() -> None:
    with pytest.raises(
        DefinitionError, match="'late_share': parameter 'late_1h' is no feature of its inputs and no request column; there are distance"
    ):
        on_demand(inputs=[Request(distance=float)])(late_share)
    with pytest.raises(DefinitionError, match=r"parameter 'late_1hr' is no feature .* did you mean 'late_1h'"):
        on_demand(inputs=[BY_ORIGIN], name="f")(lambda late_1hr: late_1hr)


@pytest.mark.parametrize(
    ("inputs", "function", "options", "message"),
    [
        ([BY_ORIGIN], lambda: 1.0, {"name": "f"}, "'f' takes no parameters"),
        ([BY_ORIGIN], lambda *late_1h: 1.0, {"name": "f"}, r"parameter \*late_1h names no feature"),
        ([BY_ORIGIN], lambda **late_1h: 1.0, {"name": "f"}, r"parameter \*\*late_1h names no feature"),
        ([BY_ORIGIN], lambda late_1h: 1.0, {}, "an on-demand feature's name .* got '<lambda>'"),
        ([BY_ORIGIN], lambda late_1h: 1.0, {"name": "f", "output": str}, "output is float, int or bool; got str"),
        (["by_origin"], lambda late_1h: 1.0, {"name": "f"}, r"an input is a view, view\['feature'\] or Request\(...\); got 'by_origin'"),
        ([Request(x=float), Request(x=int)], lambda x: x, {"name": "f"}, "request column 'x' is declared as float and as int"),
        (late_share, None, {}, r"on_demand needs its inputs"),
    ],
)
def test_a_wrong_on_demand_feature_is_refused(inputs: Any, function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        on_demand(inputs=inputs, **options)(function)


def test_request_columns_have_types() -> None:
    assert Request(booked=Timestamp, seats=int).fields == {"booked": ColumnType("timestamp"), "seats": ColumnType("int")}
    with pytest.raises(DefinitionError, match=r"request column 'seats': .* is not a column type"):
        Request(seats=list)
    with pytest.raises(DefinitionError, match="names no column"):
        Request()


def test_null_is_nan_going_in_and_what_is_not_finite_is_null_coming_out() -> None:
    late, counts = np.array([1, 0, None, 1], dtype=object), np.array([2, 0, 4, 0])
    assert evaluated(late_share, BY_ORIGIN, by_origin__late_1h=late, by_origin__count_1h=counts) == [0.5, None, None, None]


def test_numbers_come_as_float64_text_as_objects_and_times_as_datetime64() -> None:
    seen: dict[str, Any] = {}

    def remember(count_1h: Any, carrier_last_1d: Any, dep_utc_last_1d: Any, dep_delay_last2_1d: Any, urgent: Any) -> Any:
        seen.update(count=count_1h, carrier=carrier_last_1d, at=dep_utc_last_1d, delays=dep_delay_last2_1d, urgent=urgent)
        return count_1h

    noon = dt.datetime(2013, 1, 1, 12, tzinfo=dt.UTC)
    delays = np.empty(2, dtype=object)
    delays[:] = [[1.0, 2.0], [3.0, 4.0]]
    evaluated(
        remember,
        BY_ORIGIN,
        Request(urgent=bool),
        by_origin__count_1h=[1, 2],
        by_origin__carrier_last_1d=np.array(["AA", None], dtype=object),
        by_origin__dep_utc_last_1d=np.array([noon, None], dtype=object),
        by_origin__dep_delay_last2_1d=delays,
        urgent=[True, False],
    )
    assert {name: array.dtype.name for name, array in seen.items()} == {
        "count": "float64",
        "carrier": "object",
        "at": "datetime64[us]",
        "delays": "object",
        "urgent": "float64",
    }
    assert seen["at"][0] == np.datetime64("2013-01-01T12:00")
    assert np.isnat(seen["at"][1])
    assert seen["delays"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def lengths(texts: Any) -> list[int | None]:
    """Of texts or lists, as a function that meets None would write it."""
    return [None if text is None else len(text) for text in texts]


def test_null_text_is_none_whatever_else_the_request_asks_for() -> None:
    def f(carrier_last_1d: Any, note: Any) -> Any:
        return [(a or 0) * 10 + (b or 0) for a, b in zip(lengths(carrier_last_1d), lengths(note), strict=True)]

    rows = [("AA", None, 20.0), (None, "hey", 3.0), (None, None, 0.0), ("", "x" * 9, 9.0)]
    carriers, notes, right = zip(*rows, strict=True)
    inputs = (BY_ORIGIN, Request(note=str))
    assert evaluated(f, *inputs, by_origin__carrier_last_1d=carriers, note=notes) == list(right)
    assert [evaluated(f, *inputs, by_origin__carrier_last_1d=[c], note=[n]) for c, n, _ in rows] == [[value] for value in right]


def test_lists_may_differ_in_length_and_be_null() -> None:
    def f(dep_delay_last2_1d: Any) -> Any:
        return lengths(dep_delay_last2_1d)

    for lists in ([[1.0, 2.0], [3.0], None, []], [[1.0], [2.0]], [None], [[1.0, 2.0]], [None, None]):
        assert evaluated(f, BY_ORIGIN, by_origin__dep_delay_last2_1d=lists) == lengths(lists)


def test_instants_may_be_null_and_a_request_may_bring_them_as_text_or_epoch_numbers() -> None:
    def f(dep_utc_last_1d: Any, now: Any) -> Any:
        return (now - dep_utc_last_1d) / np.timedelta64(1, "s")

    noon = dt.datetime(2013, 1, 1, 12, tzinfo=dt.UTC)
    minute = [noon + dt.timedelta(minutes=1), "2013-01-01T12:01:00Z", "2013-01-01T12:01:00", "2013-01-01T13:01:00+01:00", None]
    last_times = [noon, noon, noon, noon, noon]
    inputs = (BY_ORIGIN, Request(now=Timestamp))
    assert evaluated(f, *inputs, by_origin__dep_utc_last_1d=last_times, now=minute) == [60.0, 60.0, 60.0, 60.0, None]
    assert evaluated(f, *inputs, by_origin__dep_utc_last_1d=[None], now=[noon]) == [None]
    seconds = [int(noon.timestamp()) + 1, None]
    assert evaluated(f, BY_ORIGIN, Request(now=Timestamp("s")), by_origin__dep_utc_last_1d=[noon, None], now=seconds) == [1.0, None]


@pytest.mark.parametrize(
    ("declared", "value"), [(float, "5"), (int, [5]), (bool, "true"), (str, 5), (str, ["a"]), (Timestamp, "yesterday"), (Timestamp, 1.5)]
)
def test_a_value_of_another_type_is_refused_alone_and_beside_others(declared: Any, value: Any) -> None:
    for column in ([value], [value, None]):
        with pytest.raises(
            RequestError, match=rf"on-demand feature 'f': column 'x' must hold values of type \w+; got .* \({type(value).__name__}"
        ):
            evaluated(lambda x: np.zeros(len(x)), Request(x=declared), x=column)


def test_a_declared_output_of_int_or_bool_is_what_comes_out() -> None:
    assert evaluated(lambda count_1h: count_1h, BY_ORIGIN, output=int, by_origin__count_1h=[3, None]) == [3, None]
    assert evaluated(lambda count_1h: count_1h > 1, BY_ORIGIN, output=bool, by_origin__count_1h=[3, 1]) == [True, False]
    assert evaluated(lambda count_1h: count_1h / 0, BY_ORIGIN, output=bool, by_origin__count_1h=[3, None]) == [None, None]
    assert evaluated(lambda x: np.array([2**60 + 1]), Request(x=int), output=int, x=[0]) == [2**60 + 1]


@pytest.mark.parametrize(
    ("output", "value", "message"),
    [
        (int, 0.5, r"returned 0\.5 for row 1, which is no 64-bit int: round it"),
        (int, 2.0**63, r"returned 9\.22.* which is no 64-bit int"),
        (bool, 2, "returned 2 for row 1, which is no bool: compare it"),
    ],
)
def test_a_number_that_the_declared_output_cannot_hold_is_refused(output: Any, value: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"on-demand feature 'f' {message}"):
        evaluated(lambda x: [1, value], Request(x=int), output=output, x=[0, 0])


def test_a_function_may_write_into_its_arrays_without_changing_the_answer_of_others() -> None:
    counts = np.array([1.0, np.nan])

    def filled(count_1h: Any) -> Any:
        count_1h[np.isnan(count_1h)] = 0
        return count_1h

    assert evaluated(filled, BY_ORIGIN, by_origin__count_1h=counts) == [1.0, 0.0]
    assert np.isnan(counts[1])


@pytest.mark.parametrize("result", [[1, 2], (True, False), np.array([1, 2], dtype=np.int32), np.array([1.0, None], dtype=object)])
def test_anything_like_an_array_of_numbers_may_come_back(result: Any) -> None:
    assert len(evaluated(lambda count_1h: result, BY_ORIGIN, by_origin__count_1h=[1, 2])) == 2


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "must return 2 numbers, one per row; it returned None: is a `return` missing"),
        (1.0, r"it returned an array of shape \(\): work on whole arrays"),
        ([1.0], r"it returned an array of shape \(1,\)"),
        ([[1.0], [2.0]], r"it returned an array of shape \(2, 1\)"),
        (["a", "b"], r"it returned something else \(list\)"),
        (["1", "2"], r"it returned something else \(list\)"),
        (["1", None], r"it returned something else \(list\)"),
        ([[1.0], [1.0, 2.0]], r"it returned something else \(list\)"),
        ({"a": 1}, r"it returned something else \(dict\)"),
    ],
)
def test_a_wrong_result_is_refused_with_the_functions_name(result: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"on-demand feature 'f' {message}" if message.startswith("must") else message):
        evaluated(lambda count_1h: result, BY_ORIGIN, by_origin__count_1h=[1, 2])


def test_a_function_that_raises_is_a_request_error_with_its_name() -> None:
    with pytest.raises(RequestError, match="on-demand feature 'f' failed: KeyError: 'x'"):
        evaluated(lambda count_1h: {}["x"], BY_ORIGIN, by_origin__count_1h=[1])


def test_columns_that_are_missing_or_of_another_type_or_length_are_refused() -> None:
    with pytest.raises(RequestError, match="on-demand feature 'f' needs 'distance', which the request does not have"):
        evaluated(lambda distance: distance, Request(distance=float))
    with pytest.raises(RequestError, match=r"column 'distance' must hold values of type float; got 'far' \(str\)"):
        evaluated(lambda distance: distance, Request(distance=float), distance=["far"])
    with pytest.raises(RequestError, match=r"got columns of different lengths: \[1, 2\]"):
        evaluated(lambda a, b: a, Request(a=float, b=float), a=[1.0], b=[1.0, 2.0])


def test_no_rows_are_no_values() -> None:
    assert evaluated(late_share, BY_ORIGIN, by_origin__late_1h=np.array([]), by_origin__count_1h=np.array([])) == []


def test_the_registry_keeps_names_and_a_hash_of_the_source() -> None:
    made = on_demand(inputs=[BY_ORIGIN, Request(distance=float)])(late_share)
    assert made.spec() == {
        "name": "late_share",
        "inputs": {"late_1h": "by_origin:late_1h", "count_1h": "by_origin:count_1h"},
        "output": "float",
        "source_hash": made.source_hash,
        "description": "Late departures among all.",
    }
    other = on_demand(inputs=[BY_ORIGIN], name="late_share")(lambda late_1h, count_1h: late_1h - count_1h)
    assert other.source_hash != made.source_hash


def test_a_function_without_source_text_is_hashed_by_its_code() -> None:
    def made(text: str) -> OnDemand:
        namespace: dict[str, Any] = {}
        exec(f"def f(count_1h): return {text}", namespace)
        return on_demand(inputs=[BY_ORIGIN])(namespace["f"])

    assert made("count_1h + 1").source_hash == made("count_1h + 1").source_hash
    assert made("count_1h + 1").source_hash != made("count_1h + 2").source_hash


def test_a_partial_can_be_an_on_demand_feature() -> None:
    def scaled(factor: float, count_1h: Any) -> Any:
        return factor * count_1h

    double = functools.partial(scaled, 2.0)
    assert evaluated(double, BY_ORIGIN, by_origin__count_1h=[3]) == [6.0]


@examples(40)
@given(data=st.data())
def test_many_rows_at_once_are_answered_as_each_by_itself(data: st.DataObject) -> None:
    def either(a: Any, b: Any) -> Any:
        return np.where(a > 2, a / b, a + b)

    of_output: dict[Any, Any] = {float: either, int: lambda a, b: np.floor(np.clip(either(a, b), -9, 9)), bool: lambda a, b: a > b}
    output = data.draw(st.sampled_from((float, int, bool)))
    kinds = {"a": data.draw(st.sampled_from((int, float, bool))), "b": data.draw(st.sampled_from((int, float, bool)))}
    made = on_demand(inputs=[Request(**kinds)], name="made", output=output)(of_output[output])
    values = {int: st.integers(-(2**63), 2**63 - 1), float: st.floats(-1e300, 1e300), bool: st.booleans()}
    n = data.draw(st.integers(1, 8))
    columns = {c: data.draw(st.lists(st.none() | values[k], min_size=n, max_size=n)) for c, k in kinds.items()}
    types = {int: pl.Int64, float: pl.Float64, bool: pl.Boolean}
    series = {c: pl.Series(v, dtype=types[kinds[c]]) for c, v in columns.items()}
    one_by_one = [made.evaluate({c: [v[i]] for c, v in columns.items()})[0] for i in range(n)]
    assert all(map(identical, made.evaluate_series(series).to_list(), one_by_one))
