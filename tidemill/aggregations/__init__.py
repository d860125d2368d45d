"""The aggregations, as functions that people write in definitions.

Each takes `windows` (durations such as `"1h"`, timedeltas, or `"lifetime"`), `where` (an SQL expression over the source's columns: only
events for which it is true count), `name` (replaces `column_function` in the features' names) and `hop` (how far the old
edge of its windows moves at a time; by default the widest rung that is at most a 24th of the window).

>>> [name for name, _ in count(where="dep_delay > 15", name="late", windows=["1h", "1d"]).features()]
['late_1h', 'late_1d']
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.aggregations.base import Aggregation, Compiled
from tidemill.aggregations.extremes import MaxOf, MinOf
from tidemill.aggregations.ordered import FirstOf, LastN, LastOf
from tidemill.aggregations.sketches import ApproxCountDistinct, Quantile
from tidemill.aggregations.sums import CountOf, MeanOf, StddevOf, SumOf, VarianceOf
from tidemill.errors import DefinitionError
from tidemill.times import Window

__all__ = [
    "Aggregation",
    "Compiled",
    "aggregation_from_spec",
    "approx_count_distinct",
    "count",
    "first",
    "last",
    "last_n",
    "max",
    "mean",
    "min",
    "quantile",
    "stddev",
    "sum",
    "variance",
]

Duration = str | dt.timedelta

_BY_FUNCTION: dict[str, type[Aggregation]] = {
    c.function: c
    for c in (CountOf, SumOf, MeanOf, VarianceOf, StddevOf, MinOf, MaxOf, FirstOf, LastOf, LastN, Quantile, ApproxCountDistinct)
}


def _windows(windows: Sequence[Duration], hop: Duration | None) -> tuple[Window, ...]:
    if isinstance(windows, (str, dt.timedelta)):
        raise DefinitionError(f"windows={windows!r}: give a list, such as windows=[{windows!r}]")
    return tuple(Window.parse(w, hop) for w in windows)


def count(*, windows: Sequence[Duration], where: str | None = None, name: str | None = None, hop: Duration | None = None) -> Aggregation:
    """How many events: `count_1h`. Of nothing: 0."""
    return CountOf(windows=_windows(windows, hop), where=where, name=name)


def sum(
    column: str, *, windows: Sequence[Duration], where: str | None = None, name: str | None = None, hop: Duration | None = None
) -> Aggregation:
    """The exact sum: an integer of integers and booleans, a float of floats. Of nothing: 0."""
    return SumOf(column=column, windows=_windows(windows, hop), where=where, name=name)


def mean(
    column: str, *, windows: Sequence[Duration], where: str | None = None, name: str | None = None, hop: Duration | None = None
) -> Aggregation:
    """The mean, correctly rounded. Of nothing: null."""
    return MeanOf(column=column, windows=_windows(windows, hop), where=where, name=name)


def variance(
    column: str,
    *,
    windows: Sequence[Duration],
    population: bool = False,
    where: str | None = None,
    name: str | None = None,
    hop: Duration | None = None,
) -> Aggregation:
    """The sample variance (`population=True`: the population's, named `variance_pop`). Of fewer than two (one) values: null."""
    return VarianceOf(column=column, windows=_windows(windows, hop), where=where, name=name, population=population)


def stddev(
    column: str,
    *,
    windows: Sequence[Duration],
    population: bool = False,
    where: str | None = None,
    name: str | None = None,
    hop: Duration | None = None,
) -> Aggregation:
    """The sample standard deviation (`population=True`: the population's, named `stddev_pop`). Of fewer than two (one) values: null."""
    return StddevOf(column=column, windows=_windows(windows, hop), where=where, name=name, population=population)


def min(
    column: str, *, windows: Sequence[Duration], where: str | None = None, name: str | None = None, hop: Duration | None = None
) -> Aggregation:
    """The smallest value: of numbers, booleans, instants or text. Of nothing: null."""
    return MinOf(column=column, windows=_windows(windows, hop), where=where, name=name)


def max(
    column: str, *, windows: Sequence[Duration], where: str | None = None, name: str | None = None, hop: Duration | None = None
) -> Aggregation:
    """The largest value: of numbers, booleans, instants or text. Of nothing: null."""
    return MaxOf(column=column, windows=_windows(windows, hop), where=where, name=name)


def first(
    column: str, *, windows: Sequence[Duration], where: str | None = None, name: str | None = None, hop: Duration | None = None
) -> Aggregation:
    """The earliest non-null value, by (event time, event id, value). Of nothing: null."""
    return FirstOf(column=column, windows=_windows(windows, hop), where=where, name=name)


def last(
    column: str, *, windows: Sequence[Duration], where: str | None = None, name: str | None = None, hop: Duration | None = None
) -> Aggregation:
    """The latest non-null value, by (event time, event id, value). Of nothing: null."""
    return LastOf(column=column, windows=_windows(windows, hop), where=where, name=name)


def last_n(
    column: str, n: int, *, windows: Sequence[Duration], where: str | None = None, name: str | None = None, hop: Duration | None = None
) -> Aggregation:
    """The latest `n` non-null values, the latest first, as a list: `amount_last5_1d`. Of nothing: null."""
    return LastN(column=column, n=n, windows=_windows(windows, hop), where=where, name=name)


def quantile(
    column: str, q: float, *, windows: Sequence[Duration], where: str | None = None, name: str | None = None, hop: Duration | None = None
) -> Aggregation:
    """The q-quantile within 0.8 %: `dep_delay_p90_1d`. Of nothing: null."""
    return Quantile(column=column, q=q, windows=_windows(windows, hop), where=where, name=name)


def approx_count_distinct(
    column: str, *, windows: Sequence[Duration], where: str | None = None, name: str | None = None, hop: Duration | None = None
) -> Aggregation:
    """How many different values, by HyperLogLog, standard error 1.6 %. Of nothing: null."""
    return ApproxCountDistinct(column=column, windows=_windows(windows, hop), where=where, name=name)


def aggregation_from_spec(spec: Mapping[str, Any]) -> Aggregation:
    """The aggregation that `Aggregation.spec` described.

    >>> a = quantile("x", 0.9, windows=["1h", "lifetime"])
    >>> aggregation_from_spec(a.spec()) == a
    True
    """
    options = dict(spec)
    function, windows = options.pop("function"), options.pop("windows")
    return _BY_FUNCTION[function](windows=tuple(Window(*w) for w in windows), **options)
