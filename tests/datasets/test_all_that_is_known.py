"""A training set is brute force over all that is known of a source: what was imported, what is archived, and what only the log has."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tests.project import Folder
from tests.strategies import examples
from tidemill.apps import load
from tidemill.datasets import Terms, larger
from tidemill.kernel.table import OVERFLOW
from tidemill.offline.archive import compact
from tidemill.testing import brute_force, identical
from tidemill.times import DAY, HOUR, MAX_TIME, MIN_TIME, MINUTE, RUNGS, SECOND, floor_to, from_micros

backfill = load("backfill.job")

Event = dict[str, Any]
NOW = 20_000 * DAY + 5 * HOUR
DEFINITIONS = """
events = tm.Source("events", schema={"id": str, "k": str, "g": int, "b": bool, "d": tm.Timestamp, "n": int, "x": float, "s": str,
                                     "at": tm.Timestamp}, timestamp="at", event_id="id", arrival="known", path="log/**/*.jsonl")
W = ["7s", "25h", "lifetime"]
A = [tm.count(windows=W), tm.sum("x", windows=W), tm.sum("n", windows=W), tm.mean("x", windows=W), tm.stddev("x", windows=W),
     tm.max("n", windows=W), tm.min("s", windows=W), tm.min("d", windows=W), tm.first("x", windows=W), tm.last_n("d", 2, windows=W),
     tm.quantile("n", 0.99, windows=W), tm.approx_count_distinct("s", windows=W), tm.last("x", where="b", name="when_b", windows=W)]
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=A)
f = tm.FeatureView("f", source=events, entity=tm.Entity("pair", keys=["g", "b"]), where="x <> 3 and k <> ''", aggregations=A)
t = tm.FeatureView("t", source=events, entity=tm.Entity("d"), aggregations=A[:3])
"""
KEYS = {"v": ["k"], "f": ["g", "b"], "t": ["d"]}
NUMBERS = (None, 0, 1, -5, 2**62, 2**63 - 1, -(2**63), 2**53 + 1)
FLOATS = (None, 0.1, -0.0, 1e16, -1e16, 3.0, 5e-324, 2.0**63, 1 / 3)
TEXTS = (None, "", "é", "a", "\U00010000", "\uffff", "s1", "s2")


def keys(rng: Random) -> Event:
    return {
        "k": rng.choice(("a", "b", "", "é")),
        "g": rng.choice((0, -1, 2**63 - 1, -(2**63))),
        "b": rng.choice((True, False)),
        "d": rng.choice((0, -1, NOW)),
    }


def event(rng: Random) -> Event:
    """`at`, `known` and `d` in microseconds; it may be known long after it happened, before it, or nobody says when."""
    edge = floor_to(NOW - rng.randrange(3 * DAY), rng.choice(RUNGS[1:])) + rng.choice((-1, 0, 1))
    at = rng.choice((NOW - rng.randrange(40 * DAY), NOW - rng.randrange(90 * SECOND), edge, -1, 0, MIN_TIME, NOW + rng.randrange(DAY)))
    known = max(at + rng.choice((0, 1, -1, SECOND, HOUR, 3 * DAY, -DAY, 100 * DAY)), MIN_TIME)
    some = {"id": rng.choice((None, "i1", "i2")), "n": rng.choice(NUMBERS), "x": rng.choice(FLOATS), "s": rng.choice(TEXTS)}
    return {**keys(rng), **some, "at": at, "known": rng.choice((known, known, known, None))}


def lines(events: Sequence[Event]) -> list[Event]:
    return [{n: from_micros(v).isoformat() if n in ("at", "known", "d") and v is not None else v for n, v in e.items()} for e in events]


def told(folder: Folder, events: Sequence[Event], rng: Random) -> None:
    """The events, dealt out: to an import, the archive, another import, the archive again, and the log alone."""
    places = sorted(rng.randrange(len(events) + 1) for _ in range(4))
    pieces = [lines(events[a:b]) for a, b in zip([0, *places], [*places, len(events)], strict=True)]
    for number, piece in enumerate(pieces):
        if not piece:
            continue
        if number in (0, 2):
            (folder.path / f"history{number}").mkdir()
            (folder.path / f"history{number}" / "h.jsonl").write_text("".join(json.dumps(e) + "\n" for e in piece))
            backfill.run(folder.env, backfill.Request("events", files=(f"history{number}",), overlap="none"))
        if number in (1, 3):
            folder.log(piece, "a.jsonl" if number == 1 else rng.choice(("a.jsonl", "b.jsonl")))
            folder.stream()
            if rng.random() < 0.5:
                folder.batch()
        if number == 4:
            folder.log(piece, "z.jsonl")
    for partition in (0, 1):
        compact(folder.env.offline, "events", partition, 10**9)


def passes(view: str, where: str | None, e: Event) -> bool:
    """The filters, in Python."""
    return (where is None or bool(e["b"])) and (view != "f" or (e["x"] is not None and e["x"] != 3 and e["k"] != ""))


@examples(4)
@given(seed=st.integers(0, 2**32))
def test_wherever_an_event_lies_it_counts_once_from_the_instant_at_which_it_is_known(seed: int) -> None:
    rng = Random(seed)
    events = [event(rng) for _ in range(rng.randrange(1, 25))]
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name) / "p", DEFINITIONS)
        told(folder, events, rng)
        beside = [e[c] + d for e in events for c in ("at", "known") if e[c] is not None for d in (-1, 0, 1)]
        expiring = [e["at"] + w + d for e in events for w in (7 * SECOND, 25 * HOUR) for d in (-1, 0, SECOND, HOUR)]
        instants = [max(min(rng.choice((NOW, *beside, *expiring)), MAX_TIME - 1), MIN_TIME) for _ in range(8)]
        rows = pl.DataFrame([{**keys(rng), "event_timestamp": t} for t in instants])
        rows = rows.with_columns(pl.col("d").cast(pl.Datetime("us", "UTC")))
        terms = Terms(rng.choice((None, "event_time")), rng.choice((0, 1, MINUTE, 2 * DAY)))
        store = tm.FeatureStore(folder.env)
        found = store.get_historical_features(rows, list(KEYS), knowledge=terms.knowledge, freshness=f"{terms.freshness}us")
        rows.write_parquet(folder.path / "rows.parquet")
        larger.build(folder.env, folder.path / "rows.parquet", list(KEYS), folder.path / "train.parquet", terms, memory=10_000)
        assert pl.read_parquet(folder.path / "train.parquet").equals(found.to_polars())
        for row, t in zip(found.to_polars().to_dicts(), instants, strict=True):
            for view in KEYS:
                check(folder, view, row, t, [e for e in events if known(e, terms) <= t])
        store.close()


def known(e: Event, terms: Terms) -> int:
    """The first instant at which an event is to be seen."""
    arrived: int = e["at"] if terms.knowledge == "event_time" or e["known"] is None else e["known"]
    return max(e["at"] + 1, arrived + terms.freshness)


def check(folder: Folder, view: str, row: Event, t: int, events: Sequence[Event]) -> None:
    definition = folder.env.definitions.views[view]
    mine = [e | {"d": from_micros(e["d"])} for e in events]
    mine = [e for e in mine if all(e[key] == row[key] for key in KEYS[view])]
    for name, feature in definition.features.items():
        aggregation, window, _ = feature
        counted = [e for e in mine if passes(view, aggregation.where, e)]
        schema = definition.source.schema
        want = brute_force(aggregation, window, counted, t, schema=schema, timestamp="at", event_id="id", passes=lambda _: True)
        got = row[f"{view}__{name}"]
        assert identical(got, None if want is OVERFLOW else want), f"{view}:{name} at {t}: {got!r}, brute force: {want!r}"
