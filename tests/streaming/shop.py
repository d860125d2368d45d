"""A project for the tests of streaming: two logs, orders and visits, of the same customers; and what must come out of them."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tidemill as tm
from tidemill.applied import Applied
from tidemill.environment import Environment
from tidemill.online.base import SlotId
from tidemill.testing import brute_force
from tidemill.times import SECOND, from_micros, to_micros

Event = dict[str, Any]

START = to_micros("2026-03-01")
STEP = 7 * SECOND
CUSTOMERS = 23

CONFIGURATION = """
[project]
name = "shop"
[online]
shards = 4
slack = "30d"
"""
DEFINITIONS = """
import tidemill as tm

customer = tm.Entity("customer")
orders = tm.Source(
    "orders",
    schema={"id": int, "customer": str, "price": float, "at": tm.Timestamp},
    timestamp="at",
    event_id="id",
    path="orders/**/*.jsonl",
)
visits = tm.Source("visits", schema={"customer": str, "seconds": int, "at": tm.Timestamp}, timestamp="at", path="visits/**/*.jsonl")
spending = tm.FeatureView(
    "spending",
    source=orders,
    entity=customer,
    aggregations=[
        tm.count(windows=["10m", "1h", "lifetime"]),
        tm.sum("price", windows=["1h", "1d"]),
        tm.max("price", windows=["1d"]),
        tm.stddev("price", windows=["1d"]),
        tm.last("price", windows=["1d"]),
    ],
)
interest = tm.FeatureView(
    "interest", source=visits, entity=customer, aggregations=[tm.count(windows=["1h"]), tm.mean("seconds", windows=["1d", "lifetime"])]
)
"""
#: To be added to the definitions while workers run.
ONE_MORE = "\nspending_more = tm.FeatureView('more', source=orders, entity=customer, aggregations=[tm.min('price', windows=['1d'])])\n"


def make(directory: Path) -> Environment:
    """The project with two empty folders for its logs, applied."""
    directory.mkdir(exist_ok=True)
    (directory / "tidemill.toml").write_text(CONFIGURATION)
    (directory / "features.py").write_text(DEFINITIONS)
    for source in ("orders", "visits"):
        (directory / source).mkdir()
    env = Environment.load(directory)
    env.apply()
    return env


def events(source: str, first: int, count: int) -> list[Event]:
    """Events number `first` to `first + count`: some of them late, some prices null. Always the same."""
    found = []
    for i in range(first, first + count):
        rng = random.Random(f"{source} {i}")
        at = START + i * STEP + rng.randrange(STEP)
        if rng.random() < 0.1:
            at -= rng.choice([60, 3600, 86400]) * SECOND
        event: Event = {"customer": f"c{int(rng.paretovariate(0.7)) % CUSTOMERS}", "at": from_micros(at).isoformat()}
        if source == "orders":
            event |= {"id": i, "price": rng.choice([None, round(rng.gauss(50, 20), 2)])}
        else:
            event["seconds"] = rng.randrange(600)
        found.append(event)
    return found


def lines(events: Sequence[Event]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def append(directory: Path, source: str, events: Sequence[Event], file: str = "a.jsonl") -> None:
    """Write events to the end of a log."""
    path = directory / source / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        log.write(lines(events))


def position(env: Environment, view: str, partition: int = 0) -> int:
    """How far every slot of a view's bundles is; 0 while one is not there."""
    applied = env.applied()
    if view not in applied.views:
        return 0
    slots = [SlotId(b.bundle.id, shard) for b in applied.views[view].bundles for shard in range(applied.shards)]
    return min(state.positions.get(partition, 0) if state.serving else 0 for state in env.online.slots(slots))


def differences(directory: Path, known: Mapping[str, Sequence[Event]], instants: int = 6) -> list[str]:
    """Where served values differ from brute force over these events by source; [] where all are equal. Some hundred values each."""
    store = tm.FeatureStore(directory)
    try:
        applied = store.env.applied()
        return [d for view in applied.views for d in _of_view(store, applied, view, known, instants)]
    finally:
        store.close()


def _of_view(store: tm.FeatureStore, applied: Applied, name: str, known: Mapping[str, Sequence[Event]], instants: int) -> Iterator[str]:
    view = applied.views[name].view
    source = view.source
    mine = known[source.name]
    customers = [f"c{i}" for i in range(CUSTOMERS)]
    by_customer = {c: [e | {"at": to_micros(e["at"])} for e in mine if e["customer"] == c] for c in customers}
    last = max(e["at"] for events in by_customer.values() for e in events)
    rng = random.Random(0)
    times = [last + 1, *(last - rng.randrange(2 * 86400 * SECOND) for _ in range(instants - 1))]
    for at in times:
        served = store.get_online_features([f"{name}:{f}" for f in view.features], [{"customer": c} for c in customers], at=at).to_dict()
        for feature, declared in view.features.items():
            for i, customer in enumerate(customers):
                expected = brute_force(
                    declared.aggregation,
                    declared.window,
                    by_customer[customer],
                    at,
                    schema=source.schema,
                    timestamp=source.timestamp,
                    event_id=source.event_id,
                )
                got = served[f"{name}__{feature}"][i]
                if got != expected:
                    yield f"{name}:{feature} of {customer} at {from_micros(at)}: {got}, not {expected}"


@contextmanager
def locked(env: Environment) -> Iterator[None]:
    """Hold the online store's write lock, as a backup or another program would."""
    path = env.path(".tidemill", "online.db")
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("begin immediate")
        yield
        connection.execute("rollback")
    finally:
        connection.close()
