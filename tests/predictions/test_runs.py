"""What a run scores, writes and publishes."""

from __future__ import annotations

import json
from typing import Any

import duckdb
import polars as pl
import pytest

import tidemill as tm
from tests.predictions.conftest import BEGIN, SECOND, Project, StandIn, predict, score_of
from tests.project import EVENTS, job
from tests.servers.postgres import PostgresServer
from tidemill.errors import HorizonError, LeaseError, RequestError, StoreError, StoreUnavailableError, TidemillError
from tidemill.offline.leases import Lease
from tidemill.predictions.book import Predictions
from tidemill.predictions.checks import Limits
from tidemill.predictions.postgres import PostgresPredictions
from tidemill.predictions.sqlite import SqlitePredictions
from tidemill.predictions.urls import open_table


def parts(project: Project, result: Any) -> pl.DataFrame:
    book = Predictions(project.env.offline, result.name)
    manifest = book.files(result.run).manifest()
    assert manifest is not None
    return pl.concat(list(book.files(result.run).frames(manifest)))


def test_the_first_run_scores_everyone_and_the_next_those_with_events_since(published: Project) -> None:
    published.happen("a", "b", "b", "c")
    first = published.run()
    assert (first.outcome, first.statistics.rows) == ("published", 3)
    assert published.latest() == {"a": score_of(1), "b": score_of(2), "c": score_of(1)}
    published.happen("c", "d", seconds=-5000)  # late, and counted all the same
    second = published.run(seconds=3700)
    assert parts(published, second)["entity"].to_list() == ["c", "d"]
    assert published.latest() == {"a": score_of(1), "b": score_of(2), "c": score_of(2), "d": score_of(1)}
    assert published.query("select entity from p_current order by 1") == [("c",), ("d",)]
    assert published.run(seconds=3800).outcome == "unchanged"


def test_the_features_of_a_run_are_those_of_a_live_request_to_the_bit(project: Project) -> None:
    for seconds in (0, 10, 3000):
        project.happen("a", "bb", "ccc", "bb", seconds=seconds)
    found = parts(project, project.run(chunk=2, part_rows=2))
    live = project.standin().store.get_online_features(["v"], [{"k": k} for k in found["k"]], at=project.now).to_polars()
    assert found.select(live.columns).equals(live)
    past = parts(project, project.run(name="q", features_from="history"))
    assert past.select(live.columns).equals(live)
    assert set(past["features_from"]) == {"history"}


def test_a_run_id_stands_for_one_run(published: Project) -> None:
    published.happen("a", "b")
    assert published.run(run="nightly-1").outcome == "published"
    published.happen("a")
    again = published.run(run="nightly-1", seconds=4000)
    assert (again.outcome, again.statistics.rows) == ("already published", 2)
    assert published.latest() == {"a": score_of(1), "b": score_of(1)}
    assert published.query("select count(*) from p_scores") == [(2,)]


def test_a_run_id_that_is_asked_for_something_else_is_refused(project: Project) -> None:
    project.happen("a")
    project.run(run="x", limits=Limits(min_rows=9))
    with pytest.raises(RequestError, match="begun for something else"):
        project.run(run="x", features_from="history")


def test_a_file_of_entities_is_scored_in_its_order(published: Project) -> None:
    published.happen("a", "b", "b")
    file = published.path / "who.csv"
    file.write_text("k,note\nb,1\nnever seen,2\na,3\n")
    result = published.run(entities=file)
    found = parts(published, result)
    assert found["entity"].to_list() == ["b", "never seen", "a"]
    assert found["score"].to_list() == [score_of(2), score_of(0), score_of(1)]
    assert found["status"].to_list() == ["ok", "degraded", "ok"], "the mean of nothing is null"
    assert found["label"].to_list() == ["true", "true", "true"]
    assert result.statistics.statuses == {"ok": 2, "degraded": 1}
    assert published.query("select entity, k, score, status from p_current order by entity") == [
        ("a", "a", score_of(1), "ok"),
        ("b", "b", score_of(2), "ok"),
        ("never seen", "never seen", score_of(0), "degraded"),
    ]


