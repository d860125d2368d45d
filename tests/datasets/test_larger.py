"""What does not fit in memory is answered in parts, and nothing of that can be seen."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import tidemill as tm
from tests.project import Folder
from tidemill.apps import load
from tidemill.datasets import Terms, larger, point_in_time
from tidemill.datasets.events import Extent, known_events
from tidemill.environment import Environment
from tidemill.errors import LogTruncatedError, RequestError
from tidemill.offline.begin import begin

backfill = load("backfill.job")

DEFINITIONS = """
events = tm.Source("events", schema={"k": str, "g": int, "x": float, "at": tm.Timestamp}, timestamp="at", arrival="known",
                   path="log/*.jsonl")
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=["1h", "lifetime"]), tm.mean("x", windows=["1d"]), tm.last_n("x", 2, windows=["1d"]), tm.last("k", windows=["1d"])])
pair = tm.FeatureView("pair", source=events, entity=tm.Entity("pair", keys=["k", "g"]), aggregations=[tm.sum("x", windows=["1h", "7d"])])

@tm.on_demand(inputs=[v, tm.Request(rate=float)])
def scaled(count_1h, rate):
    return count_1h / rate
"""
MAY = dt.datetime(2024, 5, 1, tzinfo=dt.UTC)
FEATURES = ["v", "pair", "scaled"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tm.FeatureStore]:
    folder = Folder(tmp_path_factory.mktemp("larger") / "p", DEFINITIONS)
    rng = np.random.default_rng(5)
    happened = np.sort(rng.integers(0, 20 * 86400, 3000))
    folder.log(
        {
            "k": f"k{k}",
            "g": int(k) % 3,
            "x": float(x),
            "at": (MAY + dt.timedelta(seconds=int(s))).isoformat(),
            "known": (MAY + dt.timedelta(seconds=int(s + late))).isoformat(),
        }
        for s, k, x, late in zip(happened, rng.zipf(1.5, 3000) % 40, rng.normal(0, 9, 3000), rng.integers(0, 9000, 3000), strict=True)
    )
    folder.stream()
    store = tm.FeatureStore(folder.path)
    yield store
    store.close()


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    rng = np.random.default_rng(6)
    return pl.DataFrame(
        {
            "label": rng.integers(0, 2, 700),
            "g": rng.integers(0, 3, 700),
            "k": [f"k{i}" for i in rng.integers(0, 45, 700)],
            "rate": pl.Series([None if i % 9 == 0 else float(i % 4) for i in range(700)]),
            "event_timestamp": pl.Series([MAY + dt.timedelta(seconds=int(s)) for s in rng.integers(0, 22 * 86400, 700)]),
        }
    )


@pytest.mark.parametrize("memory", [larger.MEMORY, 100_000, 30_000])
@pytest.mark.parametrize("terms", [Terms(), Terms("event_time", 3_600_000_000)], ids=["arrival", "an hour old"])
def test_parts_are_answered_as_the_whole_is(
    store: tm.FeatureStore, rows: pl.DataFrame, tmp_path: Path, memory: int, terms: Terms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(larger, "_CHUNK", 64)
    monkeypatch.setattr(point_in_time, "_PIECE_BYTES", memory // 50)
    rows.write_parquet(tmp_path / "rows.parquet")
    made = larger.build(store.env, tmp_path / "rows.parquet", FEATURES, tmp_path / "train.parquet", terms, memory=memory)
    whole = store.get_historical_features(
        rows, FEATURES, knowledge=terms.knowledge, freshness=f"{terms.freshness}us" if terms.freshness else None
    )
    assert pl.read_parquet(tmp_path / "train.parquet").equals(whole.to_polars())
    assert (made.rows, made.knowledge) == (700, whole.knowledge)
    assert (made.parts > 1) == (memory != larger.MEMORY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.parquet", "train.parquet"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rows_may_be_text(store: tm.FeatureStore, rows: pl.DataFrame, tmp_path: Path, suffix: str) -> None:
    rows = rows.drop("rate").with_columns(pl.col("event_timestamp").dt.to_string("iso:strict"))
    {".csv": rows.write_csv, ".jsonl": rows.write_ndjson}[suffix](tmp_path / f"rows{suffix}")
    larger.build(store.env, tmp_path / f"rows{suffix}", ["v"], tmp_path / "train.parquet")
    assert pl.read_parquet(tmp_path / "train.parquet").equals(store.get_historical_features(rows, ["v"]).to_polars())


def test_all_rows_of_a_file_say_what_its_columns_are(store: tm.FeatureStore, tmp_path: Path) -> None:
    first, last = {"k": "k1", "event_timestamp": "2024-05-09", "rate": 1}, {"k": "0042", "event_timestamp": "2024-05-09", "rate": 0.5}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*[first] * 200, {**last, "label": 1}]))
    (tmp_path / "rows.csv").write_text("k,event_timestamp,rate,label\n" + "42,2024-05-09,1,\n" * 200 + "0042,2024-05-09,0.5,1\n")
    for name in ("rows.jsonl", "rows.csv"):
        larger.build(store.env, tmp_path / name, ["v:count_1h", "scaled"], tmp_path / "train.parquet")
        found = pl.read_parquet(tmp_path / "train.parquet")
        assert found.row(-1) == ("0042", "2024-05-09", 0.5, 1, 0, 0.0)
        assert found["label"].to_list() == [None] * 200 + [1]


def test_no_rows_make_a_file_without_rows(store: tm.FeatureStore, rows: pl.DataFrame, tmp_path: Path) -> None:
    rows.clear().write_parquet(tmp_path / "rows.parquet")
    made = larger.build(store.env, tmp_path / "rows.parquet", FEATURES, tmp_path / "train.parquet")
    assert made.rows == 0
    assert pl.read_parquet(tmp_path / "train.parquet").schema == store.get_historical_features(rows, FEATURES).to_polars().schema


def bad(row: int, column: str, rows: pl.DataFrame) -> pl.DataFrame:
    where = pl.int_range(len(rows)) == row
    return rows.with_columns(pl.when(where).then(None).otherwise(pl.col(column)).alias(column))


@pytest.mark.parametrize(("column", "said"), [("k", "row 650 has no key 'k'"), ("event_timestamp", "row 650: event_timestamp is None")])
def test_a_row_that_cannot_be_asked_is_named_and_nothing_is_left(
    store: tm.FeatureStore, rows: pl.DataFrame, tmp_path: Path, column: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(larger, "_CHUNK", 64)
    bad(650, column, rows).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(RequestError) as caught:
        larger.build(store.env, tmp_path / "rows.parquet", FEATURES, tmp_path / "train.parquet")
    assert said in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize(
    ("file", "output", "said"),
    [
        ("rows.xlsx", "train.parquet", "rows are read from .parquet, .csv or .jsonl"),
        ("nope.parquet", "train.parquet", "there is no such file"),
        ("rows.parquet", "train.csv", "let the name end in .parquet"),
        ("rows.parquet", "nowhere/train.parquet", "there is no such directory"),
        ("empty.jsonl", "train.parquet", "empty.jsonl is not jsonl"),
        ("torn.csv", "train.parquet", "torn.csv is not csv"),
    ],
)
def test_files_that_will_not_do_are_named(
    store: tm.FeatureStore, rows: pl.DataFrame, tmp_path: Path, file: Any, output: str, said: str
) -> None:
    rows.write_parquet(tmp_path / "rows.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "torn.csv").write_text("k,g,rate,event_timestamp\nk1,1,1.5,2024-05-09,too,many\n")
    with pytest.raises(RequestError) as caught:
        larger.build(store.env, tmp_path / file, FEATURES, tmp_path / output)
    assert said in str(caught.value)


def an_event(second: int, k: str = "a") -> dict[str, Any]:
    at = (MAY + dt.timedelta(seconds=second)).isoformat()
    return {"k": k, "g": 1, "x": float(second), "at": at, "known": at}


def test_all_parts_know_the_same_though_the_log_grows_and_history_comes(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "p", DEFINITIONS)
    folder.log([an_event(i, k) for i in range(30) for k in "abcdef"])
    rows = pl.DataFrame({"k": list("abcdef") * 5, "event_timestamp": [MAY + dt.timedelta(hours=1)] * 30})
    rows.write_parquet(tmp_path / "rows.parquet")

    def more(what: str, *_: int) -> None:
        """After the first part, an event of every entity in the log, and another in an import that is cut."""
        if what.startswith("part 2") and not (folder.path / "history").exists():
            folder.log([an_event(100, k) for k in "abcdef"])
            (folder.path / "history").mkdir()
            (folder.path / "history" / "h.jsonl").write_text("".join(json.dumps(an_event(200, k)) + "\n" for k in "abcdef"))
            backfill.run(folder.env, backfill.Request("events", files=("history",), overlap="none"))
            folder.stream()

    made = larger.build(folder.env, tmp_path / "rows.parquet", ["v:count_lifetime"], tmp_path / "o.parquet", memory=20_000, progress=more)
    assert made.parts > 2
    assert (folder.path / "history").exists()
    assert pl.read_parquet(tmp_path / "o.parquet")["v__count_lifetime"].to_list() == [30] * 30
    later = larger.build(folder.env, tmp_path / "rows.parquet", ["v:count_lifetime"], tmp_path / "o.parquet", memory=20_000)
    assert pl.read_parquet(tmp_path / "o.parquet")["v__count_lifetime"].to_list() == [32] * 30
    assert later.events == later.parts * 32 * 6


def test_imported_events_and_those_that_no_archive_has_yet_count_for_the_number_of_parts(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "p", DEFINITIONS)
    source = folder.env.definitions.sources["events"]
    folder.log([an_event(i) for i in range(7)])
    assert Extent.of(folder.env, source).events == 7
    (folder.path / "history").mkdir()
    (folder.path / "history" / "h.jsonl").write_text("".join(json.dumps(an_event(i)) + "\n" for i in range(100, 105)))
    backfill.run(folder.env, backfill.Request("events", files=("history",), overlap="none"))
    folder.stream()
    assert Extent.of(folder.env, source).events == 12


class Shortened:
    """A log that no longer has its beginning."""

    def partitions(self) -> list[int]:
        return [0]

    def start(self, partition: int) -> int:
        return 5

    def end(self, partition: int) -> int:
        return 9

    def close(self) -> None:
        """There is nothing to give back."""


def test_what_a_topic_lost_since_it_began_to_count_is_an_error_and_no_smaller_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = DEFINITIONS.replace('path="log/*.jsonl"', 'topic="events", start="earliest"')
    folder = Folder(tmp_path / "p", started)
    source = folder.env.definitions.sources["events"]
    begin(folder.env.offline, "events", 0, {}, lambda: {0: 3})  # it began to count at offset 3
    monkeypatch.setattr(Environment, "log", lambda self, source: Shortened())
    with pytest.raises(LogTruncatedError, match="the log begins at offset 5 and the archive ends at 3"):
        list(known_events(folder.env, source, ["k"]))
