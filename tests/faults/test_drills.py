"""Whatever is killed, and whenever: every feature that was served equals the brute-force answer. Real processes, servers and flights.

`make test` runs each drill over a week of flights; `make soak` over a year, with hundreds of kills. What each promises, and the settings
that the promise needs: docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults import weather as w
from tests.faults.weather import Weather, drill
from tests.servers.kafka import Broker, libraries, owner
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisClusterServers, RedisServer
from tidemill.apps import load
from tidemill.apps.examples.flights.make_logs import Delivery
from tidemill.apps.examples.flights.replay import Plan, Servers

pytest.importorskip("kafka")
pytest.importorskip("confluent_kafka")

_WEEK = Delivery(first="2013-02-06", last="2013-02-12", late=0.1, twice=0.01)
_YEAR = Delivery(late=0.1, twice=0.01)
#: Redis is given up after a second here, so that what lasts longer is longer than every time-out.
_OPTIONS = "?timeout=1"


@dataclass(frozen=True)
class Size:
    """How long a drill takes, and how often it must have struck."""

    plan: Plan
    strikes: int

    def but(self, **changes: Any) -> Plan:
        return replace(self.plan, **changes)


SHORT = Size(Plan(delivery=_WEEK, instants=120, kills=0, hours=5, ahead=400, fold_days=1, patience=90.0, seconds=15.0), strikes=2)
LONG = Size(Plan(delivery=_YEAR, instants=3_000, kills=0, hours=7, ahead=400, fold_days=5, patience=180.0, seconds=120.0), strikes=20)


@pytest.fixture(params=[pytest.param(SHORT, id="week"), pytest.param(LONG, id="year", marks=pytest.mark.soak)])
def size(request: pytest.FixtureRequest) -> Size:
    return request.param


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("kafka"), libraries(), owner())
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    yield server
    server.stop()


def url(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0{_OPTIONS}"


def test_workers_and_batch_jobs_are_killed_at_random_instants(tmp_path: Path, size: Size, broker: Broker, server: RedisServer) -> None:
    batch = w.BatchKilled()
    weather = Weather(1, [w.killed_once_they_stream, w.killed_once_they_stream, w.killed_once_they_stream, batch], (0.0, 0.3))
    outcome = drill(tmp_path, size.but(fold_days=0, seed=1), Servers(broker.address, url(server.port)), weather)
    assert weather.struck["killed_once_they_stream"] >= size.strikes
    assert batch.whole
    assert outcome.restarts >= size.strikes


def test_suspended_workers_come_back_as_zombies_beside_a_second_cluster(
    tmp_path: Path, size: Size, broker: Broker, server: RedisServer
) -> None:
    """Stopped for longer than every time-out, while a second cluster takes over; then both run, by mistake, on the same partitions."""
    lines: list[str] = []

    def zombies(weather: Weather) -> int:
        replay = weather.replay
        second = load("streaming.supervisor").Supervisor(replay.project, 2, archive_seconds=1.0, on_line=lines.append, longest_pause=0.4)
        pids = weather.pids()
        try:
            with w.stop_and_go(pids):
                second.start()
                weather.over.wait(weather.dice.uniform(3.0, 12.0))
            for _ in range(weather.dice.randrange(50)):
                second.poll()
                weather.over.wait(0.1)
        finally:
            second.stop(2.0)
        return len(pids)

    weather = Weather(2, [zombies], (0.5, 3.0))
    drill(tmp_path, size.but(seed=2), Servers(broker.address, url(server.port)), weather)
    assert weather.struck["zombies"] >= size.strikes


def test_redis_is_killed_emptied_and_fails_over_to_a_replica_that_is_behind(tmp_path: Path, size: Size, broker: Broker) -> None:
    primary, replica = RedisServer(tmp_path / "a"), RedisServer(tmp_path / "b")
    replica.replicate(primary.port)
    proxy = Proxy(primary.port)
    nodes = [primary, replica]

    def killed_with_its_file(weather: Weather) -> int:
        nodes[0].kill()
        w.pause(weather, 0.0, 2.0)
        nodes[0].start()
        nodes[1].replicate(nodes[0].port)
        return 1

    def restarted_empty(weather: Weather) -> int:
        nodes[0].kill()
        nodes[0].empty()
        w.pause(weather, 0.0, 1.0)
        nodes[0].start()
        nodes[1].replicate(nodes[0].port)
        return 1

    def failed_over_to_a_replica_that_is_behind(weather: Weather) -> int:
        nodes[1].replicate(None)
        w.pause(weather, 0.2, 3.0)  # what is applied meanwhile, the replica will never have
        nodes[0].kill()
        proxy.retarget(nodes[1].port)
        nodes.reverse()
        nodes[1].empty()
        nodes[1].start()
        nodes[1].replicate(nodes[0].port)
        return 1

    faults = [killed_with_its_file, restarted_empty, failed_over_to_a_replica_that_is_behind]
    weather = Weather(3, faults, (0.5, 3.0))
    try:
        drill(tmp_path, size.but(seed=3), Servers(broker.address, url(proxy.port)), weather)
    finally:
        proxy.close()
        for node in nodes:
            node.stop()
    assert sum(weather.struck.values()) >= size.strikes
    assert len(weather.struck) == 3 or size is SHORT


def test_answers_of_redis_are_lost_after_it_has_done_what_was_asked(
    tmp_path: Path, size: Size, broker: Broker, server: RedisServer
) -> None:
    proxy = Proxy(server.port)

    def reply_lost(weather: Weather) -> int:
        proxy.cut_replies(weather.dice.randrange(1, 4))
        return 1

    def unreachable(weather: Weather) -> int:
        with proxy.unreachable():
            w.pause(weather, 0.1, 3.0)
        return 1

    weather = Weather(4, [reply_lost, reply_lost, reply_lost, unreachable], (0.2, 1.0))
    try:
        drill(tmp_path, size.but(seed=4), Servers(broker.address, url(proxy.port)), weather)
    finally:
        proxy.close()
    assert proxy.cuts >= size.strikes


def test_a_node_of_a_redis_cluster_is_killed_and_its_replica_takes_over(tmp_path: Path, size: Size, broker: Broker) -> None:
    cluster = RedisClusterServers(tmp_path / "cluster", spare=True)

    def node_killed(weather: Weather) -> int:
        node = weather.dice.choice(cluster.nodes)
        node.kill()
        w.pause(weather, 0.0, 6.0)  # a replica takes over after about three seconds
        node.start()
        cluster.heal()  # of two that are away at once, the others could not agree who takes over
        return 1

    weather = Weather(5, [node_killed], (1.0, 4.0))
    try:
        drill(tmp_path, size.but(seed=5), Servers(broker.address, cluster.url + "&timeout=1"), weather)
    finally:
        cluster.stop()
    assert weather.struck["node_killed"] >= size.strikes // 2


def test_kafka_is_killed_and_does_not_answer_for_longer_than_every_time_out(
    tmp_path: Path, size: Size, broker: Broker, server: RedisServer
) -> None:
    longest = [15.0] if size is SHORT else [15.0, 70.0]

    def killed_and_started(weather: Weather) -> int:
        broker.stop()
        w.pause(weather, 0.0, 3.0)
        broker.start()
        if weather.dice.random() < 0.5:  # on a slow machine one outage after the other would leave no time for anything
            w.until_it_moves(weather)
        return 1

    def silent(weather: Weather) -> int:
        with w.stop_and_go([broker.pid]):
            weather.over.wait(longest.pop() if longest else weather.dice.uniform(0.0, 8.0))
        return 1

    weather = Weather(6, [killed_and_started, silent], (0.5, 3.0))
    drill(tmp_path, size.but(seed=6), Servers(broker.address, url(server.port)), weather)
    assert sum(weather.struck.values()) >= size.strikes // 2


def test_the_disk_of_the_archive_is_full_for_a_while(tmp_path: Path, size: Size, broker: Broker, server: RedisServer) -> None:
    disk = tmp_path / "flights" / ".tidemill" / "offline"
    disk.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("a small disk to fill needs the right to mount one: run this test as root")
    batch = w.BatchKilled()

    def full(weather: Weather) -> int:
        filler = disk / ".filler"
        try:
            _fill(filler)
            w.pause(weather, 0.5, 4.0)
        finally:
            filler.unlink()
        return 1

    weather = Weather(7, [full, full, batch], (0.2, 1.5))
    try:
        drill(tmp_path, size.but(seed=7, fold_days=0), Servers(broker.address, url(server.port)), weather)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    assert weather.struck["full"] >= size.strikes // 2


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