def test_a_run_of_a_file_does_not_move_the_place_from_which_events_count(published: Project) -> None:
    published.happen("a")
    published.run()
    published.happen("b", "c")
    file = published.path / "who.parquet"
    pl.DataFrame({"k": ["b"]}).write_parquet(file)
    assert published.run(entities=file, seconds=3700).statistics.rows == 1
    assert published.run(seconds=3800).statistics.rows == 2


def test_a_roll_back_shows_what_was_there_before_and_its_entities_are_scored_again(published: Project) -> None:
    published.happen("a", "b")
    published.run(run="one")
    published.happen("b")
    published.run(run="two", seconds=3700)
    published.rollback()
    assert published.latest() == {"a": score_of(1), "b": score_of(1)}
    assert published.query("select run from tidemill_prediction_current") == [("one",)]
    assert published.query("select run, withdrawn_at is null from tidemill_prediction_runs order by run") in (
        [("one", 1), ("two", 0)],
        [("one", True), ("two", False)],
    )
    with pytest.raises(RequestError, match="run two was rolled back"):
        published.run(run="two", seconds=3800)
    assert published.run(run="three", seconds=3800).statistics.rows == 1
    assert published.latest() == {"a": score_of(1), "b": score_of(2)}
    published.rollback()
    published.rollback()
    assert (published.latest(), published.query("select run from tidemill_prediction_current")) == ({}, [(None,)])
    with pytest.raises(TidemillError, match="no published run to roll back"):
        published.rollback()


def test_a_run_that_is_blocked_leaves_the_last_good_one_and_what_it_saw_is_scored_again(published: Project) -> None:
    published.happen("a", "b")
    published.run()
    published.happen("a")
    blocked = published.run(run="bad", seconds=3700, limits=Limits(max_score=0.1))
    assert (blocked.outcome, [f.check for f in blocked.findings]) == ("blocked", ["range"])
    assert published.latest() == {"a": score_of(1), "b": score_of(1)}
    allowed = published.run(run="bad", seconds=3800)
    assert (allowed.outcome, allowed.statistics.rows, allowed.at) == ("published", 1, BEGIN + 3700 * SECOND)
    assert published.latest() == {"a": score_of(2), "b": score_of(1)}


def test_what_was_blocked_cannot_be_published_over_what_came_later(project: Project) -> None:
    project.happen("a", "b")
    project.run(run="bad", limits=Limits(max_score=0.1))
    project.run(run="good", seconds=3700)
    with pytest.raises(RequestError, match="do not go back in time"):
        project.run(run="bad", seconds=3800)


def test_a_run_planned_after_one_that_was_rolled_back_is_not_published(project: Project) -> None:
    project.happen("a")
    project.run(run="one")
    project.happen("b")
    project.run(run="bad", seconds=3700, limits=Limits(max_score=0.1))
    project.rollback()
    with pytest.raises(RequestError, match="events that no published run has seen"):
        project.run(run="bad", seconds=3800)


@pytest.mark.parametrize("id", ["score", "Score", "SEQ", "K"])
def test_rows_cannot_be_named_by_a_column_that_a_table_would_have_twice(published: Project, id: str) -> None:
    """Databases do not tell large letters from small ones. Nothing is published that the table could never take."""
    published.happen("a", "b")
    file = published.path / "who.csv"
    file.write_text(f"k,{id}\na,x1\nb,x2\n")
    with pytest.raises(RequestError, match=f"--id {id}: predictions have a column of this name"):
        published.run(entities=file, id=id)
    assert published.run().outcome == "published"


def test_a_run_is_compared_with_the_last_one_of_its_kind(project: Project) -> None:
    """Of a file of entities now and then, and of those with events in between."""
    project.happen("a", "b", "b")
    file = project.path / "who.csv"
    limits = Limits(psi_rows=2, warn_psi=0.1, block_psi=0.2)
    file.write_text("k\n" + "".join(f"new{i}\n" for i in range(20)))
    assert project.run(entities=file, limits=limits).outcome == "published"
    assert project.run(limits=limits, seconds=3700).outcome == "published"
    file.write_text("k\na\nb\n")
    blocked = project.run(entities=file, limits=limits, seconds=3800)
    assert (blocked.outcome, [f.check for f in blocked.findings]) == ("blocked", ["shrink", "psi"])


