"""Where a partition of a topic begins to count, once and for all.

A topic that has a retention no longer holds its beginning. A source that says where to `start` has that place decided once, when the
partition is first streamed, and noted by create-if-absent: of two workers at once, both begin where one said. What lies before it is
archived as offsets without events, so that everything else (positions, blocks, cuts, folds, replays) begins at offset 0 as ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import polars as pl

from tidemill.offline.archive import PLACE_COLUMNS, partition_folder, range_name
from tidemill.offline.store import OfflineStore, read_json


def begin(store: OfflineStore, source: str, partition: int, columns: Mapping[str, pl.DataType], find: Callable[[], int]) -> int:
    """The offset at which a partition begins to count; `find` says it, the first time.

    Safe to kill at any instant, and to run again. Raises `StoreError`, and what `find` raises.
    """
    key = f"index/{source}/begin/{partition:05d}.json"
    data = store.read(key)
    if data is None:
        store.create(key, json.dumps({"offset": find()}).encode())
        data = store.read(key) or b""
    offset = int(str(read_json(store, key, data)["offset"]))
    if offset:
        archived = f"{partition_folder('archive', source, partition)}/{range_name(0, offset)}"
        if not store.exists(archived):
            store.write_frame(archived, pl.DataFrame(schema={**columns, **PLACE_COLUMNS}))
    return offset
