"""From a version of the partials to the online store: publish what segments touched, or rebuild a whole slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import polars as pl

from tidemill.blocks import HISTORY, HISTORY_STEPS
from tidemill.kernel import packed
from tidemill.kernel.bundle import ENTITY, Bundle
from tidemill.offline.partials import Chunk, Partials, Version
from tidemill.online.base import Cell, CellChange, CellId, EntityChange, OnlineStore, SlotId, tail_digest
from tidemill.stable import shard_of

#: Entities per atomic step.
STEP = 500
#: Tiles that are read at a time, unless a caller says another number.
TILES = 8_000_000
_ATTEMPTS = 50


class Published:
    """A version's values, packed: per entity, the records of each table. For one bundle; entities in key order.

    `only`: of these entities, which are then published also where nothing is left of them. `chunk`: only its share of them all.
    """

    def __init__(
        self, bundle: Bundle, partials: Partials, version: Version, only: set[str] | None = None, chunk: Chunk | None = None
    ) -> None:
        self.bundle, self.version = bundle, version
        self._blobs: list[dict[str, bytes]] = []
        files = partials.live(version.files, version.horizon)
        for i in range(len(bundle.tables)):
            mine = [f.day for f in files if f.table == bundle.tables[i].key]
            tiles = bundle.merge(i, partials.scan(i, files, chunk), version.horizon, distinct=len(mine) == len(set(mine)))
            tiles = bundle.with_entities(tiles)
            if only is not None:
                tiles = tiles.filter(pl.col(ENTITY).is_in(pl.Series(sorted(only), dtype=pl.String).implode()))
            names, blobs = bundle.pack(i, tiles, tag=-version.k)
            self._blobs.append(dict(zip(names, blobs, strict=True)))
        self.entities = sorted(only if only is not None else set().union(*self._blobs))

    def changes(self, entities: Sequence[str], cells: Mapping[tuple[int, str], Cell | None]) -> list[EntityChange]:
        """What publishing these entities changes, given their cells as they were read: values raised, tails trimmed."""
        vector = self.version.cut
        out: dict[str, list[CellChange]] = {e: [] for e in entities}
        for i, table in enumerate(self.bundle.table_ids):
            tails = [cell.tail if (cell := cells[table, e]) is not None else b"" for e in entities]
            trimmed = packed.trim(self.bundle.tables[i], tails, self.version.k, vector) if any(tails) else tails
            for entity, tail, rest in zip(entities, tails, trimmed, strict=True):
                value = (self.version.k, vector.astype("<i8").tobytes(), self._blobs[i].get(entity, b""))
                out[entity].append(CellChange(table, len(tail), tail_digest(tail), rest, publish=value))
        return [EntityChange(e, changes) for e, changes in out.items()]


def read_cells(store: OnlineStore, bundle: Bundle, shard: int, entities: Sequence[str]) -> dict[tuple[int, str], Cell | None]:
    """The cells of entities of one shard, by (table id, entity)."""
    ids = [CellId(t, shard, e) for t in bundle.table_ids for e in entities]
    cells, _ = store.read(ids, [])
    return {(c.table, c.entity): cell for c, cell in zip(ids, cells, strict=True)}


def touched(bundle: Bundle, partials: Partials, version: Version, above: int, chunk: Chunk | None = None) -> set[str]:
    """The entities with events in the segments after `above`, up to the version."""
    files = [f for f in version.files if f.k > above]
    names: set[str] = set()
    for i in range(len(bundle.tables)):
        keys = partials.scan(i, files, chunk).select(bundle.keys).unique()
        names.update(bundle.with_entities(keys)[ENTITY].to_list())
    return names


def publish(
    store: OnlineStore,
    bundle: Bundle,
    partials: Partials,
    version: Version,
    shards: int,
    progress: Callable[[int, int], None] | None = None,
    tiles: int = TILES,
) -> int:
    """Publish every entity that segments touched since the last complete publish. Returns how many values were raised.

    May be killed at any instant and run again, or twice at once: a value is only ever raised, and a tail only loses what the value
    holds. `progress` gets (entities done, of about how many). Reads about `tiles` of the version's tiles at a time.
    """
    before = partials.published()
    if version.k == 0 or before >= version.k:
        return 0
    raised = done = 0
    chunks = chunks_of(version, tiles)
    for number, chunk in enumerate(chunks):
        only = None if before == 0 else touched(bundle, partials, version, before, chunk)
        values = Published(bundle, partials, version, only, chunk)
        for shard, entities in by_shard(values.entities, shards):
            for step in _steps(entities):
                raised += _publish_step(store, values, shard, step)
                done += len(step)
                if progress is not None:
                    progress(done, done if number + 1 == len(chunks) else max(done, len(values.entities) * len(chunks)))
    partials.mark_published(version.k)
    return raised


def chunks_of(version: Version, tiles: int) -> list[Chunk | None]:
    """Shares of a version's entities that have about so many tiles each; [None] where all are not more than that."""
    shares = -(-sum(f.rows for f in version.files) // tiles)
    return [None] if shares <= 1 else [Chunk(number, shares) for number in range(shares)]


def _publish_step(store: OnlineStore, values: Published, shard: int, entities: Sequence[str]) -> int:
    slot = SlotId(values.bundle.id, shard)
    raised, left = 0, list(entities)
    for _ in range(_ATTEMPTS):
        cells = read_cells(store, values.bundle, shard, left)
        left = [e for e in left if any(c is None or c.k < values.version.k for t in values.bundle.table_ids for c in [cells[t, e]])]
        if not left:
            return raised
        results = store.rewrite(slot, values.changes(left, cells), values.version.horizon)
        raised += sum(results)
        left = [e for e, ok in zip(left, results, strict=True) if not ok]  # a tail grew or was compacted meanwhile: read again
        if not left:
            return raised
    raise RuntimeError(f"{len(left)} entities of {slot} changed during {_ATTEMPTS} attempts to publish them")


def rebuild(
    store: OnlineStore, bundle: Bundle, partials: Partials, version: Version, shard: int, shards: int, values: Published | None = None
) -> bool:
    """Fill an empty slot from a version, so that the stream can go on from its cut. False if somebody else is doing it, or did.

    A chain of compare-and-sets: the slot's cursor says how far it is, and whoever goes on with it does the same steps. The positions
    jump to the version's vector only with the last link; until then the slot answers `missing`. `values`, where many slots are
    rebuilt from one version, saves reading it again.
    """
    slot = SlotId(bundle.id, shard)
    state = store.slots([slot])[0]
    if state.positions and state.cursor is None:
        return False
    cursor, start = state.cursor, 0
    if cursor is not None:
        k, generation, start = (int(n) for n in cursor.split(":"))
        if (k, generation) != (version.k, version.generation):
            values = None
            if (k, generation) in partials.versions():
                version = partials.read(k, generation)  # go on with the version that was begun
            else:
                store.reset(slot)
                cursor, start = None, 0
    values = values or Published(bundle, partials, version)
    mine = [e for e in values.entities if shard_of(e, shards) == shard]
    if cursor is None:
        cursor = f"{version.k}:{version.generation}:0"
        if not store.rebuild(slot, None, cursor, [], horizon=version.horizon):
            return False
    for i in range(start, len(mine), STEP):
        step = mine[i : i + STEP]
        following = f"{version.k}:{version.generation}:{i + len(step)}"
        changes = values.changes(step, read_cells(store, bundle, shard, step))
        if not store.rebuild(slot, cursor, following, changes, horizon=version.horizon):
            return False
        cursor = following
    return store.rebuild(slot, cursor, None, [], horizon=version.horizon, positions=positions_of(version))


def positions_of(version: Version) -> dict[int, int]:
    """Where a slot stands that holds a version, and nothing else."""
    return {**version.vector, HISTORY: version.k * HISTORY_STEPS} if version.imports else version.vector


def by_shard(entities: Sequence[str], shards: int) -> Iterator[tuple[int, list[str]]]:
    """(shard, its entities in the order in which they came), by shard."""
    found: dict[int, list[str]] = {}
    for entity in entities:
        found.setdefault(shard_of(entity, shards), []).append(entity)
    yield from sorted(found.items())


def _steps(entities: Sequence[str]) -> Iterator[Sequence[str]]:
    for i in range(0, len(entities), STEP):
        yield entities[i : i + STEP]
