"""The workers, and batch, on an offline store in a bucket: every value equal to brute force, whatever happens to them or to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.s3 import BUCKET, Fault, S3Server, s3, s3_of_session
from tests.streaming import shop
from tests.streaming.conftest import Crew
from tidemill.apps import load
from tidemill.environment import Environment
from tidemill.offline.archive import archived_end, read_range
from tidemill.online.base import SlotId

__all__ = ["s3", "s3_of_session"]

job = load("batch.job")


@pytest.fixture
def env(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    """The shop with its offline store in a bucket, applied, without any event."""
    url = f"s3://{BUCKET}/shop/{os.getpid()}/{tmp_path.name}"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # a server that is away is noticed at once
    monkeypatch.setattr(shop, "CONFIGURATION", f'{shop.CONFIGURATION}[offline]\nurl = "{url}"\n')
    env = shop.make(tmp_path / "shop")
    yield env
    env.online.close()


def test_values_are_equal_to_brute_force_though_a_worker_is_killed_and_batch_folds_meanwhile(env: Environment, crew: Crew) -> None:
    folder = env.project.directory
    known = {"orders": shop.events("orders", 0, 2400), "visits": shop.events("visits", 0, 1200)}
    shop.append(folder, "orders", known["orders"][:1200])
    shop.append(folder, "visits", known["visits"][:1100])
    supervisor = crew.supervise(2, archive_seconds=0.2)
    crew.until(lambda: archived_end(env.offline, "orders", 0) == 1200 and archived_end(env.offline, "visits", 0) == 1100)
    shop.append(folder, "orders", known["orders"][1200:1800])
    os.kill(min(crew.pids), signal.SIGKILL)
    assert {r.source: (r.k, [*r.versions.values()]) for r in job.run(env)} == {"orders": (1, [1]), "visits": (1, [1])}
    shop.append(folder, "orders", known["orders"][1800:])
    shop.append(folder, "visits", known["visits"][1100:])
    crew.until(lambda: archived_end(env.offline, "orders", 0) == 2400 and archived_end(env.offline, "visits", 0) == 1200)
    assert [r.k for r in job.run(env) if r.source == "orders"] == [2]
    assert supervisor.stop()
    assert [e.kind for e in crew.events] == ["died", "started"]
    assert shop.differences(folder, known) == []
    assert not (folder / ".tidemill" / "offline").exists()


def test_slots_that_were_lost_are_rebuilt_from_the_partials_and_the_archive_in_the_bucket(env: Environment, crew: Crew) -> None:
    folder = env.project.directory
    known = {"orders": shop.events("orders", 0, 1500), "visits": shop.events("visits", 0, 50)}
    for source, events in known.items():
        shop.append(folder, source, events)
    crew.finish(crew.supervise(1, once=True))
    job.run(env)
    applied = env.applied()
    for entry in applied.bundles:
        for shard in range(applied.shards):
            env.online.reset(SlotId(entry.bundle.id, shard))
    crew.events.clear()
    crew.finish(crew.supervise(1, once=True))
    assert shop.differences(folder, known) == []


@pytest.mark.parametrize("how", ["refuses", "is overloaded"])
def test_a_bucket_that_is_away_for_a_while_only_delays(env: Environment, crew: Crew, s3: S3Server, how: str) -> None:
    folder = env.project.directory
    known = {"orders": shop.events("orders", 0, 1800), "visits": shop.events("visits", 0, 10)}
    shop.append(folder, "visits", known["visits"])
    shop.append(folder, "orders", known["orders"][:400])
    supervisor = crew.supervise(2, archive_seconds=0.2)
    crew.until(lambda: archived_end(env.offline, "orders", 0) == 400)
    away(s3, how)
    try:
        shop.append(folder, "orders", known["orders"][400:])
        crew.until(lambda: sum("again_in_seconds" in line for line in crew.lines) >= 3)
    finally:
        back(s3)
    crew.until(lambda: archived_end(env.offline, "orders", 0) == 1800)
    assert not crew.events  # nobody died of it
    assert {p.mismatches for s in supervisor.statuses() for p in s.partitions} == {0}
    archived = read_range(env.offline, "orders", 0, 0, 1800)
    assert archived["_offset"].to_list() == [*range(1800)]
    assert archived["id"].to_list() == [e["id"] for e in known["orders"]]
    job.run(env)
    assert shop.differences(folder, known) == []


def test_workers_that_start_while_the_bucket_is_away_are_started_again_until_it_is_there(
    env: Environment, crew: Crew, s3: S3Server
) -> None:
    orders = shop.events("orders", 0, 100)
    shop.append(env.project.directory, "orders", orders)
    away(s3, "refuses")
    try:
        crew.supervise(1)
        crew.until(lambda: sum(e.kind == "died" for e in crew.events) >= 2)
    finally:
        back(s3)
    assert "S3 does not answer" in crew.events[0].reason
    crew.until(lambda: shop.position(env, "spending") == 100)


def away(s3: S3Server, how: str) -> None:
    if how == "refuses":
        s3.stop()
    else:
        s3.fault = lambda _: Fault(status=503)


def back(s3: S3Server) -> None:
    s3.heal()
    if not s3.running:
        s3.start()
