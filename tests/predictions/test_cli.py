"""`tidemill predict`, with a registered model, through the command line."""

from __future__ import annotations

import json
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psycopg
import pytest

import tidemill as tm
from tests.cli.conftest import Project, event, folder, line  # noqa: F401 - `event` and `folder` come with it
from tests.servers.postgres import PostgresServer
from tidemill.predictions.book import Predictions
from tidemill.predictions.models import ModelScorer
from tidemill.times import to_micros

FEATURES = """\
import tidemill as tm

tx = tm.Source(
    "tx", schema={"id": int, "card": str, "amount": float, "at": tm.Timestamp}, timestamp="at", event_id="id", path="data/*.jsonl"
)
card = tm.FeatureView(
    "card",
    source=tx,
    entity=tm.Entity("card"),
    aggregations=[tm.count(windows=["1h", "1d"]), tm.mean("amount", windows=["1d"])],
)
s = tm.FeatureService("s", features=[card])
"""
AT = "2026-01-05T01:00:00Z"


def fitted(seed: int = 0) -> Any:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(200, 3)) * [400, 400, 1]
    return LogisticRegression().fit(rows, rows[:, 0] + 800 * rng.normal(size=200) > 0)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Cards a to d with 375 events each, and a model `fraud` that is in force."""
    found = Project(tmp_path / "p", monkeypatch.chdir)
    found.write("tidemill.toml", '[project]\nname = "p"\n[online]\nshards = 2\nslack = "3650d"\n[predict]\nto = "sqlite:///scores.db"\n')
    found.write("features.py", FEATURES)
    found.write("data/1.jsonl", "".join(line(i, "abcd"[i % 4], 0.001 * i) for i in range(1500)))
    assert found.run("apply").code == 0
    found.stream()
    store = tm.FeatureStore(found.root)
    register(store)
    store.close()
    return found


def register(store: tm.FeatureStore, seed: int = 0, **more: Any) -> None:
    options = {"fill": dict.fromkeys(("card__count_1h", "card__count_1d", "card__amount_mean_1d"), 0.0), **more}
    version = store.models.register("fraud", fitted(seed), service="s", **options).version
    store.models.promote("fraud", version)


def table(project: Project, sql: str = "select card, score, status from fraud_latest order by 1") -> list[tuple[Any, ...]]:
    db = sqlite3.connect(project.root / "scores.db")
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def test_a_run_says_what_it_did_in_one_line_and_the_scores_are_those_of_a_request(project: Project) -> None:
    ran = project.run("predict fraud --features-from online")
    assert ran.code == 0, ran.err
    assert "published: 4 rows (4 degraded)" in ran.out.splitlines()[-1]
    assert ran.out.count("\n") <= 4
    store = tm.FeatureStore(project.root)
    at = table(project, "select at from fraud_current")[0][0]
    scores = store.score("fraud", [{"card": c} for c in "abcd"], at=at)
    store.close()
    assert [(c, pytest.approx(s, abs=1e-12), "degraded") for c, s in zip("abcd", scores.score, strict=True)] == table(project)


def test_in_the_past_features_and_scores_are_those_that_a_request_got_then(project: Project) -> None:
    document = project.run(f"predict fraud --at {AT} --json").json
    assert {k: document[k] for k in ("outcome", "model", "version", "at")} == {
        "outcome": "published",
        "model": "fraud",
        "version": "1",
        "at": "2026-01-05T01:00:00+00:00",
    }
    assert document["statistics"]["statuses"] == {"ok": 4}
    assert document["statistics"]["history"] == 4
    store = tm.FeatureStore(project.root)
    book = Predictions(store.env.offline, "fraud")
    manifest = book.files(document["run"]).manifest()
    assert manifest is not None
    found = pl.concat(list(book.files(document["run"]).frames(manifest)))
    scores = store.score("fraud", [{"card": c} for c in found["card"]], at=AT)
    live = scores.features.to_polars()
    assert found.select(live.columns).equals(live)
    assert found["score"].to_list() == pytest.approx(scores.score, abs=1e-12)
    assert found["label"].to_list() == [json.dumps(label) for label in scores.label]
    store.close()


def test_online_and_from_the_history_a_row_has_the_same_score_and_status(project: Project) -> None:
    store = tm.FeatureStore(project.root)
    for more in ({}, {"fallback": 0.25}, {"max_missing": 0}):
        register(store, **more)
        store.scorer.served.look()
        scorer = ModelScorer(store, "fraud")
        rows = pl.DataFrame({"card": ["a", "never seen", "d"]})
        online, past = scorer.score(rows.to_dicts(), to_micros(AT)), scorer.score_past(rows, to_micros(AT))
        assert past.score == pytest.approx(online.score, abs=1e-12)
        assert list(past.status) == list(online.status)
        assert past.features.equals(online.features)
        assert list(past.label) == list(online.label)
        assert online.status[1] == {"fallback": "fallback", "max_missing": "missing"}.get(next(iter(more), ""), "degraded")
    store.close()


def test_a_blocked_run_exits_with_3_and_the_last_good_one_stays(project: Project) -> None:
    assert project.run(f"predict fraud --at {AT} --run one").code == 0
    before = table(project)
    later = "--at 2026-01-05T02:00:00Z --entities who.csv"
    project.write("who.csv", "card\na\nb\n")
    ran = project.run(f"predict fraud {later} --run two --check max_score=0.0001 --threshold 0.1")
    assert ran.code == 3
    assert "blocked: range: the highest score is" in ran.out
    assert "run two is blocked, and the last good run stays" in ran.out
    assert table(project) == before
    assert project.run(f"predict fraud {later} --run three --check max_score=0.0001 --dry-run").code == 3
    assert "warning: check: psi" not in project.run(f"predict fraud {later} --run two --json").out
    assert table(project, "select run from tidemill_prediction_current") == [("two",)]


def test_a_roll_back_is_one_command(project: Project) -> None:
    project.run(f"predict fraud --at {AT} --run one")
    project.write("who.csv", "card\na\n")
    project.run("predict fraud --at 2026-01-05T02:00:00Z --entities who.csv --run two")
    assert table(project, "select count(*) from fraud_scores") == [(5,)]
    assert project.run("predict fraud --rollback --json").json == {"name": "fraud", "run": "two", "current": "one"}
    assert "no run is left" in project.run("predict fraud --rollback").out
    assert "no published run to roll back" in project.refused("predict fraud --rollback")


def test_checks_and_more_are_set_in_the_settings_and_by_options(project: Project) -> None:
    toml = project.root / "tidemill.toml"
    toml.write_text(
        toml.read_text() + 'chunk = 2\nchecks = { min_rows = 9 }\n[predict.other]\nmodel = "fraud"\nchecks = { min_rows = "off" }\n'
    )
    ran = project.run(f"predict fraud --at {AT}")
    assert (ran.code, "4 rows, and at least 9 are expected" in ran.out) == (3, True)
    assert project.run(f"predict other --at {AT}").code == 0
    assert project.run(f"predict fraud --at {AT} --check min_rows=1 --run again").code == 0


@pytest.mark.parametrize(
    ("line", "said", "code"),
    [
        ("predict nothing", "there is no model 'nothing'|no model|nothing", 1),
        ("predict Fraud", "cannot name predictions", 1),
        ("predict fraud --at nonsense", "write an instant such as", 2),
        ("predict fraud --every 5m --run x", "--every and --run do not go together", 2),
        ("predict fraud --rollback --run x", "--rollback goes alone", 2),
        ("predict fraud --rollback --model other", "--rollback goes alone", 2),
        ("predict fraud --rollback --threshold 0.0", "--rollback goes alone", 2),
        ("predict fraud --rollback --check min_rows=0", "--rollback goes alone", 2),
        ("predict fraud --id card", "--id names the rows of --entities", 2),
        ("predict fraud --threshold nan", "--threshold is a score; got nan", 2),
        ("predict to", "there is no model 'to'", 1),
        ("predict fraud --check min_rows", "write CHECK=LIMIT", 2),
        ("predict fraud --check min_row=1", "did you mean|there is no check 'min_row'", 1),
        ("predict fraud --check min_rows=many", "give a number", 1),
        ("predict fraud --entities nowhere.csv", "nowhere.csv cannot be read", 1),
        ("predict fraud --to mysql://host/db", "write sqlite:///path/to/file.db", 1),
        ("predict fraud --features-from dreams", "is one of auto, online, history", 2),
        ("predict fraud --run ../x", "cannot name a run", 1),
        ("predict fraud --metrics-port 0", "go with --every", 2),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(project: Project, line: str, said: str, code: int) -> None:
    import re

    assert re.search(said, project.refused(line, code))


def test_passwords_are_taken_from_variables_and_never_shown(
    project: Project, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.database()
    with_password = url.replace("@", f":{postgres.PASSWORD}@")
    said = project.refused(f"predict fraud --at {AT} --to {with_password}", 2)
    assert "holds a password" in said
    assert postgres.PASSWORD not in said
    toml = project.root / "tidemill.toml"
    text = toml.read_text()
    toml.write_text(text.replace("sqlite:///scores.db", with_password))
    said = project.refused(f"predict fraud --at {AT}")
    assert "does not belong into a file" in said
    assert postgres.PASSWORD not in said
    toml.write_text(text.replace("sqlite:///scores.db", url.replace("@", ":${SCORES_PASSWORD}@")))
    monkeypatch.setenv("SCORES_PASSWORD", "wrong-" + postgres.PASSWORD)
    said = project.refused(f"predict fraud --at {AT}")
    assert "password authentication failed" in said
    assert postgres.PASSWORD not in said
    monkeypatch.setenv("SCORES_PASSWORD", postgres.PASSWORD)
    assert project.run(f"predict fraud --at {AT}").code == 0
    with psycopg.connect(with_password) as connection:
        assert connection.execute("select count(*) from fraud_latest").fetchone() == (4,)


def test_a_run_teaches_no_learner_and_a_dry_run_writes_nothing_at_all(project: Project) -> None:
    """Runs are made twice, blocked and rolled back; a learner would take each row for a prediction that somebody was served."""
    with (project.root / "tidemill.toml").open("a") as toml:
        toml.write("\n[log]\npredictions = 1\nreads = 1\n")
    before = sorted(str(p) for p in project.root.rglob("*"))
    assert project.run("predict fraud --dry-run --features-from online").code == 0
    assert sorted(str(p) for p in project.root.rglob("*")) == before
    assert project.run("predict fraud --features-from online").code == 0
    journals = project.root / ".tidemill" / "offline" / "journals"
    assert not (journals / "predictions").exists()
    assert (journals / "reads").exists()


def test_the_help_has_an_example(project: Project) -> None:
    assert "tidemill predict fraud --every 5m" in project.run("predict --help").out


def test_killed_for_real_and_run_again_each_prediction_is_there_once(project: Project) -> None:
    project.write("who.csv", "card\n" + "".join(f"c{i}\n" for i in range(6000)))
    command = project.command("predict fraud --entities who.csv --chunk 20 --run r --check block_nulls=off --features-from online")
    loud = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": project.root}
    plan = project.root / ".tidemill/offline/predictions/fraud/r/plan.json"
    for delay in (0.0, 0.15):
        process = subprocess.Popen(command, **loud)  # type: ignore[call-overload]
        deadline = time.monotonic() + 60
        while not plan.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
    done = subprocess.run(command, check=False, **loud)  # type: ignore[call-overload]
    assert (done.returncode, "going on where it was cut short" in done.stdout) == (0, True), done.stderr
    assert table(project, "select count(*), count(distinct entity) from fraud_scores") == [(6000, 6000)]
    again = subprocess.run(command, check=False, **loud)  # type: ignore[call-overload]
    assert "was published before, with 6,000 rows; nothing was done" in again.stdout


def test_again_and_again_until_it_is_told_to_stop_and_nobody_else_beside_it(project: Project) -> None:
    command = project.command("predict fraud --every 1s --metrics-port 0 --features-from online")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=project.root) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(4)]
        refused = project.process("predict fraud")
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert any("published: 4 rows" in each for each in said), said
    assert any("metrics at http://127.0.0.1" in each for each in said), said
    assert rest.endswith("stopped\n")
    assert refused.code == 1
    assert "the lease 'predict-fraud' is held by" in refused.err


def test_the_metrics_of_a_run_are_plain_values(project: Project) -> None:
    from tidemill.apps import load

    env = project.environment()
    measured = load("batch.predict_metrics").PredictMetrics(env, "fraud")
    store = tm.FeatureStore(env)
    request = load("batch.predict").Request("fraud", at=to_micros(AT), features_from="history")
    measured.ran(load("batch.predict").run(env, request, lambda version: ModelScorer(store, "fraud", version)), 5.0)
    found = {m.name: {s.labels: s.value for s in m.samples} for m in measured.collect()}
    assert found["tidemill_predict_runs_total"] == {("fraud", "published"): 1}
    assert found["tidemill_predict_published_rows"] == {("fraud", "ok"): 4}
    assert found["tidemill_predict_published_timestamp_seconds"] == {("fraud",): 5.0}
    store.close()


def test_the_command_runs_as_a_process_of_its_own(project: Project) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from tidemill.cli import main; main()", *shlex.split(f"predict fraud --at {AT} --json")],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)["outcome"] == "published", done.stderr
