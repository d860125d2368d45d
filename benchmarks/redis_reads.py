"""Online reads from Redis: 5 views, 25 features, for 1 and for 100 entities; against a raw MGET of the same bytes, and against Feast.

The features and the history are those of `benchmarks.reads`. Feast reads as many stored features, of as many views, from the same server:
it looks them up, where ours are computed as of the request's instant. Also what an entity takes in Redis' memory.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

import tidemill as tm
from benchmarks.peers import python_of
from benchmarks.reads import p50, prepare
from tests.servers.redis import RedisServer
from tidemill.online.base import CellId
from tidemill.online.redis import _name
from tidemill.stable import shard_of

_ROOT = Path(__file__).resolve().parents[1]
ENTITIES = 1000


def keys_of(prefix: str, cells: list[CellId]) -> list[str]:
    """The keys of cells, as `RedisStore` has them."""
    return [f"{{{prefix}.{shard}}}c{_name(table)}:{entity}" for table, shard, entity in cells]


def feast(folder: Path, port: int) -> dict[int, float]:
    """Feast's p50 in microseconds, for 1 and for 100 entities."""
    command = [python_of("feast"), str(_ROOT / "benchmarks" / "feast_reads.py"), str(folder), str(port)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {int(size): float(micros) for size, micros in (line.split() for line in done.stdout.splitlines() if line[:1].isdigit())}


def between(one: Callable[[], Any], other: Callable[[], Any], rounds: int = 5) -> tuple[float, float]:
    """The medians of both in microseconds, measured in turns, so that what disturbs the machine disturbs both."""
    pairs = [(p50(one, 1.0), p50(other, 1.0)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def main() -> None:
    """Print a line for each."""
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as name:
        folder = Path(name)
        server = RedisServer(folder / "redis")
        try:
            theirs = feast(folder / "feast", server.port)
            client = redis.Redis(port=server.port)
            client.flushall()
            client.config_resetstat()
            empty = int(client.info("memory")["used_memory"])
            at = prepare(folder / "project", entities=ENTITIES, online=f"{server.url}?prefix=tm")
            time.sleep(1)
            used = int(client.info("memory")["used_memory"]) - empty
            store = tm.FeatureStore(folder / "project")
            applied = store.env.applied()
            rows = [{"user": f"user-{i}"} for i in range(100)]
            stored = 0
            for size in (1, 100):
                names = [f"user-{i}" for i in range(size)]
                cells = [CellId(t, shard_of(n, applied.shards), n) for b in applied.bundles for t in b.bundle.table_ids for n in names]
                keys = keys_of("tm", cells)
                stored = sum(map(len, filter(None, client.mget(keys))))
                if not stored:
                    raise SystemExit("the cells are not where they were looked for")
                ours, floor = between(
                    lambda size=size: store.get_online_features("model", rows[:size], at=at), lambda keys=keys: client.mget(keys)
                )
                print(
                    f"{size:>4} entities, 25 features, {stored / size / 1024:.1f} KiB each: {ours:,.0f} us p50; raw MGET of the same "
                    f"{len(keys)} strings {floor:,.0f} us, {ours / floor:.1f} times; Feast {theirs[size]:,.0f} us, "
                    f"{theirs[size] / ours:.1f} times as long",
                    flush=True,
                )
            print(
                f"memory: {used / ENTITIES:,.0f} bytes of Redis per entity for 5 views and 25 features over 40 days at 20 events a day, "
                f"of which {stored / 100:,.0f} are values"
            )
            store.close()
            client.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
