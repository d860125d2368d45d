"""From imports to the slots of the online store: history is read into them as if it were one more partition of the log.

A slot's values and positions rewind together: a failover may bring back a copy from before an import was published. What lies in
the log comes again from there; an import does not, if publishing is all that brought it. So a slot keeps, under the partition `HISTORY`,
how much of the imports it holds, and gets them as it gets events: one atomic compare-and-set step appends an import's tiles to the tails
and moves that position. The tiles carry the tag of their segment, so a value that was published from that segment on does not count them
a second time, and publishing trims them, as it does with the tiles of blocks.

The position counts steps, `HISTORY_STEPS` for the imports of each segment: `HISTORY_STEPS * k` means that those of segments 1 to k are
there. An entity belongs to one of the steps by its hash, so that of every entity it is known what it holds while an import is going in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tidemill.blocks import HISTORY, HISTORY_STEPS, segment_tag, step_of
from tidemill.errors import StoreError
from tidemill.kernel.bundle import Bundle
from tidemill.offline.cuts import import_cuts
from tidemill.offline.partials import Partials, Version
from tidemill.offline.store import OfflineStore
from tidemill.online.base import Advance, OnlineStore, SlotId, SlotState
from tidemill.publishing import Published, by_shard, rebuild


def advance_history(
    online: OnlineStore,
    offline: OfflineStore,
    source: str,
    bundle: Bundle,
    partials: Partials,
    version: Version,
    shards: int,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Give every slot of a bundle the imports of the version's segments that it lacks; how many slots got any.

    A slot that is empty is rebuilt from the version, which holds them. May be killed at any instant, run again, and run twice at once:
    each step is applied once. `progress` gets (slots done, of how many).
    """
    if not version.imports:
        return 0
    slots = [SlotId(bundle.id, shard) for shard in range(shards)]
    states = online.slots(slots)
    behind = [slot for slot, state in zip(slots, states, strict=True) if _due(offline, source, state, version)]
    values: Published | None = None
    tiles: dict[int, _Tiles] = {}
    for number, slot in enumerate(behind):
        state = states[slot.shard]
        if not state.serving:
            values = values or Published(bundle, partials, version)
            rebuild(online, bundle, partials, version, slot.shard, shards, values)
        else:
            done, steps = divmod(state.positions.get(HISTORY, 0), HISTORY_STEPS)
            for k in import_cuts(offline, source, done, version.k):
                if k not in tiles:
                    tiles[k] = _Tiles(bundle, partials, k, shards)
                if not tiles[k].give(online, slot, done * HISTORY_STEPS + steps):
                    break  # somebody else is at it, or the slot is another than it was: the next run looks again
                done, steps = k, 0
        if progress is not None:
            progress(number + 1, len(behind))
    return len(behind)


def _due(offline: OfflineStore, source: str, state: SlotState, version: Version) -> bool:
    if not state.serving:
        return True
    done = state.positions.get(HISTORY, 0) // HISTORY_STEPS
    return done < version.k and bool(import_cuts(offline, source, done, version.k))


class _Tiles:
    """The tiles of one segment's imports, packed as a tail takes them."""

    def __init__(self, bundle: Bundle, partials: Partials, k: int, shards: int) -> None:
        found = partials.history(k)
        if found is None:
            raise StoreError(f"the tiles of segment {k}'s imports are missing for {bundle.id}, and a version holds them: restore the file")
        self.k, self.bundle, self.horizon = k, bundle, found.horizon
        self._blobs: list[dict[str, bytes]] = []
        for i in range(len(bundle.tables)):
            frame = bundle.with_entities(bundle.merge(i, partials.scan(i, found.files), found.horizon))
            names, blobs = bundle.pack(i, frame, tag=segment_tag(k))
            self._blobs.append(dict(zip(names, blobs, strict=True)))
        self._entities: dict[int, list[list[str]]] = {}
        for shard, entities in by_shard(sorted(set().union(*self._blobs)), shards):
            steps: list[list[str]] = [[] for _ in range(HISTORY_STEPS)]
            for entity in entities:
                steps[step_of(entity)].append(entity)
            self._entities[shard] = steps

    def give(self, online: OnlineStore, slot: SlotId, position: int) -> bool:
        """Append what a slot that stands at `position` lacks, step by step. False where it stood elsewhere."""
        first = (self.k - 1) * HISTORY_STEPS
        none: list[list[str]] = [[]] * HISTORY_STEPS
        for step, entities in enumerate(self._entities.get(slot.shard, none)):
            end = first + step + 1
            if end <= position:
                continue
            if not entities and step + 1 < HISTORY_STEPS:
                continue  # nothing to append: the next step moves the position past it
            if not all(online.apply([self._advance(slot, position, end, entities)])):
                return False
            position = end
        return True

    def _advance(self, slot: SlotId, start: int, end: int, entities: Sequence[str]) -> Advance:
        appends = [
            (table, entity, blobs[entity])
            for table, blobs in zip(self.bundle.table_ids, self._blobs, strict=True)
            for entity in entities
            if entity in blobs
        ]
        return Advance(slot, HISTORY, start, end, horizon=self.horizon, appends=appends)
