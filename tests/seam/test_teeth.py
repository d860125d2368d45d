"""The machine in test_seam.py has teeth: each rule of DESIGN sections 3 to 5, switched off in the real code, makes it fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.online.model_store import MemoryStore
from tests.seam.test_seam import Seam, run_machine
from tests.seam.world import Crash
from tidemill import blocks, publishing
from tidemill.apps.streaming import ingest
from tidemill.client import FeatureStore
from tidemill.kernel import bundle, packed, tiles
from tidemill.online.base import SlotState
from tidemill.times import Window

Patch = Callable[[pytest.MonkeyPatch], None]


def _unfloored_edge(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tiles, "window_start", lambda t, w: t - (w.length or 0))


def _no_head(patch: pytest.MonkeyPatch) -> None:
    original = tiles.Ladder.__init__

    def init(self: Any, windows: Any) -> None:
        original(self, windows)
        self._edges = [w for w in self._edges if w != Window(0, 1)]

    patch.setattr(tiles.Ladder, "__init__", init)


def _horizon_not_stored(patch: pytest.MonkeyPatch) -> None:
    original = MemoryStore._advance

    def advance(self: Any, one: Any) -> bool:
        before = self.slots([one.slot])[0].horizon
        done = original(self, one)
        if done:
            self.states[one.slot] = replace(self.states[one.slot], horizon=before)
        return done

    patch.setattr(MemoryStore, "_advance", advance)


def _no_compare_and_set(patch: pytest.MonkeyPatch) -> None:
    original = MemoryStore._advance

    def advance(self: Any, one: Any) -> bool:
        return original(self, replace(one, start=self.slots([one.slot])[0].positions.get(one.partition, 0)))

    patch.setattr(MemoryStore, "_advance", advance)


def _tail_counts_whole(patch: pytest.MonkeyPatch) -> None:
    original = bundle.stored

    def stored(cells: Any) -> Any:
        found = original(cells)
        return found._replace(versions=found.versions._replace(k=np.zeros_like(found.versions.k)))

    patch.setattr(bundle, "stored", stored)


def _trim_beyond_k(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(packed, "trim", lambda table, tails, k, vector: [b"" for _ in tails])


def _no_prefix_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("tests.online.model_store.tail_digest", lambda prefix: b"")
    patch.setattr("tidemill.apps.streaming.compactor.tail_digest", lambda prefix: b"")
    patch.setattr(publishing, "tail_digest", lambda prefix: b"")


def _segments_of_the_newest_cut(patch: pytest.MonkeyPatch) -> None:
    original = blocks.relabel
    patch.setattr(blocks, "relabel", lambda tags, cuts: original(tags, dict.fromkeys(cuts, cuts[max(cuts)]) if cuts else cuts))


def _mismatch_goes_on(patch: pytest.MonkeyPatch) -> None:
    """What is in flight is re-based on the position that stands, instead of dropped."""
    original = ingest.PartitionIngest.apply

    def apply(self: Any, flush: Any) -> bool:
        if not flush.advances:
            return original(self, flush)
        rebased = [replace(a, start=self.online.slots([a.slot])[0].positions.get(a.partition, 0)) for a in flush.advances]
        return original(self, replace(flush, advances=tuple(rebased)))

    patch.setattr(ingest.PartitionIngest, "apply", apply)


def _loss_unnoticed_where_no_event_comes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ingest.PartitionIngest, "stands", lambda self: True)


def _archive_position_ignored(patch: pytest.MonkeyPatch) -> None:
    original = ingest.PartitionIngest._seek
    patch.setattr(ingest.PartitionIngest, "_seek", lambda self, offset: original(self, min(self._belief.values(), default=offset)))


def _cut_beyond_the_archive(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("tidemill.offline.cuts.block_start", lambda offset: offset + 2)


def _published_is_lowered(patch: pytest.MonkeyPatch) -> None:
    original = publishing.Published.changes

    def changes(self: Any, entities: Any, cells: Any) -> Any:
        self.version = replace(self.version, k=self.version.k + 1)  # stamps a version that it did not read
        return original(self, entities, cells)

    patch.setattr(publishing.Published, "changes", changes)


def _expired_too_early(patch: pytest.MonkeyPatch) -> None:
    original = tiles.Ladder.expired
    patch.setattr(tiles.Ladder, "expired", lambda self, horizon: original(self, horizon) + 60_000_000)


def _rebuild_serves_at_once(patch: pytest.MonkeyPatch) -> None:
    original, serving, reading = FeatureStore._fill, SlotState.serving, [False]  # only readers believe it: a writer would never end

    def fill(self: Any, *args: Any) -> None:
        reading[0] = True
        original(self, *args)
        reading[0] = False

    patch.setattr(FeatureStore, "_fill", fill)
    patch.setattr(SlotState, "serving", property(lambda self: reading[0] or serving.fget(self)))


def _block_of_the_batch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        bundle.blocks, "block_tags", lambda partition, offsets: np.full(len(offsets), int(offsets[-1]) // 2 * 2 | partition << 44)
    )


RULES: list[Patch] = [
    v for n, v in sorted(globals().items()) if n.startswith("_") and callable(v) and getattr(v, "__module__", "") == __name__
]


@pytest.mark.parametrize("switch_off", RULES, ids=lambda f: f.__name__.strip("_"))
def test_a_rule_stands_where_it_is_switched_off(switch_off: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a renamed function would take a tooth away, and only a soak would notice."""
    switch_off(monkeypatch)
    assert monkeypatch._setattr, "something was switched off"


@pytest.mark.soak
@pytest.mark.parametrize("switch_off", RULES, ids=lambda f: f.__name__.strip("_"))
def test_a_rule_switched_off_is_noticed(switch_off: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    switch_off(monkeypatch)
    with pytest.raises((Exception, Crash)):
        run_machine(Seam, 2000, 7, shrink=False)
