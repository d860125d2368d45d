"""The peer of `datasets`: Feast's point-in-time join over as many stored features. Runs in an environment of its own.

`python feast_history.py FOLDER ROWS` prints rows a second. A value is stored per user and day, 200,000 in each of five views.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig  # noqa: E402
from feast.types import Float64  # noqa: E402
from feast.value_type import ValueType  # noqa: E402

WINDOWS = ("1m", "1h", "1d", "7d", "30d")
VIEWS = ("counts", "sums", "means", "largest", "p90s")
USERS, DAYS = 5_000, 40


def main() -> None:
    """Write the features, then join them."""
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True)
    store = FeatureStore(
        config=RepoConfig(
            project="history",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            offline_store={"type": "file"},
            entity_key_serialization_version=3,
        )
    )
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.STRING)
    begin = pd.Timestamp("2024-10-04", tz="UTC")
    objects = [user]
    rng = np.random.default_rng(1)
    for view in VIEWS:
        n = USERS * DAYS
        frame = pd.DataFrame(
            {"user": [f"user-{i % USERS}" for i in range(n)], "at": [begin + pd.Timedelta(days=i // USERS) for i in range(n)]}
        )
        for window in WINDOWS:
            frame[f"{view}_{window}"] = rng.normal(size=n)
        path = folder / f"{view}.parquet"
        frame.to_parquet(path)
        schema = [Field(name=f"{view}_{w}", dtype=Float64) for w in WINDOWS]
        source = FileSource(path=str(path), timestamp_field="at")
        objects.append(FeatureView(name=view, entities=[user], ttl=dt.timedelta(days=1000), schema=schema, source=source))
    store.apply(objects)
    asked = pd.DataFrame(
        {
            "user": [f"user-{i}" for i in rng.integers(0, USERS, rows)],
            "event_timestamp": [begin + pd.Timedelta(seconds=int(s)) for s in rng.integers(30 * 86400, 40 * 86400, rows)],
        }
    )
    features = [f"{view}:{view}_{window}" for view in VIEWS for window in WINDOWS]
    begun = time.perf_counter()
    found = store.get_historical_features(entity_df=asked, features=features).to_df()
    taken = time.perf_counter() - begun
    if len(found) != rows or found["counts_1m"].isna().any():
        raise SystemExit("Feast does not find what was written")
    print(rows / taken)


if __name__ == "__main__":
    main()
