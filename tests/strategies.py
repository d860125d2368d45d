"""What tests draw: values, instants, windows, events and logs, with the awkward ones as likely as the ordinary.

    values(kind)         a column's values: null, NaN, huge, tiny, -0.0, the ends of int64, empty and Unicode text, ...
    windows()            a few windows, hops finer than the default and `lifetime` among them
    edges(t, windows)    the instants where something changes: old edges of windows, hops, tiles and days around `t`
    times(t, windows)    event times: on the edges, one microsecond beside them, and anywhere
    event(schema, t, ws) an event as a dict of plain values, which the oracle takes
    logs(event)          partitions of a log: events with offsets, spread over many blocks
    cut_vectors(log)     cuts of such a log
    horizons(t)          instants that a read at `t` does not come before

`decoded` makes of events the frame that a source's decoder would make, `identical` compares two answers bit for bit, and `examples`
says how many examples a property gets: many more with TIDEMILL_SOAK=1 in the environment.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
from hypothesis import settings
from hypothesis import strategies as st

from tidemill.blocks import block_start
from tidemill.times import DAY, HOUR, MAX_TIME, MIN_TIME, MINUTE, RUNGS, SECOND, Window, floor_to, from_micros, to_micros, window_start
from tidemill.types import ColumnType

Event = dict[str, Any]

SOAK = os.environ.get("TIDEMILL_SOAK") == "1"

#: An instant that no rung divides, in the afternoon of a day, so that every edge below a day lies on either side of it.
NOW = 19_675 * DAY + 15 * HOUR + 34 * MINUTE + 56 * SECOND + 789_012

#: The largest float below 2**64, which is where the grid ends.
HUGE = 2.0**64 - 2048
FLOATS = (
    *(0.0, -0.0, 0.1, 1 / 3, 1.0, -1.5, 1e8 + 0.1, 1e8 + 0.2, 1e15 + 0.3, HUGE, -HUGE, 2.0**63, 2.0**36, -(2.0**36)),
    *(2.0**-60, 2.0**-61, -(2.0**-61), 3 * 2.0**-61, 2.0**-62, 2.0**-30, 2.0**-31, 3 * 2.0**-31, -(2.0**-28), 1 - 2.0**-53),
    *(5e-324, -5e-324, 2.0**-1022, 2.0**-1023, -(2.0**-1024), float("nan")),
)
INTS = (0, 1, -1, 2, 41, -(2**31), 2**32 - 1, 2**32, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63 - 2, -(2**63), -(2**63) + 1)
TEXTS = (
    *("", "a", "A", "ab", "b", "é", "e\u0301", "ß", "ﬀ", "\x00", "\x7f", "\uffff", "\U00010000", "\U0001f30a"),
    *("JFK", '"', "\\", "\n", "1:2", "null", "NaN"),
)
#: Keys of entities: empty, Unicode, and text that looks like something else.
KEYS = ("", "a", "é\U0001f30a", "1:a")


def examples(n: int) -> settings:
    """Settings for a property: `n` examples, or two hundred times as many in a soak.

    >>> examples(10).max_examples >= 10
    True
    """
    return settings(max_examples=n * 200 if SOAK else n)


# ---- values ---------------------------------------------------------------------------------------------------------------------


def floats() -> st.SearchStrategy[float]:
    """What a float column may hold once it has passed the source's checks, -0.0 and NaN included: |x| < 2**64."""
    return st.sampled_from(FLOATS) | st.floats(-HUGE, HUGE) | st.floats(-1e6, 1e6).map(lambda x: round(x, 2))


def ints() -> st.SearchStrategy[int]:
    """int64, its ends included."""
    return st.sampled_from(INTS) | st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1)


def texts() -> st.SearchStrategy[str]:
    """Text that UTF-8 can say: empty, combining, control characters, characters beyond 16 bits."""
    return st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=("Cs",)), max_size=4)


def moments() -> st.SearchStrategy[int]:
    """Instants anywhere in the years 1 to 9999, as UTC microseconds."""
    return st.sampled_from((MIN_TIME, MAX_TIME - 1, -1, 0, 1, NOW, NOW - 1, floor_to(NOW, DAY))) | st.integers(MIN_TIME, MAX_TIME - 1)


