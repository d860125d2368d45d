"""The peer of `serve`: a Feast repository with as many stored features in Redis, for `feast serve`. Runs in an environment of its own.

`python feast_repo.py FOLDER PORT` writes it, and its features to the Redis on that port.
"""

from __future__ import annotations

import datetime as dt
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import pandas as pd  # noqa: E402
from feast import Entity, FeatureStore, FeatureView, Field, FileSource  # noqa: E402
from feast.types import Float64, Int64  # noqa: E402
from feast.value_type import ValueType  # noqa: E402

WINDOWS = ("1m", "1h", "1d", "7d", "30d")
VIEWS = ("counts", "sums", "means", "largest", "p90s")
CONFIGURATION = """
project: reads
provider: local
registry: registry.db
online_store: {{type: redis, connection_string: "127.0.0.1:{port}"}}
offline_store: {{type: file}}
entity_key_serialization_version: 3
"""


def main() -> None:
    """Write the repository and the features."""
    folder, port, entities = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True)
    (folder / "feature_store.yaml").write_text(CONFIGURATION.format(port=port))
    store = FeatureStore(repo_path=str(folder))
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.STRING)
    frames, objects = {}, [user]
    for view in VIEWS:
        kind = Int64 if view == "counts" else Float64
        frame = pd.DataFrame({"user": [f"user-{i}" for i in range(entities)], "at": dt.datetime.now(dt.UTC)})
        for window in WINDOWS:
            frame[f"{view}_{window}"] = range(entities) if view == "counts" else [i * 1.25 for i in range(entities)]
        frame.to_parquet(folder / f"{view}.parquet")
        frames[view] = frame
        schema = [Field(name=f"{view}_{w}", dtype=kind) for w in WINDOWS]
        source = FileSource(path=str(folder / f"{view}.parquet"), timestamp_field="at")
        objects.append(FeatureView(name=view, entities=[user], ttl=dt.timedelta(days=1000), schema=schema, source=source, online=True))
    store.apply(objects)
    for view, frame in frames.items():
        store.write_to_online_store(view, frame)


if __name__ == "__main__":
    main()
