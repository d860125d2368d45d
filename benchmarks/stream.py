"""Streaming: JSON lines into SQLite with the real worker processes, against Bytewax's own windows; and the memory of the workers.

50,000 entities, Zipf-distributed with exponent 1.1; six columns, about 150 bytes a line; count, sum, mean, min, max and stddev, each over
1m, 1h, 1d and 30d. A CPU-second is one of any process that takes part, start and archive included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from tidemill.apps.streaming.status import WorkerStatus
from tidemill.apps.streaming.supervisor import Supervisor
from tidemill.environment import Environment
from tidemill.times import DAY

FEATURES = """
import tidemill as tm

events = tm.Source(
    "events",
    schema={"event_id": int, "user": str, "amount": float, "at": tm.Timestamp, "merchant": str, "country": str},
    timestamp="at",
    path="log/partition=*/*.jsonl",
)
windows = ["1m", "1h", "1d", "30d"]
users = tm.FeatureView("users", source=events, entity=tm.Entity("user"), aggregations=[
    tm.count(windows=windows), tm.sum("amount", windows=windows), tm.mean("amount", windows=windows),
    tm.min("amount", windows=windows), tm.max("amount", windows=windows), tm.stddev("amount", windows=windows),
])
"""

ENTITIES, EXPONENT = 50_000, 1.1
#: So many events make a day.
PER_DAY = 1_000_000
#: So many events go into a file.
_FILE = 1_000_000
_ROOT = Path(__file__).resolve().parents[1]


def write_log(folder: Path, events: int, partitions: int) -> None:
    """Files of JSON lines, in order of time; an entity has one partition, as a producer that hashes keys would have it."""
    rng = np.random.default_rng(5)
    weights = 1 / np.arange(1, ENTITIES + 1) ** EXPONENT
    weights /= weights.sum()
    for partition in range(partitions):
        (folder / f"partition={partition}").mkdir(parents=True)
    names = pl.Series([f"user-{i}" for i in range(ENTITIES)])
    merchants = pl.Series([f"m{i}" for i in range(1000)])
    for start in range(0, events, _FILE):
        n = min(_FILE, events - start)
        users = rng.choice(ENTITIES, n, p=weights)
        low, high = (20_000 * DAY + (start + i) * DAY // PER_DAY for i in (0, n))
        frame = pl.DataFrame(
            {
                "event_id": np.arange(start, start + n),
                "user": names.gather(users),
                "amount": np.round(rng.lognormal(3, 1, n), 2),
                "at": pl.Series(np.sort(rng.integers(low, high, n))).cast(pl.Datetime("us")).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"),
                "merchant": merchants.gather(rng.integers(0, len(merchants), n)),
                "country": pl.repeat("US", n, eager=True),
            }
        )
        for partition in range(partitions):
            frame.filter(users % partitions == partition).write_ndjson(folder / f"partition={partition}" / f"{start:012}.jsonl")


def prepare(root: Path, events: int, partitions: int) -> None:
    """A project with its log, applied."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "tidemill.toml").write_text('[project]\nname = "stream"\n')
    (root / "features.py").write_text(FEATURES)
    write_log(root / "log", events, partitions)
    env = Environment.load(root)
    env.apply()
    env.online.close()


def cpu_seconds() -> float:
    """What this process and all its children that have ended have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def stream(root: Path, workers: int, watch: Callable[[list[WorkerStatus]], object] | None = None) -> int:
    """Stream the project's log to its end; how many events that were. `watch` sees the workers' statuses, a few times a second."""
    lines: list[str] = []
    supervisor = Supervisor(root, workers, once=True, log_level="warning", on_line=lines.append)
    code = supervisor.run(lambda: False, lambda: watch(supervisor.statuses()) if watch else None)
    env = Environment.load(root)
    partitions = env.log(env.applied().sources["events"]).partitions()
    end = sum(env.log(env.applied().sources["events"]).end(p) for p in partitions)
    if code or lines:
        raise SystemExit("\n".join(["the workers did not stream the log to its end undisturbed:", *lines]))
    return end


def rate(root: Path, events: int, workers: int) -> tuple[float, float]:
    """Events per CPU-second of all processes, and per second."""
    prepare(root, events, workers)
    used, begun = cpu_seconds(), time.monotonic()
    streamed = stream(root, workers)
    seconds, cpu = time.monotonic() - begun, cpu_seconds() - used
    if streamed != events:
        raise SystemExit(f"{events:,} events were written, and the log ends at {streamed:,}")
    return events / cpu, events / seconds


def peer_rate(root: Path, events: int, *options: str) -> float:
    """Events per CPU-second of the Bytewax flow in `window_flow`."""
    write_log(root / "log", events, 1)
    (path,) = (root / "log" / "partition=0").iterdir()
    used = cpu_seconds()
    subprocess.run([sys.executable, "-m", "benchmarks.window_flow", *options, str(path)], cwd=_ROOT, check=True)
    return events / (cpu_seconds() - used)


def memory(root: Path, events: int, workers: int, every: int = 5_000_000) -> list[tuple[int, list[int]]]:
    """The workers' anonymous memory in bytes each time that `every` more events have been streamed; printed as it is seen."""
    seen: list[tuple[int, list[int]]] = []

    def watch(statuses: list[WorkerStatus]) -> None:
        streamed = sum(p.events for s in statuses for p in s.partitions)
        if streamed >= every * (len(seen) + 1):
            seen.append((streamed, [_resident(s.pid) for s in statuses]))
            print(f"{streamed:>12,} events: {', '.join(f'{size / 2**20:.0f} MiB' for size in seen[-1][1])}", flush=True)

    prepare(root, events, workers)
    stream(root, workers, watch)
    return seen


def _resident(pid: int) -> int:
    """Bytes, without what is only mapped from files (their pages are the system's cache)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon")), 0)


def compare(events: int, peer_events: int) -> None:
    """Measure the peer, then ourselves with one worker and with two; print one line for each."""
    theirs = []
    # As documented it takes longer the more keys and windows are open, so fewer events are to its advantage.
    for what, given, options in (("as documented", peer_events // 3, ()), ("tuned", peer_events, ("--tuned",))):
        with tempfile.TemporaryDirectory() as folder:
            theirs.append(peer_rate(Path(folder), given, *options))
        print(f"Bytewax key_on + fold_window, one window, {what}, {given:,} events: {theirs[-1]:,.0f} per CPU-second", flush=True)
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            ours, wall = rate(Path(folder), events, count)
        who = "1 worker, 1 partition" if count == 1 else f"{count} workers, {count} partitions"
        print(
            f"{who}, {events:,} events, six aggregations over four windows: {ours:,.0f} per CPU-second, "
            f"{wall:,.0f} per second; {ours / theirs[0]:.1f} and {ours / theirs[1]:.1f} times Bytewax's",
            flush=True,
        )


def main() -> None:
    """Measure the rates, or the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--peer-events", type=int, default=300_000, help="what Bytewax's windows are given")
    parser.add_argument("--memory", type=int, metavar="N", help="stream N million events with two workers, print their memory")
    options = parser.parse_args()
    if options.memory is None:
        compare(options.events, options.peer_events)
        return
    with tempfile.TemporaryDirectory() as folder:
        memory(Path(folder), options.memory * 1_000_000, 2)


if __name__ == "__main__":
    main()
