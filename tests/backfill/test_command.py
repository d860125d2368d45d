"""`tidemill backfill` as people type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.backfill.world import WITHOUT_ID, World, listing, make_events
from tidemill.cli.app import build

ALL = make_events(3_000)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path / "p")
    world.live(ALL[1_000:])
    world.history("a.parquet", ALL[:1_100])
    world.history("b.jsonl", [])
    with (world.path / "history" / "b.jsonl").open("w") as lines:
        lines.write('{"id": 1}\n')
    monkeypatch.chdir(world.path)
    return world


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build(), ["backfill", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_it_says_what_it_did(world: World) -> None:
    code, out, _ = run("events", "--from", "history")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:3] == [
        "imported 1,000 events of 1,101 records in 2 files",
        "100 left out, because the log or an earlier import has them",
        "1 dead letter: at: missing, and it is the event time",
    ]
    assert lines[-1].startswith("folded events to version 1, published 3 entities, in ")
    assert run("events", "--from", "history")[1].splitlines()[0].startswith("was import 1 already: 1,000 events")
    world.check(ALL)


def test_as_json(world: World) -> None:
    code, out, _ = run("events", "--from", "history", "--json", "--memory", "512MiB", "--threads", "1")
    told = json.loads(out)
    assert code == 0
    assert told["import"]["events"] == 1_000
    assert [f["dead"] for f in told["import"]["files"]] == [0, 1]
    assert set(told["folded"]["versions"].values()) == {1}


def test_a_dry_run_says_what_would_be_read_and_written_and_writes_nothing(world: World) -> None:
    before = listing(world.path)
    code, out, _ = run("events", "--from", "history/*.parquet", "--dry-run")
    assert code == 0
    assert "would read 1 file: " in out
    assert "about 1,100 events" in out
    assert "wrote nothing" in out
    assert listing(world.path) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "there is no applied source 'nothing'"),
        (["events", "--view", "x"], "there is no applied view 'x'"),
        (["events", "--since", "2026-01-01"], "go with --from"),
        (["events", "--from", "history", "--since", "soon"], "--since is a time such as"),
        (["events", "--from", "history", "--overlap", "maybe"], "by-id, by-time or none"),
        (["events", "--from", "history", "--before", "2026-01-01"], "--before goes with --overlap by-time"),
        (["events", "--from", "history", "--max-bad", "many"], "--max-bad is a number"),
        (["events", "--from", "history", "--memory", "much"], "--memory is a size"),
        (["events", "--from", "history/*.csv"], "no file matches"),
        (["events", "--from", "features.py"], "the name does not tell the format"),
        (["events", "--from", "history", "--max-bad", "0"], "1 of 1 records are no events, and 0 may be"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(world: World, arguments: list[str], said: str) -> None:
    if "0" in arguments:
        (world.path / "history" / "a.parquet").unlink()
    code, _, error = run(*arguments)
    assert code != 0
    assert said in error
    assert len(error.splitlines()) == 1


def test_by_id_needs_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path / "q", WITHOUT_ID)
    monkeypatch.chdir(world.path)
    assert "has no event_id" in run("events", "--from", "history", "--overlap", "by-id")[2]
