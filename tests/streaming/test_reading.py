"""When to read, when to say that there is nothing, and what to do while the store does not answer; all in simulated time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tidemill.apps import load
from tidemill.errors import StoreUnavailableError
from tidemill.journal import Journal

reading = load("streaming.reading")


class Ingest:
    """Stands in for a `PartitionIngest`, and writes down what is asked of it."""

    def __init__(self) -> None:
        self.source, self.partition, self.position = SimpleNamespace(name="orders"), 0, 0
        self.counters = SimpleNamespace(waiting=())
        self.log: list[int] = []  # sizes of the batches to come
        self.done: list[str] = []
        self.trouble: set[str] = set()
        self.admits = False
        self.refuses = False
        self.at_end = True
        self.lost = False

    def _do(self, what: str) -> None:
        if what in self.trouble:
            raise StoreUnavailableError("the store does not answer")
        self.done.append(what)

    def restore(self) -> None:
        self._do("restore")

    def stands(self) -> bool:
        self._do("stands")
        if self.lost:
            self.lost, self.position, self.log = False, 0, [self.position]
            return False
        return True

    def poll(self) -> Any:
        if not self.log:
            return None
        start = self.position
        self.position += self.log.pop(0)
        return SimpleNamespace(epoch=0, start=start, end=self.position, drained=not self.log)

    def tile(self, polled: Any) -> Any:
        self._do("tile")
        return polled

    def apply(self, flush: Any) -> bool:
        self._do("apply")
        return not self.refuses

    def idle(self) -> None:
        self._do("idle")

    def archive(self) -> None:
        self._do("archive")

    def admit(self) -> bool:
        self._do("admit")
        return self.admits

    def close(self) -> None:
        self._do("close")


class Bench:
    """A reading of a stand-in, and a clock that only moves when told."""

    def __init__(self, *, until_end: bool = False) -> None:
        self.now = 100.0
        self.ingest = Ingest()
        self.lines: list[str] = []
        self.orders = reading.Orders(until_end=until_end)
        self.reading = reading.Reading(self.ingest, self.orders, Journal("worker 0", self.lines.append), clock=lambda: self.now)

    def turn(self, after: float = 0.0) -> Any:
        self.now += after
        return self.reading.turn()

    def during(self, seconds: float, step: float, between: Callable[[], object] = lambda: None) -> list[str]:
        """What is done in so many seconds of turns and applied flushes."""
        self.ingest.done.clear()
        for _ in range(round(seconds / step)):
            between()
            polled = self.turn(after=step)
            if polled is not None:
                self.reading.apply(polled)
        return self.ingest.done


def test_it_begins_where_the_store_stands() -> None:
    bench = Bench()
    assert bench.turn() is None
    assert bench.ingest.done[0] == "restore"
    assert "orders:0 from offset 0" in bench.lines[0]


def test_while_there_is_more_it_reads_on_without_a_pause() -> None:
    bench = Bench()
    bench.ingest.log = [10] * 4
    for _ in range(3):
        assert bench.turn() is not None
        assert bench.reading.awake_at <= bench.now
        assert not bench.reading.following


def test_at_the_end_it_says_so_at_once_and_then_once_a_second() -> None:
    bench = Bench()
    bench.turn()
    assert bench.ingest.done == ["restore", "idle"]
    assert bench.reading.following
    assert bench.during(10, 0.01).count("idle") == 10


def test_where_no_event_comes_it_looks_whether_the_store_still_has_what_it_was_given() -> None:
    bench = Bench()
    bench.ingest.log = [10]
    done = bench.during(20.5, 0.01)
    assert done.count("stands") == int(20 / reading.CHECK)
    bench.ingest.lost = True
    bench.lines.clear()
    done = bench.during(2 * reading.CHECK, 0.01)
    assert done.count("apply") == 1, "what was lost is read again"
    assert done.count("idle") >= 2 * reading.CHECK - 2
    assert "orders:0: the store is not where it was left, and goes on from offset 0" in bench.lines[0]
    assert len(bench.lines) == 1


def test_where_events_come_every_flush_looks_and_nothing_else_does() -> None:
    bench = Bench()
    bench.turn()
    done = bench.during(30, 0.01, between=lambda: bench.ingest.log.append(1) if bench.now % 3 < 0.01 else None)
    assert (done.count("stands"), done.count("apply")) == (0, 10)


def test_it_does_not_look_while_anything_is_in_flight() -> None:
    bench = Bench()
    bench.turn()
    bench.ingest.log = [10]
    polled = bench.turn(after=0.1)
    for _ in range(100):
        assert bench.turn(after=0.1) is None
    assert "stands" not in bench.ingest.done
    bench.reading.apply(polled)
    assert bench.during(reading.CHECK + 0.1, 0.1).count("stands") == 1


def test_a_store_that_does_not_answer_when_it_is_looked_at_is_asked_again() -> None:
    bench = Bench()
    bench.turn()
    bench.ingest.trouble = {"stands"}
    bench.turn(after=reading.CHECK + 0.1)
    assert bench.reading.waiting
    bench.ingest.trouble = set()
    assert bench.during(1.0, 0.1)[0] == "restore"


def test_where_events_trickle_in_without_end_it_lingers_and_still_says_that_it_is_at_the_end() -> None:
    bench = Bench()
    bench.turn()
    done = bench.during(10, 0.01, between=lambda: bench.ingest.log.append(1) if not bench.ingest.log else None)
    assert 9 <= done.count("idle") <= 11
    assert 0.5 * 10 / reading.LINGER <= done.count("apply") <= 10 / reading.LINGER
    assert bench.reading.following


def test_it_gathers_for_as_long_as_it_is_told_and_ends_at_once_all_the_same() -> None:
    bench = Bench()
    bench.reading.linger = 2.0
    bench.turn()
    done = bench.during(10, 0.01, between=lambda: bench.ingest.log.append(1) if not bench.ingest.log else None)
    assert 4 <= done.count("apply") <= 6
    bench.orders.stop.set()
    with pytest.raises(StopIteration):
        bench.turn(after=0.01)


def test_where_more_may_be_on_its_way_it_does_not_say_that_it_is_at_the_end_nor_ends() -> None:
    bench = Bench(until_end=True)
    bench.ingest.at_end = False
    assert "idle" not in bench.during(5, 0.01)
    assert not bench.reading.following
    bench.ingest.at_end = True
    with pytest.raises(StopIteration):
        bench.turn(after=0.01)


def test_a_slow_look_for_new_records_is_made_less_often() -> None:
    bench = Bench()
    bench.turn()
    poll = bench.ingest.poll
    looks = []

    def slow_poll() -> Any:
        looks.append(bench.now)
        bench.now += 0.5
        return poll()

    bench.ingest.poll = slow_poll  # type: ignore[method-assign]
    bench.during(60, 0.01)
    assert len(looks) * 0.5 <= 0.15 * (bench.now - looks[0])


def test_a_store_that_does_not_answer_is_asked_again_later_and_later_and_then_the_reading_begins_anew() -> None:
    bench = Bench()
    bench.ingest.log = [10, 10]
    flush = bench.turn()
    bench.ingest.trouble = {"apply", "restore"}
    assert not bench.reading.apply(flush)
    assert bench.reading.waiting
    bench.during(60, 0.01)
    pauses = [line.rpartition("=")[2] for line in bench.lines if "warning" in line]
    assert pauses[:7] == ["0.2", "0.4", "0.8", "1.6", "3.2", "6.4", "10.0"]
    bench.ingest.trouble.clear()
    assert bench.during(11, 0.01)[:3] == ["restore", "idle", "apply"]
    assert not bench.reading.waiting
    bench.ingest.trouble = {"idle"}
    bench.during(2, 0.01)
    assert bench.lines[-1].endswith("again_in_seconds=0.2")  # it was healthy in between


def test_what_is_in_flight_when_the_store_fails_is_dropped() -> None:
    bench = Bench()
    bench.ingest.log = [10, 10]
    first, second = bench.turn(), bench.turn(after=1)
    bench.ingest.trouble = {"apply"}
    bench.reading.apply(first)
    bench.ingest.trouble.clear()
    bench.ingest.done.clear()
    assert not bench.reading.apply(second)
    assert bench.ingest.done == []


def test_new_definitions_that_came_while_the_store_did_not_answer_are_taken_up_when_it_is_back() -> None:
    bench = Bench()
    bench.turn()
    bench.ingest.trouble = {"redefine", "restore"}
    bench.reading.redefine(lambda: bench.ingest._do("redefine to the first"))
    bench.reading.redefine(lambda: bench.ingest._do("redefine"))
    bench.during(5, 0.1)
    assert bench.reading.waiting
    bench.ingest.trouble.clear()
    bench.reading.admit()
    assert bench.during(11, 0.1)[:3] == ["restore", "redefine", "idle"]
    assert bench.ingest.done.count("redefine") == 1
    assert "redefine to the first" not in bench.ingest.done


def test_told_to_stop_while_the_archive_does_not_answer_it_ends_and_says_what_that_means() -> None:
    bench = Bench()
    bench.turn()
    bench.ingest.trouble = {"archive"}
    bench.orders.stop.set()
    with pytest.raises(StopIteration):
        bench.turn()
    assert bench.reading.ended
    assert "orders:0: what waits for the archive will be read again: the store does not answer" in bench.lines[-1]


def test_until_the_end_it_waits_for_an_archive_that_does_not_answer() -> None:
    bench = Bench(until_end=True)
    bench.ingest.trouble = {"archive"}
    bench.during(30, 0.1)
    assert bench.reading.waiting
    bench.ingest.trouble.clear()
    with pytest.raises(StopIteration):
        bench.during(11, 0.1)
    assert bench.ingest.done[-4:] == ["archive", "idle", "archive", "close"]


def test_what_cannot_be_decoded_now_is_dropped_and_read_again_later_and_later() -> None:
    bench = Bench()
    bench.ingest.log = [10] * 40
    bench.ingest.trouble = {"tile"}
    for _ in range(10_000):
        polled = bench.turn(after=0.01)
        if polled is not None:
            assert not bench.reading.apply(bench.reading.tile(polled))
            assert bench.reading.waiting
    pauses = [line.rpartition("=")[2] for line in bench.lines if "warning" in line]
    assert pauses[:7] == ["0.2", "0.4", "0.8", "1.6", "3.2", "6.4", "10.0"]
    assert "apply" not in bench.ingest.done
    bench.ingest.trouble.clear()
    polled = bench.turn(after=11)
    assert bench.ingest.done[-1] == "restore"
    assert bench.reading.apply(bench.reading.tile(polled))
    bench.ingest.trouble = {"tile"}
    bench.reading.tile(bench.turn(after=1))
    assert bench.lines[-1].endswith("again_in_seconds=0.2")  # it was healthy in between


def test_refused_again_and_again_it_lets_another_worker_get_on_and_says_so() -> None:
    bench = Bench()
    bench.turn()
    bench.ingest.refuses = True
    bench.ingest.log = [1] * 10_000
    refused = bench.during(60, 0.001).count("apply")
    assert 60 <= refused <= 80
    assert "8 flushes in a row were refused: does another worker write this partition?" in bench.lines[-2]
    bench.ingest.refuses = False
    bench.during(2, 0.01)
    assert bench.during(1, 0.01).count("apply") == 100


def test_told_to_stop_it_archives_and_ends() -> None:
    bench = Bench()
    bench.ingest.log = [10]
    flush = bench.turn()
    bench.orders.stop.set()
    assert bench.turn(after=1) is None  # one is on its way
    bench.reading.apply(flush)
    with pytest.raises(StopIteration):
        bench.turn()
    assert bench.ingest.done == ["restore", "idle", "apply", "archive", "close"]
    assert bench.reading.ended


def test_a_flush_that_is_dropped_at_the_end_is_not_waited_for() -> None:
    bench = Bench()
    bench.ingest.log = [10]
    bench.turn()
    bench.orders.stop.set()
    bench.reading.drop()
    with pytest.raises(StopIteration):
        bench.turn()
    assert "apply" not in bench.ingest.done


def test_until_the_end_it_ends_when_all_is_applied_and_archived_and_says_where_the_log_ends() -> None:
    bench = Bench(until_end=True)
    bench.ingest.log = [10]
    flush = bench.turn()
    assert bench.turn(after=1) is None
    assert not bench.reading.ended  # what is in flight may yet be refused
    bench.reading.apply(flush)
    with pytest.raises(StopIteration):
        bench.turn(after=1)
    assert bench.ingest.done[:6] == ["restore", "idle", "apply", "admit", "archive", "idle"]


def test_until_the_end_it_goes_on_with_a_bundle_that_became_ready() -> None:
    bench = Bench(until_end=True)
    bench.ingest.admits = True
    assert bench.turn() is None
    assert not bench.reading.ended
    bench.ingest.admits = False
    with pytest.raises(StopIteration):
        bench.turn(after=1)
