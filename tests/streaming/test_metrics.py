"""Metrics: what Prometheus gets to read, counters that never fall while a stream runs, and a port that cannot be had."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.streaming import shop
from tests.streaming.conftest import Crew
from tidemill.apps import load
from tidemill.environment import Environment
from tidemill.errors import TidemillError
from tidemill.metrics import Buckets, Endpoint, Metric, Sample
from tidemill.times import to_micros

histograms = load("streaming.histograms")
metrics = load("streaming.metrics")
status = load("streaming.status")


def scraped(url: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Every sample by its name and its labels' values in the order of the labels' names, as a Prometheus would read them."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation.endswith("."), family.name
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def part(records: int, **changes: Any) -> Any:
    some = status.PartitionStatus("orders", 0, records, 1000, 1000 - records, records, records - 1, 1, 0, 0, 1.0, None, None)
    return replace(some, **changes)


def worker(pid: int, *parts: Any, index: int = 0) -> Any:
    return status.WorkerStatus(index, 1, pid, 0, status.this_host(), 1000 + pid, 0, "reading", 1, partitions=parts)


# ---- the counters -------------------------------------------------------------------------------------------------------------------


def test_what_a_worker_counted_is_kept_when_another_takes_its_place() -> None:
    tally = metrics.Tally()
    measured = replace(histograms.Measured(), apply=histograms.Histogram((1,) * 12, 3.5))
    tally.see([worker(1, part(100, measured=measured))])
    tally.see([worker(1, part(150, measured=measured))])
    tally.see([worker(2, part(5))])
    tally.see([worker(2, part(7, measured=measured))])
    [(place, counts)] = tally.counts().items()
    assert (place, counts.records, counts.events, counts.dead) == (("orders", "0", "0"), 157, 155, 2)
    assert counts.measured.apply == histograms.Histogram((2,) * 12, 7.0)


def test_a_look_that_comes_late_takes_nothing_back_and_adds_nothing_twice() -> None:
    tally = metrics.Tally()
    first, second = worker(1, part(100)), worker(2, part(5))
    for statuses in ([first], [second], [first], [second], [worker(2, part(3))]):
        tally.see(statuses)
    assert [counts.records for counts in tally.counts().values()] == [105]


def test_a_partition_that_another_worker_has_now_is_counted_for_both() -> None:
    tally = metrics.Tally()
    tally.see([worker(1, part(100)), worker(2, part(40, partition=1), index=1)])
    tally.see([worker(3, part(1, partition=1)), worker(4, part(2), index=1)])
    counted = {place: counts.records for place, counts in tally.counts().items()}
    assert counted == {("orders", "0", "0"): 100, ("orders", "0", "1"): 2, ("orders", "1", "0"): 1, ("orders", "1", "1"): 40}


# ---- the histograms -----------------------------------------------------------------------------------------------------------------


def test_latency_is_from_a_records_arrival_until_now_and_a_bound_belongs_to_what_is_below() -> None:
    measures = histograms.Measures(now=lambda: 10_000_000)
    measures.took(0.005, 4, pl.Series([9_950_000, 9_949_999, None, 10_000_001, 0], dtype=pl.Int64))
    told = measures.told()
    assert dict(zip([*histograms.LATENCY, None], told.latency.counts, strict=True)) == {
        **dict.fromkeys([*histograms.LATENCY, None], 0),
        0.05: 2,
        0.1: 1,
        10.0: 1,  # one from the future is of just now
    }
    assert told.latency.total == pytest.approx(0.05 + 0.050001 + 0 + 10)
    assert (told.apply.counts[0], told.apply.total, sum(told.apply.counts)) == (1, 0.005, 1)
    assert (told.flush.counts[1], told.flush.total, sum(told.flush.counts)) == (1, 4.0, 1)


def test_a_log_without_arrival_times_has_no_latency() -> None:
    measures = histograms.Measures(now=lambda: 10_000_000)
    measures.took(0.1, 7, pl.Series(dtype=pl.Int64))
    measures.took(0.1, 1, pl.Series([None], dtype=pl.Int64))
    assert sum(measures.told().latency.counts) == 0
    assert sum(measures.told().flush.counts) == 2


def test_a_histogram_is_written_with_cumulated_buckets() -> None:
    metric = Metric("m", "histogram", "Some.", ("a",), [Sample(("x",), Buckets((0.5, 1.0), (3, 0, 4), 9.5))])
    with Endpoint(lambda: [metric], 0) as endpoint:
        found = scraped(endpoint.url)
    assert found["m_bucket"] == {("x", "0.5"): 3, ("x", "1.0"): 3, ("x", "+Inf"): 7}
    assert (found["m_count"], found["m_sum"]) == ({("x",): 7}, {("x",): 9.5})


# ---- the port -----------------------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TidemillError, match=rf"port {port} of 127\.0\.0\.1 is taken; .*choose another port"):
            Endpoint(list, port)


def test_an_address_that_is_not_this_machines_is_refused() -> None:
    with pytest.raises(TidemillError, match=r"no metrics: cannot listen on 192\.0\.2\.1, port 0: "):
        Endpoint(list, 0, "192.0.2.1")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(TidemillError, match=r"pip install 'tidemill\[metrics\]'"):
        Endpoint(list, 0)


def test_after_the_end_nobody_listens() -> None:
    with Endpoint(list, 0) as endpoint:
        assert scraped(endpoint.url) == {}
    with pytest.raises(OSError, match="refused"):
        scraped(endpoint.url)


# ---- real workers -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(env: Environment, crew: Crew) -> Iterator[Any]:
    """Two workers of the shop, and their metrics."""
    shop.append(env.project.directory, "orders", shop.events("orders", 0, 400))
    shop.append(env.project.directory, "visits", shop.events("visits", 0, 100))
    with (env.project.directory / "orders" / "a.jsonl").open("a") as log:
        log.write("no json\n")
    supervisor = crew.supervise(2)
    measured = metrics.StreamMetrics(supervisor, env.project.name)
    with Endpoint(measured.collect, 0) as endpoint:
        yield crew, endpoint.url


def total(found: dict[str, dict[tuple[str, ...], float]], name: str, source: str) -> float:
    return sum(value for (_, of, _), value in found.get(name, {}).items() if of == source)


def test_metrics_say_what_the_workers_did_and_counters_go_on_when_one_is_killed(served: Any, env: Environment) -> None:
    crew, url = served
    crew.until(lambda: total(scraped(url), "tidemill_records_total", "orders") == 401)
    crew.until(lambda: total(scraped(url), "tidemill_records_total", "visits") == 100)
    crew.until(lambda: scraped(url)["tidemill_worker_state"].get(("following", "0")) == 1)
    found = scraped(url)
    assert found["tidemill_worker_up"] == {("0",): 1, ("1",): 1}
    assert all(abs(at - time.time()) < 60 for at in found["tidemill_worker_status_timestamp_seconds"].values())
    assert (total(found, "tidemill_events_total", "orders"), total(found, "tidemill_dead_letters_total", "orders")) == (400, 1)
    assert total(found, "tidemill_position", "orders") == total(found, "tidemill_log_end", "orders") == 401
    assert total(found, "tidemill_lag_records", "orders") == 0
    assert total(found, "tidemill_apply_seconds_count", "orders") == total(found, "tidemill_flushes_total", "orders") > 0
    assert total(found, "tidemill_flush_records_sum", "orders") == 401
    newest = max(to_micros(e["at"]) for e in shop.events("visits", 0, 100))
    assert total(found, "tidemill_event_time_watermark_seconds", "visits") == newest / 1e6
    assert found["tidemill_restarts_total"] == {("asked",): 0, ("died",): 0}

    os.kill(min(crew.pids), signal.SIGKILL)
    crew.until(lambda: scraped(url)["tidemill_restarts_total"]["died",] == 1)
    shop.append(env.project.directory, "orders", shop.events("orders", 400, 50))
    crew.until(lambda: total(scraped(url), "tidemill_position", "orders") == 451)
    after = scraped(url)
    for name, before in found.items():
        if name.endswith(("_total", "_count", "_sum", "_bucket")):
            assert all(after[name][labels] >= value for labels, value in before.items()), name
    crew.until(lambda: total(scraped(url), "tidemill_records_total", "orders") >= 451)
    assert scraped(url)["tidemill_worker_up"] == {("0",): 1, ("1",): 1}
