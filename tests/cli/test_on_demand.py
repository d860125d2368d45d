"""On-demand features as the client and `tidemill get` answer them."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from tidemill.client import FeatureStore

FEATURES = """\
import numpy as np
import tidemill as tm

tx = tm.Source("tx", schema={"card": str, "shop": str, "amount": float, "at": tm.Timestamp}, timestamp="at", path="data/*.jsonl")
last = tm.FeatureView(
    "last",
    source=tx,
    entity=tm.Entity("card"),
    aggregations=[tm.last("shop", windows=["1d"]), tm.last("at", windows=["1d"]), tm.last_n("amount", 3, windows=["1d"])],
)


@tm.on_demand(inputs=[last, tm.Request(note=str)], output=int)
def letters(shop_last_1d, note):
    return [None if a is None else len(a) + len(b or "") for a, b in zip(shop_last_1d, note)]


@tm.on_demand(inputs=[last], output=int)
def known(amount_last3_1d):
    return [0 if amounts is None else len(amounts) for amounts in amount_last3_1d]


@tm.on_demand(inputs=[last, tm.Request(now=tm.Timestamp)])
def since(at_last_1d, now):
    return (now - at_last_1d) / np.timedelta64(1, "s")


s = tm.FeatureService("s", features=[letters, known, since])
"""
NOON = "2026-01-05T12:00:00Z"
#: Cards with two events, with one whose shop is null, and with none.
ROWS: list[dict[str, Any]] = [
    {"card": "a", "note": None, "now": NOON},
    {"card": "b", "note": "hello", "now": dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC)},
    {"card": "c", "note": "hello", "now": NOON},
    {"card": "a", "note": "hi", "now": None},
]
RIGHT: dict[str, list[Any]] = {"letters": [3, None, None, 5], "known": [2, 1, 0, 2], "since": [1.0, 1.0, None, None]}


@pytest.fixture
def streamed(project: Any) -> Any:
    events = [("a", "x", 1.0, "11:59:58"), ("a", "abc", 2.0, "11:59:59"), ("b", None, 3.0, "11:59:59")]
    lines = [json.dumps({"card": c, "shop": s, "amount": x, "at": f"2026-01-05T{at}Z"}) + "\n" for c, s, x, at in events]
    project.write("features.py", FEATURES)
    project.write("data/1.jsonl", "".join(lines))
    project.run("apply")
    project.stream()
    return project


def test_a_row_is_answered_alike_alone_and_beside_others(streamed: Any) -> None:
    store = FeatureStore(streamed.root)
    together = store.get_online_features("s", ROWS, at=NOON).to_dict()
    alone = [store.get_online_features("s", [row], at=NOON).to_dict() for row in ROWS]
    store.close()
    assert {name: together[name] for name in RIGHT} == RIGHT
    assert {name: [answer[name][0] for answer in alone] for name in RIGHT} == RIGHT
    assert all(type(v) is int for name in ("letters", "known") for v in together[name] if v is not None)


def test_text_in_the_place_of_an_instant_is_read_on_the_command_line_too(streamed: Any) -> None:
    answer = streamed.run(f"get s card=a note=hi now={NOON} --at {NOON} --json").json
    assert answer["rows"][0]["features"] == {"letters": 5, "known": 2, "since": 1.0}
