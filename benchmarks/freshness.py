"""Freshness: how long after an event was produced to Kafka a request can see it, while many others are produced.

A producer process writes events of 50,000 entities at a steady rate; two workers stream them from Kafka into Redis. Ten times a second a
probe, an event of an entity of its own, is produced, and its entity is asked for again and again until the answer counts it. Both ends are
read from one clock in one process, so nothing has to be synchronised. Broker, Redis, producer, workers and reader share the machine.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import multiprocessing
import multiprocessing.synchronize
import os
import time

import numpy as np

import tidemill as tm
from benchmarks.servers import TOPIC, Machine, applied, machine, producer_of
from benchmarks.stream import ENTITIES, EXPONENT
from tidemill.apps.streaming.supervisor import Supervisor
from tidemill.logs.kafka import KafkaAdmin

PARTITIONS = 2
#: In seconds: until the workers run warm; the probes' interval; when a probe counts as lost.
_WARM, _EVERY, _LOST = 15.0, 0.1, 10.0


def event(number: int, user: str) -> bytes:
    """One event of now."""
    at = dt.datetime.now(dt.UTC).isoformat()
    return json.dumps({"event_id": number, "user": user, "amount": 12.34, "at": at, "merchant": "m7", "country": "US"}).encode()


def produce(address: str, per_second: int, stop: multiprocessing.synchronize.Event) -> None:
    """Write events at a steady rate, in steps of ten milliseconds."""
    rng = np.random.default_rng(5)
    weights = 1 / np.arange(1, ENTITIES + 1) ** EXPONENT
    users = rng.choice(ENTITIES, 1_000_000, p=weights / weights.sum()).tolist()
    producer = producer_of(address)
    done, begun = 0, time.monotonic()
    while not stop.is_set():
        due = int((time.monotonic() - begun) * per_second)
        at = dt.datetime.now(dt.UTC).isoformat()
        for number in range(done, due):
            user = users[number % len(users)]
            value = b'{"event_id":%d,"user":"user-%d","amount":12.34,"at":"%s","merchant":"m7","country":"US"}' % (
                number,
                user,
                at.encode(),
            )
            producer.produce(TOPIC, value, partition=user % PARTITIONS)
        done = due
        producer.poll(0)
        time.sleep(0.01)
    producer.flush(5)


def probe(store: tm.FeatureStore, producer: object, name: str, partition: int) -> float:
    """Seconds from before the event is handed to the producer until after the answer that counts it."""
    begun = time.monotonic()
    producer.produce(TOPIC, event(0, name), partition=partition)  # type: ignore[attr-defined]
    producer.poll(0)  # type: ignore[attr-defined]
    while time.monotonic() - begun < _LOST:
        answer = store.get_online_features(["users:count_1h"], [{"user": name}])
        if answer.columns["users__count_1h"][0] == 1:
            return time.monotonic() - begun
        time.sleep(0.002)
    raise SystemExit(f"the probe {name} was not seen within {_LOST} s")


def measure(place: Machine, per_second: int, seconds: float, linger: str, workers: int) -> None:
    """Print one line."""
    name = f"linger{linger}"
    admin = KafkaAdmin(place.broker.address)
    if TOPIC in admin.topics():
        admin.delete_topic(TOPIC)
        time.sleep(3)
    admin.create_topic(TOPIC, PARTITIONS)
    env = place.project(name, f'linger = "{linger}"')
    lines: list[str] = []
    supervisor = Supervisor(env.project.directory, workers, log_level="warning", on_line=lines.append)
    supervisor.start()
    stop = multiprocessing.get_context("spawn").Event()
    writer = multiprocessing.get_context("spawn").Process(target=produce, args=(place.broker.address, per_second, stop), daemon=True)
    writer.start()
    store = tm.FeatureStore(env.project.directory)
    producer = producer_of(place.broker.address, linger_ms=0)
    count = applied(env)
    try:
        time.sleep(_WARM)
        before, used, begun = count(), _cpu(supervisor.pids), time.monotonic()
        found: list[float] = []
        number = 0
        while time.monotonic() - begun < seconds:
            due = begun + number * _EVERY
            time.sleep(max(due - time.monotonic(), 0.0))
            found.append(probe(store, producer, f"probe-{number}", number % PARTITIONS))
            number = max(number + 1, int((time.monotonic() - begun) / _EVERY))
        took = time.monotonic() - begun
        rate = (count() - before) / took
        cpu = (_cpu(supervisor.pids) - used) / took
    finally:
        stop.set()
        writer.join(10)
        supervisor.stop()
        store.close()
        env.online.close()
        admin.close()
    if lines:
        raise SystemExit("\n".join(["the workers were disturbed:", *lines]))
    p50, p99 = (np.percentile(found, q) * 1000 for q in (50, 99))
    print(
        f"linger {linger}, {workers} workers, {rate:,.0f} events/s: {len(found)} probes, p50 {p50:.0f} ms, p99 {p99:.0f} ms, "
        f"longest {max(found) * 1000:.0f} ms; the workers use {cpu:.2f} cores",
        flush=True,
    )


def _cpu(pids: list[int]) -> float:
    """Seconds of CPU that these processes have used."""
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:  # noqa: PTH123
            fields = stat.read().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure with each of the settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=20_000, help="events per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--linger", nargs="*", default=["50ms", "1s"])
    options = parser.parse_args()
    with machine() as place:
        for linger in options.linger:
            measure(place, options.rate, options.seconds, linger, options.workers)


if __name__ == "__main__":
    main()
