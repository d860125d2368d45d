"""Online reads: 5 views, 25 features (count, sum, mean, max and p90, each over 5 windows), for 1 and for 100 entities.

Against the floor: the same cells read from the same SQLite file, with nothing made of them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import tidemill as tm
from tidemill.apps.batch import job
from tidemill.apps.streaming.compactor import Compactor
from tidemill.apps.streaming.ingest import PartitionIngest
from tidemill.environment import Environment
from tidemill.online.base import CellId, SlotId
from tidemill.stable import shard_of
from tidemill.times import DAY, SECOND

FEATURES = """
import tidemill as tm

events = tm.Source("events", schema={"user": str, "amount": float, "at": tm.Timestamp}, timestamp="at", path="log/*.parquet")
user = tm.Entity("user")
windows = ["1m", "1h", "1d", "7d", "30d"]
counts = tm.FeatureView("counts", source=events, entity=user, aggregations=[tm.count(windows=windows)])
sums = tm.FeatureView("sums", source=events, entity=user, aggregations=[tm.sum("amount", windows=windows)])
means = tm.FeatureView("means", source=events, entity=user, aggregations=[tm.mean("amount", windows=windows)])
largest = tm.FeatureView("largest", source=events, entity=user, aggregations=[tm.max("amount", windows=windows)])
p90s = tm.FeatureView("p90s", source=events, entity=user, aggregations=[tm.quantile("amount", 0.9, windows=windows)])
model = tm.FeatureService("model", features=[counts, sums, means, largest, p90s])
"""


def prepare(root: Path, entities: int = 1000, per_day: int = 20, days: int = 40, online: str = "", features: str = FEATURES) -> int:
    """A project with history: 40 days of events, batch published through the last day, the rest in the tail. The last instant."""
    (root / "log").mkdir(parents=True)
    (root / "tidemill.toml").write_text('[project]\nname = "reads"\n' + (f'[online]\nurl = "{online}"\n' if online else ""))
    (root / "features.py").write_text(features)
    rng = np.random.default_rng(7)
    n = entities * per_day * days
    begin = 20_000 * DAY
    times = np.sort(rng.integers(begin, begin + days * DAY, n))
    frame = pl.DataFrame(
        {"user": [f"user-{i}" for i in rng.integers(0, entities, n)], "amount": np.round(rng.lognormal(3, 1, n), 2), "at": times}
    )
    frame.with_columns(pl.col("at").cast(pl.Datetime("us", "UTC"))).write_parquet(root / "log" / "a.parquet")
    env = Environment.load(root)
    applied = env.apply()
    source = applied.sources["events"]
    bundles = applied.of_source("events")
    compactor = Compactor(env.online, {b.bundle.id: b.bundle for b in bundles}, {}, env.project.slack)
    ingest = PartitionIngest(
        source,
        0,
        env.log(source),
        env.decoder(source),
        env.online,
        env.offline,
        bundles,
        applied.shards,
        env.project.slack,
        time.time_ns,
        noted=compactor.note,
        archive_seconds=0,
    )
    ingest.restore()
    published = False
    while (polled := ingest.poll()) is not None:
        ingest.apply(ingest.tile(polled))
        compactor.drain()
        if not published and ingest.position > n * (days - 1) // days:
            job.run(env)
            published = True
    for _ in range(200):
        compactor.sweep(applied.shards)
    return int(times[-1]) + SECOND


def p50(call: Callable[[], Any], seconds: float = 2.0) -> float:
    """The median of as many calls as fit, in microseconds."""
    for _ in range(20):
        call()
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1e6


def main() -> None:
    """Measure, and print one line for each number of entities."""
    with tempfile.TemporaryDirectory() as folder:
        at = prepare(Path(folder))
        store = tm.FeatureStore(folder)
        applied = store.env.applied()
        rows = [{"user": f"user-{i}"} for i in range(100)]
        rng = np.random.default_rng(1)
        for size in (1, 100):
            names = [f"user-{i}" for i in range(size)]
            cells = [CellId(t, shard_of(n, applied.shards), n) for b in applied.bundles for t in b.bundle.table_ids for n in names]
            slots = sorted({SlotId(b.bundle.id, shard_of(n, applied.shards)) for b in applied.bundles for n in names})
            found, _ = store.env.online.read(cells, slots)
            stored = sum(len(c.published) + len(c.tail) for c in found if c is not None)
            floor = p50(lambda c=cells, s=slots: store.env.online.read(c, s))
            ours = p50(lambda size=size: store.get_online_features("model", rows[:size] if size > 1 else [rows[rng.integers(100)]], at=at))
            kib = stored / size / 1024
            timed = f"{ours:8.0f} us p50; the store's read alone: {floor:8.0f} us"
            print(f"{size:>4} entities, 25 features, {kib:.1f} KiB each: {timed}")


if __name__ == "__main__":
    main()
