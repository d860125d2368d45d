"""Logged predictions as Parquet: each entry of files and topic once, by day, whenever a run is killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
import typer

import tidemill as tm
from tests.learning import world as worlds
from tests.learning.test_learner import Killed
from tests.learning.world import COLUMNS, START, World
from tests.servers.kafka import kafka_broker
from tidemill.cli.app import build
from tidemill.errors import LeaseError, LogError, StoreError
from tidemill.journals import Journal, entries, exact, journal_files
from tidemill.journals.reader import read_lines
from tidemill.logged import archive as archives
from tidemill.logged.archive import archive
from tidemill.logged.rows import FIXED
from tidemill.logs.kafka import KafkaAdmin
from tidemill.offline.directory import DirectoryStore
from tidemill.offline.leases import Lease
from tidemill.prediction_log import PREDICTIONS, PredictionLog
from tidemill.times import DAY, HOUR, MINUTE, from_micros

__all__ = ["kafka_broker"]

pytestmark = pytest.mark.filterwarnings("ignore:.*<(socket.socket|ssl.SSLSocket):pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Requests of one to three rows over three days, in several files."""
    world = World(tmp_path_factory.mktemp("archived") / "p", count=0)
    dice = random.Random(2)
    for _ in range(6):
        log = PredictionLog(world.env().offline)
        store = tm.FeatureStore(world.path, prediction_log=log)
        for _ in range(12):
            rows = [{"k": f"k{dice.randrange(12)}", "amount": dice.choice([dice.gauss(0, 1), None, 3])} for _ in range(dice.randint(1, 3))]
            store.score("m", rows, at=START + dice.randrange(3 * DAY) // HOUR * HOUR)
        store.close()
    return world


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    return made.copied(tmp_path / "p")


def oracle(logged: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What the log says, a row a prediction, in no order."""
    return sorted(
        (
            e["ids"][i],
            e["version"],
            e["at"]["$time"],
            e["logged"],
            e["columns"]["k"][i],
            None if e["columns"]["amount"][i] is None else float(exact(e["columns"]["amount"][i])),
            tuple(e["features"]),
            tuple(None if v is None else float(exact(v)) for v in e["x"][i]),
            tuple(e["status"][i].get(str(n), "ok") for n in range(len(e["features"]))),
            e["score"][i],
            e["outcome"][i],
            e["reason"][i],
        )
        for e in logged
        for i in range(len(e["ids"]))
    )


def archived(world: World) -> pl.DataFrame:
    """All of it, as people read it."""
    return pl.read_parquet(f"{world.path}/.tidemill/offline/logged/predictions/**/*.parquet")


def said(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    columns = ["prediction_id", "version", "at", "logged", "k", "amount", "features", "x", "feature_status", "score", "outcome", "reason"]
    assert frame.select("source", "position", "line", "row").is_unique().all()
    return sorted(
        tuple(tuple(v) if isinstance(v, list) else v for v in row)
        for row in frame.select(columns).with_columns(pl.col("at", "logged").dt.timestamp("us")).rows()
    )


def logged(world: World) -> list[dict[str, Any]]:
    return list(entries(world.env().offline, PREDICTIONS))


@pytest.mark.parametrize("rows", [1, 20, 50_000])
def test_every_logged_prediction_is_a_row_under_its_day(world: World, rows: int) -> None:
    report = archive(world.env(), rows=rows)
    frame = archived(world)
    assert said(frame) == oracle(logged(world))
    assert (report.rows, report.damaged, report.lost, report.models) == (frame.height, 0, 0, ["m"])
    assert frame.schema["amount"] == pl.Float64, "as it is declared, though a 3 came as an int"
    root = world.path / ".tidemill/offline/logged/predictions/m"
    for file in root.rglob("*.parquet"):
        days = pl.read_parquet(file, hive_partitioning=False)["at"].dt.strftime("%Y-%m-%d").unique().to_list()
        assert file.parent.name == f"day={days[0]}"
        assert len(days) == 1
    assert {p.name for p in root.iterdir()} == {f"day=2026-05-0{n}" for n in (1, 2, 3, 4)}


def test_it_is_read_by_polars_and_duckdb_and_trained_from(world: World) -> None:
    archive(world.env())
    frame = archived(world)
    features = frame.with_columns(pl.col("x").list.to_struct(fields=list(COLUMNS))).unnest("x")
    assert features.select(COLUMNS).rows() == [tuple(x) for x in frame["x"].to_list()]
    files = f"{world.path}/.tidemill/offline/logged/predictions/m/*/*.parquet"
    query = (
        f"select k, count(*)::int, max(x[list_position(features, 'twice')]) from '{files}' where day = '2026-05-02' group by 1 order by 1"
    )
    one = features.filter(pl.col("at").dt.date() == pl.date(2026, 5, 2)).group_by("k").agg(pl.len(), pl.col("twice").max()).sort("k")
    assert duckdb.sql(query).fetchall() == one.rows()


def test_run_again_it_adds_what_is_new_and_touches_nothing(world: World) -> None:
    archive(world.env(), rows=30)
    root = world.path / ".tidemill/offline/logged/predictions"
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*.parquet")}
    assert archive(world.env()).rows == 0
    store = tm.FeatureStore(world.path, prediction_log=PredictionLog(world.env().offline))
    store.score("m", [{"k": "k1", "amount": 1.0}], at=START)
    store.close()
    assert archive(world.env()).rows == 1
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert said(archived(world)) == oracle(logged(world))


@pytest.mark.parametrize("seed", range(5))
def test_killed_anywhere_nothing_is_there_twice_and_in_the_end_all_is(world: World, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    dice, left = random.Random(seed), [0]
    write, create = DirectoryStore.write, DirectoryStore.create

    def dying(real: Any) -> Any:
        def call(self: Any, key: str, data: bytes) -> Any:
            if not key.startswith("logged/"):
                return real(self, key, data)
            left[0] -= 1
            if left[0] == 0 and dice.random() < 0.5:
                raise Killed
            result = real(self, key, data)
            if left[0] == 0:
                raise Killed
            return result

        return call

    monkeypatch.setattr(DirectoryStore, "write", dying(write))
    monkeypatch.setattr(DirectoryStore, "create", dying(create))
    right = oracle(logged(world))
    kills = 0
    for attempt in range(12):
        left[0] = dice.randrange(1, 6) if attempt < 11 else -1
        try:
            archive(world.env(), rows=dice.choice([5, 25]))
        except Killed:
            kills += 1
        if list((world.path / ".tidemill/offline").glob("logged/predictions/*/*/*.parquet")):
            now = said(archived(world))
            assert len(set(now)) == len(now)
            assert set(now) <= set(right)
    assert kills >= 3
    assert said(archived(world)) == right


def test_a_real_process_killed_hard_again_and_again_archives_everything_once(world: World) -> None:
    code = f"""
from tidemill.environment import Environment
from tidemill.logged.archive import archive
print("ready", flush=True)
archive(Environment.load({str(world.path)!r}), rows=1, report=lambda n: print(n, flush=True))
"""
    store = world.env().offline
    for n, file in enumerate(journal_files(store, PREDICTIONS)):  # a file an entry, so that there are many portions
        lines = list(read_lines(store, file))
        head = (store.read(file.key) or b"").splitlines()[0].replace(f'"entries": {len(lines)}'.encode(), b'"entries": 1')
        store.delete(file.key)
        for i, line in enumerate(lines):
            store.create(f"{file.key.rpartition('/')[0]}/{file.first}-{file.last}-{n:08x}-{i:06d}.jsonl", head + b"\n" + line + b"\n")
    assert len(journal_files(store, PREDICTIONS)) == 72
    dice, portions = random.Random(3), 0
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(dice.randint(2, 8)):
                portions += process.stdout.readline() not in ("ready\n", "")
            time.sleep(dice.random() / 50)
            process.send_signal(signal.SIGKILL)
    assert portions >= 4
    assert archive(world.env()).rows > 0, "they were killed before they had done"
    assert said(archived(world)) == oracle(logged(world))


ODD = """
@tm.on_demand(inputs=[tm.Request(amount=float, day=int, many=int, sure=bool, due=tm.Timestamp, booked=tm.Timestamp("ms"))])
def twice(amount, day, many, sure, due, booked):
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Requests with columns of every type, one of which is named as the folders are."""
    old = worlds.DEFINITIONS
    begin, end = old.index("@tm.on_demand"), old.index("    return 2 * amount")
    monkeypatch.setattr(worlds, "DEFINITIONS", old[:begin] + ODD.lstrip() + old[end:])
    return World(tmp_path / "p", count=0)


def test_a_column_has_the_type_that_is_declared_in_every_file_whatever_numbers_came(odd: World) -> None:
    """A value is null where its type cannot hold it; an instant is read as the features read it."""
    nan, due = float("nan"), from_micros(START)
    millis = START // 1000
    rows: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
        ({"amount": 1, "day": 3, "many": 7, "sure": True, "due": due, "booked": millis}, (1.0, 3, 7, True, START, START)),
        ({"amount": nan, "day": nan, "many": nan, "sure": nan, "due": nan, "booked": nan}, (nan, None, None, None, None, None)),
        ({"amount": 2**60 + 1, "day": 4.0, "many": 2**63, "sure": 1, "due": START, "booked": "NaT"}, (2.0**60, 4, None, True, START, None)),
        ({"amount": True, "day": 2.5, "many": float("inf"), "sure": 0.0, "due": "2026-05-01T12:00:00Z", "booked": due},
         (1.0, None, None, False, START, START)),
        ({"amount": Decimal("0.5"), "day": None, "many": 2**200, "sure": None, "due": None, "booked": None},
         (0.5, None, None, None, None, None)),
    ]  # fmt: skip
    for number, (row, _) in enumerate(rows):
        store = tm.FeatureStore(odd.path, prediction_log=PredictionLog(odd.env().offline))
        given = {name: np.datetime64("NaT") if value == "NaT" else value for name, value in row.items()}
        store.score("m", [{"k": "k1", **given}], at=START + number * DAY)
        store.close()
        archive(odd.env())
    frame = archived(odd).sort("at").select("amount", "day_", "many", "sure", "due", "booked")
    instants = frame.with_columns(pl.col("due", "booked").dt.timestamp("us"))
    assert [str(row) for row in instants.rows()] == [str(wanted) for _, wanted in rows]
    time = pl.Datetime("us", "UTC")
    assert frame.dtypes == [pl.Float64, pl.Int64, pl.Int64, pl.Boolean, time, time]


def test_the_day_of_the_folders_is_not_taken_for_a_column_of_that_name(odd: World) -> None:
    store = tm.FeatureStore(odd.path, prediction_log=PredictionLog(odd.env().offline))
    row = dict.fromkeys(("amount", "many", "sure", "due", "booked"))
    store.score("m", [{"k": "k1", "day": 7, **row}], at=START)
    store.close()
    archive(odd.env())
    files = f"{odd.path}/.tidemill/offline/logged/predictions/m/*/*.parquet"
    assert duckdb.sql(f"select day::text, day_ from '{files}'").fetchall() == [("2026-05-01", 7)]


def logged_at(world: World, instants: list[int], minutes: int = 0) -> None:
    """A prediction a file, all of one writer, noted at these instants of its clock."""
    now = [0]
    store = world.env().offline
    log = PredictionLog(store, journal=Journal(store, PREDICTIONS, clock=lambda: now[0]))
    features = tm.FeatureStore(world.path, prediction_log=log)
    for n, instant in enumerate(instants):
        now[0] = instant
        features.score("m", [{"k": f"k{n}", "amount": 1.0}], at=START)
        assert log.flush()
    features.close()


@pytest.mark.parametrize("rows", [1, 50_000])
def test_a_writer_whose_clock_is_set_back_loses_nothing(world: World, rows: int) -> None:
    logged_at(world, [START, START + 10 * MINUTE, START + 5 * MINUTE, START + 7 * MINUTE])
    archive(world.env(), rows=rows)
    assert said(archived(world)) == oracle(logged(world))


def test_a_file_that_comes_to_a_folder_that_was_listed_already_is_not_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at midnight: the writer puts one file into the old day's folder, and the next one into the new day's."""
    logged_at(world, [START, START + DAY])  # by another process: both folders are there
    listing, came = DirectoryStore.list, [False]

    def meanwhile(self: Any, key: str) -> Any:
        found = list(listing(self, key))
        if key.startswith("journals/") and not came[0]:
            came[0] = True
            logged_at(world, [START, START + DAY])
        return found

    monkeypatch.setattr(DirectoryStore, "list", meanwhile)
    archive(world.env(), rows=50_000)
    archive(world.env())
    assert said(archived(world)) == oracle(logged(world))


def test_the_types_of_a_service_that_has_gone_are_those_that_the_values_have(world: World) -> None:
    features = world.path / "features.py"
    text = features.read_text()
    features.write_text(text[: text.index("s = tm.FeatureService")])
    archive(world.env(), rows=1)
    frames = [pl.read_parquet(f) for f in (world.path / ".tidemill/offline/logged").rglob("*.parquet")]
    assert {f.schema["k"] for f in frames} == {pl.String}
    assert {pl.Float64} <= {f.schema["amount"] for f in frames} <= {pl.Float64, pl.Int64, pl.String}
    assert sum(f.height for f in frames) == len(oracle(logged(world)))


def test_what_is_no_entry_is_counted_and_the_rest_is_archived(world: World) -> None:
    right = oracle(logged(world))
    file = journal_files(world.env().offline, PREDICTIONS)[0]
    path = world.path / ".tidemill/offline" / file.key
    lines = path.read_text().splitlines()
    entry = json.loads(lines[1])
    bad = [
        "{",
        json.dumps({**entry, "score": []}),
        json.dumps({**entry, "model": "../m"}),
        json.dumps({**entry, "x": [[1.0]]}),
        json.dumps({**entry, "at": 5}),
        json.dumps({**entry, "columns": {"k": []}}),
    ]
    path.write_text("\n".join([json.dumps({**json.loads(lines[0]), "entries": 99}), *lines[1:], *bad]) + "\n")
    report = archive(world.env())
    assert report.damaged == len(bad) + 1
    assert said(archived(world)) == right


def test_columns_that_are_named_as_ours_or_hold_odd_values_are_kept(world: World) -> None:
    store = world.env().offline
    file = journal_files(store, PREDICTIONS)[-1]
    path = world.path / ".tidemill/offline" / file.key
    lines = path.read_text().splitlines()
    entry = json.loads(lines[1])
    size = len(entry["ids"])
    entry["columns"]["score"] = ["theirs"] * size
    entry["columns"]["odd"] = [{"$time": START}] * size
    entry["columns"]["k"] = ["\ud800"] * size
    entry["x"][0][0] = {"$float": "inf"}
    entry["model"] = "other"
    path.write_text("\n".join([json.dumps({**json.loads(lines[0]), "entries": len(lines)}), *lines[1:], json.dumps(entry)]) + "\n")
    assert archive(world.env()).damaged == 0
    (file_of_other,) = (world.path / ".tidemill/offline/logged/predictions/other").rglob("*.parquet")
    row = pl.read_parquet(file_of_other, hive_partitioning=False).row(0, named=True)
    assert (row["score_"], row["k"], row["x"][0], row["score"]) == ("theirs", "?", float("inf"), entry["score"][0])
    assert json.loads(row["odd"]) == {"$time": START}
    assert list(FIXED) == [name for name in pl.read_parquet_schema(file_of_other) if name in FIXED]


def test_a_portion_that_was_cut_short_and_has_gone_is_an_error_that_says_what_to_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write = DirectoryStore.write

    def never(self: Any, key: str, data: bytes) -> None:
        if key.endswith(".parquet"):
            raise Killed
        write(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "write", never)
        with pytest.raises(Killed):
            archive(world.env(), rows=10)
    first = journal_files(world.env().offline, PREDICTIONS)[0]
    world.env().offline.delete(first.key)
    with pytest.raises(StoreError, match=r"is not there any more\): delete .*logged/plans/00000001.json to archive what is still there"):
        archive(world.env())
    world.env().offline.delete("logged/plans/00000001.json")
    archive(world.env())
    assert said(archived(world)) == oracle(logged(world))


def test_one_process_at_a_time_archives(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(world.env().offline, "logged-predictions", seconds=60, owner="other"), pytest.raises(LeaseError):
        archive(world.env())
    write = archives._write

    def meanwhile(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(archives, "_write", meanwhile)
    with pytest.raises(Killed):
        archive(world.env())
    newest = archives._newest
    monkeypatch.setattr(archives, "_write", write)
    monkeypatch.setattr(archives, "_newest", lambda _: None)  # as one sees it that was asleep
    with pytest.raises(StoreError, match="is there already: another process"):
        archive(world.env())
    monkeypatch.setattr(archives, "_newest", newest)
    archive(world.env())
    assert said(archived(world)) == oracle(logged(world))


def test_the_command_says_what_it_did(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    command = typer.main.get_command(build())
    with pytest.raises(SystemExit, match="0"):
        command.main(["archive-predictions", "--project", str(world.path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == len(oracle(logged(world)))
    assert (found["damaged"], found["lost"], found["models"]) == (0, 0, ["m"])
    with pytest.raises(SystemExit, match="0"):
        command.main(["archive-predictions", "--project", str(world.path)])
    assert "nothing new" in capsys.readouterr().out


# ---- from a topic -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def topical(world: World, kafka_broker: str) -> Iterator[tuple[World, KafkaAdmin, str, list[bytes]]]:
    """The later half of the entries in files, in a topic of three partitions instead."""
    admin, name = KafkaAdmin(kafka_broker), f"predictions-{uuid.uuid4().hex[:12]}"
    admin.create_topic(name, 3)
    store = world.env().offline
    lines = []
    for file in journal_files(store, PREDICTIONS)[3:]:
        lines += read_lines(store, file)
        store.delete(file.key)
    with (world.path / "tidemill.toml").open("a") as toml:
        toml.write(f'[stream]\nbrokers = "{kafka_broker}"\n[log]\npredictions_topic = "{name}"\n')
    yield world, admin, name, lines
    admin.close()


@pytest.mark.parametrize("rows", [7, 50_000])
def test_files_and_a_topic_are_archived_together_each_once_also_when_killed(
    topical: Any, made: World, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    world, admin, name, lines = topical
    write, left = DirectoryStore.write, [3]

    def dying(self: Any, key: str, data: bytes) -> None:
        left[0] -= key.endswith(".parquet")
        if left[0] == 0 and key.endswith(".parquet"):
            raise Killed
        write(self, key, data)

    admin.produce(name, [(i % 3, b"", line) for i, line in enumerate(lines[:20])])
    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "write", dying)
        with pytest.raises(Killed):
            archive(world.env(), rows=rows)
    admin.produce(name, [(i % 3, b"", line) for i, line in enumerate([*lines[20:], b"{"])])
    archive(world.env(), rows=rows)
    assert said(archived(world)) == oracle(logged(made))
    assert archive(world.env()).rows == 0


def test_offsets_that_were_deleted_first_are_counted_and_another_topic_begins_at_its_beginning(topical: Any) -> None:
    world, admin, name, lines = topical
    admin.produce(name, [(0, b"", line) for line in lines[:10]])
    archive(world.env())
    admin.produce(name, [(0, b"", line) for line in lines[10:20]])
    admin.delete_records(name, {0: 14})
    assert archive(world.env()).lost == 4
    other = f"{name}-2"
    admin.create_topic(other)
    toml = world.path / "tidemill.toml"
    toml.write_text(toml.read_text().replace(name, other))
    admin.produce(other, [(0, b"", line) for line in lines[20:]])
    assert archive(world.env()).lost == 0
    there = logged(world) + [json.loads(line) for line in lines[:10] + lines[14:]]
    assert said(archived(world)) == oracle(there)


def test_files_that_are_out_of_sight_for_a_while_are_not_archived_again(topical: Any, made: World) -> None:
    """As of a folder that was not mounted ([log] directory), while the topic went on."""
    world, admin, name, lines = topical
    archive(world.env())
    folder = world.path / ".tidemill/offline/journals"
    away = folder.rename(world.path / "away")
    admin.produce(name, [(0, b"", line) for line in lines])
    archive(world.env())
    away.rename(folder)
    assert archive(world.env()).rows == 0
    assert said(archived(world)) == oracle(logged(made))


def test_a_topic_that_is_not_there_is_an_error_and_nothing_is_written(topical: Any) -> None:
    world, _, name, _ = topical
    toml = world.path / "tidemill.toml"
    toml.write_text(toml.read_text().replace(name, "no-such-topic"))
    with pytest.raises(LogError, match="there is no topic 'no-such-topic'"):
        archive(world.env())
    assert not (world.path / ".tidemill/offline/logged").exists()
