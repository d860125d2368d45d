"""The peer of `redis_reads`: as many stored features in Feast, from Redis. Runs in an environment of its own.

`python feast_reads.py FOLDER PORT` prints the p50 in microseconds for 1 and for 100 entities.
"""

from __future__ import annotations

import datetime as dt
import statistics
import sys
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import pandas as pd  # noqa: E402
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig  # noqa: E402
from feast.types import Float64, Int64  # noqa: E402
from feast.value_type import ValueType  # noqa: E402

WINDOWS = ("1m", "1h", "1d", "7d", "30d")
VIEWS = ("counts", "sums", "means", "largest", "p90s")
ENTITIES = 1000


def main() -> None:
    """Write the features, then read them."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True)
    store = FeatureStore(
        config=RepoConfig(
            project="reads",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "redis", "connection_string": f"127.0.0.1:{port}"},
            offline_store={"type": "file"},
            entity_key_serialization_version=3,
        )
    )
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.STRING)
    now = dt.datetime.now(dt.UTC)
    objects = [user]
    frames = {}
    for view in VIEWS:
        kind = Int64 if view == "counts" else Float64
        frame = pd.DataFrame({"user": [f"user-{i}" for i in range(ENTITIES)], "at": now})
        for window in WINDOWS:
            frame[f"{view}_{window}"] = range(ENTITIES) if view == "counts" else [i * 1.25 for i in range(ENTITIES)]
        path = folder / f"{view}.parquet"
        frame.to_parquet(path)
        frames[view] = frame
        schema = [Field(name=f"{view}_{w}", dtype=kind) for w in WINDOWS]
        source = FileSource(path=str(path), timestamp_field="at")
        objects.append(FeatureView(name=view, entities=[user], ttl=dt.timedelta(days=1000), schema=schema, source=source, online=True))
    store.apply(objects)
    for view in VIEWS:
        store.write_to_online_store(view, frames[view])
    features = [f"{view}:{view}_{window}" for view in VIEWS for window in WINDOWS]
    for size in (1, 100):
        rows = [{"user": f"user-{i}"} for i in range(size)]
        answer = store.get_online_features(features=features, entity_rows=rows).to_dict()
        if answer["counts_1m"] != list(range(size)):
            raise SystemExit("Feast does not find what was written")
        taken = []
        end = time.perf_counter() + 5
        while time.perf_counter() < end:
            begun = time.perf_counter()
            store.get_online_features(features=features, entity_rows=rows)
            taken.append(time.perf_counter() - begun)
        print(size, statistics.median(taken[5:]) * 1e6)


if __name__ == "__main__":
    main()