def test_the_scores_over_the_threshold_are_a_view(published: Project) -> None:
    published.happen("a", "b", "b", "c", "c", "c")
    published.run(threshold=score_of(2))
    assert sorted(published.query("select entity from p_above")) == [("a",), ("b",)]
    published.happen("a")
    published.run(seconds=3700)  # the threshold stays
    assert sorted(published.query("select entity from p_above")) == [("a",), ("b",)]
    published.happen("a", "a", "a")
    published.run(seconds=3800, threshold=0.0)
    assert len(published.query("select entity from p_above")) == 3
    for entities in (["a", "b"], ["a", "b"], []):  # each as it was before: with the threshold of then
        published.rollback()
        assert sorted(entity for (entity,) in published.query("select entity from p_above")) == entities


def test_scores_that_are_not_finite_are_never_published(published: Project) -> None:
    published.happen("a", "b", "c", "d")
    scorer = published.standin()
    values = iter([float("nan"), float("inf"), None, 0.5])
    scorer.score_of = lambda row: next(values)
    blocked = published.run(scorer=scorer, run="x")
    assert (blocked.outcome, blocked.statistics.statuses) == ("blocked", {"ok": 1, "missing": 1, "nonfinite": 2})
    let = Limits(block_nonfinite=None, block_nulls=None, block_coverage=None)
    assert published.run(scorer=scorer, run="x", limits=let).outcome == "published"
    found = published.query("select entity, score, label, status from p_latest order by entity")
    assert found == [("a", None, None, "nonfinite"), ("b", None, None, "nonfinite"), ("c", None, None, "missing"), ("d", 0.5, "true", "ok")]


def test_an_event_that_lies_ahead_of_its_run_counts_in_the_next(published: Project) -> None:
    published.happen("a", "b")
    published.happen("a", seconds=3650)
    published.run(seconds=3600)
    assert published.latest() == {"a": score_of(1), "b": score_of(1)}
    assert published.run(seconds=3700).statistics.rows == 1
    assert published.latest() == {"a": score_of(2), "b": score_of(1)}
    assert published.run(seconds=3800).outcome == "unchanged"


def test_an_event_that_is_archived_but_not_applied_is_for_the_next_run(project: Project) -> None:
    project.happen("a", "b")
    project.run()
    project.happen("c")
    for bundle in project.env.applied().bundles:
        for shard in range(2):
            project.env.online.reset(tm.online.base.SlotId(bundle.bundle.id, shard))
    assert project.run(seconds=3700).outcome == "unchanged"
    project.stream()
    assert parts(project, project.run(seconds=3800))["entity"].to_list() == ["c"]


def test_a_run_in_the_past_knows_only_what_had_happened_then(project: Project) -> None:
    project.happen("a", "b")
    project.happen("a", "c", seconds=60)
    result = project.run(at=BEGIN + 30 * SECOND, features_from="history")
    found = parts(project, result)
    assert found.select("entity", "score").rows() == [("a", score_of(1)), ("b", score_of(1))]
    later = project.run(at=BEGIN + 90 * SECOND, features_from="history")
    assert parts(project, later).select("entity", "score").rows() == [("a", score_of(2)), ("c", score_of(1))]


def test_where_the_store_has_moved_on_the_history_answers(project: Project) -> None:
    (project.path / "tidemill.toml").write_text('[project]\nname = "p"\n[online]\nshards = 2\nslack = "10s"\n')
    project.define((project.path / "features.py").read_text().partition("\n")[2])
    project.happen("a", "b", "b")
    project.happen("c", seconds=600)
    at = BEGIN + 300 * SECOND
    with pytest.raises(HorizonError):
        project.run(at=at, features_from="online")
    found = parts(project, project.run(at=at, chunk=1))
    assert found.select("entity", "score", "features_from").rows() == [
        ("a", score_of(1), "history"),
        ("b", score_of(2), "history"),
        ("c", score_of(0), "history"),
    ]


