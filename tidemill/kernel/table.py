"""Tables: the state of some aggregations, for many entities and tiles, in two forms.

*Frames* (Polars) where events are many: the stream's pre-aggregation, folds, partials. One row per entity, tile and, in tables of
cells, cell. *Records* (NumPy) where one request must be answered in microseconds: an entity's state is its records one after the
other, so that appending is adding bytes, and decoding many entities is one step. Merging is exact and commutative in
both forms, and the conformance suite holds them equal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, pairwise
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Body = TypeVar("Body")

#: Columns of frames: where a tile lies, and which part of the log it came from (absent in partials, which are of one version).
SPAN, TAG = "_span", "_tag"
#: Part of every table's identity: raise it when the form of a record changes.
RECORD_VERSION = 1


class Overflow(Enum):
    """The one value that says: the true answer does not fit. Never a wrapped number."""

    OVERFLOW = "overflow"


OVERFLOW: Final = Overflow.OVERFLOW


@dataclass(slots=True)
class Records(Generic[Body]):
    """Decoded records of many entities: `entity` (which blob), `span` and `tag`, int64 (n,), and a body of n items."""

    entity: Int64s
    span: Int64s
    tag: Int64s
    body: Body


class Versions(NamedTuple):
    """What was published of n entities: the version that each stands at, int64 (n,); of each version its k, and its cut, one per row."""

    of: Int64s
    k: Int64s
    cut: Int64s


class Stored(NamedTuple):
    """The cells of n entities in one table: of each its published records, and those of its tail; and what was published."""

    blobs: Sequence[bytes]
    versions: Versions


class Reach(NamedTuple):
    """Windows `[edges[i], t)` at an instant; edges ascend, so that windows are numbered from the longest."""

    edges: Int64s
    t: int


class Table(ABC, Generic[Body]):
    """One stream of records per entity.

    `key` names what the table holds, for ever: part of its identity in stores, and its file name in the partials. `columns` are the
    columns that its frames have beside the entity's keys, SPAN and TAG; `cell` those of them that tell the rows of one tile apart.
    Where they are not named after the user's column they begin with an underscore, so that a key may be called `id` or `value`.
    """

    key: str
    columns: tuple[str, ...]
    cell: tuple[str, ...] = ()
    #: The size of a record; 0 where records are of different sizes.
    record_bytes = 0
    #: Whether `pack` makes a record of every cell, so that `merge_records` has to follow it.
    sparse = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    # ---- frames -----------------------------------------------------------------------------------------------------------------

    @abstractmethod
    def fold(self, events: pl.DataFrame, masks: Mapping[str, pl.Series], by: Sequence[str]) -> pl.DataFrame:
        """Events to tiles: `by` + `columns`, one row per group (and cell).

        `events` has the source's columns, `_time`, and the columns `by`: the entity's keys, SPAN, perhaps TAG. `masks` has the Boolean
        series of each filter text that the table's aggregations name.
        """

    @abstractmethod
    def merge(self, frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        """Tiles to merged tiles: rows that agree on `by` (and cell) become one."""

    @abstractmethod
    def pack(self, frame: pl.DataFrame) -> Body:
        """The bodies of a frame's rows."""

    # ---- records ----------------------------------------------------------------------------------------------------------------

    @abstractmethod
    def decode(self, blobs: Sequence[bytes]) -> Records[Body]:
        """All records of these blobs, in order."""

    @abstractmethod
    def encode(self, records: Records[Body], count: int) -> list[bytes]:
        """`count` blobs again; records are sorted by entity."""

    @abstractmethod
    def take(self, body: Body, rows: Int64s | Bools) -> Body:
        """Some of a body's items, by index or mask."""

    @abstractmethod
    def merge_records(self, records: Records[Body]) -> Records[Body]:
        """Records that agree on entity, span and tag (and cell) become one; sorted by entity."""

    @abstractmethod
    def states(self, stored: Stored, reach: Reach) -> Any:
        """The merged state of every entity in every window; what is published and the tail count as one.

        What is returned only this table's aggregations read.
        """


#: From so many rows on, Polars' streaming engine groups faster; below, starting it costs more than it saves.
_STREAMING_ROWS = 100_000


def grouped(frame: pl.DataFrame, by: Sequence[str], reduced: Sequence[pl.Expr]) -> pl.DataFrame:
    """One row per group, in any order."""
    if len(frame) < _STREAMING_ROWS:
        return frame.group_by(by).agg(reduced)
    return frame.lazy().group_by(by).agg(reduced).collect(engine="streaming")


def counted_events(events: pl.DataFrame, masks: Mapping[str, pl.Series], column: str | None, where: str | None) -> pl.Series | None:
    """Which events count: those that pass the filter, with a value in the column. None: all."""
    passed = masks[where] if where is not None else None
    if column is None or not events[column].null_count():
        return passed
    there = events[column].is_not_null()
    return there if passed is None else there & passed


def group_starts(*keys: Int64s) -> tuple[Int64s, Int64s]:
    """The order that sorts by these keys (the first is the most significant), and where its groups begin.

    >>> order, starts = group_starts(np.array([1, 0, 1]), np.array([5, 5, 5]))
    >>> order.tolist(), starts.tolist()
    ([1, 0, 2], [0, 1])
    """
    order = np.lexsort(keys[::-1]) if len(keys) > 1 else np.argsort(keys[0], kind="stable")
    if len(order) == 0:
        return order, np.zeros(0, dtype=np.int64)
    new = np.zeros(len(order), dtype=np.bool_)
    new[0] = True
    for key in keys:
        ordered = key[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    return order, np.flatnonzero(new)


def split_blobs(words: Int64s, entity: Int64s, count: int) -> list[bytes]:
    """Rows of int64, sorted by entity, to one blob per entity."""
    buffer = np.ascontiguousarray(words).tobytes()
    size = words.shape[1] * 8
    ends = (np.searchsorted(entity, np.arange(count + 1)) * size).tolist()
    return [buffer[a:b] for a, b in pairwise(ends)]


def stored_words(blobs: Sequence[bytes], width: int) -> tuple[Int64s, Int64s]:
    """Blobs to rows of `width` int64, and where each blob's rows end."""
    words = np.frombuffer(b"".join(blobs), dtype="<i8").reshape(-1, width)
    return words, np.fromiter(accumulate(map(len, blobs)), dtype=np.int64, count=len(blobs)) // (8 * width)


def join_blobs(blobs: Sequence[bytes], width: int) -> tuple[Int64s, Int64s]:
    """Blobs to rows of `width` int64, and the blob that each row came from."""
    words = np.frombuffer(b"".join(blobs), dtype="<i8").reshape(-1, width)
    if len(blobs) == 1:
        return np.zeros(len(words), dtype=np.int64), words
    lengths = np.fromiter(map(len, blobs), dtype=np.int64, count=len(blobs)) // (8 * width)
    return np.repeat(np.arange(len(blobs), dtype=np.int64), lengths), words
