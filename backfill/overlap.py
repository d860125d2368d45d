"""What of a history is in the live log too, or in an earlier import, and so must not count again.

By id: an event whose id is in the log, or in an earlier import, or came before in these files, is left out. By time: only what came
before the log's first event is taken; comparing like with like, arrivals where the source has them, else event times. Either looks
at all that the log holds by now: what is archived, and what is beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class _Ids:
    """The ids of some events: how many events, how many without one, the bytes of the others, the smallest and the largest (None: none).

    `ordered`: every event has one, and it is larger than that of the event before.
    """

    rows: int
    nulls: int
    bytes: int
    low: Any
    high: Any
    ordered: bool

    @classmethod
    def of(cls, ids: pl.Series) -> _Ids:
        nulls = ids.null_count()
        ordered = not nulls and ids.is_sorted() and not (ids == ids.shift(1)).any()
        return cls(len(ids), nulls, int(ids.estimated_size()), ids.min(), ids.max(), ordered)

    def meets(self, low: Any, high: Any) -> bool:
        """Whether one of them may lie between these two."""
        return self.low is not None and self.low <= high and low <= self.high


def _by_id(env: Environment, source: Source, parts: Sequence[Part], earlier: Sequence[Import], memory: int) -> Kept:
    """Only places whose ranges of ids meet can have an id in common: of ids that grow with time, as many do, hardly any is compared."""
    name = source.event_id
    if name is None:
        raise OverlapError(f"source {source.name!r} has no event_id, by which events could be compared: use --overlap {BY_TIME}")
    types = {name: source.schema[name].polars}

    def logged() -> Iterator[pl.Series]:
        return (frame[name] for frame in logged_events(env, source, [name]))

    def imported() -> Iterator[pl.Series]:
        return (frame[name] for made in earlier for _, frame in iter_parts(env.offline, made.parts, types))

    mine = [_Ids.of(_ids_of(env, part, name, types)) for part in parts]
    log = [_Ids.of(ids) for ids in logged()]  # last, because it grows
    seen, unknown = sum(one.rows for one in log), sum(one.nulls for one in log)
    if seen and unknown == seen:
        raise OverlapError(
            f"none of the {seen:,} events in the log of {source.name!r} has {name!r}, as where the column was added later: by id "
            f"nothing could be left out, and what is in both would count twice; use --overlap {BY_TIME}, or {NONE} if no event is"
        )
    known = [*log, *map(_Ids.of, imported())]
    shared = _meeting(mine, known)
    dropped: list[list[pl.Series]] = [[] for _ in parts]
    left_out = repeated = 0
    for number in sorted(set(range(len(parts))) - set(shared)):
        if not mine[number].ordered:  # alone with its ids, but one may come twice
            ids = _ids_of(env, parts[number], name, types)
            again = (ids.is_not_null() & ~ids.is_first_distinct()).arg_true()
            dropped[number] = [again] if len(again) else []
            repeated += len(again)
    for here in _shares(name, [mine[i] for i in shared], known, memory):
        elsewhere = pl.concat([_distinct(ids, here, pl.Series(name, [], dtype=types[name])) for ids in (logged(), imported())])
        rows = _numbered(env, parts, shared, types, name, here)
        there = rows[name].is_in(elsewhere.implode())
        second = ~rows[name].is_first_distinct() & ~there
        left_out, repeated = left_out + int(there.sum()), repeated + int(second.sum())
        for (part_number,), some in rows.filter(there | second).partition_by("_part", as_dict=True).items():
            dropped[part_number].append(some["_row"])
    whole = [pl.concat(rows).sort() if rows else None for rows in dropped]
    return Kept(whole, None, left_out, repeated, sum(one.nulls for one in mine), sum(one.nulls for one in known))


def _shares(name: str, shared: Sequence[_Ids], known: Sequence[_Ids], memory: int) -> Iterator[pl.Expr]:
    """Which ids to compare with each other at a time, so that they and what is known near them take no more than `memory` bytes."""
    if not shared:
        return
    low, high = min(one.low for one in shared), max(one.high for one in shared)
    near = [*shared, *(one for one in known if one.meets(low, high))]
    size = sum((one.rows - one.nulls) * _ID_BYTES + 2 * one.bytes for one in near)
    shares = max(1, -(-size // memory))
    for share in range(shares):
        yield pl.col(name).is_between(pl.lit(low), pl.lit(high)) & (pl.col(name).hash(1) % shares == share)


def _distinct(some: Iterator[pl.Series], here: pl.Expr, empty: pl.Series) -> pl.Series:
    """The different ones of some ids, of which one share is asked."""
    return pl.concat([empty, *(ids.to_frame().filter(here).to_series().unique() for ids in some)]).unique()


def _ids_of(env: Environment, part: Part, name: str, types: dict[str, pl.DataType]) -> pl.Series:
    frames = [frame[name] for _, frame in iter_parts(env.offline, (part,), types)]
    return pl.concat(frames) if frames else pl.Series(name, [], dtype=types[name])


def _meeting(mine: Sequence[_Ids], known: Sequence[_Ids]) -> list[int]:
    """The numbers of those of mine whose range meets that of any other."""
    every = sorted((one.low, one.high, number) for number, one in enumerate([*mine, *known]) if one.low is not None)
    meeting = set()
    farthest = None
    for place, (low, high, number) in enumerate(every):
        before = farthest is not None and low <= farthest
        behind = place + 1 < len(every) and every[place + 1][0] <= high
        if before or behind:
            meeting.add(number)
        farthest = high if farthest is None else max(farthest, high)
    return sorted(number for number in meeting if number < len(mine))


def _numbered(
    env: Environment, parts: Sequence[Part], some: Sequence[int], types: dict[str, pl.DataType], name: str, here: pl.Expr
) -> pl.DataFrame:
    """The ids that are there of some parts in order, each with its part's number and its row."""
    out = [pl.DataFrame(schema={"_row": pl.UInt32, name: types[name], "_part": pl.Int64})]
    for number in some:
        rows = _ids_of(env, parts[number], name, types).to_frame().with_row_index("_row").filter(here)
        out.append(rows.with_columns(_part=pl.lit(number, pl.Int64)))
    return pl.concat(out)


def write_kept(env: Environment, parts: Sequence[Part], kept: Kept, folder: str, report: Callable[[int], None]) -> list[Part]:
    """The parts that are left: those that lose rows are written anew below `folder`, and those that lose all are none."""
    out = []
    for number, (part, rows) in enumerate(zip(parts, kept.rows, strict=True)):
        if rows is None:
            out.append(part)
        elif len(rows) < part.rows:
            frame = pl.concat(frame for _, frame in iter_parts(env.offline, (part,))).with_row_index("_row")
            frame = frame.filter(~pl.col("_row").is_in(rows.implode())).drop("_row")
            out.append(write_part(env.offline, f"{folder}/{number:06d}.parquet", frame))
        report(part.rows)
    return out
