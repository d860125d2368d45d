"""All that is known of a source: imported history, the archive, and what the log has beyond it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Self

import polars as pl

from tidemill.definitions import Source
from tidemill.environment import Environment
from tidemill.errors import LogTruncatedError, LogUnavailableError
from tidemill.logs.base import Log
from tidemill.offline.archive import archived_end, iter_range, partitions
from tidemill.offline.begin import begun
from tidemill.offline.cuts import latest_cut
from tidemill.offline.segments import imports_in_segments, iter_history

#: Events of a frame, and records of a log's batch.
ROWS = 1_000_000
_BATCH = 200_000
#: In seconds: how long a log may say nothing before its end.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Extent:
    """What is known of a source at one moment: the imports of the segments up to cut `k`, and each partition up to its offset in `ends`.

    `events`: about how many they are; some offsets hold none. Whoever reads a source several times reads the same with it, while the log
    grows and history is imported.
    """

    k: int
    ends: Mapping[int, int]
    events: int

    @classmethod
    def of(cls, env: Environment, source: Source) -> Self:
        """All that is known now. Raises `LogError`, `StoreError`."""
        k = latest_cut(env.offline, source.name)
        imported = sum(made.events for made in imports_in_segments(env.offline, source.name, k))
        ends = archived_ends(env, source)
        with closing(env.log(source)) as log:
            for partition in log.partitions():
                ends[partition] = max(ends.get(partition, 0), log.end(partition))
        first = begun(env.offline, source.name) or {}
        return cls(k, ends, imported + sum(end - first.get(partition, 0) for partition, end in ends.items()))


def known_events(
    env: Environment, source: Source, columns: list[str], *, rows: int = ROWS, upto: Extent | None = None
) -> Iterator[pl.DataFrame]:
    """The events of a source, each once, in no order: `columns` of its schema, `_time` and `_arrival` (see `logs.decode.Events`).

    What is archived stays as it was decoded then. What is beyond the archive is read from the log up to where it ends now, and what is
    no event there becomes a dead letter when it is streamed. `upto`: no more than what was known then. Raises `LogError`, `StoreError`.
    """
    types = {name: source.schema[name].polars for name in columns}
    for frame in iter_history(env.offline, source.name, None if upto is None else upto.k, types, rows=rows):
        yield frame.select(*types, "_time", "_arrival")
    yield from logged_events(env, source, columns, rows=rows, upto=upto)


def logged_events(
    env: Environment, source: Source, columns: list[str], *, rows: int = ROWS, upto: Extent | None = None
) -> Iterator[pl.DataFrame]:
    """`known_events` without what was imported: the archive, and what the log has beyond it."""
    types = {name: source.schema[name].polars for name in columns}
    ends = archived_ends(env, source)
    if upto is not None:
        ends = {partition: min(end, upto.ends.get(partition, 0)) for partition, end in ends.items()}
    for partition, end in ends.items():
        for frame in iter_range(env.offline, source.name, partition, 0, end, types, rows=rows):
            yield frame.select(*types, "_time", "_arrival")
    yield from events_beyond(env, source, columns, ends, upto)


def archived_ends(env: Environment, source: Source) -> dict[int, int]:
    """Where the archive of each partition ends."""
    return {partition: archived_end(env.offline, source.name, partition) for partition in partitions(env.offline, source.name)}


def events_beyond(
    env: Environment, source: Source, columns: list[str], ends: Mapping[int, int], upto: Extent | None = None
) -> Iterator[pl.DataFrame]:
    """What `logged_events` gives beyond these offsets of the partitions, from the log."""
    with closing(env.log(source)) as log:
        for partition in log.partitions():
            end = log.end(partition) if upto is None else min(log.end(partition), upto.ends.get(partition, 0))
            for frame in _rest(env, source, log, partition, ends.get(partition, 0), end):
                yield frame.select(*columns, "_time", "_arrival")


def _rest(env: Environment, source: Source, log: Log, partition: int, start: int, end: int) -> Iterator[pl.DataFrame]:
    if end <= start:
        return
    first = log.start(partition)
    # Where a source has a `start`, the log may lack its beginning, until that is decided. From there on every offset counts.
    if first > start and (source.start is None or begun(env.offline, source.name) is not None):
        raise LogTruncatedError(
            f"{source.name}, partition {partition}: the log begins at offset {first} and the archive ends at {start}: events between are "
            f"lost, so there is no true history; restore the archive"
        )
    decoder = env.decoder(source)
    reader = log.open(partition, max(start, first))
    try:
        at, since = max(start, first), time.monotonic()
        while at < end:
            batch = reader.read(min(_BATCH, end - at))
            if batch is None:
                if reader.at_end:  # a log whose last offsets hold no record
                    return
                if time.monotonic() - since > _PATIENCE:
                    raise LogUnavailableError(
                        f"{source.name}, partition {partition}: the log gives nothing at offset {at} of {end}: try again"
                    )
                time.sleep(0.001)
                continue
            at, since = batch.end, time.monotonic()
            frame = decoder.decode(batch).frame
            if frame.height:
                yield frame
    finally:
        reader.close()
