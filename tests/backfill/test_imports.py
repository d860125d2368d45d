"""History from files: what counts, what does not, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import tidemill as tm
from tests.backfill.world import AT, KEYS, START, WITH_ID, WITHOUT_ID, World, job, listing, make_events, plain, staging, write
from tidemill.apps import load
from tidemill.blocks import HISTORY
from tidemill.errors import LogError
from tidemill.logs import parquet
from tidemill.offline.archive import PLACE_COLUMNS
from tidemill.offline.cuts import imports_of, latest_cut, read_cut
from tidemill.offline.history import imports, iter_parts, read_import, write_part
from tidemill.offline.leases import Lease
from tidemill.offline.partials import Partials
from tidemill.offline.segments import iter_history
from tidemill.times import DAY, HOUR, from_micros, to_micros

overlap = load("backfill.overlap")
ALL = make_events(3_000)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "p")


def test_history_and_live_log_together_are_all_events(world: World) -> None:
    world.live(ALL[1_500:])
    for name, some in (("a.jsonl", ALL[:400]), ("b.csv", ALL[400:800]), ("c/d.parquet", ALL[800:1_200]), ("e.jsonl.gz", ALL[1_200:1_500])):
        world.history(name, some)
    result = world.backfill()
    assert (result.made.events, result.made.left_out, result.fresh) == (1_500, 0, True)
    world.check(ALL)
    world.live(more := make_events(50, 3_000))
    world.batch()
    world.check(ALL + more)


def test_before_anything_was_streamed_the_history_serves_alone(world: World) -> None:
    world.history("a.parquet", ALL)
    (world.path / "log" / "a.jsonl").write_text("")
    world.backfill()
    assert read_cut(world.env.offline, "events", 1) == {}
    world.check(ALL)
    world.live(more := make_events(2_000, 3_000, every=HOUR // 8))
    world.check(ALL + more)
    world.batch()
    world.check(ALL + more)


def test_a_view_that_comes_later_has_the_history_too(world: World) -> None:
    world.live(ALL[1_500:])
    world.history("a.parquet", ALL[:1_500])
    world.backfill()
    world.define(WITH_ID + VIEW_W)
    world.stream()
    world.backfill(files=())
    world.stream()
    world.check(ALL, view="w")
    world.check(ALL)


VIEW_W = 'w = tm.FeatureView("w", source=events, entity=tm.Entity("k"), aggregations=[tm.sum("x", windows=["lifetime", "40d"])])\n'


def test_one_view_can_be_folded_alone(world: World) -> None:
    world.live(ALL)
    world.batch()
    world.define(WITH_ID + VIEW_W + VIEW_W.replace("w", "u", 1).replace('"w"', '"u"'))
    result = world.backfill(files=(), views=("w",))
    [folded] = result.folded.versions
    assert folded == next(b.bundle.id for b in world.env.applied().bundles if b.view == "w")
    world.stream()
    world.check(ALL, view="w")


def test_an_event_that_the_log_has_too_counts_once(world: World) -> None:
    world.live(ALL[1_000:])
    world.history("a.parquet", ALL[:1_400])
    world.history("b.jsonl", [*ALL[1_300:1_350], *ALL[:10]])
    result = world.backfill()
    assert (result.made.events, result.made.left_out, result.made.repeated) == (1_000, 450, 10)
    world.check(ALL)


def test_an_event_of_an_earlier_import_counts_once(world: World) -> None:
    world.live(ALL[2_000:])
    world.history("a.parquet", ALL[:900])
    world.backfill()
    second = write(world.path / "more" / "b.csv", ALL[600:2_000])
    result = world.backfill(files=(str(second),))
    assert (result.made.number, result.made.events, result.made.left_out) == (2, 1_100, 300)
    world.check(ALL)


def test_ids_are_compared_share_by_share_where_memory_is_small(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.live(ALL[1_000:])
    world.history("a.parquet", ALL[:1_400])
    world.history("b.jsonl", ALL[1_390:1_410] + ALL[:3])
    monkeypatch.setattr(overlap, "_ID_BYTES", 1 << 30)
    result = world.backfill(memory=512 << 30)
    assert (result.made.events, result.made.left_out, result.made.repeated) == (1_000, 420, 3)
    world.check(ALL)


def test_events_without_an_id_count_and_are_told(world: World) -> None:
    world.live(ALL[1_000:])
    nameless = [{**e, "id": None} for e in ALL[:1_000]]
    world.history("a.parquet", nameless)
    assert world.backfill().made.without_id == 1_000
    world.check([*nameless, *ALL[1_000:]])


def test_by_time_history_ends_where_the_log_begins(tmp_path: Path) -> None:
    world = World(tmp_path / "p", WITHOUT_ID)
    world.live(ALL[1_000:])
    world.history("a.parquet", ALL[:1_400])
    made = world.backfill().made
    assert (made.overlap, made.before, made.events, made.left_out) == ("by-time", ALL[1_000]["at"], 1_000, 400)
    world.check(ALL)


def test_by_time_a_log_with_earlier_events_is_refused_and_nothing_is_imported(tmp_path: Path) -> None:
    world = World(tmp_path / "p", WITHOUT_ID)
    world.live(ALL[1_000:])
    world.history("a.parquet", ALL[:1_400])
    with pytest.raises(overlap.OverlapError, match="holds 200 events from before 2026-03-13T12:00:00"):
        world.backfill(before=ALL[1_200]["at"])
    assert imports(world.env.offline, "events") == []
    assert world.backfill(before=ALL[900]["at"]).made.events == 900
    world.check(ALL[:900] + ALL[1_000:])


def test_by_time_arrivals_are_compared_where_the_source_has_them(tmp_path: Path) -> None:
    source = 'events = tm.Source("events", schema={"k": str, "x": float, "at": tm.Timestamp}, timestamp="at", arrival="came", '
    source += 'path="log/*.jsonl")\n'
    view = 'v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[tm.count(windows=["lifetime"])])\n'
    world = World(tmp_path / "p", source + view)
    came = lambda e, late: {**plain(e), "came": from_micros(e["at"] + late).isoformat()}  # noqa: E731
    # The log's first event to arrive happened long before; what arrived before it is history, whenever it happened.
    world.log([came(ALL[0], 1_000 * HOUR), *(came(e, 1_000 * HOUR) for e in ALL[500:2_000])])
    world.stream()
    early = [came(e, HOUR) for e in ALL[1:500]] + [came(ALL[0], 1_000 * HOUR)]
    (world.path / "history").mkdir()
    (world.path / "history" / "a.jsonl").write_text("".join(json.dumps(e) + "\n" for e in early))
    made = world.backfill().made
    assert (made.before, made.events, made.left_out) == (ALL[0]["at"] + 1_000 * HOUR, 499, 1)
    world.check(ALL[:2_000])


def test_by_time_a_record_of_a_topic_without_the_arrival_column_is_compared_by_its_own_arrival() -> None:
    source = tm.Source("s", schema={"at": tm.Timestamp}, timestamp="at", arrival="came", topic="s")
    frame = pl.DataFrame(
        {"came": [None, None, 30], "_arrival": [20, None, 25], "_time": [10, 10, 10]},
        schema={"came": source.schema["came"].polars, "_arrival": pl.Int64, "_time": pl.Int64},
    )
    assert frame.select(overlap.place_of(source).alias("place"))["place"].to_list() == [20, 10, 30]


def test_what_is_known_not_to_overlap_is_taken_whole(tmp_path: Path) -> None:
    world = World(tmp_path / "p", WITHOUT_ID)
    world.live(ALL[::2])
    world.history("a.parquet", ALL[1::2])
    assert world.backfill(overlap="none").made.events == 1_500
    world.check(ALL)


def test_the_same_file_is_refused_under_any_name(world: World) -> None:
    world.live(ALL[1_000:])
    world.history("a.parquet", ALL[:1_000])
    world.backfill()
    (world.path / "history" / "a.parquet").rename(world.path / "history" / "b.parquet")
    with pytest.raises(job.ImportedBeforeError, match=r"b\.parquet: import 1 has it as .*a\.parquet"):
        world.backfill()
    world.history("c.parquet", more := [{**e, "id": e["id"] + 10_000} for e in ALL[:10]])
    assert world.backfill(skip_imported=True).made.events == 10
    world.check(ALL + more)


def test_the_same_command_again_does_nothing(world: World) -> None:
    world.live(ALL[1_000:])
    world.history("a.parquet", ALL[:1_000])
    world.backfill()
    again = world.backfill()
    assert (again.fresh, again.made.number, latest_cut(world.env.offline, "events")) == (False, 1, 1)
    world.check(ALL)


def test_by_time_a_file_that_has_grown_since_it_was_imported_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path / "p", WITHOUT_ID)
    world.live(ALL[2_000:])
    world.history("a.jsonl", ALL[:500])
    world.backfill()
    world.history("a.jsonl", ALL[:600])
    with pytest.raises(job.ImportedBeforeError, match=r"a\.jsonl: import 1 has a file of that name with other content"):
        world.backfill()
    world.check(ALL[:500] + ALL[2_000:])
    world.history("a.jsonl", ALL[500:600])
    world.backfill(overlap="none")
    world.check(ALL[:600] + ALL[2_000:])


def test_by_id_of_a_file_that_has_grown_the_new_events_count(world: World) -> None:
    world.live(ALL[2_000:])
    world.history("a.jsonl", ALL[:500])
    world.backfill()
    world.history("a.jsonl", ALL[:600])
    assert world.backfill().made.left_out == 500
    world.check(ALL[:600] + ALL[2_000:])


@pytest.mark.parametrize("definitions", [WITH_ID, WITHOUT_ID])
def test_the_same_file_may_be_imported_date_range_by_date_range(tmp_path: Path, definitions: str) -> None:
    world = World(tmp_path / "p", definitions)
    world.live(ALL[2_000:])
    world.history("a.parquet", ALL[:2_000])
    days = [START + 7 * DAY, START + 14 * DAY]
    assert world.backfill(since=days[0], until=days[1]).made.events == 672
    assert world.backfill(until=days[0]).made.events == 672
    assert world.backfill(since=days[1]).made.events == 656
    world.check(ALL)
    with pytest.raises(job.ImportedBeforeError, match=r"those from 2026-03-15T00:00:00\+00:00 on: say --since and --until"):
        world.backfill(since=days[0] + DAY, until=days[1] + DAY)
    with pytest.raises(job.ImportedBeforeError, match="import 1 has it"):
        world.backfill(since=days[0] + DAY, until=days[1])


def test_a_file_of_which_some_dates_were_imported_is_not_skipped_as_if_all_were(world: World) -> None:
    world.live(ALL[2_000:])
    world.history("a.parquet", ALL[:2_000])
    world.backfill(until=START + 7 * DAY)
    with pytest.raises(job.ImportedBeforeError, match=r"import 1 has some of the dates asked for, those before 2026-03-08"):
        world.backfill(skip_imported=True)
    world.backfill(since=START + 7 * DAY, skip_imported=True)
    world.check(ALL)


def test_by_id_a_log_of_which_no_event_has_an_id_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path / "p", WITHOUT_ID.replace('"id": int, ', ""))
    world.live(ALL[1_000:])
    world.define(WITH_ID)
    world.history("a.jsonl", ALL[:1_400])
    with pytest.raises(overlap.OverlapError, match="none of the 2,000 events in the log of 'events' has 'id'"):
        world.backfill()
    assert world.backfill(overlap="by-time").made.events == 1_000
    world.stream()
    world.batch()
    world.check(ALL)


def test_events_of_the_log_without_an_id_are_told(world: World) -> None:
    world.live([{**e, "id": None} for e in ALL[1_000:1_010]] + ALL[1_010:])
    world.history("a.parquet", ALL[:1_000])
    made = world.backfill().made
    assert (made.without_id, made.log_without_id) == (0, 10)


def test_only_the_dates_asked_for(world: World) -> None:
    world.live(ALL[2_000:])
    world.history("a.parquet", ALL[:2_000])
    made = world.backfill(since=START + 2 * DAY, until=START + 3 * DAY).made
    assert (made.events, made.files[0].outside) == (96, 1_904)
    world.check([e for e in ALL if START + 2 * DAY <= e["at"] < START + 3 * DAY or e["id"] >= 2_000])


def test_bad_rows_are_dead_letters_with_reason_and_bytes(world: World) -> None:
    world.live(ALL[200:1_300])
    path = world.history("a.jsonl", ALL[:200])
    path.write_text(
        path.read_text() + '\n{"id": 5001, "k": "a", "at": "soon"}\n{"id"\n{"id": 5002, "k": null, "x": 1, "at": "2026-03-01"}\n'
    )
    with pytest.raises(staging.TooManyBadError, match=r"2 of 203 records are no events, and 0\.500% may be"):
        world.backfill(bad=job.Bad.parse("0.5%"))
    assert (imports(world.env.offline, "events"), latest_cut(world.env.offline, "events")) == ([], 0)
    result = world.backfill(bad=job.Bad.parse("2"))
    assert sum(result.letters.values()) == 3
    letters = staging.letters_of(world.env.offline, "events", result.made.id)
    assert letters.select("offset", "view", "raw").rows() == [
        (200, None, b'{"id": 5001, "k": "a", "at": "soon"}'),
        (201, None, b'{"id"'),
        (202, "v", b'{"id": 5002, "k": null, "x": 1, "at": "2026-03-01"}'),
    ]
    assert letters["reason"][2] == "null key k"
    assert (result.made.files[0].records, result.made.files[0].dead, result.made.events) == (203, 2, 201)
    world.check(ALL[:1_300])


def test_an_event_from_after_the_import_is_no_history(world: World) -> None:
    world.live(ALL[:10])
    world.history("a.jsonl", [{"id": 9_000, "k": "a", "x": 1.0, "at": to_micros("2199-01-01")}, {**ALL[0], "id": 9_001}])
    result = world.backfill(bad=job.Bad.parse("1"))
    assert result.letters == {"at: after the moment of the import, so it is no history": 1}
    world.check([*ALL[:10], {**ALL[0], "id": 9_001}])


def test_an_event_from_after_the_import_that_the_dates_leave_out_is_not_bad(world: World) -> None:
    world.live(ALL[:10])
    world.history("a.jsonl", [*ALL[20:60], *({"id": 9_000 + i, "k": "a", "x": 1.0, "at": to_micros("2199-01-01")} for i in range(50))])
    made = world.backfill(until=to_micros("2198-01-01")).made
    assert (made.events, made.files[0].dead, made.files[0].outside) == (40, 0, 50)


@pytest.mark.parametrize(("share", "dead", "records"), [("29%", 29, 100), ("0.7%", 7, 1_000), ("1%", 1, 100), ("0%", 0, 10)])
def test_a_share_that_is_just_reached_is_allowed(share: str, dead: int, records: int) -> None:
    bad = job.Bad.parse(share)
    assert not bad.exceeded(dead, records)
    assert bad.exceeded(dead + 1, records)


def test_letters_of_a_run_that_was_killed_count_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.live(ALL[200:300])
    path = world.history("a.jsonl", ALL[:200])
    path.write_text(path.read_text() + "\n" + "none\n" * 5)
    create = world.env.offline.create

    def killed(key: str, data: bytes) -> bool:
        if "/journal/" in key:
            raise KeyboardInterrupt
        return create(key, data)

    monkeypatch.setattr(job, "LEAST_ROWS", 50)
    monkeypatch.setattr(job, "MOST_ROWS", 1_000)
    monkeypatch.setattr(world.env.offline, "create", killed)
    with pytest.raises(KeyboardInterrupt):
        world.backfill(bad=job.Bad.parse("5"))
    monkeypatch.setattr(world.env.offline, "create", create)
    monkeypatch.setattr(job, "MOST_ROWS", 202)  # as other memory makes it
    result = world.backfill(bad=job.Bad.parse("5"))
    assert result.letters == {"not JSON": 5}
    assert len(staging.letters_of(world.env.offline, "events", result.made.id)) == 5


def test_a_part_ends_where_its_events_are_large(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_FIRST", 10)
    monkeypatch.setattr(parquet, "_BYTES", 6_000)
    wide = [{**e, "k": KEYS[e["id"] % 3], "note": "n" * 500} for e in ALL[:600]]
    definitions = WITH_ID.replace('"k": str', '"k": str, "note": str')
    wide_world = World(world.path.parent / "wide", definitions)
    wide_world.live(ALL[2_000:])
    frame = pl.DataFrame(wide).with_columns(pl.col("at").cast(pl.Datetime("us", "UTC")))
    (wide_world.path / "history").mkdir()
    frame.write_parquet(wide_world.path / "history" / "a.parquet", row_group_size=250)
    budget = job.Staging

    def small(*arguments: object, **options: object) -> object:
        return budget(*arguments, **{**options, "bytes": 10_000})

    monkeypatch.setattr(job, "Staging", small)
    parts = wide_world.backfill().made.parts
    assert max(part.rows for part in parts) <= 30, "of rows of 600 bytes"
    assert sum(part.rows for part in parts) == 600
    wide_world.check(ALL[:600] + ALL[2_000:])


def test_numbers_of_any_size_come_back_from_a_part_as_they_were(world: World) -> None:
    least, most = -(2**63), 2**63 - 1
    frame = pl.DataFrame(
        {
            "n": [least, most, None, 0, most, least] * 50_000,
            "x": [0.1, None, -1e300, 5e-324, 1.0, 2.0] * 50_000,
            "s": ["", None, "é", "x" * 300, "a", "b"] * 50_000,
            "b": [True, None, False] * 100_000,
            "_offset": range(300_000),
            "_time": [least // 32, most // 32, -1] * 100_000,
            "_arrival": [None] * 300_000,
        },
        schema={"n": pl.Int64, "x": pl.Float64, "s": pl.String, "b": pl.Boolean, **PLACE_COLUMNS},
    ).with_columns(at=pl.col("_time").cast(pl.Datetime("us", "UTC")))
    part = write_part(world.env.offline, "history/events/x/00000.parquet", frame)
    back = pl.concat(frame for _, frame in iter_parts(world.env.offline, (part,), rows=7_777))
    assert_frame_equal(back, frame)


def test_nothing_is_imported_where_nothing_is_left(world: World) -> None:
    world.live(ALL[:1_500])
    world.history("a.parquet", ALL[:1_000])
    assert world.backfill().made is None
    world.check(ALL[:1_500])


def test_a_pattern_that_matches_nothing_is_an_error(world: World) -> None:
    with pytest.raises(LogError, match="no file matches"):
        world.backfill(files=("nowhere/*.parquet",))


def test_a_dry_run_writes_nothing(world: World) -> None:
    world.live(ALL[1_000:])
    world.history("a.parquet", ALL[:1_000])
    world.history("b.jsonl", ALL[:100])
    world.history("c.jsonl.gz", ALL[:100])
    before = listing(world.path)
    plan = load("backfill.plan").plan(world.env, job.Request("events", ("history",)))
    assert listing(world.path) == before
    assert (len(plan.files), plan.events, plan.imported) == (3, 1_200, None)
    assert [(v.view, v.version, v.events) for v in plan.views] == [("v", 0, 1_024 + 1_200)]
    made = world.backfill()
    assert made.made.repeated == 200
    assert world.env.offline.path(f"history/events/{made.made.id}") == plan.folder
    assert load("backfill.plan").plan(world.env, job.Request("events", ("history",))).imported == 1


def test_without_publishing_the_next_batch_run_publishes(world: World) -> None:
    world.live(ALL[1_500:])
    world.check(ALL[1_500:])
    world.history("a.parquet", ALL[:1_500])
    world.backfill(publishing=False)
    world.check(ALL[1_500:])
    world.batch()
    world.check(ALL)


def test_while_a_batch_job_holds_the_lease_it_is_left_to_that(world: World) -> None:
    world.live(ALL[1_500:])
    world.history("a.parquet", ALL[:1_500])
    with Lease(world.env.offline, "batch", seconds=60, owner="elsewhere:1"):
        result = world.backfill()
    assert (result.made.events, result.folded) == (1_500, None)
    world.batch()
    world.check(ALL)


def test_a_roll_back_takes_an_import_back_and_the_next_run_brings_it_again(world: World) -> None:
    world.live(ALL[1_500:2_800])
    world.batch()
    world.history("a.parquet", ALL[:1_500])
    world.backfill()
    world.check(ALL[:2_800])
    load("batch.job").rollback(world.env, "events")
    world.stream()
    world.check(ALL[1_500:2_800])
    world.batch()
    world.check(ALL[:2_800])


def test_a_slot_that_comes_back_older_than_the_import_gets_it_again(world: World) -> None:
    world.live(ALL[1_500:])
    copies = {p: p.read_bytes() for p in (world.path / ".tidemill").glob("online.db*")}
    world.history("a.parquet", ALL[:1_500])
    world.backfill()
    world.check(ALL)
    world.env.online.close()
    for path in (world.path / ".tidemill").glob("online.db*"):
        path.unlink()
    for path, data in copies.items():
        path.write_bytes(data)
    world.write(WITH_ID)
    world.check(ALL[1_500:])
    world.batch()
    world.check(ALL)


def test_a_slot_that_vanishes_is_rebuilt_with_the_import(world: World) -> None:
    world.live(ALL[1_500:])
    world.history("a.parquet", ALL[:1_500])
    world.backfill()
    for applied in world.env.applied().bundles:
        world.env.forget([applied.bundle.id], 2)
    world.stream()
    world.check(ALL)
    world.batch()
    world.check(ALL)


def test_more_shards_have_the_import_too(world: World) -> None:
    world.live(ALL[1_500:])
    world.history("a.parquet", ALL[:1_500])
    world.backfill()
    settings = world.path / "tidemill.toml"
    settings.write_text(settings.read_text().replace("shards = 2", "shards = 5"))
    world.write(WITH_ID)
    load("batch.reshard").reshard(world.env)
    world.stream()
    world.check(ALL)
    world.batch()
    world.check(ALL)


def test_the_history_can_be_read_like_the_archive(world: World) -> None:
    world.live(ALL[1_500:])
    world.history("a.parquet", ALL[:700])
    world.history("b.jsonl", ALL[700:1_500])
    store = world.env.offline
    assert list(iter_history(store, "events")) == []
    world.backfill()
    frames = list(iter_history(store, "events", columns={"k": pl.String(), "x": pl.Float64()}, rows=100))
    assert max(map(len, frames)) <= 100
    whole = pl.concat(frames)
    assert whole.columns == ["k", "x", "_offset", "_time", "_arrival"]
    assert sorted(zip(whole["_time"], whole["x"], strict=True)) == [(e["at"], e["x"]) for e in ALL[:1_500]]
    assert list(iter_history(store, "events", 0)) == []
    assert sum(map(len, iter_history(store, "events", latest_cut(store, "events")))) == 1_500
    assert (imports_of(store, "events", 1), read_import(store, "events", 1).latest) == (1, ALL[1_499]["at"])


def test_a_slot_keeps_how_much_of_the_imports_it_holds_and_answers_do_not_show_it_as_a_partition(world: World) -> None:
    world.live(ALL[1_500:])
    world.history("a.parquet", ALL[:1_500])
    world.backfill()
    [applied] = world.env.applied().bundles
    from tidemill.client import FeatureStore
    from tidemill.online.base import SlotId

    for state in world.env.online.slots([SlotId(applied.bundle.id, s) for s in range(2)]):
        assert state.positions == {0: 1_500, HISTORY: 64}
    as_of = FeatureStore(world.env, clock=lambda: AT).get_online_features(["v"], [{"k": "a"}]).as_of
    assert (as_of.positions("v"), as_of.imports("v")) == ({0: 1_500}, 1)
    version = Partials(world.env.offline, applied.bundle).latest()
    assert (version.k, version.imports, version.vector) == (1, 1, {0: 1_024})
