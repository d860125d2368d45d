"""`status` of a project on Kafka and Redis, while they answer and while they do not."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.kafka import Broker, broker_to_stop
from tests.servers.redis import RedisServer
from tidemill.logs.kafka import KafkaAdmin
from tidemill.times import to_micros

__all__ = ["broker_to_stop"]

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Such sockets are collected before they are another test's."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
def on_servers(project: Any, broker_to_stop: Broker, redis_server: RedisServer, event: Callable[..., str]) -> Any:
    """The project's events in a topic, the first 1,500 of them streamed and folded."""
    topic = f"tx-{os.getpid()}-{redis_server.port}"
    project.write(
        "tidemill.toml",
        f'[project]\nname = "p"\n[online]\nurl = "{redis_server.url}"\nshards = 4\n[stream]\nbrokers = "{broker_to_stop.address}"\n',
    )
    project.write("features.py", (project.root / "features.py").read_text().replace('path="data/*.jsonl"', f'topic="{topic}"'))
    admin = KafkaAdmin(broker_to_stop.address)
    admin.create_topic(topic, 1)
    admin.close()

    def produce(lines: list[str]) -> None:
        admin.produce(topic, [(0, None, line.encode(), to_micros("2026-01-05T06:00:00")) for line in lines])
        admin.close()  # one that is open while the broker is away leaves sockets to the garbage collector

    project.produce = produce
    project.produce([event(i, "ab"[i % 2], 0.5) for i in range(1500)])
    project.produce(["no json"])
    project.run("apply")
    streamed = project.run("stream --once")
    assert streamed.code == 0, streamed
    project.run("batch")
    return project


def test_a_project_on_servers_tells_lag_watermark_cut_fold_and_dead_letters(on_servers: Any, event: Callable[..., str]) -> None:
    on_servers.produce([event(1501, "a", hour=2)])
    found = on_servers.run("status --json").json
    assert found["problem"] is None
    (source,), (bundle,) = found["sources"], found["bundles"]
    (partition,) = source["partitions"]
    assert (partition["log_end"], partition["position"], partition["lag"]) == (1502, 1501, 1)
    assert partition["lag_micros"] == 0  # all of them arrived at the same instant
    assert partition["through"] == "2026-01-05T06:00:00+00:00"
    assert source["watermark"] == "2026-01-05T00:24:59+00:00"
    assert (source["cut"], partition["cut"], source["problem"]) == (1, 1024, None)
    assert list(source["dead"].values()) == [1]
    assert to_micros(bundle["folded_at"]) <= to_micros(source["batch"])
    assert (bundle["state"], bundle["folded"], bundle["published"], bundle["cells"]) == ("serving", 1, 1, 2)
    assert bundle["bytes"] > 0
    shown = on_servers.run("status").out
    assert "1 record behind" in shown
    assert "2026-01-05 00:24:59" in shown


def test_redis_that_is_away_is_said_and_the_rest_is_shown(on_servers: Any, redis_server: RedisServer) -> None:
    redis_server.kill()
    ran = on_servers.run("status")
    assert (ran.code, ran.err) == (1, "tidemill: not everything could be asked: the online store cannot be read\n")
    text = " ".join(ran.out.split())
    assert f"warning: the online store cannot be read: Redis at 127.0.0.1:{redis_server.port} does not answer" in text
    assert "tx 0 1,501 - - - - 1,501" in text  # the log's end and the archive's
    assert "unknown 1," in text
    assert "1 (at 1,024)" in text


def test_kafka_that_is_away_is_said_of_each_source_and_the_rest_is_shown(on_servers: Any, broker_to_stop: Broker) -> None:
    broker_to_stop.stop()
    try:
        ran = on_servers.run("status")
    finally:
        broker_to_stop.start()
    assert (ran.code, ran.err) == (1, "tidemill: not everything could be asked: the log of tx cannot be read\n")
    text = " ".join(ran.out.split())
    assert f"no answer from Kafka at {broker_to_stop.address}" in text
    assert "tx 0 - 1,501 - - 2026-01-05 06:00:00 1,501" in text
    assert "serving 1," in text
    assert on_servers.run("status").code == 0
