"""Training sets: 25 features (count, sum, mean, max and p90, each over 5 windows) of as many rows as asked for, over 5 million events.

Against the same windows in DuckDB's SQL and in Polars, both written as their users would: rows joined with the events of their user in
the longest window, and a filtered aggregate per feature; and against Feast, which looks up as many stored features. The peers get fewer
rows, since what they take grows with them; the rate is what is compared. A check holds counts and means of all three equal.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

import tidemill as tm
from benchmarks.peers import python_of
from tidemill.environment import Environment
from tidemill.offline.archive import partition_folder, range_name
from tidemill.times import DAY, HOUR

WINDOWS = {"1m": 60, "1h": 3600, "1d": 86400, "7d": 7 * 86400, "30d": 30 * 86400}
FEATURES = f"""
import tidemill as tm

events = tm.Source("events", schema={{"user": str, "amount": float, "at": tm.Timestamp}}, timestamp="at", path="log/*.parquet")
windows = {list(WINDOWS)}
users = tm.FeatureView("users", source=events, entity=tm.Entity("user"), aggregations=[
    tm.count(windows=windows), tm.sum("amount", windows=windows), tm.mean("amount", windows=windows), tm.max("amount", windows=windows),
    tm.quantile("amount", 0.9, windows=windows)])
"""
_ROOT = Path(__file__).resolve().parents[1]
Rate = tuple[float, pl.DataFrame]


def prepare(root: Path, events: int, users: int, rows: int) -> tuple[tm.FeatureStore, list[str], pl.DataFrame]:
    """A project whose archive holds events of users who are active to very different degrees over 40 days; its files; and rows."""
    root.mkdir(parents=True)
    (root / "log").mkdir()
    (root / "tidemill.toml").write_text('[project]\nname = "datasets"\n')
    (root / "features.py").write_text(FEATURES)
    env = Environment.load(root)
    rng = np.random.default_rng(11)
    activity = rng.lognormal(0, 1, users)
    names = pl.Series([f"user-{i}" for i in range(users)])
    begin, step, keys = 20_000 * DAY, 1_000_000, []
    for start in range(0, events, step):
        n = min(step, events - start)
        low, high = (begin + (start + i) * 40 * DAY // events for i in (0, n))
        times = np.sort(rng.integers(low, high, n))
        frame = pl.DataFrame(
            {
                "user": names.gather(rng.choice(users, n, p=activity / activity.sum())),
                "amount": np.round(rng.lognormal(3, 1, n), 2),
                "at": pl.Series(times).cast(pl.Datetime("us", "UTC")),
                "_offset": np.arange(start, start + n),
                "_time": times,
                "_arrival": pl.Series([None] * n, dtype=pl.Int64),
            }
        )
        keys.append(f"{partition_folder('archive', 'events', 0)}/{range_name(start, start + n)}")
        env.offline.write_frame(keys[-1], frame)
    asked = rng.choice(users, rows, p=activity / activity.sum())
    # Whole hours: there both a window with a hop and one without have the same old edge, down to that of 7 days.
    when = (begin + rng.integers(30 * DAY, 40 * DAY, rows)) // HOUR * HOUR
    questions = pl.DataFrame({"user": names.gather(asked), "event_timestamp": pl.Series(when).cast(pl.Datetime("us", "UTC"))})
    return tm.FeatureStore(env), [env.offline.path(k) for k in keys], questions


def timed(answer: Callable[[], pl.DataFrame], rows: int) -> Rate:
    """Rows a second, and the answer."""
    begun = time.perf_counter()
    found = answer()
    return rows / (time.perf_counter() - begun), found


def with_duckdb(files: list[str], questions: pl.DataFrame) -> pl.DataFrame:
    """As one writes it in SQL."""
    rows = questions.with_row_index("row")  # noqa: F841 - DuckDB finds it by name
    features = ", ".join(
        f'count(e."at") filter ({inside}) as count_{w}, sum(amount) filter ({inside}) as sum_{w}, '
        f"avg(amount) filter ({inside}) as mean_{w}, max(amount) filter ({inside}) as max_{w}, "
        f"quantile_disc(amount, 0.9) filter ({inside}) as p90_{w}"
        for w, seconds in WINDOWS.items()
        for inside in [f'where e."at" >= r.event_timestamp - interval {seconds} second']
    )
    return duckdb.sql(
        f"""select r.row, {features} from rows r left join read_parquet({files}) e
        on e."user" = r."user" and e."at" < r.event_timestamp and e."at" >= r.event_timestamp - interval {30 * 86400} second
        group by r.row order by r.row"""
    ).pl()


def with_polars(files: list[str], questions: pl.DataFrame) -> pl.DataFrame:
    """As one writes it in Polars."""
    rows = questions.with_row_index("row")
    at, now = pl.col("at"), pl.col("event_timestamp")
    features = []
    for w, seconds in WINDOWS.items():
        inside = pl.col("amount").filter(at >= now - pl.duration(seconds=seconds))
        features += [inside.len().alias(f"count_{w}"), inside.sum().alias(f"sum_{w}"), inside.mean().alias(f"mean_{w}")]
        features += [inside.max().alias(f"max_{w}"), inside.quantile(0.9).alias(f"p90_{w}")]
    found = (
        rows.lazy()
        .join(pl.scan_parquet(files), on="user")
        .filter((at < now) & (at >= now - pl.duration(days=30)))
        .group_by("row")
        .agg(features)
        .collect()
    )
    return rows.select("row").join(found, on="row", how="left").sort("row")


def with_feast(folder: Path, rows: int) -> float:
    """Rows a second of Feast's point-in-time join."""
    command = [python_of("feast"), str(_ROOT / "benchmarks" / "feast_history.py"), str(folder), str(rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def check(ours: pl.DataFrame, theirs: pl.DataFrame) -> None:
    """Raise where the peers computed something else. Their windows have no hop: up to a day, at whole hours, that is the same."""
    for w in ("1m", "1h", "1d"):
        counts = theirs[f"count_{w}"].fill_null(0).cast(pl.Int64)
        means = (ours[f"users__amount_mean_{w}"] - theirs[f"mean_{w}"]).abs().max()
        if not counts.equals(ours[f"users__count_{w}"], check_names=False) or (isinstance(means, float) and means > 1e-6):
            raise SystemExit(f"the answers over {w} are not the same")


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--peer-rows", type=int, default=100_000)
    parser.add_argument("--feast-rows", type=int, default=20_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as name:
        store, files, questions = prepare(Path(name) / "project", given.events, given.users, given.rows)
        store.get_historical_features(questions[:10], ["users"])  # what Numba compiled is read
        ours, found = timed(lambda: store.get_historical_features(questions, ["users"]).to_polars(), given.rows)
        print(f"{given.rows:,} rows x 25 features over {given.events:,} events: {ours:,.0f} rows/s", flush=True)
        few = questions[: given.peer_rows]
        peers: dict[str, Any] = {"DuckDB": with_duckdb, "Polars": with_polars}
        for peer, answer in peers.items():
            rate, theirs = timed(lambda answer=answer: answer(files, few), given.peer_rows)  # type: ignore[misc]
            check(found[: given.peer_rows], theirs)
            print(f"{peer}, {given.peer_rows:,} of the rows: {rate:,.0f} rows/s; ours {ours / rate:,.1f} times", flush=True)
        rate = with_feast(Path(name) / "feast", given.feast_rows)
        print(f"Feast, {given.feast_rows:,} rows x 25 stored features: {rate:,.0f} rows/s; ours {ours / rate:,.0f} times", flush=True)
        store.close()


if __name__ == "__main__":
    main()
