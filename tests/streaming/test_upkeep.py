"""What a worker does beside reading: in simulated time, on real stores."""

from __future__ import annotations

from typing import Any

import pytest

from tests.streaming import shop
from tidemill.apps import load
from tidemill.environment import Environment
from tidemill.errors import LogError, NotAppliedError
from tidemill.journal import Journal

upkeep = load("streaming.upkeep")
reading = load("streaming.reading")
status = load("streaming.status")
job = load("batch.job")

ORDERS, VISITS = ("orders", 0), ("visits", 0)


class Shift:
    """A worker's upkeep and readings, in turns as a runtime gives them, with a clock that moves as it sleeps, or is told."""

    def __init__(self, env: Environment, *, until_end: bool = False, archive_seconds: float = 0.0) -> None:
        self.env, self.now, self.lines = env, 100.0, list[str]()
        self.orders = reading.Orders(until_end=until_end)
        journal = Journal("worker 0", self.lines.append)
        who = upkeep.Who(0, 1, shop.START)
        self.upkeep = upkeep.Upkeep(
            env, self.orders, journal, who, lambda: self.now, lambda: shop.START, self.sleep, archive_seconds=archive_seconds
        )
        self.ended = False

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def begin(self) -> Shift:
        for part in self.upkeep.look():
            self.upkeep.open(part)
        return self

    def during(self, seconds: float, step: float = 0.1) -> None:
        deadline = self.now + seconds
        while self.now < deadline and not self.ended:
            self.now += step
            for each in [*self.upkeep.readings.values()]:
                self._turn(each)
            try:
                self.upkeep.turn()
            except StopIteration:
                self.ended = True

    def _turn(self, each: Any) -> None:
        if each.ended:
            return
        try:
            polled = each.turn()
        except StopIteration:
            return
        if polled is not None:
            each.apply(each.tile(polled))
            self.upkeep.flushed(0.0)

    @property
    def told(self) -> Any:
        [found] = status.read_status(self.env.project.directory)
        return found


@pytest.fixture
def shift(env: Environment) -> Shift:
    shop.append(env.project.directory, "orders", shop.events("orders", 0, 100))
    shop.append(env.project.directory, "visits", shop.events("visits", 0, 100))
    return Shift(env)


def test_the_parts_are_all_partitions_of_all_applied_sources(env: Environment, shift: Shift) -> None:
    shop.append(env.project.directory, "orders", shop.events("orders", 0, 1), file="partition=2/a.jsonl")
    assert shift.upkeep.look() == [ORDERS, ("orders", 2), VISITS]


def test_it_tells_about_every_partition_once_a_second(shift: Shift) -> None:
    shift.begin().during(3)
    told = shift.told
    assert (told.state, told.alive, told.version, told.index, told.of) == ("following", True, 1, 0, 1)
    assert [(p.source, p.position, p.end, p.lag, p.events, p.archived) for p in told.partitions] == [
        ("orders", 100, 100, 0, 100, 100),
        ("visits", 100, 100, 0, 100, 100),
    ]
    assert told.partitions[0].horizon is not None
    assert told.partitions[0].horizon == told.partitions[0].through - shift.env.project.slack


def test_events_per_second_are_those_of_the_last_seconds(env: Environment, shift: Shift) -> None:
    shift.begin().during(30)
    assert shift.told.partitions[0].events_per_second == 0.0
    for i in range(10):
        shop.append(env.project.directory, "orders", shop.events("orders", 100 + 50 * i, 50))
        shift.during(1)
    assert 40 <= shift.told.partitions[0].events_per_second <= 60


def test_new_definitions_over_the_same_logs_need_no_restart(env: Environment, shift: Shift) -> None:
    shift.begin().during(2)
    with (env.project.directory / "features.py").open("a") as definitions:
        definitions.write(shop.ONE_MORE)
    Environment.load(env.project.directory).apply()
    visits = shift.upkeep.readings[VISITS].ingest.epoch
    shift.during(3)
    assert not shift.orders.stop.is_set()
    assert shop.position(env, "more") == 100
    assert shift.upkeep.readings[VISITS].ingest.epoch == visits  # nothing changed for it
    assert shift.told.version == 2
    assert set(shift.upkeep.compactor.bundles) == {b.bundle.id for b in env.applied().bundles}


