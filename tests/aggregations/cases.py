"""Every aggregation over every type of column that it takes, with and without `where`: one line here is a run of the whole suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import tidemill.aggregations as ta
from tests.strategies import Event
from tidemill.aggregations.base import NUMBERS, ORDERED
from tidemill.kernel.bundle import Bundle
from tidemill.testing import brute_force
from tidemill.times import Window
from tidemill.types import ColumnType

#: What to call, with what beside column and windows, over columns of which types (none: no column), and its value over nothing.
AGGREGATIONS: Sequence[tuple[Callable[..., ta.Aggregation], Mapping[str, Any], Sequence[str], Any]] = (
    (ta.count, {}, (), 0),
    (ta.sum, {}, ("int", "bool"), 0),
    (ta.sum, {}, ("float",), 0.0),
    (ta.mean, {}, NUMBERS, None),
    (ta.variance, {}, NUMBERS, None),
    (ta.variance, {"population": True}, NUMBERS, None),
    (ta.stddev, {}, NUMBERS, None),
    (ta.stddev, {"population": True}, NUMBERS, None),
    (ta.min, {}, ORDERED, None),
    (ta.max, {}, ORDERED, None),
    (ta.first, {}, ORDERED, None),
    (ta.last, {}, ORDERED, None),
    (ta.last_n, {"n": 1}, ("float",), None),
    (ta.last_n, {"n": 3}, ORDERED, None),
    (ta.quantile, {"q": 0}, ("float",), None),
    (ta.quantile, {"q": 0.9}, NUMBERS, None),
    (ta.quantile, {"q": 1.0}, ("int",), None),
    (ta.approx_count_distinct, {}, ORDERED, None),
)

FILTER = "w > 0"
VIEW_FILTER = "w <> 2"


def passes_filter(event: Event) -> bool:
    """FILTER, in Python."""
    return event["w"] is not None and event["w"] > 0


def passes_view_filter(event: Event) -> bool:
    """VIEW_FILTER, in Python."""
    return event["w"] is not None and event["w"] != 2


@dataclass(frozen=True)
class Case:
    """One aggregation over a column `v` of one type, for entities `k`. Sources differ in what tells events apart: nothing, `id`, `sid`."""

    make: Callable[..., ta.Aggregation]
    kind: str
    where: str | None
    nothing: Any
    name: str

    @property
    def schema(self) -> dict[str, ColumnType]:
        types = {"at": "timestamp", "k": "str", "v": self.kind, "w": "int", "id": "int", "sid": "str"}
        return {column: ColumnType(kind) for column, kind in types.items()}

    def aggregation(self, windows: Sequence[Window]) -> ta.Aggregation:
        return self.make(windows=["1s"], where=self.where).with_windows(windows)

    def oracle(self, windows: Sequence[Window], window: Window, events: Sequence[Event], t: int, event_id: str | None = None) -> Any:
        """The right answer: brute force over the events of one entity that pass the view's filter."""
        passes = passes_filter if self.where else None
        aggregation = self.aggregation(windows)
        return brute_force(aggregation, window, events, t, schema=self.schema, timestamp="at", event_id=event_id, passes=passes)

    def __str__(self) -> str:
        return self.name


@lru_cache(maxsize=200)
def bundle(case: Case, windows: tuple[Window, ...], event_id: str | None = None, view_filter: str | None = None) -> Bundle:
    """The case alone, compiled."""
    aggregations = [case.aggregation(windows)]
    return Bundle("view", schema=case.schema, event_id=event_id, keys=["k"], where=view_filter, aggregations=aggregations)


def _cases() -> list[Case]:
    cases = []
    for function, options, kinds, nothing in AGGREGATIONS:
        for kind in kinds or ("int",):
            for where in (None, FILTER):
                make = partial(function, **({"column": "v"} if kinds else {}), **options)
                told = [
                    function.__name__,
                    *(f"{k}={v}" for k, v in options.items()),
                    *([kind] if kinds else []),
                    *(["where"] if where else []),
                ]
                cases.append(Case(make, kind, where, nothing, "-".join(told)))
    return cases


CASES = _cases()
