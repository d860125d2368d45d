"""Fold and publish: an archive to daily partials and into SQLite, against DuckDB's plain GROUP BY entity, day over the same Parquet."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import polars as pl

from tidemill.apps.batch.job import run_source
from tidemill.environment import Environment
from tidemill.offline.archive import partition_folder, range_name
from tidemill.times import DAY

FEATURES = """
import tidemill as tm

events = tm.Source("events", schema={"user": str, "amount": float, "at": tm.Timestamp}, timestamp="at", path="log/*.parquet")
windows = ["1m", "1h", "1d", "30d"]
users = tm.FeatureView("users", source=events, entity=tm.Entity("user"), aggregations=[
    tm.count(windows=windows), tm.sum("amount", windows=windows), tm.mean("amount", windows=windows),
    tm.min("amount", windows=windows), tm.max("amount", windows=windows), tm.stddev("amount", windows=windows),
])
"""

QUERY = """
    select "user", date_trunc('day', "at") as day, count(*), sum(amount), avg(amount), min(amount), max(amount), stddev_samp(amount)
    from read_parquet('{}') group by all
"""


def prepare(root: Path, events: int, entities: int, days: int) -> Environment:
    """A project whose archive holds `events` events of Zipf-distributed entities over some days."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "tidemill.toml").write_text('[project]\nname = "folds"\n')
    (root / "features.py").write_text(FEATURES)
    env = Environment.load(root)
    env.apply()
    rng = np.random.default_rng(3)
    weights = 1 / np.arange(1, entities + 1) ** 1.1
    step = 1_000_000
    for start in range(0, events, step):
        n = min(step, events - start)
        low, high = (20_000 * DAY + (start + i) * days * DAY // events for i in (0, n))
        times = np.sort(rng.integers(low, high, n))
        frame = pl.DataFrame(
            {
                "user": np.char.add("user-", rng.choice(entities, n, p=weights / weights.sum()).astype(str)),
                "amount": np.round(rng.lognormal(3, 1, n), 2),
                "at": pl.Series(times).cast(pl.Datetime("us", "UTC")),
                "_offset": np.arange(start, start + n),
                "_time": times,
                "_arrival": pl.Series([None] * n, dtype=pl.Int64),
            }
        )
        env.offline.write_frame(f"{partition_folder('archive', 'events', 0)}/{range_name(start, start + n)}", frame)
    return env


def main() -> None:
    """Measure, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--entities", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        env = prepare(Path(folder), options.events, options.entities, options.days)
        path = env.offline.path(partition_folder("archive", "events", 0)) + "/*.parquet"
        connection = duckdb.connect()
        theirs = []
        for _ in range(3):
            begun = time.perf_counter()
            rows = connection.sql(QUERY.format(path)).to_arrow_table().num_rows
            theirs.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        result = run_source(env, "events")
        ours = time.perf_counter() - begun
        duck = sorted(theirs)[1]
        print(f"{options.events:,} events, {options.entities:,} entities, {options.days} days; {rows:,} groups")
        print(
            f"DuckDB GROUP BY: {duck:.2f} s (median of 3); "
            f"fold and publish ({sum(result.published.values()):,} entities): {ours:.2f} s; ratio {ours / duck:.2f}"
        )


if __name__ == "__main__":
    main()
