"""One partition's way from the log to the stores: what goes wrong on it, and what changes meanwhile."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from tests.streaming import shop
from tidemill.apps import load
from tidemill.environment import Environment
from tidemill.errors import LogChangedError
from tidemill.offline.archive import archived_end, range_files
from tidemill.offline.dead import list_dead
from tidemill.online.base import SlotId

ingest = load("streaming.ingest")
job = load("batch.job")


def ingest_of(env: Environment, source: str = "orders", **options: Any) -> Any:
    applied = env.applied()
    found = applied.sources[source]
    made = ingest.PartitionIngest(
        found,
        0,
        env.log(found),
        env.decoder(found),
        env.online,
        env.offline,
        applied.of_source(source),
        applied.shards,
        env.project.slack,
        now=lambda: shop.START,
        **options,
    )
    made.restore()
    return made


def test_small_files_are_read_in_one_poll_up_to_the_number_of_rows(env: Environment) -> None:
    for i in range(5):
        shop.append(env.project.directory, "orders", shop.events("orders", 10 * i, 10), file=f"{i}.jsonl")
    some = ingest_of(env, rows=35)
    polls = [some.poll() for _ in range(3)]
    assert [(p.start, p.end, len(p.batches), p.drained) if p else None for p in polls] == [(0, 35, 4, False), (35, 50, 2, True), None]


def test_dead_letters_of_a_poll_of_many_batches_have_their_own_bytes(env: Environment) -> None:
    for i in range(4):
        shop.append(env.project.directory, "orders", shop.events("orders", 10 * i, 10), file=f"{i}.jsonl")
        with (env.project.directory / "orders" / f"{i}.jsonl").open("a") as log:
            log.write(f'{{"customer": null, "id": {i}, "at": "2026-03-01"}}\n{{"no": {i}\n')
    some = ingest_of(env)
    assert some.run() == 1
    some.archive()
    letters = list_dead(env.offline, "orders").sort("offset")
    assert letters["offset"].to_list() == [10, 11, 22, 23, 34, 35, 46, 47]
    assert letters["raw"].to_list()[::2] == [b'{"customer": null, "id": %d, "at": "2026-03-01"}' % i for i in range(4)]
    assert letters["raw"].to_list()[1::2] == [b'{"no": %d' % i for i in range(4)]
    assert letters["view"].to_list() == ["spending", None] * 4
    assert some.counters.dead == 8


def test_what_was_in_flight_when_a_slot_stood_elsewhere_is_dropped_and_read_again(env: Environment) -> None:
    shop.append(env.project.directory, "orders", shop.events("orders", 0, 90))
    mine, other = ingest_of(env, rows=30), ingest_of(env, rows=45)
    flights = [mine.tile(mine.poll()), mine.poll()]
    assert other.apply(other.tile(other.poll()))
    assert not mine.apply(flights[0])
    late = mine.tile(flights[1])  # from before the restore
    assert late.advances == ()
    assert not mine.apply(late)
    assert mine.counters.mismatches == 1
    mine.run()
    assert mine.counters.mismatches == 1  # believing in the dropped flush would have cost another
    assert shop.position(env, "spending") == 90


@pytest.mark.parametrize("archived", [False, True])
def test_a_slot_that_no_longer_stands_where_it_was_left_is_filled_again(env: Environment, archived: bool) -> None:
    orders = shop.events("orders", 0, 90)
    shop.append(env.project.directory, "orders", orders[:60])
    some, other = ingest_of(env), ingest_of(env)
    assert some.stands(), "nothing was read, and nothing is there"
    some.run()
    if archived:
        some.archive()
    [bundle] = env.applied().of_source("orders")
    assert some.stands()
    env.online.reset(SlotId(bundle.bundle.id, 2))
    assert shop.position(env, "spending") == 0
    assert not some.stands()
    assert (some.position, some.counters.mismatches) == (0, 1)
    some.run()
    assert some.stands()
    assert shop.position(env, "spending") == 60
    shop.append(env.project.directory, "orders", orders[60:])
    other.restore()
    other.run()
    assert not some.stands(), "another one has gone on"
    assert some.position == 60, "where the archive ends: the rest is not applied again"
    some.run()
    visits = shop.events("visits", 0, 20)
    shop.append(env.project.directory, "visits", visits)
    ingest_of(env, "visits").run()
    assert shop.differences(env.project.directory, {"orders": orders, "visits": visits}) == []
    assert (some.counters.events, some.counters.mismatches) == (90, 2)


def test_events_are_counted_once_however_often_they_are_read(env: Environment) -> None:
    shop.append(env.project.directory, "orders", shop.events("orders", 0, 90))
    some = ingest_of(env, rows=40)
    some.run(batches=2)
    some.restore()  # nothing is archived yet, so it begins at 0 again
    assert some.position == 0
    some.run()
    assert (some.counters.records, some.counters.events, some.counters.dead) == (90, 90, 0)


def test_newer_definitions_are_taken_up_where_the_old_ones_stand(env: Environment) -> None:
    orders = shop.events("orders", 0, 200)
    shop.append(env.project.directory, "orders", orders[:150])
    some = ingest_of(env)
    some.run()
    with (env.project.directory / "features.py").open("a") as definitions:
        definitions.write(shop.ONE_MORE)
    newer = Environment.load(env.project.directory)
    applied = newer.apply()
    source = applied.sources["orders"]
    some.redefine(source, newer.decoder(source), applied.of_source("orders"), applied.shards)
    assert archived_end(env.offline, "orders", 0) == 150  # what waited was not dropped
    assert some.position == 0  # for the new view; the old one takes nothing twice
    shop.append(env.project.directory, "orders", orders[150:])
    some.run()
    assert (shop.position(newer, "spending"), shop.position(newer, "more")) == (200, 200)
    newer.online.close()


def test_a_bundle_with_history_waits_for_batch_while_the_others_go_on(env: Environment) -> None:
    orders = shop.events("orders", 0, 3000)
    shop.append(env.project.directory, "orders", orders[:2500])
    some = ingest_of(env, archive_seconds=0)
    some.run()
    with (env.project.directory / "features.py").open("a") as definitions:
        definitions.write(shop.ONE_MORE)
    newer = Environment.load(env.project.directory)
    applied = newer.apply()
    source = applied.sources["orders"]
    some.redefine(source, newer.decoder(source), applied.of_source("orders"), applied.shards)
    [waiting] = some.counters.waiting
    assert waiting.startswith("more-")
    shop.append(env.project.directory, "orders", orders[2500:])
    some.run()
    assert (shop.position(newer, "spending"), shop.position(newer, "more")) == (3000, 0)
    epoch = some.epoch
    assert not some.admit()
    assert some.epoch == epoch  # nothing was dropped for a look
    job.run(newer)
    assert some.admit()
    assert some.counters.waiting == ()
    some.run()
    assert (shop.position(newer, "spending"), shop.position(newer, "more")) == (3000, 3000)
    newer.online.close()


def test_the_archive_has_no_hole_when_a_flush_is_refused(env: Environment) -> None:
    shop.append(env.project.directory, "orders", shop.events("orders", 0, 60))
    some = ingest_of(env, rows=20)
    flights = [some.tile(some.poll()) for _ in range(2)]
    env.online.reset(SlotId(env.applied().of_source("orders")[0].bundle.id, 2))
    assert some.apply(flights[0])
    env.online.reset(SlotId(env.applied().of_source("orders")[0].bundle.id, 2))
    assert not some.apply(flights[1])
    some.run()
    some.archive()
    files = range_files(env.offline, "archive/orders/00000")
    frame = pl.concat([env.offline.scan(f.key).collect() for f in files])
    assert frame["_offset"].unique().sort().to_list() == list(range(60))


@pytest.mark.parametrize("rows", [7, 1000])
def test_without_a_runtime_everything_is_equal_to_brute_force(env: Environment, rows: int) -> None:
    known = {source: shop.events(source, 0, 300) for source in ("orders", "visits")}
    for source, events in known.items():
        shop.append(env.project.directory, source, events)
        ingest_of(env, source, rows=rows).run()
    assert shop.differences(env.project.directory, known, instants=3) == []


def test_a_rebuild_that_nobody_can_finish_begins_anew(env: Environment) -> None:
    """Its version was taken back by a roll-back, and it was the only one."""
    orders = shop.events("orders", 0, 300)
    shop.append(env.project.directory, "orders", orders)
    [bundle] = env.applied().of_source("orders")
    abandoned = SlotId(bundle.bundle.id, 2)
    assert env.online.rebuild(abandoned, None, "1:0:0", [], horizon=0)
    some = ingest_of(env)
    assert some.run(20) < 20
    assert some.counters.mismatches == 0
    assert shop.position(env, "spending") == 300
    visits = shop.events("visits", 0, 20)
    shop.append(env.project.directory, "visits", visits)
    ingest_of(env, "visits").run()
    assert shop.differences(env.project.directory, {"orders": orders, "visits": visits}) == []


def test_records_that_the_log_does_not_confirm_are_not_counted(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.append(env.project.directory, "orders", shop.events("orders", 0, 10))
    some = ingest_of(env)
    flush = some.tile(some.poll())

    def another() -> None:
        raise LogChangedError("the topic was created again")

    monkeypatch.setattr(some._reader, "confirm", another)
    with pytest.raises(LogChangedError):
        some.apply(flush)
    assert shop.position(env, "spending") == 0
    monkeypatch.undo()
    assert some.apply(flush)
    assert shop.position(env, "spending") == 10