def test_a_new_source_asks_for_a_restart_and_says_why(env: Environment, shift: Shift) -> None:
    shift.begin().during(2)
    with (env.project.directory / "features.py").open("a") as definitions:
        definitions.write(
            "\nreturns = tm.Source('returns', schema={'customer': str, 'at': tm.Timestamp}, timestamp='at', path='returns/*.jsonl')"
            "\nregret = tm.FeatureView('regret', source=returns, entity=customer, aggregations=[tm.count(windows=['1d'])])\n"
        )
    Environment.load(env.project.directory).apply()
    shift.during(3)
    assert shift.ended
    assert shift.orders.exit_code == upkeep.RESTART
    assert shift.upkeep.reason == "other logs are to be read now (returns)"
    assert all(r.ended for r in shift.upkeep.readings.values())


def test_a_new_partition_asks_for_a_restart(env: Environment, shift: Shift) -> None:
    shift.begin().during(2)
    shop.append(env.project.directory, "visits", shop.events("visits", 0, 1), file="partition=7/a.jsonl")
    shift.during(5)
    assert shift.ended
    assert shift.upkeep.reason == "there are new partitions (visits:7)"


def test_a_bundle_that_waits_for_batch_is_taken_up_when_batch_has_run(env: Environment, shift: Shift) -> None:
    shop.append(env.project.directory, "orders", shop.events("orders", 100, 2000))
    shift.begin().during(2)
    with (env.project.directory / "features.py").open("a") as definitions:
        definitions.write(shop.ONE_MORE)
    newer = Environment.load(env.project.directory)
    newer.apply()
    shift.during(3)
    assert [w.partition("-")[0] for w in shift.told.partitions[0].waiting] == ["more"]
    job.run(newer)
    newer.online.close()
    shift.during(3)
    assert shift.told.partitions[0].waiting == ()
    assert shop.position(env, "more") == shop.position(env, "spending") == 2100


def test_cuts_that_batch_makes_reach_compaction(env: Environment, shift: Shift) -> None:
    shop.append(env.project.directory, "orders", shop.events("orders", 100, 2000))
    shift.begin().during(2)
    job.run(env)
    shift.during(2)
    [bundle] = env.applied().of_source("orders")
    assert {k: v.tolist() for k, v in shift.upkeep.compactor.cuts[bundle.bundle.id].items()} == {1: [2048]}


def test_a_sweep_goes_round_once_after_the_last_flush_and_then_rests(shift: Shift) -> None:
    shift.begin().during(2)
    shift.during(60)
    rounds = shift.upkeep.compactor.rounds
    assert rounds >= 1
    shift.during(60)
    assert shift.upkeep.compactor.rounds == rounds


def test_workers_sweep_the_shards_between_them(env: Environment) -> None:
    asked: list[set[int]] = []
    for index in range(3):
        who = upkeep.Who(index, 3, shop.START)
        some = upkeep.Upkeep(env, reading.Orders(), Journal("worker", lambda _: None), who)
        shards: set[int] = set()
        some.compactor.online = type("Watched", (), {"entities": lambda _, slot, *a, into=shards, **k: into.add(slot.shard) or []})()
        while not some.compactor.rounds:
            some.compactor.sweep(env.applied().shards)
        asked.append(shards)
    assert asked == [{0, 3}, {1}, {2}]


def test_with_nothing_to_do_it_pauses_but_never_for_long(shift: Shift) -> None:
    shift.begin().during(2)
    before = shift.now
    for each in shift.upkeep.readings.values():
        each.turn()
    shift.upkeep.turn()
    assert 0 < shift.now - before <= 0.05


def test_until_the_end_it_is_over_when_all_readings_are(env: Environment) -> None:
    shop.append(env.project.directory, "orders", shop.events("orders", 0, 100))
    shop.append(env.project.directory, "visits", shop.events("visits", 0, 100))
    shift = Shift(env, until_end=True).begin()
    shift.during(5)
    assert shift.ended
    assert [p.lag for p in shift.upkeep.snapshot().partitions] == [0, 0]


def test_a_log_that_is_not_there_is_an_error_that_names_it(env: Environment) -> None:
    (env.project.directory / "visits").rmdir()
    with pytest.raises(LogError, match="visits: there is no such directory"):
        Shift(env).upkeep.look()


def test_nothing_applied_is_an_error_only_where_nobody_waits_for_it(tmp_path: Any) -> None:
    (tmp_path / "tidemill.toml").write_text("[project]\nname = 'empty'\n")
    (tmp_path / "features.py").write_text("")
    env = Environment.load(tmp_path)
    assert Shift(env).upkeep.look() == []
    with pytest.raises(NotAppliedError, match="tidemill apply"):
        Shift(env, until_end=True).upkeep.look()
