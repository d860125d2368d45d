"""What an entity takes in Redis, by features and by how often it has events: the sizing table of docs/operations.md.

History as in `benchmarks.reads`: 40 days, published through the last day but one, the rest in the tail, compacted. Memory is what Redis
says that it uses (`used_memory`), keys and its own overhead included, divided by the entities.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import redis

from benchmarks.reads import prepare
from tests.servers.redis import RedisServer

_HEAD = """
import tidemill as tm

events = tm.Source("events", schema={"user": str, "amount": float, "at": tm.Timestamp}, timestamp="at", path="log/*.parquet")
"""
_VIEW = 'v = tm.FeatureView("v", source=events, entity=tm.Entity("user"), aggregations=[{}])\n'
#: Events a day, and how many entities there are then.
SIZES = {1: 2000, 20: 500, 200: 200}
VIEWS = {
    "count over 1h, 1d, 30d": 'tm.count(windows=["1h", "1d", "30d"])',
    "count, sum, mean, min, max, stddev over 1m, 1h, 1d, 30d": ", ".join(
        [
            'tm.count(windows=["1m", "1h", "1d", "30d"])',
            *(f'tm.{a}("amount", windows=["1m", "1h", "1d", "30d"])' for a in ("sum", "mean", "min", "max", "stddev")),
        ]
    ),
    "p90 over 1h, 1d, 30d": 'tm.quantile("amount", 0.9, windows=["1h", "1d", "30d"])',
    "distinct count over 1d, 7d": 'tm.approx_count_distinct("amount", windows=["1d", "7d"])',
    "last 10 over 7d": 'tm.last_n("amount", 10, windows=["7d"])',
}


def bytes_per_entity(server: RedisServer, aggregations: str, per_day: int, entities: int) -> float:
    """`used_memory` of a project with one view, divided by its entities."""
    client = redis.Redis(port=server.port)
    try:
        client.flushall()
        time.sleep(0.2)
        empty = int(client.info("memory")["used_memory"])
        with tempfile.TemporaryDirectory() as folder:
            features = _HEAD + _VIEW.format(aggregations)
            prepare(Path(folder) / "p", entities=entities, per_day=per_day, online=f"{server.url}?prefix=tm", features=features)
        time.sleep(0.2)
        return (int(client.info("memory")["used_memory"]) - empty) / entities
    finally:
        client.close()


def main() -> None:
    """Print a line for each view."""
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
        server = RedisServer(Path(folder) / "redis")
        try:
            for name, aggregations in VIEWS.items():
                found = [f"{bytes_per_entity(server, aggregations, n, entities):,.0f} at {n}" for n, entities in SIZES.items()]
                print(f"{name}: bytes per entity {', '.join(found)} events a day", flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
