"""Dead letters: records that could not become events, with their reason and their raw bytes, so that they can be replayed.

They lie in `dead/<source>/<partition>/<start>-<end>.parquet`, which holds all dead letters at offsets [start, end) of the partition
that were found in one stretch of work; ranges without any have no file. After a replay files overlap and letters repeat; readers
take each (partition, offset, view) once.

Columns: `offset` Int64; `reason`; `view`, null unless the record is an event that only this view cannot take (a null key, say);
`raw` Binary, the record as it came; `arrival` Int64 UTC microseconds, null where the log has none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import polars as pl

from tidemill.offline.archive import RangeWriter, partition_folder, partitions, range_files
from tidemill.offline.store import OfflineStore

#: The columns of a file of dead letters.
LETTER_COLUMNS: Mapping[str, pl.DataType] = {
    "offset": pl.Int64(),
    "reason": pl.String(),
    "view": pl.String(),
    "raw": pl.Binary(),
    "arrival": pl.Int64(),
}
_IDENTITY = ["partition", "offset", "view"]


class DeadWriter(RangeWriter):
    """Buffers the dead letters of one partition: `add` for every batch, also without any, and `flush` before the archive's flush.

    Offsets that are archived are never decoded again, so letters that were not yet written by then would be lost in a crash.
    """

    def __init__(
        self,
        store: OfflineStore,
        source: str,
        partition: int,
        *,
        rows: int = 10_000,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(store, partition_folder("dead", source, partition), "offset", rows=rows, seconds=seconds, clock=clock)

    def add(self, start: int, end: int, frame: pl.DataFrame) -> None:
        """Buffer the dead letters (`LETTER_COLUMNS`) found at offsets [start, end), in offset order. See `RangeWriter.add`."""
        if dict(frame.schema) != dict(LETTER_COLUMNS):
            raise ValueError(f"{self._folder}: dead letters have the columns {dict(LETTER_COLUMNS)}; got {dict(frame.schema)}")
        super().add(start, end, frame)


def list_dead(
    store: OfflineStore,
    source: str,
    *,
    partition: int | None = None,
    view: str | None = None,
    reason: str | None = None,
    start: int = 0,
    limit: int = 100,
) -> pl.DataFrame:
    """The first `limit` dead letters by partition and offset: `partition` Int64 and `LETTER_COLUMNS`, each letter once.

    `partition`, `view`: only of these. `reason`: only those whose reason contains this text. `start`: only from this offset on.
    """
    if limit < 1:
        raise ValueError(f"limit is the number of dead letters to list, at least 1; got {limit}")
    kept = pl.DataFrame(schema={"partition": pl.Int64(), **LETTER_COLUMNS})
    for number in partitions(store, source, "dead") if partition is None else [partition]:
        for file in range_files(store, partition_folder("dead", source, number)):
            # Files come by their start, so once enough letters lie before a file, it and all that follow hold none of the first.
            if kept.height >= limit and file.start > _last_offset(kept, number, limit):
                break
            if file.end <= start:
                continue
            letters = _letters(store, file.key, number).filter(pl.col("offset") >= start)
            if view is not None:
                letters = letters.filter(pl.col("view") == view)
            if reason is not None:
                letters = letters.filter(pl.col("reason").str.contains(reason, literal=True))
            with store.reading(file.key):
                found = letters.unique(_IDENTITY, keep="first", maintain_order=True).head(limit).collect()
            kept = pl.concat([kept, found]).unique(_IDENTITY, keep="first", maintain_order=True).sort(_IDENTITY).head(limit)
    return kept


def count_dead(store: OfflineStore, source: str) -> dict[str, int]:
    """How many dead letters there are by reason, most frequent first, each letter counted once."""
    counts: dict[str, int] = {}
    for partition in partitions(store, source, "dead"):
        keys = [file.key for file in range_files(store, partition_folder("dead", source, partition))]
        if keys:
            letters = store.read_frame(keys, ["offset", "view", "reason"]).unique(["offset", "view"], keep="first")
            for reason, count in letters.group_by("reason").len().iter_rows():
                counts[reason] = counts.get(reason, 0) + count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _letters(store: OfflineStore, key: str, partition: int) -> pl.LazyFrame:
    return store.scan(key).select(pl.lit(partition, pl.Int64).alias("partition"), *LETTER_COLUMNS)


def _last_offset(kept: pl.DataFrame, partition: int, limit: int) -> int:
    """The offset in `partition` after which no letter can be among the first `limit` any more."""
    last = kept.row(limit - 1, named=True)
    return int(last["offset"]) if last["partition"] == partition else -1