def values(kind: ColumnType, *, null: bool = True) -> st.SearchStrategy[Any]:
    """The values of a column of this type; instants as aware datetimes."""
    some: dict[str, st.SearchStrategy[Any]] = {
        "float": floats(),
        "int": ints(),
        "str": texts(),
        "bool": st.booleans(),
        "timestamp": moments().map(from_micros),
    }
    return st.none() | some[kind.name] if null else some[kind.name]


# ---- windows and instants -------------------------------------------------------------------------------------------------------

_LENGTHS = (*(1, 10, 59, 60, 61, 90, 600, 3599, 3600, 5400), *(s * 3600 for s in (6, 24, 25, 48, 168, 720, 24 * 60)))


def window() -> st.SearchStrategy[Window]:
    """One window: any multiple of a second, with its default hop or a finer one."""

    def with_hop(seconds: int) -> st.SearchStrategy[Window]:
        whole = Window.parse(f"{seconds}s")
        finer = [r for r in RUNGS if r <= whole.hop]
        return st.just(whole) | st.sampled_from([Window(whole.length, r) for r in finer])

    return (st.sampled_from(_LENGTHS) | st.integers(1, 100_000)).flatmap(with_hop)


def windows(*, most: int = 4, lifetime: bool | None = None) -> st.SearchStrategy[tuple[Window, ...]]:
    """Different windows, at least one; with `lifetime` among them or not, where it is not said."""
    finite = st.lists(window(), min_size=1, max_size=most, unique=True)
    endless = st.booleans() if lifetime is None else st.just(lifetime)
    return st.builds(lambda ws, forever: (*ws, *([Window.parse("lifetime")] if forever else [])), finite, endless)


def edges(t: int, windows: Sequence[Window]) -> list[int]:
    """Where something changes for a read at `t`: the read itself, each window's old edge, a hop beside it, and the tiles around both."""
    ends = [t] + [window_start(t, w) for w in windows if w.length is not None]
    hops = [window_start(t, w) + sign * w.hop for w in windows if w.length is not None for sign in (-1, 1)]
    return sorted({*ends, *hops, *(floor_to(e, r) for e in ends for r in RUNGS), *(floor_to(t, DAY) + d * DAY for d in (-1, 0, 1))})


def times(t: int, windows: Sequence[Window]) -> st.SearchStrategy[int]:
    """Event times: on an edge or beside it, in any window, long before all of them, or after `t` (an event may be ahead of the read).

    Ties are common: a fourth of the times is one of two instants.
    """
    on_edge = st.builds(int.__add__, st.sampled_from(edges(t, windows)), st.sampled_from((-1, 0, 0, 1)))
    lengths = [w.length for w in windows if w.length is not None]
    within = st.sampled_from([*lengths, SECOND]).flatmap(lambda n: st.integers(t - n, t))
    tied = st.sampled_from((t - 1, t - 2))
    return on_edge | tied | within | st.sampled_from((MIN_TIME, -1, 0, t - 400 * DAY, t + HOUR, MAX_TIME - 1))


def horizons(t: int) -> st.SearchStrategy[int]:
    """Horizons that allow a read at `t`: mostly close to it, so that tiles do widen."""
    return st.sampled_from((t, t, t - 1, t - MINUTE, floor_to(t, HOUR), t - 2 * DAY, MIN_TIME)) | st.integers(t - 40 * DAY, t)


# ---- events and logs ------------------------------------------------------------------------------------------------------------


def event(
    schema: Mapping[str, ColumnType],
    t: int,
    windows: Sequence[Window],
    *,
    timestamp: str = "at",
    keys: Sequence[str] = (),
    ids: Sequence[str] = (),
) -> st.SearchStrategy[Event]:
    """One event. `timestamp` holds UTC microseconds.

    Text columns named in `keys` draw from a few `KEYS`, so that entities have several events; other key columns, and `ids`, draw from
    a few values, so that ties are common. Ids may be null, keys not.
    """
    few: dict[str, st.SearchStrategy[Any]] = {
        "int": st.integers(-1, 2) | st.just(2**63 - 1),
        "str": st.sampled_from(KEYS) | st.just(KEYS[1]),
        "bool": st.booleans(),
        "timestamp": st.sampled_from((0, t)).map(from_micros),
    }
    columns = {c: values(k) for c, k in schema.items()}
    columns |= {key: few[schema[key].name] for key in keys}
    columns |= {i: st.none() | few[schema[i].name] for i in ids}
    columns[timestamp] = times(t, windows)
    return st.fixed_dictionaries(columns)


