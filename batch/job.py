"""The batch job: for every source cut, fold and publish; on demand, or again and again under a lease."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tidemill.environment import Environment
from tidemill.errors import NotFoundError, StoreUnavailableError, TidemillError
from tidemill.imported import advance_history
from tidemill.kernel.memory import keep_freed_memory
from tidemill.offline.cuts import latest_cut, make_cut
from tidemill.offline.leases import Lease
from tidemill.offline.partials import Partials
from tidemill.offline.runs import note_run
from tidemill.offline.store import read_json
from tidemill.online.base import SlotId
from tidemill.publishing import publish

from .engine import USUAL, Budget, Engine, Spread
from .fold import fold

#: (what is under way, done, of how many)
Progress = Callable[[str, int, int], None]

LEASE_SECONDS = 300
#: In seconds: before a store that did not answer is tried again, with `run_every`.
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0


@dataclass(frozen=True, slots=True)
class SourceResult:
    """What one run did for one source: the cut, the events folded since the last, the tiles written, the values published."""

    source: str
    k: int
    versions: dict[str, int]
    published: dict[str, int]
    seconds: float


def run(env: Environment, progress: Progress | None = None, engine: Engine | Spread | None = None) -> list[SourceResult]:
    """Cut, fold and publish every source, once; and remove what the online store still has of retired bundles.

    Safe to kill at any instant and to run again. `engine` folds; see `engines`.
    """
    applied = env.applied()
    env.forget_retired()
    return [run_source(env, name, progress, engine=engine) for name in sorted(applied.sources)]


def run_source(
    env: Environment,
    name: str,
    progress: Progress | None = None,
    *,
    views: Collection[str] | None = None,
    publishing: bool = True,
    budget: Budget = USUAL,
    engine: Engine | Spread | None = None,
) -> SourceResult:
    """Cut, fold and publish one source; of `views` alone, where they are given. Without `publishing` the next run publishes."""
    begun = time.monotonic()
    keep_freed_memory()
    applied = env.applied()
    source = applied.sources[name]
    bundles = [b.bundle for b in applied.of_source(name) if views is None or b.view in views]
    _finish_rollback(env, name)
    make_cut(env.offline, name)
    k = latest_cut(env.offline, name)
    versions: dict[str, int] = {}
    published: dict[str, int] = {}
    if k:
        report = _of(progress, f"fold {name}")
        found = fold(env.offline, source, bundles, k, env.project.slack, report, budget=budget, engine=engine)
        versions = {bundle_id: version.k for bundle_id, version in found.items()}
        for bundle in bundles if publishing else ():
            partials, report = Partials(env.offline, bundle), _of(progress, f"publish {bundle.id}")
            version = partials.latest()
            slots = _of(progress, f"import {bundle.id}")
            filled = advance_history(env.online, env.offline, name, bundle, partials, version, applied.shards, slots)
            if filled is None:
                filled = publish(env.online, bundle, partials, version, applied.shards, report, budget.published)
            published[bundle.id] = filled
    seconds = time.monotonic() - begun
    note_run(env.offline, name, time.time_ns() // 1000, seconds, k, versions, published)
    return SourceResult(name, k, versions, published, seconds)


def _of(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)


def rollback(env: Environment, name: str) -> dict[str, int]:
    """Take the newest version of every bundle of a source back; the k that each stands at now, by bundle id.

    The online slots are emptied, and workers rebuild them from the version before and the log after its cut; until then they
    answer `missing`. The next batch run folds the withdrawn segments anew. May be killed at any instant: what is to be taken back is noted
    first, and this function, or the next batch run, finishes it; run again it takes back nothing more.

    Not for while a batch job runs: that could publish the version that is taken back.
    """
    applied = env.applied()
    if name not in applied.sources:
        raise NotFoundError(f"there is no applied source {name!r}; there are {', '.join(sorted(applied.sources)) or 'none'}")
    bundles = [b.bundle for b in applied.of_source(name)]
    note = _rollback_note(name)
    if env.offline.read(note) is None:
        newest = {b.id: Partials(env.offline, b).latest() for b in bundles}
        folded = {i: [v.k, v.generation] for i, v in newest.items() if v.k}
        if not folded:
            raise TidemillError(f"source {name!r} has no version to roll back: nothing was folded yet")
        env.offline.create(note, json.dumps(folded).encode())
    _finish_rollback(env, name)
    return {b.id: Partials(env.offline, b).latest().k for b in bundles}


def _rollback_note(source: str) -> str:
    return f"rollbacks/{source}.json"


def _finish_rollback(env: Environment, source: str) -> None:
    """Do what a roll-back has noted, from its beginning: every step may be done twice."""
    note = _rollback_note(source)
    data = env.offline.read(note)
    if data is None:
        return
    taken = read_json(env.offline, note, data)
    applied = env.applied()
    for entry in applied.of_source(source):
        if entry.bundle.id in taken:
            partials = Partials(env.offline, entry.bundle)
            version: Any = taken[entry.bundle.id]
            partials.withdraw(*version)
            partials.forget_published(partials.latest().k)
            for shard in range(applied.shards):
                env.online.reset(SlotId(entry.bundle.id, shard))
    env.offline.delete(note)


@contextmanager
def alone(env: Environment, progress: Progress | None = None, name: str = "batch") -> Iterator[Progress]:
    """Hold the lease `name`; what is yielded reports progress, and renews the lease. Raises `LeaseError` if another process holds it."""
    with Lease(env.offline, name, seconds=LEASE_SECONDS) as lease:
        due = time.monotonic() + LEASE_SECONDS / 10

        def report(what: str, done: int, total: int) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + LEASE_SECONDS / 10
                lease.renew()
            if progress is not None:
                progress(what, done, total)

        yield report


def run_every(
    env: Environment,
    seconds: float,
    stop: Callable[[], bool],
    sleep: Callable[[float], None],
    report: Callable[[list[SourceResult]], None],
    failed: Callable[[StoreUnavailableError, float], None],
    clock: Callable[[], float] = time.monotonic,
    engine: Engine | Spread | None = None,
) -> None:
    """Run now and then every `seconds`, holding the lease `batch`, until `stop()`. Raises `LeaseError` if another process holds it.

    While a store does not answer, `failed` hears why, and in how many seconds it is tried again; the run then does what this one left.
    """
    with alone(env) as progress:
        due, pause = clock(), FIRST_PAUSE
        while not stop():
            try:
                progress("", 0, 0)
                if clock() >= due:
                    due = clock() + seconds
                    report(run(env, progress, engine))
                    pause = FIRST_PAUSE
            except StoreUnavailableError as error:
                due = clock() + min(pause, seconds)
                failed(error, min(pause, seconds))
                pause = min(2 * pause, LONGEST_PAUSE)
            sleep(min(1.0, seconds))
