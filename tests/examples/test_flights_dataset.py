"""Training sets over the real flights: every feature of every row equals brute force over what had arrived by then."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import tidemill as tm
from tidemill.apps.examples.flights import audit
from tidemill.apps.examples.flights.make_logs import Delivery, make_logs
from tidemill.times import from_micros, to_micros

PROJECT = Path(audit.__file__).parent


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    stores = []

    def made(delivery: Delivery) -> tm.FeatureStore:
        root = tmp_path_factory.mktemp("flights") / "p"
        root.mkdir()
        for name in ("features.py", "tidemill.toml"):
            shutil.copy(PROJECT / name, root)
        (root / "data").symlink_to(make_logs(root.parent / "logs", delivery))
        stores.append(tm.FeatureStore(root))
        return stores[-1]

    yield made
    for store in stores:
        store.close()


def rows_of(store: tm.FeatureStore, n: int, seed: int) -> pl.DataFrame:
    """Flights at instants around their departure; at some of them exactly, or a microsecond off."""
    rng = np.random.default_rng(seed)
    flights = audit.RawLog(store.env.definitions.sources["departures"], store.env.project.directory / "data").frame
    some = flights[rng.integers(0, len(flights), n)]
    shift = np.where(rng.random(n) < 0.2, rng.integers(-1, 2, n), rng.integers(-7200, 86400, n) * 1_000_000)
    at = some["dep_utc"].dt.timestamp("us") + pl.Series(shift)
    wanted = {"origin", "carrier", "dest", "tailnum"}
    request = pl.DataFrame({"distance": rng.integers(100, 5000, n).astype(float), "scheduled_hour": rng.integers(0, 96, n) / 4})
    keys = some.select(c for c in some.columns if c in wanted).with_columns(pl.col("tailnum").fill_null("none"))
    return keys.hstack(request).with_columns(at.cast(pl.Datetime("us", "UTC")).alias("event_timestamp"))


def check(store: tm.FeatureStore, n: int, seed: int) -> int:
    """Hold n rows against the oracle; how many values were compared."""
    definitions, logs = store.env.definitions, store.env.project.directory / "data"
    features: list[Any] = [*definitions.views.values(), *definitions.on_demands.values()]
    rows = rows_of(store, n, seed)
    found = store.get_historical_features(rows, features)
    assert found.hypothetical is None
    # The logs are in the order in which events became known: what had arrived by an instant is a position in each partition.
    arrived: dict[str, dict[int, np.ndarray[Any, Any]]] = {}
    for name, source in definitions.sources.items():
        frame = audit.RawLog(source, logs).frame
        arrived[name] = {p: frame.filter(pl.col("_partition") == p)["known_utc"].dt.timestamp("us").to_numpy() for p in (0, 1)}
        assert all((np.diff(known) >= 0).all() for known in arrived[name].values())
    served = []
    columns = [c for c in found.to_polars().columns if c not in rows.columns]
    for row in found.to_polars().iter_rows(named=True):
        at = to_micros(row["event_timestamp"])
        by_source = {s: {p: int(k.searchsorted(at, side="right")) for p, k in known.items()} for s, known in arrived.items()}
        positions = {name: by_source[view.source.name] for name, view in definitions.views.items()}
        served.append(audit.Served(at, {c: row[c] for c in rows.columns}, positions, {c: row[c] for c in columns}))
    compared, wrong = audit.differences(served, definitions, logs)
    assert [str(w) for w in wrong[:5]] == []
    assert compared == n * len(columns)
    return compared


def test_a_week_of_flights_is_answered_as_brute_force_does(make: Any) -> None:
    assert check(make(Delivery(last="2013-01-14")), 400, 1) > 400 * 40


def test_an_event_that_depends_on_the_label_changes_nothing_before_it_is_known(make: Any) -> None:
    store = make(Delivery(last="2013-01-04"))
    rows = rows_of(store, 200, 3).filter(pl.col("event_timestamp") < from_micros(to_micros("2013-01-04T00:00:00")))
    before = store.get_historical_features(rows, [*store.env.definitions.views.values()]).to_polars()
    planted = store.env.project.directory / "data" / "departures" / "partition=0" / "2013-99.jsonl"
    shutil.copytree((store.env.project.directory / "data").resolve(), copied := store.env.project.directory / "copied")
    (store.env.project.directory / "data").unlink()
    copied.rename(store.env.project.directory / "data")
    at = {"dep_utc": "2013-01-02T00:00:00Z", "known_utc": "2013-01-04T00:00:00Z"}
    one = {"carrier": "UA", "dest": "ORD", "tailnum": "N1", "dep_delay": 999.0, "cancelled": True, **at}
    events = ({**one, "flight_id": 10**9 + i, "origin": o} for i, o in enumerate(["JFK", "EWR", "LGA"] * 50))
    planted.write_text("".join(json.dumps(e) + "\n" for e in events))
    again = tm.FeatureStore(store.env.project.directory)
    assert again.get_historical_features(rows, [*store.env.definitions.views.values()]).to_polars().equals(before)
    late = again.get_historical_features(rows, ["origin_departures:cancelled_1d"], knowledge="event_time").to_polars()
    assert (late.to_series(-1) > before["origin_departures__cancelled_1d"]).any()  # who asks for hindsight gets it
    again.close()


@pytest.mark.soak
def test_a_year_of_flights_is_answered_as_brute_force_does(make: Any) -> None:
    rows = int(os.environ.get("TIDEMILL_ROWS", "300000"))
    print(f"{check(make(Delivery()), rows, 2):,} values of {rows:,} rows compared, 0 wrong")  # noqa: T201
