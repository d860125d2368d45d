"""The dataflow in Bytewax, in this process: what of Bytewax it stands on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from bytewax.testing import run_main

from tests.streaming import shop
from tidemill.apps import load
from tidemill.environment import Environment
from tidemill.journal import Journal

dataflow = load("streaming.dataflow")
upkeep = load("streaming.upkeep")
reading = load("streaming.reading")


class FailedError(Exception):
    """What `fail` raises here; in a worker it ends the process."""


def flow_of(env: Environment, fail: Callable[[BaseException], NoReturn]) -> tuple[Any, Any]:
    orders = reading.Orders(until_end=True)
    some = upkeep.Upkeep(env, orders, Journal("worker 0", lambda _: None), upkeep.Who(0, 1, shop.START))
    some.look()
    return dataflow.dataflow(some, fail), some


def unexpected(error: BaseException) -> NoReturn:
    raise error


def fill(env: Environment) -> dict[str, list[shop.Event]]:
    known = {source: shop.events(source, 0, 600) for source in ("orders", "visits")}
    for source, events in known.items():
        for i in range(0, 600, 100):
            shop.append(env.project.directory, source, events[i : i + 100], file=f"{i:03}.jsonl")
    return known


def test_it_reads_every_log_to_its_end_and_every_number_is_right(env: Environment) -> None:
    known = fill(env)
    flow, some = flow_of(env, unexpected)
    run_main(flow, epoch_interval=dataflow.EPOCH)
    assert all(r.ended for r in some.readings.values())
    assert shop.differences(env.project.directory, known, instants=3) == []


def test_at_most_one_batch_of_each_partition_is_in_flight(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(env)
    flow, some = flow_of(env, unexpected)
    most: dict[str, int] = {}
    polled: list[str] = []
    original = reading.Reading.turn

    def turn(self: Any) -> Any:
        found = original(self)
        if found is not None:
            polled.append(self.name)
            most[self.name] = max(most.get(self.name, 0), self._in_flight)
        return found

    monkeypatch.setattr(reading.Reading, "turn", turn)
    open_part = some.open

    def opened(part: Any) -> Any:
        made = open_part(part)
        made.ingest.rows = 50
        return made

    some.open = opened
    run_main(flow, epoch_interval=dataflow.EPOCH)
    assert most == {"orders:0": 1, "visits:0": 1}
    assert len(polled) == 24


def test_an_epoch_that_does_not_end_holds_nothing_back(env: Environment) -> None:
    """As it does not while the wall clock, by which Bytewax counts epochs, is put back."""
    known = fill(env)
    flow, _ = flow_of(env, unexpected)
    run_main(flow, epoch_interval=100_000 * dataflow.EPOCH)
    assert shop.differences(env.project.directory, known, instants=2) == []


def test_whatever_goes_wrong_is_given_to_fail(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(env)
    seen: list[BaseException] = []

    def fail(error: BaseException) -> NoReturn:
        seen.append(error)
        raise FailedError from error

    def broken(self: Any, polled: Any) -> Any:
        raise ValueError("boom")

    monkeypatch.setattr(reading.Reading, "tile", broken)
    flow, _ = flow_of(env, fail)
    with pytest.raises(BaseException, match=r"^"):  # as a Rust panic, which is why `fail` ends the process
        run_main(flow)
    assert [str(e) for e in seen] == ["boom"]


def test_a_flow_that_is_told_to_stop_ends_at_once(env: Environment) -> None:
    fill(env)
    flow, some = flow_of(env, unexpected)
    some.orders.until_end = False
    some.orders.stop.set()
    begun = time.monotonic()
    run_main(flow)
    assert time.monotonic() - begun < 5