def test_chunks_and_parts_bound_what_is_in_memory_at_once(project: Project) -> None:
    project.happen(*(f"e{i:03}" for i in range(250)))
    scorer = project.standin()
    result = project.run(scorer=scorer, chunk=30, part_rows=100)
    assert scorer.asked == [30, 30, 30, 10, 30, 30, 30, 10, 30, 20]
    book = Predictions(project.env.offline, "p")
    manifest = book.files(result.run).manifest()
    assert manifest is not None
    assert [p.rows for p in manifest.parts] == [100, 100, 50]


def test_a_dry_run_scores_and_checks_and_leaves_nothing(published: Project) -> None:
    published.happen("a", "b")
    before = sorted(p for p in published.path.rglob("*") if p.is_file())
    result = published.run(dry_run=True, limits=Limits(max_score=0.1))
    assert (result.outcome, result.statistics.rows, [f.check for f in result.findings]) == ("dry run", 2, ["range"])
    assert sorted(p for p in published.path.rglob("*") if p.is_file()) == before


def test_other_tools_read_the_current_run_from_its_files(project: Project) -> None:
    project.happen("a", "b", "b")
    project.run()
    current = json.loads((project.path / ".tidemill/offline/predictions/p/current.json").read_text())
    assert duckdb.sql(f"select entity, score from read_parquet({current['parts']}) order by 1").fetchall() == [
        ("a", score_of(1)),
        ("b", score_of(2)),
    ]


def test_a_table_that_was_away_gets_every_run_that_it_missed(published: Project) -> None:
    url, published.url = published.url, None
    published.happen("a", "b")
    published.run()
    published.happen("b")
    published.run(seconds=3700)
    published.url = url
    assert published.run(seconds=3800).outcome == "unchanged"
    assert published.latest() == {"a": score_of(1), "b": score_of(2)}
    assert published.query("select count(*) from p_scores") == [(3,)]