class Log(NamedTuple):
    """Partitions of a log. Each holds (offset, event) with offsets ascending, and gaps that carry them over many blocks."""

    partitions: dict[int, list[tuple[int, Event]]]

    def all(self) -> list[tuple[int, int, Event]]:
        """(partition, offset, event) of everything."""
        return [(p, o, e) for p, rows in self.partitions.items() for o, e in rows]


def logs(
    event: st.SearchStrategy[Event], *, partitions: Sequence[int] = (0, 3), min_size: int = 0, max_size: int = 30
) -> st.SearchStrategy[Log]:
    """Events dealt out to partitions, in no order of time, at offsets of many blocks, the edges of blocks among them.

    Some events come two or three times, as a log may hold them: each counts.
    """
    gap = st.sampled_from((0, 0, 1, 1022, 1023, 1024, 5000, 70_000, 200_000))

    def deal(rows: list[tuple[int, int, int, Event]]) -> Log:
        dealt: dict[int, list[tuple[int, Event]]] = {p: [] for p in partitions}
        following = dict.fromkeys(partitions, 0)
        for partition, skipped, copies, row in rows:
            for _ in range(copies):
                offset = following[partition] + skipped
                following[partition] = offset + 1
                dealt[partition].append((offset, row))
        return Log(dealt)

    copies = st.sampled_from((1, 1, 1, 1, 2, 3))
    return st.lists(st.tuples(st.sampled_from(tuple(partitions)), gap, copies, event), min_size=min_size, max_size=max_size).map(deal)


def cut_vectors(log: Log, most: int = 3) -> st.SearchStrategy[list[dict[int, int]]]:
    """Cuts 1, 2, ... of a log: vectors of block boundaries that never decrease, up to one past the last block."""
    rows = log.partitions
    ends = {p: sorted({0, *(block_start(o) for o, _ in r), *(following_block(o) for o, _ in r)}) for p, r in rows.items()}
    vector = st.fixed_dictionaries({p: st.sampled_from(e) for p, e in ends.items()})

    def grow(vectors: list[dict[int, int]]) -> list[dict[int, int]]:
        grown: list[dict[int, int]] = []
        for v in vectors:
            before = grown[-1] if grown else {}
            grown.append({p: max(o, before.get(p, 0)) for p, o in v.items()})
        return grown

    return st.lists(vector, max_size=most).map(grow)


def following_block(offset: int) -> int:
    """The first offset of the block after the one that `offset` lies in.

    >>> following_block(0), following_block(1024)
    (1024, 2048)
    """
    size = 1024
    while block_start(block_start(offset) + size) == block_start(offset):
        size *= 2
    return block_start(offset) + size


# ---- frames and answers ---------------------------------------------------------------------------------------------------------


def decoded(
    rows: Sequence[Event], schema: Mapping[str, ColumnType], timestamp: str = "at", offsets: Sequence[int] | None = None
) -> pl.DataFrame:
    """Events as a source's decoder hands them on: typed columns, NaN as null, -0.0 as 0.0, `_time` and `_offset` beside them."""
    columns = [
        pl.Series(c, [_plain(row[c]) for row in rows], dtype=pl.Int64 if k.name == "timestamp" else k.polars) for c, k in schema.items()
    ]
    stamps = [c for c, k in schema.items() if k.name == "timestamp"]
    frame = pl.DataFrame(columns).with_columns(
        pl.col(timestamp).alias("_time"), pl.Series("_offset", range(len(rows)) if offsets is None else offsets, dtype=pl.Int64)
    )
    return frame.with_columns(pl.col(stamps).cast(pl.Datetime("us", "UTC")))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if value != value else value + 0.0  # only NaN differs from itself
    return to_micros(value) if isinstance(value, dt.datetime) else value
