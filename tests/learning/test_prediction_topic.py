"""Predictions in a Kafka topic: the same entries as in files, in the background, and counted where they cannot be delivered."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm
from tests.learning.world import START, World
from tests.servers.kafka import PASSWORD, USER, Broker, broker_to_stop, kafka_broker
from tidemill.environment import Environment
from tidemill.errors import DefinitionError, LogError, LogUnavailableError
from tidemill.journals import entries, topic
from tidemill.journals.topic import TopicJournal
from tidemill.logs.kafka import KafkaAdmin, KafkaLog
from tidemill.logs.kafka.producer import connecting
from tidemill.logs.kafka.settings import PASSWORDS
from tidemill.prediction_log import PREDICTIONS, PredictionLog
from tidemill.times import MINUTE

pytest.importorskip("kafka")
pytest.importorskip("confluent_kafka")

__all__ = ["broker_to_stop", "kafka_broker"]

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*<(socket.socket|ssl.SSLSocket):pytest.PytestUnraisableExceptionWarning")

PATIENCE = 30.0


def eventually(holds: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def read_topic(brokers: str, name: str) -> dict[int, list[Any]]:
    """All entries by partition."""
    log = KafkaLog(brokers, name, max_bytes=1 << 24)
    found: dict[int, list[Any]] = {}
    for partition, end in log.ends().items():
        reader, found[partition] = log.open(partition, 0), []
        give_up = time.monotonic() + PATIENCE
        while reader.position < end:
            assert time.monotonic() < give_up
            batch = reader.read(1000)
            if batch is not None:
                assert isinstance(batch.payload, bytes)
                found[partition] += [json.loads(line) for line in batch.payload.splitlines()]
    log.close()
    return found


def numbers(brokers: str, name: str) -> list[int]:
    return sorted(e["n"] for some in read_topic(brokers, name).values() for e in some)


@pytest.fixture
def name() -> str:
    return f"predictions-{uuid.uuid4().hex[:12]}"


def create(brokers: str, name: str, partitions: int = 1, **configs: str) -> None:
    admin = KafkaAdmin(brokers)
    admin.create_topic(name, partitions, configs={k.replace("_", "."): v for k, v in configs.items()})
    admin.close()


def journal(brokers: str, name: str, settings: Mapping[str, str] | None = None, *, timeout: float = 5.0, **options: Any) -> TopicJournal:
    return TopicJournal("predictions", connecting(brokers, name, settings or {}, timeout), lambda e: str(e["n"]), **options)


# ---- what is in the topic -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("topic") / "p", count=0)


def test_the_topic_has_what_the_files_have_one_message_a_request_spread_over_partitions(
    made: World, tmp_path: Path, kafka_broker: str, name: str
) -> None:
    create(kafka_broker, name, 3)
    world = made.copied(tmp_path / "p")
    toml = world.path / "tidemill.toml"
    toml.write_text(toml.read_text() + f'[stream]\nbrokers = "{kafka_broker}"\n[log]\npredictions_topic = "{name}"\n')
    files = PredictionLog(world.env().offline)
    store = tm.FeatureStore(world.path)
    assert store.prediction_log is not None
    for i in range(40):
        rows = [{"k": f"k{i % 12}", "amount": [1.5, None, float("nan")][i % 3]}, {"k": "nobody ü" if i == 7 else "k1", "amount": i}]
        scores = store.score("m", rows[: 1 + i % 2], at=START + i * MINUTE)
        files.offer(scores)
    assert store.prediction_log.flush()
    counts = store.prediction_log.counts
    store.close()
    files.close()
    assert (counts.written, counts.waiting, counts.dropped, counts.failed) == (40, 0, 0, 0)
    found = read_topic(kafka_broker, name)
    assert all(found[partition] for partition in range(3)), "keys spread"
    wanted = [{k: v for k, v in e.items() if k != "logged"} for e in entries(world.env().offline, PREDICTIONS)]
    got = sorted((e for some in found.values() for e in some), key=lambda e: e["at"]["$time"])
    assert all(type(e.pop("logged")) is int for e in got)
    assert got == wanted, "to the last digit: JSON says floats exactly"
    assert len(list((world.path / ".tidemill/offline/journals").rglob("*.jsonl"))) == 1, "the topic instead of files"


def test_a_share_and_none_at_all_are_noted_as_with_files(made: World, tmp_path: Path, kafka_broker: str, name: str) -> None:
    world = made.copied(tmp_path / "p")
    toml = world.path / "tidemill.toml"
    before = toml.read_text() + f'[stream]\nbrokers = "{kafka_broker}"\n[log]\npredictions_topic = "{name}"\n'
    for share, rate in (("", 1.0), ("predictions = 0.25\n", 0.25)):
        toml.write_text(before + share)
        log = PredictionLog.of(Environment.load(world.path))
        assert log is not None
        assert log.rate == rate
    toml.write_text(before + "predictions = 0\n")
    assert PredictionLog.of(Environment.load(world.path)) is None


# ---- nobody waits, and nothing is lost in silence ----------------------------------------------------------------------------------------


def test_while_there_is_no_topic_entries_wait_and_nobody_else_does(kafka_broker: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    log = journal(kafka_broker, name, most=5)
    began = time.monotonic()
    taken = [log.put({"n": n}) for n in range(8)]
    assert time.monotonic() - began < 0.5
    assert taken == [True] * 5 + [False] * 3
    assert not log.flush(0.2)
    admin = KafkaAdmin(kafka_broker)
    assert name not in admin.topics(), "looking for it has not created it"
    admin.close()
    assert (log.counts.waiting, log.counts.dropped) == (5, 3)
    create(kafka_broker, name)
    assert log.flush(PATIENCE)
    assert log.close().written == 5
    assert numbers(kafka_broker, name) == [0, 1, 2, 3, 4]
    assert "3 entries of the log of predictions were lost" in caplog.text


def test_what_nobody_ever_takes_counts_as_dropped_at_the_end_and_the_end_comes_soon(
    kafka_broker: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = journal(kafka_broker, name)
    for n in range(3):
        log.put({"n": n})
    began = time.monotonic()
    counts = log.close(1.0)
    assert time.monotonic() - began < 3
    assert (counts.written, counts.waiting, counts.dropped) == (0, 0, 3)
    assert not log.put({"n": 4}), "it is closed"


def test_what_is_too_large_for_the_topic_is_counted_and_the_rest_is_delivered(
    kafka_broker: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    create(kafka_broker, name, max_message_bytes="5000")
    log = journal(kafka_broker, name)
    for n in range(5):
        log.put({"n": n, "x": os.urandom(20_000 if n == 2 else 10).hex()})
        log.flush(PATIENCE)
    log.put({"n": 5, "x": "y" * topic.MAX_ENTRY})
    log.put({"n": 6})
    log.flush(PATIENCE)
    counts = log.close()
    assert (counts.written, counts.dropped, counts.failed) == (5, 1, 1)
    assert numbers(kafka_broker, name) == [0, 1, 3, 4, 6]
    assert "1 entries of the log of predictions were lost" in caplog.text


def test_a_broker_that_is_killed_and_comes_back_gets_everything_once(broker_to_stop: Broker, name: str) -> None:
    create(broker_to_stop.address, name, 2)
    log = journal(broker_to_stop.address, name)
    slowest = 0.0

    def put(n: int) -> None:
        nonlocal slowest
        began = time.monotonic()
        assert log.put({"n": n})
        slowest = max(slowest, time.monotonic() - began)

    for n in range(2000):
        put(n)
        if n == 1000:
            eventually(lambda: log.counts.written)
            broker_to_stop.stop()
    assert not log.flush(0.5), "some wait"
    assert slowest < 0.5
    broker_to_stop.start()
    assert log.flush(60)
    counts = log.close()
    assert (counts.written, counts.dropped, counts.failed) == (2000, 0, 0)
    assert numbers(broker_to_stop.address, name) == list(range(2000))


def test_a_fork_has_a_producer_of_its_own(kafka_broker: str, name: str) -> None:
    create(kafka_broker, name)
    log = journal(kafka_broker, name)
    log.put({"n": 1})
    assert log.flush(PATIENCE)
    log.put({"n": 2})
    child = os.fork()
    if child == 0:
        log.put({"n": 3})
        os._exit(0 if log.close().written == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert log.close().written == 2
    assert numbers(kafka_broker, name) == [1, 2, 3]


# ---- settings --------------------------------------------------------------------------------------------------------------------------


def test_it_logs_in_with_the_password_of_the_environment(broker_to_stop: Broker, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create(broker_to_stop.address, name)
    settings = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", "sasl.username": USER}
    variable = PASSWORDS["sasl.password"]
    monkeypatch.setenv(variable, PASSWORD)
    log = journal(broker_to_stop.guarded, name, settings)
    log.put({"n": 1})
    assert log.flush(PATIENCE)
    log.close()
    monkeypatch.setenv(variable, "wrong secret")
    log = journal(broker_to_stop.guarded, name, settings, timeout=1.0)
    log.put({"n": 2})
    assert not log.flush(2.0)
    assert log.close(3.0).dropped == 1
    assert "wrong secret" not in log._why
    assert numbers(broker_to_stop.address, name) == [1]


def test_it_speaks_tls(broker_to_stop: Broker, name: str) -> None:
    create(broker_to_stop.address, name)
    trusting = {"security.protocol": "ssl", "ssl.ca.location": str(broker_to_stop.authority)}
    log = journal(broker_to_stop.encrypted, name, trusting)
    log.put({"n": 1})
    assert log.flush(PATIENCE)
    assert log.close().written == 1
    assert numbers(broker_to_stop.address, name) == [1]


@pytest.mark.parametrize("setting", ["acks", "enable.idempotence", "message.timeout.ms", "sasl.password", "bootstrap.servers"])
def test_what_is_not_the_users_to_set_is_refused_at_once(setting: str) -> None:
    with pytest.raises(LogError, match=setting):
        connecting("localhost:9092", "t", {setting: "1"})


def test_a_topic_without_brokers_is_refused(made: World, tmp_path: Path) -> None:
    world = made.copied(tmp_path / "p")
    toml = world.path / "tidemill.toml"
    toml.write_text(toml.read_text() + '[log]\npredictions_topic = "t"\n')
    with pytest.raises(DefinitionError, match=r"log.predictions_topic .* stream.brokers is not set"):
        world.env()


# ---- producers in bad weather -----------------------------------------------------------------------------------------------------------


class Weather:
    """A producer that has no room every other time, refuses some, and breaks at 5 for good."""

    made: list[Weather] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.turn, self.broken, self.got, self.waiting = 0, False, [], []  # type: ignore[var-annotated]
        Weather.made.append(self)

    def send(self, key: bytes, value: bytes, done: Callable[[str | None], object]) -> bool:
        self.turn += 1
        if self.turn % 2:
            return False
        n = json.loads(value)["n"]
        if n == 5 and len(Weather.made) == 1:
            self.broken = True
            raise LogError("fenced")
        self.waiting.append((n, done))
        return True

    def poll(self) -> None:
        for n, done in self.waiting:
            done("refused" if n % 4 == 3 else None)
            done(None)  # a client that says it twice
            self.got.append(n)
        self.waiting = []

    def close(self) -> None:
        for _, done in self.waiting:
            done("purged")


def test_what_a_producer_has_no_room_for_or_refuses_or_takes_with_it_is_counted_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(topic, "_POLL", 0.001)
    monkeypatch.setattr(topic, "_AGAIN", 0.001)
    Weather.made = []
    failures = [LogUnavailableError("away"), ValueError("a library's own")]

    def connect() -> Weather:
        if failures:
            raise failures.pop()
        return Weather()

    with caplog.at_level(logging.WARNING, "tidemill.journals"):
        log = TopicJournal("predictions", connect, lambda e: str(e["n"]))
        for n in range(10):
            log.put({"n": n})
        log.put({"m": object})  # what has no key
        log.put(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        assert log.flush(PATIENCE)
        counts = log.close()
    first, second = Weather.made
    assert first.broken
    assert first.got == [0, 1, 2, 3, 4]
    assert second.got == [6, 7, 8, 9]
    assert (counts.written, counts.dropped, counts.failed, counts.waiting) == (7, 3, 2, 0)
    assert caplog.text


# ---- last, because it starts no broker again --------------------------------------------------------------------------------------------


def test_a_broker_that_stays_away_holds_up_nobody_even_at_the_end(broker_to_stop: Broker, name: str) -> None:
    create(broker_to_stop.address, name)
    log = journal(broker_to_stop.address, name)
    log.put({"n": 0})
    assert log.flush(PATIENCE)
    broker_to_stop.stop()
    for n in range(1, 4):
        log.put({"n": n})
    began = time.monotonic()
    counts = log.close(1.0)
    assert time.monotonic() - began < 3
    assert (counts.written, counts.waiting, counts.dropped) == (1, 0, 3)