def test_rows_that_nobody_can_roll_back_to_leave_the_table(published: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.predictions.book.VISIBLE", 2)
    published.happen("once", "again")
    for i in range(5):
        published.happen(*(["often", "again"] if i == 4 else ["often"]))
        published.run(seconds=3600 + i)
    assert published.latest() == {"once": score_of(1), "often": score_of(5), "again": score_of(2)}
    assert published.query("select entity, count(*) from p_scores group by 1 order by 1") == [("again", 2), ("often", 2), ("once", 1)]
    published.rollback()
    assert published.latest() == {"once": score_of(1), "often": score_of(4), "again": score_of(1)}


def test_several_names_share_a_database(published: Project) -> None:
    published.happen("a")
    published.run()
    published.run(name="other", threshold=0.1)
    assert published.query("select entity from other_above") == [("a",)]
    assert sorted(published.query("select name from tidemill_prediction_current")) == [("other",), ("p",)]


def test_a_table_of_other_predictions_is_left_alone(published: Project) -> None:
    published.happen("a")
    published.run()
    published.define(EVENTS.replace('"k": str', '"k": str, "j": str') + 'v = tm.FeatureView("v", source=events, entity=tm.Entity("e", '
        'keys=["k", "j"]), aggregations=[tm.count(windows=["lifetime"])])\n')  # fmt: skip
    file = published.path / "who.csv"
    file.write_text("k,j\na,b\n")
    with pytest.raises(StoreError, match=r'table "p_scores" has the columns entity, k, .*another name'):
        published.run(entities=file, seconds=3700)
    assert published.latest() == {"a": score_of(1)}
    assert Predictions(published.env.offline, "p").journal.state().event == "begin", "it was not published anywhere"


def test_a_run_that_the_database_cannot_take_is_taken_back(
    project: Project, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.url = postgres.database()
    monkeypatch.setenv("PGPASSWORD", postgres.PASSWORD)
    project.happen("a")
    project.run()
    project.happen("b", "a\0b")  # no text of Postgres holds a zero byte
    for _ in range(2):
        with pytest.raises(StoreError, match=r"0x00.*nothing was changed"):
            project.run(seconds=3700)
    project.rollback()
    assert project.latest() == {"a": score_of(1)}
    project.url = "sqlite:///p.db"
    project.run(seconds=3800)
    assert set(project.latest()) == {"a", "b", "a\0b"}


def test_keys_of_every_type_and_odd_texts_come_back_as_they_are(published: Project) -> None:
    keys = 'tm.Entity("e", keys=["order", "n", "t", "f"])'
    view = f'v = tm.FeatureView("v", source=events, entity={keys}, aggregations=[tm.count(windows=["lifetime"])])\n'
    types = '"order": str, "n": int, "t": tm.Timestamp, "f": bool, "at": tm.Timestamp'
    published.define(EVENTS.replace('"k": str, "x": int, "at": tm.Timestamp', types) + view)
    odd = ["", "null", '"', "'; drop table p_scores; --", "a,b\nc\\", "ü🌊", "%s"]
    at = "2026-05-01T00:00:00.000001Z"
    published.log([{"order": s, "n": 2**53 + 1, "t": "1969-12-31T23:59:59.999999Z", "f": True, "at": at} for s in odd])
    published.stream()
    published.run()
    found = published.query('select "order", n, f, score, t, at from p_latest')
    assert sorted(row[0] for row in found) == sorted(odd)
    assert {row[1:4] for row in found} == {(2**53 + 1, True, 0.5)}
    assert {tm.times.to_micros(row[4]) for row in found} == {-1}
    assert {tm.times.to_micros(row[5]) for row in found} == {published.now}


def test_floats_come_back_to_the_bit(published: Project) -> None:
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1e16 + 2, 2**-60, 123456789.12345679]
    published.happen(*(str(i) for i in range(len(values))))
    scorer = published.standin()
    left = iter(values)
    scorer.score_of = lambda row: next(left)
    published.run(scorer=scorer)
    found = [row[0].hex() for row in published.query("select score from p_latest order by entity")]
    assert found == [(v + 0.0).hex() for v in values], "but for -0.0, which SQLite does not keep: it is 0.0 in all outputs"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("k\na\na\n", "'a' is there more than once"),
        ("x\n1\n", "has no column 'k'"),
        ("k\n\n", "no key 'k'|more than once|cannot be read"),
    ],
)
def test_entities_that_cannot_be_scored_are_refused_with_a_reason(project: Project, text: str, said: str) -> None:
    file = project.path / "who.csv"
    file.write_text(text)
    with pytest.raises(RequestError, match=said):
        project.run(entities=file)


def test_rows_may_be_named_by_a_column_of_their_own(published: Project) -> None:
    share = (
        "@tm.on_demand(inputs=[v, tm.Request(distance=float)])\ndef far(count_lifetime, distance):\n    return count_lifetime * distance\n"
    )
    published.define((published.path / "features.py").read_text().partition("\n")[2] + share)
    published.happen("a", "a")
    scorer = of_flights(published)
    file = published.path / "flights.jsonl"
    file.write_text("".join(json.dumps({"flight": f, "k": "a", "distance": d}) + "\n" for f, d in ((7, 1.5), (8, 2.5))))
    with pytest.raises(RequestError, match="name the rows by a column with --id"):
        published.run(scorer=scorer, entities=file)
    published.run(scorer=scorer, entities=file, id="flight")
    assert published.query("select entity, flight, k, score from p_latest order by 1") == [("7", 7, "a", 3.0), ("8", 8, "a", 5.0)]
    with pytest.raises(RequestError, match="also needs distance with each row"):
        published.run(scorer=scorer, seconds=3700)


def of_flights(project: Project) -> Any:
    scorer = StandIn(project.env, features=["v", "far"])
    scorer.score_of = lambda row: row["far"]
    return scorer


