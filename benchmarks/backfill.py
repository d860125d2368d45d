"""Backfill: Parquet files to an import, its partials and SQLite, against DuckDB's plain GROUP BY entity, day over the same files.

Each side runs in a process of its own, in turn, from the beginning each time; the best of three counts, with its time and the most memory
that it held (ru_maxrss). DuckDB only reads and adds up; what a backfill does besides is in the lines below: the fold alone, which is
DuckDB's work, has the ratio.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from tidemill.times import DAY

FEATURES = """
import tidemill as tm

events = tm.Source(
    "events", schema={"id": int, "user": str, "amount": float, "at": tm.Timestamp}, timestamp="at", path="log/*.jsonl"EVENT_ID)
windows = ["30d", "lifetime"]
users = tm.FeatureView("users", source=events, entity=tm.Entity("user"), aggregations=[
    tm.count(windows=windows), tm.sum("amount", windows=windows), tm.mean("amount", windows=windows),
    tm.min("amount", windows=windows), tm.max("amount", windows=windows)])
"""

QUERY = """
    select "user", date_trunc('day', "at") as day, count(*), sum(amount), avg(amount), min(amount), max(amount)
    from read_parquet('{}') group by all
"""


def prepare(root: Path, events: int, entities: int, days: int, *, by_id: bool, unit: Literal["us", "ms"] = "us") -> None:
    """A project, and files of history of Zipf-distributed entities over some days, in the order of time."""
    (root / "log").mkdir(parents=True)
    (root / "log" / "a.jsonl").write_text("")
    (root / "history").mkdir()
    (root / "tidemill.toml").write_text('[project]\nname = "backfill"\n')
    (root / "features.py").write_text(FEATURES.replace("EVENT_ID", ', event_id="id"' if by_id else ""))
    rng = np.random.default_rng(3)
    weights = 1 / np.arange(1, entities + 1) ** 1.1
    edges = np.cumsum(weights / weights.sum())
    names = np.array([f"user-{i}" for i in range(entities)])
    step = 2_000_000
    for number, start in enumerate(range(0, events, step)):
        n = min(step, events - start)
        low, high = (20_000 * DAY + (start + i) * days * DAY // events for i in (0, n))
        frame = pl.DataFrame(
            {
                "id": np.arange(start, start + n),
                "user": names[np.minimum(edges.searchsorted(rng.random(n)), entities - 1)],
                "amount": np.round(rng.lognormal(3, 1, n), 2),
                "at": pl.Series(np.sort(rng.integers(low, high, n))).cast(pl.Datetime("us", "UTC")).dt.cast_time_unit(unit),
            }
        )
        frame.write_parquet(root / "history" / f"{number:04d}.parquet")


def backfill(root: Path, memory: int) -> dict[str, Any]:
    """This process's backfill: seconds of each phase, and the most memory."""
    from tidemill.apps.backfill.job import Request, run
    from tidemill.environment import Environment

    env = Environment.load(root)
    env.apply()
    phases: dict[str, list[float]] = {}

    def progress(what: str, *_: int) -> None:
        phases.setdefault(what.split(maxsplit=1)[0], []).append(time.perf_counter())

    begun = time.perf_counter()
    result = run(env, Request("events", ("history",), memory=memory), progress)
    seconds = time.perf_counter() - begun
    ends = [begun, *(times[-1] for times in phases.values())]
    took = {what: end - before for what, before, end in zip(phases, ends, ends[1:], strict=False)}
    assert result.made is not None
    tiles = sum(result.folded.published.values()) if result.folded else 0
    return {"seconds": seconds, "phases": took, "events": result.made.events, "entities": tiles}


def theirs(root: Path, memory: int) -> dict[str, Any]:
    """DuckDB's query, into a Parquet file, within the same memory."""
    import duckdb

    begun = time.perf_counter()
    connection = duckdb.connect()
    connection.sql(f"set memory_limit = '{memory >> 20}MiB'")
    connection.sql(f"copy ({QUERY.format(root / 'history' / '*.parquet')}) to '{root / 'theirs.parquet'}' (format parquet)")
    return {"seconds": time.perf_counter() - begun}


def child(what: str, root: Path, memory: int) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.backfill", "--run", what, "--root", str(root), "--memory", str(memory)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Measure, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=50_000_000)
    parser.add_argument("--entities", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--memory", type=int, default=2 << 30)
    parser.add_argument("--by-id", action="store_true", help="give the source an event_id, by which the overlap is looked for")
    parser.add_argument("--rounds", type=int, default=3, help="how often both sides run, in turn; the best of each counts")
    parser.add_argument("--decoded", action="store_true", help="times in milliseconds, so that no file can be taken as it is")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        found = {"backfill": backfill, "theirs": theirs}[options.run](options.root, options.memory)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**found, "memory": most}))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "p"
        prepare(root, options.events, options.entities, options.days, by_id=options.by_id, unit="ms" if options.decoded else "us")
        others, mine = [], []
        for _ in range(options.rounds):
            others.append(child("theirs", root, options.memory))
            shutil.rmtree(root / ".tidemill", ignore_errors=True)
            mine.append(child("backfill", root, options.memory))
        duck, ours = (min(found, key=lambda one: one["seconds"]) for found in (others, mine))
        n = options.events
        lines = [
            f"{n:,} events of {options.entities:,} entities over {options.days} days, memory {options.memory / 2**30:.1f} GiB",
            f"DuckDB GROUP BY user, day: {duck['seconds']:.1f} s, {duck['memory'] / 2**20:,.0f} MiB",
            f"backfill: {ours['seconds']:.1f} s ({n / ours['seconds'] / 1e6:.2f} M events/s), {ours['memory'] / 2**20:,.0f} MiB; of it",
            *(f"  {what}: {seconds:.1f} s" for what, seconds in ours["phases"].items()),
            f"fold / DuckDB: {ours['phases'].get('fold', 0) / duck['seconds']:.2f}",
            f"backfill / DuckDB: {ours['seconds'] / duck['seconds']:.2f}",
        ]
        print("\n".join(lines))


if __name__ == "__main__":
    main()
