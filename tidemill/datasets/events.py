"""All that is known of a source: imported history, the archive, and what the log has beyond it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing

import polars as pl

from tidemill.definitions import Source
from tidemill.environment import Environment
from tidemill.errors import LogTruncatedError, LogUnavailableError
from tidemill.logs.base import Log
from tidemill.offline.archive import archived_end, iter_range, partitions
from tidemill.offline.history import iter_history

#: Events of a frame, and records of a log's batch.
ROWS = 1_000_000
_BATCH = 200_000
#: In seconds: how long a log may say nothing before its end.
_PATIENCE = 60.0


def known_events(env: Environment, source: Source, columns: list[str], *, rows: int = ROWS) -> Iterator[pl.DataFrame]:
    """The events of a source, each once, in no order: `columns` of its schema, `_time` and `_arrival` (see `logs.decode.Events`).

    What is archived stays as it was decoded then. What is beyond the archive is read from the log up to where it ends now, and what is
    no event there becomes a dead letter when it is streamed. Raises `LogError`, `StoreError`.
    """
    types = {name: source.schema[name].polars for name in columns}
    for frame in iter_history(env.offline, source.name, None, types, rows=rows):
        yield frame.select(*types, "_time", "_arrival")
    yield from logged_events(env, source, columns, rows=rows)


def logged_events(env: Environment, source: Source, columns: list[str], *, rows: int = ROWS) -> Iterator[pl.DataFrame]:
    """`known_events` without what was imported: the archive, and what the log has beyond it."""
    types = {name: source.schema[name].polars for name in columns}
    ends = archived_ends(env, source)
    for partition, end in ends.items():
        for frame in iter_range(env.offline, source.name, partition, 0, end, types, rows=rows):
            yield frame.select(*types, "_time", "_arrival")
    yield from events_beyond(env, source, columns, ends)


def archived_ends(env: Environment, source: Source) -> dict[int, int]:
    """Where the archive of each partition ends."""
    return {partition: archived_end(env.offline, source.name, partition) for partition in partitions(env.offline, source.name)}


def events_beyond(env: Environment, source: Source, columns: list[str], ends: Mapping[int, int]) -> Iterator[pl.DataFrame]:
    """What `logged_events` gives beyond these offsets of the partitions, from the log."""
    with closing(env.log(source)) as log:
        for partition in log.partitions():
            for frame in _rest(env, source, log, partition, ends.get(partition, 0)):
                yield frame.select(*columns, "_time", "_arrival")


def _rest(env: Environment, source: Source, log: Log, partition: int, start: int) -> Iterator[pl.DataFrame]:
    end, first = log.end(partition), log.start(partition)
    if end <= start:
        return
    if first > start and source.start is None:
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
