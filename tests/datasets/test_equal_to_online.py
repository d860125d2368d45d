"""A training set says what a live request said: at that instant, having seen what had arrived by then."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tests.project import Folder
from tests.strategies import NOW, edges, examples, times
from tidemill.testing import identical
from tidemill.times import DAY, HOUR, MINUTE, SECOND, Window, from_micros

WINDOWS = ("1m", "90s", "1h", "1d", "30d", "lifetime")
DEFINITIONS = """
import numpy as np
events = tm.Source("events", schema={"k": str, "n": int, "x": float, "s": str, "b": bool, "at": tm.Timestamp, "id": int},
                   timestamp="at", event_id="id", arrival="known", path="log/**/*.jsonl")
W = ["1m", "90s", "1h", "1d", "30d", "lifetime"]
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=W), tm.count(where="x > 0", name="positive", windows=W), tm.sum("x", windows=W), tm.mean("n", windows=W),
    tm.max("x", windows=W), tm.min("s", windows=W), tm.quantile("x", 0.9, windows=W), tm.stddev("x", windows=W), tm.last("s", windows=W),
    tm.last_n("n", 3, windows=W), tm.first("at", windows=W), tm.approx_count_distinct("s", windows=W)])
pair = tm.FeatureView("pair", source=events, entity=tm.Entity("pair", keys=["k", "n"]), where="b", aggregations=[
    tm.count(windows=["1h", "lifetime"]), tm.last("x", windows=["1d"])])

@tm.on_demand(inputs=[v[["count_1h", "x_sum_1h", "s_last_1d"]], tm.Request(rate=float)])
def scaled(count_1h, x_sum_1h, s_last_1d, rate):
    return np.where([s == "a" for s in s_last_1d], rate, x_sum_1h / count_1h)

everything = tm.FeatureService("everything", features=[v, pair, scaled])
"""


class Story(Folder):
    """Events that arrive one after the other, each later than it happened, or sooner."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, DEFINITIONS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    numbers = iter(range(10**9))
    return lambda: Story(tmp_path_factory.mktemp("story") / str(next(numbers)))


def row(at: int, known: int, k: str, n: int, x: Any, s: Any, b: Any, i: Any) -> dict[str, Any]:
    return {"k": k, "n": n, "x": x, "s": s, "b": b, "id": i, "at": from_micros(at).isoformat(), "known": from_micros(known).isoformat()}


def stories() -> st.SearchStrategy[list[dict[str, Any]]]:
    """Events in the order in which they become known."""
    ws = [Window.parse(w) for w in WINDOWS]
    delays = st.sampled_from((0, 1, SECOND, MINUTE, HOUR, 2 * DAY, -SECOND))
    when = times(NOW, ws).filter(lambda t: NOW - 60 * DAY < t < NOW + DAY)
    values = st.none() | st.sampled_from((0.1, -0.0, 1e16, -2.5, 3.0))
    texts = st.none() | st.sampled_from(("a", "é", ""))
    flags = st.none() | st.booleans()
    few = st.sampled_from(("a", "", "1:a"))

    def made(at: int, delay: int, k: str, n: int, x: Any, s: Any, b: Any, i: Any) -> tuple[int, dict[str, Any]]:
        return at + delay, row(at, at + delay, k, n, x, s, b, i)

    event = st.builds(made, when, delays, few, st.integers(0, 1), values, texts, flags, st.none() | st.integers(0, 2))
    first = row(NOW - 70 * DAY, NOW - 70 * DAY, "first", 0, 1.0, None, True, None)  # before it, online says `missing`, not 0
    return st.lists(event, max_size=12).map(lambda es: [first] + [e for _, e in sorted(es, key=lambda e: e[0])])


@examples(12)
@given(data=st.data())
def test_every_row_is_what_a_request_at_that_instant_answered(folders: Any, data: st.DataObject) -> None:
    events = data.draw(stories(), "events")
    known = [tm_micros(e["known"]) for e in events]
    late = [t for t in edges(NOW, [Window.parse(w) for w in WINDOWS]) if t >= known[0]]
    instants = st.sampled_from(sorted({NOW, *known, *(t + 1 for t in known), *late}))
    rows = data.draw(
        st.lists(st.tuples(instants, st.sampled_from(("a", "", "1:a", "nobody")), st.integers(0, 1)), min_size=1, max_size=10), "rows"
    )
    archived = data.draw(st.integers(0, len(events)), "archived")
    folder = folders()
    answers: list[dict[str, Any]] = []
    asked = sorted(rows)
    store = tm.FeatureStore(folder.path)
    at = 0
    for t, k, n in asked:
        due = [e for e in events[at:] if tm_micros(e["known"]) <= t]
        if due:
            folder.log(due)
            at += len(due)
            folder.stream()
        one = {"k": k, "n": n, "rate": 0.5}
        answers.append(store.get_online_features("everything", [one], at=t).to_dict())
    store.close()

    again = folders()  # the same events, some of them archived, the others only in the log
    again.log(events[:archived])
    again.stream()
    again.log(events[archived:], "b.jsonl")
    store = tm.FeatureStore(again.path)
    frame = [{"label": i, "k": k, "n": n, "rate": 0.5, "event_timestamp": from_micros(t)} for i, (t, k, n) in enumerate(asked)]
    order = data.draw(st.permutations(range(len(frame))), "order")
    found = store.get_historical_features([frame[i] for i in order], "everything")
    store.close()
    assert found.knowledge == {"v": "arrival", "pair": "arrival"}
    assert found.hypothetical is None
    columns = found.to_polars()
    assert columns["label"].to_list() == list(order)
    for name, values in columns.to_dict(as_series=False).items():
        if name in ("label", "event_timestamp"):
            continue
        for i, got in zip(order, values, strict=True):
            assert identical(got, answers[i][name][0]), f"{name} of {frame[i]}: {got!r}, and the request said {answers[i][name][0]!r}"


def tm_micros(text: str) -> int:
    moment = dt.datetime.fromisoformat(text)
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
