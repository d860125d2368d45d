"""Several hosts: each reads its share of the partitions, and nothing is lost, or counted twice, whichever of them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.streaming import shop
from tests.streaming.conftest import Crew
from tidemill.apps import load
from tidemill.environment import Environment
from tidemill.errors import TidemillError

shares = load("streaming.shares")
parts = st.tuples(st.text(max_size=20), st.integers(0, 1000))


@given(parts, st.integers(1, 50))
def test_every_partition_is_in_one_share(part: tuple[str, int], of: int) -> None:
    assert [shares.Share(index, of).has(part) for index in range(of)].count(True) == 1


@given(st.text(max_size=20), st.integers(1, 12), st.integers(1, 100))
def test_shares_of_one_source_differ_by_one_partition_at_most(source: str, of: int, partitions: int) -> None:
    counts = [sum(shares.Share(index, of).has((source, p)) for p in range(partitions)) for index in range(of)]
    assert max(counts) - min(counts) <= 1


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 200))
def test_every_shard_is_swept_by_one_worker_also_where_hosts_have_different_numbers(workers: list[int], shards: int) -> None:
    swept = []
    for index, of in enumerate(workers):
        for worker in range(of):
            mine = shares.Share(index, len(workers)).among(worker, of)
            swept += range(mine.index, shards, mine.of)
    assert sorted(swept) == list(range(shards))


@pytest.mark.parametrize("text", ["", "0/3", "4/3", "1", "1/0", "-1/3", "1/3/3", "1.0/3", "one/3", " 1/3"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(TidemillError, match="a share is this host's number and how many hosts there are, such as 1/3"):
        shares.Share.parse(text)


@pytest.fixture
def hosts(env: Environment) -> Iterator[list[Crew]]:
    """Three projects in folders of their own, as on three hosts: with the same definitions, logs and stores."""
    made = []
    for number in range(3):
        folder = env.project.directory.parent / f"host{number}"
        folder.mkdir()
        (folder / "features.py").write_text(shop.DEFINITIONS.replace('path="', f'path="{env.project.directory}/'))
        shared = f'url = "sqlite:///{env.project.directory}/.tidemill/online.db"'
        offline = f'[offline]\nurl = "{env.project.directory}/.tidemill/offline"\n'
        (folder / "tidemill.toml").write_text(shop.CONFIGURATION.replace("[online]", f"[online]\n{shared}") + offline)
        made.append(Crew(folder))
    env.project.directory.joinpath("features.py").write_text(folder.joinpath("features.py").read_text())
    Environment.load(env.project.directory).apply()
    yield made
    for crew in made:
        crew.end()


def deliver(env: Environment, known: dict[str, list[shop.Event]], count: int) -> None:
    """So many more orders to each of seven partitions."""
    for partition in range(7):
        first = len(known["orders"])
        more = shop.events("orders", first, count)
        shop.append(env.project.directory, "orders", more, f"partition={partition}/a.jsonl")
        known["orders"] += more


def done(env: Environment, count: int) -> bool:
    return all(shop.position(env, "spending", partition) == count for partition in range(7))


def test_three_hosts_of_which_two_are_killed_end_equal(env: Environment, hosts: list[Crew]) -> None:
    known: dict[str, list[shop.Event]] = {"orders": [], "visits": shop.events("visits", 0, 300)}
    shop.append(env.project.directory, "visits", known["visits"])
    deliver(env, known, 300)
    pairs = enumerate(zip(hosts, (2, 1, 2), strict=True))
    running = [crew.supervise(workers, share=shares.Share(index, 3)) for index, (crew, workers) in pairs]
    first, second, third = hosts

    def all_watched(condition: Any) -> None:
        def holds() -> bool:
            second.watch()
            third.watch()
            return bool(condition())

        first.until(holds)

    all_watched(lambda: done(env, 300))
    read = [{(p.source, p.partition) for s in supervisor.statuses() for p in s.partitions} for supervisor in running]
    assert sorted(part for some in read for part in some) == [*(("orders", p) for p in range(7)), ("visits", 0)]
    assert min(map(len, read)) >= 2
    # One host goes without a word, and stays away; of another the workers die. The third goes on meanwhile.
    for pid in running[1].pids:
        os.kill(pid, signal.SIGKILL)
    running[1].stop(timeout=0.0)
    os.kill(running[2].pids[0], signal.SIGKILL)
    deliver(env, known, 200)
    away = [partition for name, partition in read[1] if name == "orders"]
    all_watched(lambda: all(shop.position(env, "spending", p) == 500 for p in range(7) if p not in away))
    assert {shop.position(env, "spending", p) for p in away} == {300}
    assert first.events == []
    # It comes back, with another number of workers.
    second.supervise(2, share=shares.Share(1, 3))
    all_watched(lambda: done(env, 500))
    assert shop.differences(env.project.directory, known) == []


def test_another_number_of_hosts_and_a_share_that_two_have_cost_time_and_never_a_count(env: Environment, hosts: list[Crew]) -> None:
    known: dict[str, list[shop.Event]] = {"orders": [], "visits": shop.events("visits", 0, 1)}
    shop.append(env.project.directory, "visits", known["visits"])
    deliver(env, known, 100)
    first, second, third = hosts
    first.supervise(1, share=shares.Share(0, 2))
    second.supervise(1, share=shares.Share(1, 2))
    first.until(lambda: done(env, 100))
    third.supervise(2)  # everything, beside both
    deliver(env, known, 300)
    first.until(lambda: [second.watch(), third.watch()] and done(env, 400))
    assert shop.differences(env.project.directory, known) == []


def test_a_share_without_partitions_waits_and_to_the_end_it_has_nothing_to_do(env: Environment, hosts: list[Crew]) -> None:
    shop.append(env.project.directory, "orders", shop.events("orders", 0, 10))
    shop.append(env.project.directory, "visits", shop.events("visits", 0, 10))
    mine = next(s for s in (shares.Share(i, 99) for i in range(99)) if not s.has(("orders", 0)) and not s.has(("visits", 0)))
    crew = hosts[0]
    supervisor = crew.supervise(1, share=mine)
    waits = "nothing to read yet: nothing is applied, or the logs have no partition that is in this share"
    crew.until(lambda: any(waits in line for line in crew.lines))
    assert f"share={mine}" in "".join(crew.lines)
    assert supervisor.stop()
    command = [sys.executable, "-m", "tidemill", "stream", "--once", "--share"]
    for share, said in ((str(mine), "read share"), ("4/3", "a share is this host's number")):
        ended = subprocess.run([*command, share], cwd=Path(crew._directory), capture_output=True, text=True, check=False)
        assert said in ended.stdout + ended.stderr
        assert ended.returncode == (0 if said == "read share" else 1)
    assert shop.position(env, "spending") == 0
