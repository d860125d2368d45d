"""Spread all entities over another number of shards, while everything goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tidemill.environment import Environment
from tidemill.offline.cuts import latest_cut, make_cut

from .fold import fold
from .job import Progress, _of


@dataclass(frozen=True, slots=True)
class Resharded:
    """What `reshard` did: the number of shards before and after, the new version of the registry, the bundles folded from history."""

    before: int
    after: int
    version: int
    bundles: int
    seconds: float


def reshard(env: Environment, progress: Progress | None = None) -> Resharded:
    """Go over to the number of shards in tidemill.toml.

    Every bundle gets a successor with slots of its own, so that what a worker writes by the old number never meets what is read by the
    new. Their history is folded first, while the old ones serve; then the registry changes, workers take it up within a second or two,
    and rebuild the new shards from the partials and the log's rest. Until a shard is rebuilt its features are `missing`, not wrong. The
    next batch run removes the old ones. May be killed at any instant, and run again.
    """
    begun = time.monotonic()
    before, after = env.applied(), env.resharded()
    if after.shards == before.shards:
        return Resharded(before.shards, after.shards, before.version, 0, time.monotonic() - begun)
    for name, source in sorted(after.sources.items()):
        make_cut(env.offline, name)
        k = latest_cut(env.offline, name)
        if k:
            fold(env.offline, source, [b.bundle for b in after.of_source(name)], k, env.project.slack, _of(progress, f"fold {name}"))
    version = env.apply(after).version
    return Resharded(before.shards, after.shards, version, len(after.bundles), time.monotonic() - begun)