@pytest.mark.parametrize("name", ["", "A", "a-b", "1a", "a" * 41, "a/b"])
def test_a_name_that_no_table_can_have_is_refused(project: Project, name: str) -> None:
    with pytest.raises(RequestError, match="cannot name predictions"):
        project.run(name=name)


@pytest.mark.parametrize("run", ["_journal", ".x", "a/b", "", "a b", "x" * 81])
def test_a_run_that_no_folder_can_be_named_after_is_refused(project: Project, run: str) -> None:
    with pytest.raises(RequestError, match="cannot name a run"):
        project.run(run=run)


def test_overlap_is_refused(project: Project) -> None:
    with Lease(project.env.offline, "predict-p", seconds=60, owner="elsewhere:1"):
        with pytest.raises(LeaseError, match="held by elsewhere:1"), job.alone(project.env, None, "predict-p"):
            pass
        with job.alone(project.env, None, "predict-q"):
            pass


def test_a_database_that_does_not_answer_is_named_without_its_password(project: Project) -> None:
    table = open_table("postgresql://me:s3cret-word@127.0.0.1:1/shop", base=project.path)
    with pytest.raises(StoreUnavailableError) as error:
        table.check("p", {})
    assert str(error.value).startswith("postgresql://127.0.0.1:1/shop does not answer")
    assert "s3cret" not in str(error.value)


def test_a_run_is_tried_again_and_warned_of_when_it_nears_its_interval(project: Project) -> None:
    now = 0.0
    took = iter([100.0, 250.0, -1.0, 320.0, 10.0])
    said: list[str] = []

    def once() -> Any:
        nonlocal now
        seconds = next(took)
        if seconds < 0:
            raise StoreUnavailableError("away")
        now += seconds
        return None

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    predict.run_every(
        once,
        300.0,
        lambda: len(said) == 5,
        sleep,
        lambda result, warning: said.append(f"{now:.0f} {(warning or '').partition(':')[0]}"),
        lambda error, pause: said.append(f"{now:.0f} {error} {pause:.0f}"),
        clock=lambda: now,
    )
    assert said == [
        "100 ",
        "550 the run took 83% of its interval",
        "600 away 5",
        "925 the run took 107% of its interval, so the next one began late",
        "936 ",
    ]


def test_a_database_that_dies_in_the_middle_keeps_the_last_good_run_and_gets_the_next_when_it_is_back(
    project: Project, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.url = postgres.database()
    monkeypatch.setenv("PGPASSWORD", postgres.PASSWORD)
    project.happen("a", "b")
    project.run()
    project.happen("a")
    real = PostgresPredictions.load

    def dies(table: Any, name: str, frame: pl.DataFrame) -> None:
        real(table, name, frame)
        postgres.kill()

    with monkeypatch.context() as patch:
        patch.setattr(PostgresPredictions, "load", dies)
        with pytest.raises(StoreUnavailableError, match=r"postgresql://127.0.0.1:\d+/d\d+ does not answer"):
            project.run(seconds=3700)
    with pytest.raises(StoreUnavailableError):
        project.run(seconds=3710)
    postgres.start()
    assert project.latest() == {"a": score_of(1), "b": score_of(1)}
    assert project.run(seconds=3720).outcome == "unchanged"
    assert project.latest() == {"a": score_of(2), "b": score_of(1)}


def test_nobody_sees_half_of_a_run(published: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    published.happen("a", "b")
    published.run(run="one")
    published.happen("a", "b", "c")
    seen: list[Any] = []
    for kind in (PostgresPredictions, SqlitePredictions):
        real = kind.load

        def looking(table: Any, name: str, frame: pl.DataFrame, real: Any = real) -> None:
            real(table, name, frame)
            seen.append((published.latest(), published.query("select run from tidemill_prediction_current")))

        monkeypatch.setattr(kind, "load", looking)
    published.run(seconds=3700, part_rows=1)
    assert seen == 3 * [({"a": score_of(1), "b": score_of(1)}, [("one",)])]
    assert published.latest() == {"a": score_of(2), "b": score_of(2), "c": score_of(1)}
