"""What of a history is in the live log too, or in an earlier import, and so must not count again.

By id: an event whose id is in the log, or in an earlier import, or came before in these files, is left out. By time: only what came
before the log's first event is taken; comparing like with like, arrivals where the source has them, else event times. Either looks
at all that the log holds by now: what is archived, and what is beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from tidemill.datasets.events import logged_events
from tidemill.definitions import Source
from tidemill.environment import Environment
from tidemill.errors import TidemillError
from tidemill.offline.archive import archived_end, partitions
from tidemill.offline.history import Import, Part, iter_parts, write_part
from tidemill.times import from_micros

BY_ID, BY_TIME, NONE = "by-id", "by-time", "none"
#: What an id takes, its copies while they are compared included; beside the bytes of a text.
_ID_BYTES = 96


class OverlapError(TidemillError):
    """The log holds events from before the bound that the history was to end at."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of an import's parts. The counts are `Import`'s; `rows` per part are to be dropped (None: the part is kept whole)."""

    rows: list[pl.Series | None]
    before: int | None = None
    left_out: int = 0
    repeated: int = 0
    without_id: int = 0
    log_without_id: int = 0


def place_of(source: Source) -> pl.Expr:
    """The instant by which an event of a source is compared with the log's: when it arrived, if the source says so, else its own.

    The column comes first, because files have it too; a topic's records need not, and have arrival times of their own.
    """
    return pl.coalesce(pl.col(source.arrival).cast(pl.Int64), "_arrival", "_time") if source.arrival is not None else pl.col("_time")


def find_overlap(
    env: Environment, source: Source, parts: Sequence[Part], earlier: Sequence[Import], how: str, before: int | None, memory: int
) -> Kept:
    """See the module's text. `before`: the bound of by-time that was asked for, UTC microseconds. Raises `OverlapError`, `LogError`."""
    if how == NONE:
        return Kept([None] * len(parts))
    _require_beginning(env, source)
    if how == BY_TIME:
        return _by_time(env, source, parts, before)
    return _by_id(env, source, parts, earlier, memory)


def _require_beginning(env: Environment, source: Source) -> None:
    """What of a topic counts is not known before its beginning is."""
    topic = env.project.brokers is not None and source.topic is not None
    begun = any(archived_end(env.offline, source.name, p) for p in partitions(env.offline, source.name))
    if topic and source.start is not None and not begun and not env.offline.exists(f"index/{source.name}/begin.json"):
        raise OverlapError(
            f"source {source.name!r} starts at {source.start!r} in its topic, and that place is found when it is first streamed: run "
            f"`tidemill stream` once, then this again"
        )


def _by_time(env: Environment, source: Source, parts: Sequence[Part], asked: int | None) -> Kept:
    place = place_of(source)
    columns = [source.arrival] if source.arrival is not None else []
    first: int | None = None
    count = 0
    for events in logged_events(env, source, columns):
        places = events.select(place.alias("place")).to_series()
        low = places.min()
        assert isinstance(low, int)
        first = low if first is None else min(first, low)
        count += int((places < asked).sum()) if asked is not None else 0
    if count:
        assert asked is not None
        instead = f"use --overlap {BY_ID}" if source.event_id else "give the source an event_id"
        raise OverlapError(
            f"the log of {source.name!r} holds {count:,} events from before {from_micros(asked).isoformat()}, the first at "
            f"{from_micros(first or 0).isoformat()}; they may be in these files too: say an earlier --before, or none, and all from the "
            f"log's first event on is left out; or {instead}; or --overlap {NONE}, if you know that no event is in both"
        )
    bound = first if asked is None else asked
    if bound is None:
        return Kept([None] * len(parts))
    types = {name: source.schema[name].polars for name in columns}
    dropped: list[pl.Series | None] = []
    left_out = 0
    for part in parts:
        late = [frame.select(place >= bound).to_series() for _, frame in iter_parts(env.offline, (part,), types)]
        mask = pl.concat(late) if late else pl.Series([], dtype=pl.Boolean)
        dropped.append(mask.arg_true() if mask.any() else None)
        left_out += int(mask.sum())
    return Kept(dropped, bound, left_out)


