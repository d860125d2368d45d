"""Random logs, split at random into files of history and a live log; kills at any call; parts, folds and threads of any size."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tests.backfill.world import AT, KEYS, START, VIEW, WITH_ID, World, job
from tests.seam.world import OFFLINE_STEPS, ONLINE_STEPS, Crash, Interrupted
from tidemill.apps import load
from tidemill.offline.partials import Partials
from tidemill.times import DAY, HOUR, SECOND

engine = load("batch.engine")
#: Shrinking takes many minutes here, and examples are small.
PHASES = (Phase.explicit, Phase.generate)
FORMATS = ("jsonl", "csv", "parquet", "jsonl.gz")
TIMES = st.one_of(st.integers(0, 50 * DAY), st.integers(0, 1_200).map(lambda h: h * HOUR), st.integers(0, 600).map(lambda s: s * SECOND))
EVENT = st.fixed_dictionaries(
    {
        "k": st.sampled_from([*KEYS, "a"]),
        "x": st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([0.1, 1e15, -1e15])),
        "at": TIMES,
    }
)


@contextmanager
def sizes(rows: int, tiles: int, events: int) -> Iterator[None]:
    """Parts of so many records; folds that read so many at a time, hold so many tiles, and note how far they came after so many events."""
    budget = replace(engine.Budget(), rows=rows, tiles=tiles, events=events, published=max(tiles, 1))
    with mock.patch.multiple(job, LEAST_ROWS=1, MOST_ROWS=3 * rows), mock.patch.object(engine.Budget, "of", return_value=budget):
        yield


@contextmanager
def a_world(definitions: str = WITH_ID, slack: str = "10s") -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="backfill-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        world = World(folder / "p", definitions)
        settings_file = world.path / "tidemill.toml"
        settings_file.write_text(settings_file.read_text().replace("3650d", slack))
        world.write(definitions)
        yield world
        world.env.online.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def killed(world: World, **options: Any) -> None:
    """A run that dies somewhere, or does not. Its process would be gone, and with it its lease."""
    if (world.path / "history").exists():
        with suppress(Crash):
            world.backfill(**options)
    for store in (world.env.online, world.env.offline):
        if isinstance(store, Interrupted):
            store.calm()
    for key in world.env.offline.list("leases/batch"):
        world.env.offline.delete(key)


def split(world: World, events: list[dict[str, Any]], live: list[dict[str, Any]], files: int, rng: random.Random) -> None:
    """The events that are not live, in files, in any order."""
    rest = [e for e in events if e not in live]
    rng.shuffle(rest)
    for number in range(files):
        if some := rest[number::files]:
            world.history(f"{number}.{FORMATS[number % len(FORMATS)]}", some)


def merged(world: World) -> list[pl.DataFrame]:
    """The newest version's tiles, as they are read."""
    out = []
    for applied in world.env.applied().bundles:
        partials = Partials(world.env.offline, applied.bundle)
        version = partials.latest()
        for i in range(len(applied.bundle.tables)):
            frame = applied.bundle.merge(i, partials.scan(i, partials.live(version.files, version.horizon)), version.horizon)
            out.append(frame.sort([*applied.bundle.keys, "_span", *frame.columns]))
    return out


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(
    events=st.lists(EVENT, min_size=4, max_size=60),
    live_from=st.floats(0, 1),
    overlap=st.integers(0, 5),
    files=st.integers(1, 5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 30), st.integers(1, 20)),
    kills=st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.booleans()), max_size=4),
    late=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_history_and_log_equal_brute_force_however_often_it_is_killed(
    events: list[dict[str, Any]],
    live_from: float,
    overlap: int,
    files: int,
    size: tuple[int, int, int],
    kills: list[tuple[bool, int, bool]],
    late: int,
    seed: int,
) -> None:
    rng = random.Random(seed)
    events = [{"id": i, "k": e["k"], "x": e["x"], "at": START + e["at"]} for i, e in enumerate(events)]
    cut = int(live_from * len(events))
    live, coming = events[cut:], [{"id": 1_000 + i, "k": "a", "x": 1.5, "at": AT - HOUR + i} for i in range(late)]
    with a_world() as world, sizes(*size):
        (world.path / "log" / "a.jsonl").write_text("")
        world.live(live)
        split(world, events, live[overlap:], files, rng)
        online, offline = Interrupted(world.env.online, ONLINE_STEPS), Interrupted(world.env.offline, OFFLINE_STEPS)
        world.env.__dict__.update(online=online, offline=offline)
        for on_online, at, after in kills:
            store = online if on_online else offline
            store.crash_at, store.crash_after = at, after
            killed(world)
            if rng.random() < 0.5:
                world.stream()
        if (world.path / "history").exists():
            world.backfill()
        world.check(events)
        world.live(coming)
        world.check([*events, *coming])
        world.batch()
        world.check([*events, *coming])


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(
    events=st.lists(EVENT, min_size=10, max_size=80),
    size=st.tuples(st.integers(1, 9), st.integers(1, 30), st.integers(1, 20)),
    kills=st.lists(st.integers(0, 80), max_size=3),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_in_chunks_resumed_in_parallel_or_at_once_the_partials_are_equal(
    events: list[dict[str, Any]], size: tuple[int, int, int], kills: list[int], threads: int, seed: int
) -> None:
    events = [{"id": i, "k": e["k"], "x": e["x"], "at": START + e["at"]} for i, e in enumerate(events)]
    found = []
    for pieces in (False, True):
        with a_world() as world:
            (world.path / "log" / "a.jsonl").write_text("")
            split(world, events, [], 4 if pieces else 1, random.Random(seed))
            if not pieces:
                world.backfill(publishing=False)
            else:
                offline = Interrupted(world.env.offline, OFFLINE_STEPS)
                world.env.__dict__.update(offline=offline)
                with sizes(*size):
                    for at in kills:
                        offline.crash_at = at
                        killed(world, threads=threads, publishing=False)
                    world.backfill(threads=threads, publishing=False, engine=engine.Local(threads))
            found.append(merged(world))
    for once, pieced in zip(*found, strict=True):
        assert_frame_equal(once, pieced)


def test_a_new_view_over_the_archive_goes_on_where_its_fold_was_killed() -> None:
    events = [{"id": i, "k": KEYS[i % 3], "x": float(i % 11), "at": START + i * HOUR // 60} for i in range(6_000)]
    with a_world() as world:
        world.live(events)
        world.batch()
        world.define(WITH_ID + VIEW.replace('"v"', '"w"').replace("v =", "w =").replace("30d", "40d"))
        offline = Interrupted(world.env.offline, frozenset({"create"}))
        world.env.__dict__.update(offline=offline)
        with sizes(500, 10**6, 500):
            offline.crash_at = 7  # the notes of seven folded stretches, and then nothing more
            with pytest.raises(Crash):
                world.backfill(files=())
            offline.calm()
            read: list[int] = []
            real = load("batch.fold").iter_range
            with mock.patch.object(load("batch.fold"), "iter_range", lambda *a, **k: read.append(a[3]) or real(*a, **k)):
                world.backfill(files=())
        assert max(read) >= 2_500, f"begun anew at {read}"
        world.stream()
        world.check(events, view="w")


def test_what_a_fold_holds_does_not_grow_with_the_log() -> None:
    events = [{"id": i, "k": KEYS[i % 3], "x": float(i), "at": START + (i * 7919 % 6_000) * 60 * SECOND} for i in range(6_000)]
    most = 0
    fold = load("batch.fold")
    real = fold._Fold.hold

    def hold(self: Any, tiles: Any, limit: int) -> bool:
        nonlocal most
        full = bool(real(self, tiles, limit))
        most = max(most, self._rows)
        return full

    with a_world(slack="3650d") as world, sizes(100, 400, 10**9), mock.patch.object(fold._Fold, "hold", hold):
        world.live(events)
        world.batch()
        with mock.patch.object(load("batch.job"), "USUAL", engine.Budget.of(0)):
            world.define(WITH_ID + VIEW.replace('"v"', '"w"').replace("v =", "w =").replace("30d", "40d"))
            most = 0
            world.backfill(files=())
        assert 0 < most <= 2_000
        world.stream()
        world.check(events, view="w")
