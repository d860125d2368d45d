"""The audit: equal where all is well, and where something is not it says what."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

import tidemill as tm
from tests.project import EVENTS, Folder, events
from tidemill.audit import CHANGED, NOT_YET, Report, audit
from tidemill.audit.reads import NOT_SERVING
from tidemill.cli.app import build
from tidemill.errors import DefinitionError, NotFoundError
from tidemill.journals import entries, journal_files
from tidemill.offline.archive import partition_folder, range_files
from tidemill.read_log import READS, ReadLog
from tidemill.times import from_micros, to_micros

VIEW = """
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=["lifetime", "10m"]), tm.sum("x", windows=["1h"]), tm.last_n("at", 2, windows=["1d"]),
    tm.mean("x", windows=["1h"], where="x > 1")])
"""
ON_DEMAND = """
@tm.on_demand(inputs=[v, tm.Request(y=float)])
def share(count_10m, y):
    return count_10m / y

s = tm.FeatureService("s", features=[v, share])
"""
START = to_micros("2026-05-01")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """2,500 events streamed, the first batch of them published, reads of two entities in between all logged."""
    folder = Folder(tmp_path / "p", EVENTS + VIEW + ON_DEMAND)
    for first in (0, 1250):
        folder.log([{**e, "x": 2**53 + i} for i, e in enumerate(events(1250, first))] + [events(1, 5)[0] | {"k": "b"}])
        folder.stream()
        read(folder)
        if not first:
            folder.batch()
            read(folder)
    yield folder
    folder.env.online.close()


def read(folder: Folder, *, wanted: Any = "s", step: int = 301) -> None:
    log = ReadLog(folder.env.offline)
    store = tm.FeatureStore(folder.env, read_log=log)
    for seconds in range(0, 3000, step):
        store.get_online_features(wanted, [{"k": "a", "y": 3.0}, {"k": "b", "y": 0.0}], at=START + seconds * 1_000_000)
    assert log.close().dropped == 0


def rewrite(folder: Folder, change: Any) -> None:
    """Change every logged read."""
    for file in journal_files(folder.env.offline, READS):
        lines = (folder.env.offline.read(file.key) or b"").splitlines()
        changed = [json.loads(line) for line in lines[1:]]
        for entry in changed:
            change(entry)
        folder.env.offline.write(file.key, b"\n".join([lines[0], *(json.dumps(e).encode() for e in changed)]) + b"\n")


def archived(folder: Folder) -> list[Any]:
    return range_files(folder.env.offline, partition_folder("archive", "events", 0))


@pytest.mark.parametrize("oracle", [False, True])
def test_all_that_was_served_is_equal(folder: Folder, oracle: bool) -> None:
    report = audit(folder.env, oracle=oracle)
    assert report == Report(oracle, reads=30, rows=60, compared=360, equal=360)


@pytest.mark.parametrize("oracle", [False, True])
@pytest.mark.parametrize(("column", "wrong"), [("v__x_sum_1h", 2**53 + 1), ("v__count_10m", 7.0), ("v__x_mean_1h", None)])
def test_a_wrong_value_is_found_and_named(folder: Folder, oracle: bool, column: str, wrong: Any) -> None:
    done = []

    def plant(entry: dict[str, Any]) -> None:
        if not done and entry["values"][column][0] not in (None, 0):
            entry["values"][column][0] = wrong
            done.append(entry)

    rewrite(folder, plant)
    report = audit(folder.env, oracle=oracle)
    (entry,) = done
    of_column = [d for d in report.differences if d.feature == column]
    assert [(d.request, d.row, d.entity, d.served, d.at) for d in of_column] == [
        (entry["request"], 0, "a", wrong, from_micros(entry["at"]["$time"]))
    ]
    (told,) = of_column
    assert told.right is not None
    assert told.count > 0
    assert len(told.events) == min(told.count, 20)
    assert all(e[2] < told.at for e in told.events)
    assert "events in the window (partition:offset): 0:" in str(told)
    if column != "v__count_10m":  # which an on-demand feature reads too
        assert report.different == 1


def test_a_wrong_status_is_found(folder: Folder) -> None:
    def plant(entry: dict[str, Any]) -> None:
        entry["status"]["v__count_10m"][0] = "overflow"

    rewrite(folder, plant)
    assert audit(folder.env).different == 30


def test_a_wrong_on_demand_value_is_found(folder: Folder) -> None:
    def plant(entry: dict[str, Any]) -> None:
        entry["values"]["share"][0] = 17.0

    rewrite(folder, plant)
    report = audit(folder.env)
    assert report.different == 30
    assert {(d.feature, d.served, d.entity) for d in report.differences} == {("share", 17.0, "k='a', y=3.0")}


@pytest.mark.parametrize("oracle", [False, True])
@pytest.mark.parametrize("change", ["tampered", "dropped"])
def test_an_archive_that_says_something_else_is_found(folder: Folder, change: str, oracle: bool) -> None:
    file = archived(folder)[0]
    frame = folder.env.offline.read_frame(file.key)
    if change == "tampered":
        frame = frame.with_columns(pl.when(pl.col("_offset") == 700).then(5).otherwise(pl.col("x")).alias("x"))
    else:
        frame = frame.filter(pl.col("_offset") != 700)
    folder.env.offline.write_frame(file.key, frame)
    report = audit(folder.env, oracle=oracle)
    assert report.different > 0
    assert {d.entity for d in report.differences} == {"a"}
    assert all(d.at > from_micros(START + 700 * 1_000_000) for d in report.differences if d.feature != "share")
    features = {d.feature for d in report.differences}
    assert "v__x_sum_1h" in features
    assert ("v__count_lifetime" in features) == (change == "dropped")


def test_positions_decide_what_was_known(folder: Folder) -> None:
    def plant(entry: dict[str, Any]) -> None:
        for part in entry["known"]:
            for state in part["states"]:
                state["positions"]["0"] = 600

    rewrite(folder, plant)
    report = audit(folder.env)
    assert {
        d.right for d in report.differences if d.feature == "v__count_lifetime" and d.entity == "a" and d.at > from_micros(START + 10**9)
    } == {600}


def test_what_is_not_archived_is_read_from_the_log_and_without_it_is_not_compared(folder: Folder) -> None:
    last = archived(folder)[-1]
    folder.env.offline.delete(last.key)
    assert audit(folder.env).equal == 360
    (folder.path / "log" / "a.jsonl").rename(folder.path / "log" / "a.gone")
    report = audit(folder.env)
    assert 0 < report.compared < 360
    assert report.equal == report.compared
    assert report.uncompared == {NOT_YET: 100}


def test_reads_of_a_definition_that_has_changed_are_compared_by_the_one_they_were_answered_with(folder: Folder) -> None:
    folder.define(
        EVENTS + VIEW.replace('tm.sum("x", windows=["1h"])', 'tm.sum("x", windows=["1d"], name="x_sum")').replace('"10m"', '"20m"')
    )
    folder.stream()
    folder.batch()
    folder.stream()
    read(folder, wanted=["v"])
    report = audit(folder.env)
    assert report.equal == report.compared == 300 + 100
    assert report.uncompared == {CHANGED: 60}


@pytest.mark.parametrize("wanted", [["v:count_lifetime"], ["v:many"], ["v"]])
def test_a_filter_may_read_a_column_that_the_views_other_features_do_not(tmp_path: Path, wanted: list[str]) -> None:
    plain = EVENTS.replace('"x": int', '"x": int, "y": int')
    view = VIEW.replace(', where="x > 1")])', ")])")
    folder = Folder(tmp_path / "p", plain + view)
    folder.log([{**e, "y": i % 3} for i, e in enumerate(events(1250))])
    folder.stream()
    more = view.replace("aggregations=[", 'aggregations=[tm.count(windows=["1h"], where="y = 1", name="many"), ')
    folder.define(plain + more)  # a feature that is added has a bundle of its own
    folder.stream()
    folder.batch()
    folder.stream()
    name = next(n for n in folder.env.applied().views["v"].view.features if n.startswith("many"))
    asked = [w.replace("v:many", f"v:{name}") for w in wanted]
    log = ReadLog(folder.env.offline)
    store = tm.FeatureStore(folder.env, read_log=log)
    for seconds in range(0, 3000, 301):
        store.get_online_features(asked, [{"k": "a"}], at=START + seconds * 1_000_000)
    assert log.close().dropped == 0
    assert len(folder.env.applied().views["v"].bundles) == 2
    report = audit(folder.env, oracle=True)
    assert report.equal == report.compared > 0
    assert not report.uncompared


def test_a_registry_without_the_version_is_said_and_not_called_wrong(folder: Folder) -> None:
    folder.env.offline.delete("registry/000001.json")
    report = audit(folder.env)
    assert (report.compared, report.different) == (60, 0)
    (reason,) = report.uncompared
    assert "version 1 of the registry" in reason


def test_a_shard_that_said_that_it_does_not_serve_is_not_compared(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "p", EVENTS + VIEW + ON_DEMAND)
    read(folder)
    report = audit(folder.env)
    assert report.uncompared == {NOT_SERVING: 100}
    assert (report.compared, report.different) == (20, 0)  # the on-demand feature, of nulls


def test_late_events_change_no_answer_that_was_given_before(folder: Folder) -> None:
    folder.log([{"k": "a", "x": 10**6, "at": from_micros(START + 60_000_000).isoformat()}])
    folder.stream()
    read(folder)
    report = audit(folder.env)
    assert report.equal == report.compared == 480
    known = [e["known"][0]["states"][e["known"][0]["rows"][0]]["positions"]["0"] for e in entries(folder.env.offline, READS)]
    assert sorted(set(known)) == [1251, 2502, 2503]


def test_a_sample_is_always_the_same_and_a_part_of_the_larger_one(folder: Folder) -> None:
    sizes = [audit(folder.env, share=share).reads for share in (0.2, 0.2, 0.5, 1.0)]
    assert sizes[0] == sizes[1] <= sizes[2] <= sizes[3] == 30


def test_little_memory_gives_the_same(folder: Folder) -> None:
    whole = audit(folder.env)
    assert audit(folder.env, checks_at_once=7, events_at_once=1) == whole


def test_since_and_until_are_of_when_reads_were_logged(folder: Folder) -> None:
    logged = sorted(e["logged"] for e in entries(folder.env.offline, READS))
    assert audit(folder.env, since=logged[10]).reads == 20
    assert audit(folder.env, until=logged[10]).reads == 10
    with pytest.raises(NotFoundError, match="no read was logged"):
        audit(folder.env, since=logged[-1] + 1)


def test_tidemill_toml_says_how_many_reads_are_logged_and_where(folder: Folder) -> None:
    with (folder.path / "tidemill.toml").open("a") as toml:
        toml.write('[log]\nreads = 1\ndirectory = "elsewhere"\n')
    store = tm.FeatureStore(folder.path)
    store.get_online_features("s", [{"k": "a", "y": 1.0}], at=START + 10**9)
    store.close()
    assert list((folder.path / "elsewhere/journals/reads").rglob("*.jsonl"))
    assert audit(store.env).reads == 1


@pytest.mark.parametrize("share", ["-0.1", "1.5", '"all"', "true"])
def test_a_share_that_is_none_is_refused(folder: Folder, share: str) -> None:
    with (folder.path / "tidemill.toml").open("a") as toml:
        toml.write(f"[log]\nreads = {share}\n")
    with pytest.raises(DefinitionError, match=r"log\.reads"):
        tm.FeatureStore(folder.path)
    with pytest.raises(DefinitionError, match="from 0 to 1"):
        ReadLog(folder.env.offline, 1.5)


def test_the_rate_is_the_share_of_reads_that_are_logged(folder: Folder) -> None:
    dice = iter([0.0, 0.3, 0.29, 0.9])
    log = ReadLog(folder.env.offline, 0.3, choose=lambda: next(dice))
    store = tm.FeatureStore(folder.env, read_log=log)
    for _ in range(4):
        store.get_online_features(["v"], [{"k": "a"}], at=START + 10**9)
    assert log.close().written == 2


def test_what_the_caller_does_with_an_answer_changes_no_log(folder: Folder) -> None:
    before = audit(folder.env).reads
    log = ReadLog(folder.env.offline)
    store = tm.FeatureStore(folder.env, read_log=log)
    rows = [{"k": "a", "y": 3.0}]
    answer = store.get_online_features("s", rows, at=START + 10**9)
    rows[0]["k"] = "b"
    for name, column in answer.columns.items():
        if isinstance(column[0], list):
            column[0].clear()
        column[0] = -1
        answer.status.get(name, [""])[0] = "overflow"
    log.close()
    report = audit(folder.env)
    assert (report.reads, report.different) == (before + 1, 0)


class _Hangs:
    def __init__(self) -> None:
        self.taken = 0

    def __call__(self, key: str, data: bytes) -> bool:
        time.sleep(0.5)
        self.taken += 1
        return True


def test_a_log_that_hangs_slows_no_read_and_the_drops_are_told(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Folder.__new__(Folder)
    store.path = folder.path
    store.write(EVENTS + VIEW + ON_DEMAND)
    log = ReadLog(store.env.offline, most=4, seconds=0.0)
    client = tm.FeatureStore(store.env, read_log=log)
    client.get_online_features(["v"], [{"k": "a"}], at=START + 10**9)
    log.flush()
    with monkeypatch.context() as patch:
        patch.setattr(store.env.offline, "create", _Hangs())
        begun = time.monotonic()
        for _ in range(200):
            client.get_online_features(["v"], [{"k": "a"}], at=START + 10**9)
        assert time.monotonic() - begun < 10.0
        dropped = log.counts.dropped
    assert dropped >= 150
    client.get_online_features(["v"], [{"k": "a"}], at=START + 10**9)
    client.close()
    assert audit(folder.env).lost > 0


def test_the_command_says_what_is_equal_and_ends_with_1_where_something_is_not(folder: Folder) -> None:
    def run(*more: str) -> Any:
        return CliRunner().invoke(build(), ["audit", "--project", str(folder.path), *more])

    ran = run()
    assert (ran.exit_code, ran.stdout) == (0, "30 reads of 60 rows: 360 values computed again by the kernel, 360 equal\n")
    found = json.loads(run("--json", "--oracle").stdout)
    assert (found["compared"], found["equal"], found["different"], found["oracle"]) == (360, 360, 0, True)
    assert run("--since", "2000-01-01", "--until", "1d").exit_code == 1
    assert "no instant" in run("--since", "soon").stderr

    def plant(entry: dict[str, Any]) -> None:
        entry["values"]["v__x_last"] = None
        entry["values"]["v__count_lifetime"][0] = 1

    rewrite(folder, plant)
    ran = run()
    assert ran.exit_code == 1
    assert "values of 360 served are not what the archive says" in ran.stderr
    assert "not equal: v__count_lifetime of 'a' at 2026-05-01T" in ran.stdout
    ran = run("--json")
    assert ran.exit_code == 1
    assert json.loads(ran.stdout)["differences"][0]["served"] == 1


def test_a_logged_read_that_is_none_is_told(folder: Folder) -> None:
    planted: list[Any] = []

    def plant(entry: dict[str, Any]) -> None:
        if not planted:
            planted.append(entry.pop("known"))

    rewrite(folder, plant)
    report = audit(folder.env)
    assert (report.reads, len(report.damaged)) == (29, 1)
