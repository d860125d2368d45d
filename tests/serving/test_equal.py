"""What comes back over HTTP is what the library answers in process: the same columns, statuses and values, to the bit."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tests.serving.conftest import DEFINITIONS, NOW, ROW, Served, app, event
from tidemill.apps import load
from tidemill.errors import HorizonError, NotFoundError, RequestError, ScoringError, StoreUnavailableError
from tidemill.remote.answers import features_of, scores_of
from tidemill.remote.rows import json_rows
from tidemill.remote.wire import FeaturesAnswer, ScoreAnswer
from tidemill.times import to_micros

answering = load("serving.answering")

#: Numbers that lose digits on the way, if any do.
ODD = [5e-324, 2.2250738585072014e-308, 0.1, 1 / 3, 1e16 + 2, 123456789.123456789, -1e300, 1e22, 1.7976931348623157e308, 4.35, -0.0]
INTEGERS = [0, 2**53, 2**53 + 1, -(2**53) - 1, 2**62, 2**63 - 1, -(2**63)]
FEATURES = ["v", "lasts"]


class Both:
    """A store, and clients that ask the service around it without a socket."""

    def __init__(self, served: Served) -> None:
        self.store = served.store()
        self.app = app.make_app(served.service(store=self.store))

    def asked(self, call: str, *args: Any, **options: Any) -> Any:
        """The answer of the asynchronous client."""

        async def ask() -> Any:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport) as http:
                client = tm.AsyncScoringClient("http://test", http=http, timeout=60)
                return await getattr(client, call)(*args, **options)

        return asyncio.run(ask())

    def equal(self, features: Any, rows: Any, at: Any = None) -> Any:
        """Ask both ways, compare, and give the answer over HTTP."""
        near = self.store.get_online_features(features, rows, at=at)
        far = self.asked("get_online_features", features, rows, at=at)
        same_features(near, far, len(next(iter(near.columns.values()))))
        return far


def same(near: Any, far: Any) -> bool:
    """Of one type, and of the same bits."""
    if isinstance(near, list):
        return isinstance(far, list) and len(near) == len(far) and all(map(same, near, far))
    if isinstance(near, float):
        return isinstance(far, float) and (near, math.copysign(1, near)) == (far, math.copysign(1, far))
    if isinstance(near, dt.datetime):
        return isinstance(far, dt.datetime) and near == far and far.utcoffset() == near.utcoffset()
    return type(near) is type(far) and near == far


def same_features(near: Any, far: Any, rows: int) -> None:
    assert list(near.columns) == list(far.columns)
    for name in near.status:
        assert same(near.columns[name], far.columns[name]), (name, near.columns[name], far.columns[name])
    assert near.status == far.status
    assert near.at == far.at
    assert near.as_of.time == far.as_of.time
    for view in near.as_of.views:
        assert [near.as_of.positions(view, i) for i in range(rows)] == [far.as_of.positions(view, i) for i in range(rows)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    served = Served(Path(tmp_path_factory.mktemp("equal")) / "p", DEFINITIONS)
    served.log([event(f"x{i}", 5, x=x) for i, x in enumerate(ODD)] + [event(f"n{i}", 6, n=n) for i, n in enumerate(INTEGERS)])
    served.log([event("a", m, x=m / 7, word=w) for m, w in enumerate(['"', "\\", "é\U0001f600", "\u2028\x00", "", " "])])
    served.log([event("null", 3, x=None, n=None, word=None, flag=None, seen=None)])
    times = ("0001-01-01T00:00:00", "9999-12-31T23:59:59.999999", "1969-12-31T23:59:59.999999")
    served.log([event("time", 2, seen=text) for text in times])
    served.stream()
    served.model()
    both = Both(served)
    yield both
    both.store.close()
    served.env.online.close()


KEYS = [f"x{i}" for i in range(len(ODD))] + [f"n{i}" for i in range(len(INTEGERS))] + ["a", "null", "time", "nobody"]


def test_every_odd_value_in_the_store_arrives_as_it_is(both: Both) -> None:
    far = both.equal(FEATURES, [{"k": k} for k in KEYS])
    values = far.columns["lasts__x_last_lifetime"]
    assert [v for v in values[: len(ODD)] if v is not None] == [v + 0.0 for v in ODD if abs(v) < 1e20]  # the others no sum can hold
    assert far.columns["lasts__n_last_lifetime"][len(ODD) : len(ODD) + len(INTEGERS)] == INTEGERS
    assert far.columns["lasts__seen_last_lifetime"][KEYS.index("time")].tzinfo is dt.UTC
    assert {s for statuses in far.status.values() for s in statuses} >= {"ok", "missing"}


AMOUNTS = st.floats(allow_nan=True, allow_infinity=False) | st.none() | st.integers(-(2**63), 2**63 - 1)
NAIVE = dt.datetime.fromisoformat
ZONES = st.none() | st.just(dt.UTC)
BOOKED = st.none() | st.datetimes(NAIVE("0001-01-02"), NAIVE("9999-12-30"), timezones=ZONES)
TEXT = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "k": st.sampled_from(KEYS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            "amount": AMOUNTS,
            "booked": BOOKED,
            "name": TEXT,
            "many": st.none() | st.integers(-(2**63), 2**63 - 1),
            "sure": st.none() | st.booleans(),
        }
    ),
    min_size=1,
    max_size=6,
)
INSTANTS = st.none() | st.datetimes(NAIVE("2026-04-30"), NAIVE("2026-06-01"), timezones=ZONES)


@given(rows=ROWS, at=INSTANTS)
@settings(max_examples=100)
def test_whatever_is_asked_both_ways_is_answered_alike(both: Both, rows: list[dict[str, Any]], at: dt.datetime | None) -> None:
    far = both.equal("everything", rows, at)
    assert all(far.columns["amount"][i] is row["amount"] for i, row in enumerate(rows))  # the caller's own, NaN too


#: Anything that an answer may hold, whether the store has it or not.
VALUES = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "str": st.text(st.characters(exclude_categories=["Cs"])),
    "bool": st.booleans(),
    "timestamp": st.datetimes(timezones=st.just(dt.UTC)),
}
TYPES = {"int": pl.Int64(), "float": pl.Float64(), "str": pl.String(), "bool": pl.Boolean(), "timestamp": pl.Datetime("us", "UTC")}


@given(st.data())
@settings(max_examples=200)
def test_any_value_of_any_type_survives_the_way(both: Both, data: st.DataObject) -> None:
    near = both.store.get_online_features(["v"], [{"k": "a"}, {"k": "b"}])
    for kind, values in VALUES.items():
        near.columns[f"f_{kind}"] = data.draw(st.lists(st.none() | values, min_size=2, max_size=2))
        near.columns[f"l_{kind}"] = data.draw(st.lists(st.none() | st.lists(st.none() | values, max_size=3), min_size=2, max_size=2))
    types = {**near._types, **{f"f_{k}": t for k, t in TYPES.items()}, **{f"l_{k}": pl.List(t) for k, t in TYPES.items()}}
    near.status.update({name: ["ok", "ok"] for name in near.columns if name[:2] in ("f_", "l_")})
    near = tm.OnlineFeatures(near.columns, near.status, near.as_of, near.at, types)
    writer = answering.Writer()
    body = writer.encode(writer.features(near))
    far = features_of(msgspec.json.decode(body, type=FeaturesAnswer), [{"k": "a"}, {"k": "b"}])
    same_features(near, far, 2)
    assert near.to_polars().equals(far.to_polars())
    assert near.to_polars().schema == far.to_polars().schema


def test_rows_may_be_frames_and_numpys_numbers_here_too(both: Both) -> None:
    rows = [{**ROW, "booked": dt.datetime(2026, 4, 1, tzinfo=dt.UTC), "amount": math.nan}, ROW | {"booked": None}]
    frame = pl.DataFrame(rows[:1])
    for given_rows in (frame, frame.to_arrow(), frame.to_pandas()):
        near = both.store.get_online_features("everything", given_rows)
        far = both.asked("get_online_features", "everything", given_rows)
        same_features(near, far, 1)
    both.equal("everything", [{**ROW, "amount": np.float32(0.1), "many": np.int64(3), "sure": np.bool_(False)}])
    both.equal("everything", [{**ROW, "booked": np.datetime64("2026-04-01T00:00:00.123456789")}, {**ROW, "booked": np.datetime64("NaT")}])
    both.equal("everything", [{**ROW, "booked": pd.Timestamp("2026-04-01T02:00", tz="Europe/Paris")}, {**ROW, "booked": pd.NaT}])
    both.equal("everything", [{**ROW, "extra": "is not needed"}])


def test_what_json_cannot_carry_is_refused_before_it_is_sent() -> None:
    for value in (math.inf, -math.inf, [1], {"a": 1}, b"bytes", dt.date(2026, 1, 1)):
        with pytest.raises(RequestError, match="row 0: 'x' is"):
            json_rows([{"x": value}])


def test_errors_are_the_librarys_own(both: Both) -> None:
    asked: list[tuple[type[Exception], tuple[Any, ...], dict[str, Any]]] = [
        (NotFoundError, ("nothing", [ROW]), {}),
        (NotFoundError, (["v:nothing"], [ROW]), {}),
        (RequestError, ("everything", [{"k": None}]), {}),
        (RequestError, ("everything", [{"k": 5}]), {}),
        (RequestError, ("everything", {"k": "a"}), {}),
        (RequestError, ("everything", [ROW]), {"at": "soon"}),
        (HorizonError, ("everything", [ROW]), {"at": "2001-01-01"}),
    ]
    for kind, args, options in asked:
        with pytest.raises(kind) as near:
            both.store.get_online_features(*args, **options)
        with pytest.raises(kind) as far:
            both.asked("get_online_features", *args, **options)
        assert type(near.value) is type(far.value)
        assert str(near.value) == str(far.value)
    for at in (1.5, dt.date(2026, 1, 1), True):
        with pytest.raises(RequestError, match="give a datetime"):
            both.asked("get_online_features", "everything", [ROW], at=at)


def test_scores_are_the_same_too(both: Both) -> None:
    rows = [{"k": k} for k in ("a", "x4", "nobody")]
    for options in ({}, {"at": NOW}, {"fallback": 0.5}, {"fallback": 1, "max_missing": 1}, {"max_missing": 0}):
        near, far = both.store.score("m", rows, **options), both.asked("score", "m", rows, **options)
        assert same(near.score, far.score)
        for name in ("label", "status", "reason", "model", "version", "warning"):
            assert getattr(near, name) == getattr(far, name), name
        same_features(near.features, far.features, 3)
        assert len(set(near.prediction_id + far.prediction_id)) == 6
        assert list(near.to_dict()) == list(far.to_dict())
    with pytest.raises(ScoringError, match="row 2 has no score"):
        both.asked("score", "m", rows, fallback="error", max_missing=0)
    with pytest.raises(NotFoundError, match="no model 'other'"):
        both.asked("score", "other", rows)


@given(score=st.none() | VALUES["float"], label=st.none() | VALUES["bool"] | VALUES["int"] | VALUES["float"] | VALUES["str"])
def test_any_score_and_label_survives_the_way(both: Both, score: float | None, label: Any) -> None:
    near = both.store.score("m", [{"k": "a"}])
    near.score[0], near.label[0] = score, label
    writer = answering.Writer()
    far = scores_of(msgspec.json.decode(writer.encode(writer.scores(near)), type=ScoreAnswer), [{"k": "a"}])
    assert same([near.score, near.label], [far.score, far.label])


def test_a_store_that_is_away_is_the_same_error_and_the_same_fallback(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise StoreUnavailableError("it does not answer")

    monkeypatch.setattr("tidemill.online.sqlite.SqliteStore.read", away)
    monkeypatch.setattr("asyncio.sleep", _at_once)
    with pytest.raises(StoreUnavailableError):
        both.asked("get_online_features", "everything", [ROW])
    with pytest.raises(StoreUnavailableError):
        both.asked("score", "m", [{"k": "a"}])
    far = both.asked("score", "m", [{"k": "a"}], fallback=0.125)
    assert (far.score, far.status, far.version) == ([0.125], ["fallback"], "1")


async def _at_once(_: float) -> None:
    return


def test_the_clock_is_the_services() -> None:
    assert to_micros(NOW) == 1_777_636_800_000_000
