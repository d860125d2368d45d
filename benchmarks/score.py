"""Scoring in process: features and a logistic regression of scikit-learn, one row, 25 features, beside the bare read of the store.

The same project as `benchmarks.reads`. What counts is p99 of `score` less p99 of the store's read of the same cells: at most 1 ms. The
calls take turns, so that what disturbs the machine disturbs all of them alike. Also: the model asked alone, by its short form and by
scikit-learn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tidemill as tm
from benchmarks.reads import prepare
from tidemill.models.adapters.sklearn import SklearnPredictor
from tidemill.online.base import CellId, SlotId
from tidemill.stable import shard_of

COUNT = 5_000


def timed(calls: dict[str, Callable[[int], Any]], count: int) -> dict[str, np.ndarray[Any, Any]]:
    """Microseconds of each call, `count` times each, taking turns."""
    for i in range(100):
        for call in calls.values():
            call(i)
    taken = {name: np.empty(count) for name in calls}
    for i in range(count):
        for name, call in calls.items():
            begun = time.perf_counter()
            call(i)
            taken[name][i] = (time.perf_counter() - begun) * 1e6
    return taken


def model(columns: int) -> Any:
    """A pipeline as `tidemill train` makes it."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    rows = rng.lognormal(2, 1, (2_000, columns))
    rows[rng.random(rows.shape) < 0.05] = np.nan
    label = rng.random(2_000) > 0.7
    return make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler(), LogisticRegression()).fit(rows, label)


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="calls of each")
    parser.add_argument("--online", default="", help="the online store's URL; default: SQLite in a temporary directory")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        at = prepare(Path(folder), online=given.online)
        store = tm.FeatureStore(folder)
        fitted = model(25)
        store.models.register("m", fitted, service="model")
        store.models.promote("m", "1")
        applied = store.env.applied()
        rng = np.random.default_rng(1)
        names = [f"user-{i}" for i in rng.integers(0, 1000, given.count + 100)]
        reads: list[tuple[list[CellId], list[SlotId]]] = []
        for name in names:
            shard = shard_of(name, applied.shards)
            cells = [CellId(t, shard, name) for b in applied.bundles for t in b.bundle.table_ids]
            reads.append((cells, [SlotId(b.bundle.id, shard) for b in applied.bundles]))
        loaded = store.models.load("m@1")
        general = SklearnPredictor(fitted, 1, None)
        row = np.array([list(store.score("m", [{"user": names[0]}], at=at).features.columns.values())[1:]], dtype=np.float64).reshape(1, -1)
        calls: dict[str, Callable[[int], Any]] = {
            "the store's read alone": lambda i: store.env.online.read(*reads[i]),
            "get_online_features": lambda i: store.get_online_features("model", [{"user": names[i]}], at=at),
            "score": lambda i: store.score("m", [{"user": names[i]}], at=at),
            "the model alone": lambda _: loaded.predict(row),
            "the model alone, asked by scikit-learn": lambda _: general.predict(row),
        }
        taken = timed(calls, given.count)
        for name, micros in taken.items():
            p50, p99 = np.percentile(micros, [50, 99])
            print(f"{name:<40} {p50:8.0f} us p50 {p99:8.0f} us p99")
        beyond = taken["score"] - taken["the store's read alone"]
        difference = np.percentile(taken["score"], 99) - np.percentile(taken["the store's read alone"], 99)
        print(f"score, beyond the read: {np.median(beyond):.0f} us p50; p99 less p99: {difference:.0f} us (at most 1,000 wanted)")
        batch = store.score("m", [{"user": n} for n in names[:1000]], at=at)
        alone = [store.score("m", [{"user": n}], at=at) for n in names[:1000]]
        apart = max(abs((a.score[0] or 0.0) - (b or 0.0)) for a, b in zip(alone, batch.score, strict=True))
        same = all(a.features.columns[c] == [v[i]] for i, a in enumerate(alone) for c, v in batch.features.columns.items())
        print(f"1,000 rows alone and in a batch: features {'equal' if same else 'DIFFERENT'}, scores at most {apart:.1e} apart")
        store.close()


if __name__ == "__main__":
    main()
