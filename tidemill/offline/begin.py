"""Where a topic begins to count, once and for all.

A topic that has a retention no longer holds its beginning. A source that says where to `start` has that place decided once for all
partitions that there are when it is first streamed, and noted by create-if-absent: of two workers at once, both begin where one said. What
lies before it is archived as offsets without events, so that everything else (positions, blocks, cuts, folds, replays) begins at
offset 0 as ever. A partition that the topic gets later begins at its own offset 0, whatever was written before a worker saw it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import polars as pl

from tidemill.errors import StoreError
from tidemill.offline.archive import PLACE_COLUMNS, partition_folder, range_name
from tidemill.offline.store import OfflineStore, read_json


def begin(
    store: OfflineStore, source: str, partition: int, columns: Mapping[str, pl.DataType], find: Callable[[], Mapping[int, int]]
) -> int:
    """The offset at which a partition begins to count; `find` says it for all partitions, the first time.

    Safe to kill at any instant, and to run again. Raises `StoreError`, and what `find` raises.
    """
    offsets = begun(store, source)
    if offsets is None:
        store.create(_key(source), json.dumps({"offsets": {str(p): offset for p, offset in find().items()}}).encode())
        offsets = begun(store, source) or {}
    offset = offsets.get(partition, 0)
    if offset:
        archived = f"{partition_folder('archive', source, partition)}/{range_name(0, offset)}"
        if not store.exists(archived):
            store.write_frame(archived, pl.DataFrame(schema={**columns, **PLACE_COLUMNS}))
    return offset


def begun(store: OfflineStore, source: str) -> dict[int, int] | None:
    """Where the partitions of a source that has a `start` begin to count, absent meaning 0; None before anything was streamed.

    Raises `StoreError`.
    """
    data = store.read(_key(source))
    if data is None:
        return None
    offsets = read_json(store, _key(source), data).get("offsets")
    if not isinstance(offsets, dict):
        raise StoreError(f"{store.path(_key(source))} should say where each partition begins: restore it from a copy")
    return {int(partition): int(offset) for partition, offset in offsets.items()}


def _key(source: str) -> str:
    return f"index/{source}/begin.json"
