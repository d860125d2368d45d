"""The online store: values and positions together, one slot at a time.

A **slot** is one shard of one bundle: it holds the cells of its entities, the positions applied, and the horizon. Everything in a
slot changes together or not at all, and may rewind together (a failover to a replica that is behind). A **cell** is the state of one
entity in one table: what was published (a version of the partials, with its cut's vector) and the tail appended since. Cells
are opaque bytes here; only `tidemill.kernel` knows what is in them.

Stores must: apply atomically and only where positions stand exactly where the writer believes; append without reading; rewrite only
the exact prefix that the rewriter read; raise `published` and the horizon, never lower them; read a slot's state and any of its cells
as one snapshot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tidemill.times import BEGINNING


class SlotId(NamedTuple):
    """One shard of one bundle."""

    bundle: str
    shard: int


class CellId(NamedTuple):
    """One entity's state in one table of a bundle. `table` is the table's stable 63-bit id, `entity` the canonical key."""

    table: int
    shard: int
    entity: str


class Cell(NamedTuple):
    """What is stored of a cell. `k` is 0 and `vector` empty until something was published.

    `vector` is the published version's cut as little-endian int64, indexed by partition.
    """

    k: int
    vector: bytes
    published: bytes
    tail: bytes


EMPTY_CELL = Cell(0, b"", b"", b"")


@dataclass(frozen=True, slots=True)
class SlotState:
    """What a slot knows. Absent partitions stand at offset 0; times are UTC microseconds.

    `positions`: the next offset to apply, per partition. `through`: the largest arrival time (event time where the log has none)
    applied, per partition. `horizon`: reads before it are refused. `latest`, `arrived`: the largest event and arrival time applied.
    `cursor`: set while the slot is being rebuilt; until it is done the slot answers `missing`.
    """

    positions: Mapping[int, int] = field(default_factory=dict)
    through: Mapping[int, int] = field(default_factory=dict)
    horizon: int = BEGINNING
    latest: int = BEGINNING
    arrived: int = BEGINNING
    cursor: str | None = None

    @property
    def serving(self) -> bool:
        """Whether values may be read: something was applied or rebuilt, and no rebuild is under way."""
        return bool(self.positions) and self.cursor is None


@dataclass(frozen=True, slots=True)
class Advance:
    """One flush's change to one slot: move `partition` from `start` to `end`, and append.

    `appends` holds (table, entity, bytes) with at most one item per cell. An advance without appends is usual: slots without
    events in a flush advance too. `horizon`, `latest`, `arrived` and `through` only ever raise what the slot has.
    """

    slot: SlotId
    partition: int
    start: int
    end: int
    through: int = BEGINNING
    horizon: int = BEGINNING
    latest: int = BEGINNING
    arrived: int = BEGINNING
    appends: Sequence[tuple[int, str, bytes]] = ()


@dataclass(frozen=True, slots=True)
class CellChange:
    """Replace the first `prefix` bytes of a cell's tail, if they still have this digest, by `tail`; appends since then stay.

    With `publish` = (k, vector, bytes) the published value is replaced too, and the change is refused unless k is above the cell's.
    """

    table: int
    prefix: int
    digest: bytes
    tail: bytes
    publish: tuple[int, bytes, bytes] | None = None


@dataclass(frozen=True, slots=True)
class EntityChange:
    """All changes of one entity in one slot: applied together or refused together."""

    entity: str
    cells: Sequence[CellChange]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A reader saw that the log of (source, partition) ended at `offset` at the wall-clock instant `at` (UTC microseconds)."""

    offset: int
    at: int


class StoreStats(NamedTuple):
    """`cells` and `bytes` (payload, without the store's own overhead) of a bundle."""

    cells: int
    bytes: int


def tail_digest(prefix: bytes) -> bytes:
    """The digest by which a rewrite recognises what it read: SHA-1, because Redis scripts can compute it.

    >>> tail_digest(b"").hex()[:8]
    'da39a3ee'
    """
    return hashlib.sha1(prefix, usedforsecurity=False).digest()


class OnlineStore(Protocol):
    """See the module's text for what every implementation must keep. Many processes may use one store at once.

    Errors: `StoreUnavailableError` when it does not answer within its time-out, `StoreVersionError`, `StoreError` otherwise.
    """

    def slots(self, slots: Sequence[SlotId]) -> list[SlotState]:
        """The state of these slots, in order; an unknown slot is `SlotState()`."""
        ...

    def apply(self, advances: Sequence[Advance]) -> list[bool]:
        """Apply each advance whose slot stands at `start` for its partition; False where it does not, and nothing happened.

        A slot is named at most once per call. A slot under rebuild refuses.
        """
        ...

    def read(self, cells: Sequence[CellId], slots: Sequence[SlotId]) -> tuple[list[Cell | None], list[SlotState]]:
        """Cells (None where nothing is stored) and slots, in order; atomic at least per slot."""
        ...

    def rewrite(self, slot: SlotId, changes: Sequence[EntityChange], horizon: int) -> list[bool]:
        """Compact or publish entities of one slot, raising its horizon to `horizon` where anything was changed.

        True per entity where its change was applied, False where a prefix or k did not fit, and that entity is as before.
        A cell left with nothing published and no tail is removed.
        """
        ...

    def rebuild(
        self,
        slot: SlotId,
        expect: str | None,
        cursor: str | None,
        changes: Sequence[EntityChange],
        *,
        horizon: int,
        positions: Mapping[int, int] | None = None,
    ) -> bool:
        """One link of a rebuild: only if the slot's cursor is `expect`, apply all changes and set `cursor`.

        A change that does not fit is passed over (someone published a newer version). The first link (expect None) is refused where
        the slot has positions. The last sets cursor None, and `positions`, which only raise what the slot has. False if refused.
        """
        ...

    def reset(self, slot: SlotId) -> None:
        """Remove a slot's cells, positions and cursor, for a rebuild or a roll-back. Its horizon stays."""
        ...

    def entities(self, slot: SlotId, table: int, *, after: str | None = None, limit: int = 1000, min_tail: int = 0) -> list[str]:
        """Entities with a cell in `table` whose tail has at least `min_tail` bytes: at most `limit`, in code point order.

        Strictly after `after`; None is the beginning (the empty string is a key, and the first). A page's last entity asks for the next.
        """
        ...

    def heartbeat(self, source: str, beats: Mapping[int, Heartbeat]) -> None:
        """Record heartbeats per partition; an older `at` than the stored one changes nothing."""
        ...

    def heartbeats(self, source: str) -> dict[int, Heartbeat]:
        """The last heartbeat per partition."""
        ...

    def stats(self, bundle: str, tables: Sequence[int]) -> StoreStats:
        """How much a bundle takes."""
        ...

    def close(self) -> None:
        """Give back connections. The store may not be used afterwards."""
        ...
