"""Kafka to Redis: the real workers, the broker and Redis on one machine, against Bytewax and Quix Streams on the same topic.

The events of `benchmarks.stream`, as JSON in a topic of two partitions, compressed with lz4 and keyed by user. Ours: six aggregations over
four windows, exactly once, archived. The peers: one window of an hour with count and sum, at least once, not archived, with two processes
each. All by the clock on the wall, the start of the processes included.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import python_of
from benchmarks.servers import TOPIC, Machine, applied, machine
from benchmarks.stream import cpu_seconds
from tidemill.apps.streaming.supervisor import Supervisor
from tidemill.apps.streaming.supervisor import _free_ports as free_ports

PARTITIONS = 2
_ROOT = Path(__file__).resolve().parents[1]
_NUMBERS = itertools.count()


def ours(place: Machine, events: int, workers: int) -> tuple[float, float]:
    """Events per second, and per CPU-second of the workers."""
    env = place.project(f"ours{next(_NUMBERS)}")
    lines: list[str] = []
    used, begun = cpu_seconds(), time.monotonic()
    code = Supervisor(env.project.directory, workers, once=True, log_level="warning", on_line=lines.append).run(lambda: False)
    seconds, cpu = time.monotonic() - begun, cpu_seconds() - used
    if code or lines or applied(env)() != events:
        raise SystemExit("\n".join([f"{applied(env)():,} of {events:,} events were applied:", *lines]))
    env.online.close()
    return events / seconds, events / cpu


def together(commands: list[list[str]]) -> float:
    """Seconds until all of these processes have ended."""
    begun = time.monotonic()
    processes = [subprocess.Popen(command, cwd=_ROOT, stderr=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("a peer failed")
    return time.monotonic() - begun


def bytewax(place: Machine, events: int, *options: str) -> float:
    """Events per second of `window_flow` in two processes."""
    addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    command = [
        sys.executable,
        "-m",
        "benchmarks.window_flow",
        "--kafka",
        f"{place.broker.address}/{TOPIC}",
        "--redis",
        str(place.redis.port),
    ]
    command += ["--events", str(events), *options, addresses]
    return events / together([[*command, str(index)] for index in range(2)])


def quix(place: Machine, events: int, emit: str) -> float:
    """Events per second of `quix_flow` in two processes."""
    number = next(_NUMBERS)
    command = [python_of("quix"), "benchmarks/quix_flow.py", "--brokers", place.broker.address, "--topic", TOPIC, "--emit", emit]
    command += ["--group", f"quix{number}", "--redis", str(place.redis.port), "--events", str(events // 2)]
    return events / together([[*command, "--state", str(place.folder / f"quix{number}-{i}")] for i in range(2)])


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--peer-events", type=int, default=400_000)
    options = parser.parse_args()
    python_of("quix")
    peers: list[tuple[str, Callable[[Machine], float], int]] = [
        # As documented it takes longer the more keys and windows are open, so fewer events are to its advantage.
        ("Bytewax, as documented", lambda place: bytewax(place, options.peer_events // 4), options.peer_events // 4),
        ("Bytewax, tuned", lambda place: bytewax(place, options.peer_events, "--tuned"), options.peer_events),
        ("Quix Streams, current()", lambda place: quix(place, options.peer_events, "current"), options.peer_events),
        ("Quix Streams, final()", lambda place: quix(place, options.peer_events, "final"), options.peer_events),
    ]
    with machine() as place:
        place.topic(options.events, PARTITIONS)
        rates: dict[str, float] = {}
        for name, run, events in peers:
            rates[name] = run(place)
            print(f"{name}, 2 processes, {events:,} events: {rates[name]:,.0f} per second", flush=True)
        for workers in (1, 2):
            rate, per_cpu = ours(place, options.events, workers)
            times = ", ".join(f"{rate / r:.1f} times {name}" for name, r in rates.items())
            print(
                f"tidemill, {workers} worker{'s' * (workers > 1)}, {options.events:,} events: {rate:,.0f} per second "
                f"({per_cpu:,.0f} per CPU-second of the workers); {times}",
                flush=True,
            )


if __name__ == "__main__":
    main()