def _by_id(env: Environment, source: Source, parts: Sequence[Part], earlier: Sequence[Import], memory: int) -> Kept:
    name = source.event_id
    if name is None:
        raise OverlapError(f"source {source.name!r} has no event_id, by which events could be compared: use --overlap {BY_TIME}")
    types = {name: source.schema[name].polars}
    wide = next((len(f) and f[name].estimated_size() // len(f) for p in parts for _, f in iter_parts(env.offline, (p,), types)), 8)
    count = sum(p.rows for p in parts) + sum(e.events for e in earlier)
    count += sum(archived_end(env.offline, source.name, p) for p in partitions(env.offline, source.name))
    shares = max(1, -(-count * (_ID_BYTES + 2 * int(wide)) // memory))
    dropped: list[list[pl.Series]] = [[] for _ in parts]
    left_out = repeated = without = seen = unknown = 0
    for share in range(shares):
        mine = pl.col(name).hash(1) % shares == share

        def ids(frames: Iterator[pl.DataFrame], mine: pl.Expr = mine) -> pl.Series:
            found = [f.select(name).filter(pl.col(name).is_not_null() & mine).to_series().unique() for f in frames]
            return pl.concat(found).unique() if found else pl.Series(name, [], dtype=types[name])

        def logged(share: int = share) -> Iterator[pl.DataFrame]:
            nonlocal seen, unknown
            for frame in logged_events(env, source, [name]):
                if share == 0:
                    seen, unknown = seen + len(frame), unknown + frame[name].null_count()
                yield frame

        known = ids(logged())
        if seen and unknown == seen:
            raise OverlapError(
                f"none of the {seen:,} events in the log of {source.name!r} has {name!r}, as where the column was added later: by id "
                f"nothing could be left out, and what is in both would count twice; use --overlap {BY_TIME}, or {NONE} if no event is"
            )
        known = known.append(ids(frame for e in earlier for _, frame in iter_parts(env.offline, e.parts, types)))
        rows = _numbered(env, parts, types, name, mine)
        there = rows[name].is_in(known.implode())
        again = ~rows[name].is_first_distinct() & ~there
        left_out, repeated = left_out + int(there.sum()), repeated + int(again.sum())
        for (part,), some in rows.filter(there | again).partition_by("_part", as_dict=True).items():
            dropped[part].append(some["_row"])
    for part in parts:
        without += sum(frame[name].null_count() for _, frame in iter_parts(env.offline, (part,), types))
    whole = [pl.concat(rows).sort() if rows else None for rows in dropped]
    for made in earlier:
        unknown += sum(frame[name].null_count() for _, frame in iter_parts(env.offline, made.parts, types))
    return Kept(whole, None, left_out, repeated, without, unknown)


def _numbered(env: Environment, parts: Sequence[Part], types: dict[str, pl.DataType], name: str, mine: pl.Expr) -> pl.DataFrame:
    """The ids that are there of all parts in order, each with its part and row."""
    out = [pl.DataFrame(schema={"_row": pl.UInt32, name: types[name], "_part": pl.Int64})]
    for number, part in enumerate(parts):
        at = 0
        for _, frame in iter_parts(env.offline, (part,), types):
            rows = frame.select(name).with_row_index("_row", offset=at).filter(pl.col(name).is_not_null() & mine)
            out.append(rows.with_columns(_part=pl.lit(number, pl.Int64)))
            at += len(frame)
    return pl.concat(out)


def write_kept(env: Environment, parts: Sequence[Part], kept: Kept, folder: str, report: Callable[[int], None]) -> list[Part]:
    """The parts that are left: those that lose rows are written anew below `folder`, and those that lose all are none."""
    out = []
    for part, rows in zip(parts, kept.rows, strict=True):
        if rows is None:
            out.append(part)
        elif len(rows) < part.rows:
            frame = env.offline.read_frame(part.key).with_row_index("_row")
            frame = frame.filter(~pl.col("_row").is_in(rows.implode())).drop("_row")
            key = f"{folder}/{part.key.rpartition('/')[2]}"
            out.append(write_part(env.offline, key, frame))
        report(part.rows)
    return out
