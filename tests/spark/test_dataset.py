"""A training set that Spark makes is the one that is made here: row for row, bit for bit."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.project import Folder
from tidemill.apps import load
from tidemill.datasets import Terms, larger
from tidemill.errors import RequestError
from tidemill.times import DAY, HOUR, MINUTE, SECOND, from_micros

on_spark = load("batch.spark.dataset")

NOW = 20_000 * DAY + 5 * HOUR
DEFINITIONS = """
import numpy as np
import tidemill as tm
from near import SCALE

events = tm.Source("events", schema={"k": str, "n": int, "x": float, "s": str, "b": bool, "at": tm.Timestamp, "id": int},
                   timestamp="at", event_id="id", arrival="known", path="log/**/*.jsonl")
other = tm.Source("other", schema={"k": str, "y": int, "at": tm.Timestamp}, timestamp="at", path="other/*.jsonl")
W = ["1m", "90s", "1h", "1d", "lifetime"]
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=W), tm.count(where="x > 0", name="positive", windows=W), tm.sum("x", windows=W), tm.mean("n", windows=W),
    tm.max("x", windows=W), tm.min("s", windows=W), tm.quantile("x", 0.9, windows=W), tm.stddev("x", windows=W), tm.last("s", windows=W),
    tm.last_n("n", 3, windows=W), tm.first("at", windows=W), tm.approx_count_distinct("s", windows=W), tm.sum("n", windows=W)])
pair = tm.FeatureView("pair", source=events, entity=tm.Entity("pair", keys=["k", "n"]), where="b", aggregations=[
    tm.count(windows=["1h", "lifetime"]), tm.last("x", windows=["1d"])])
o = tm.FeatureView("o", source=other, entity=tm.Entity("k"), aggregations=[tm.variance("y", windows=["1d", "lifetime"])])

@tm.on_demand(inputs=[v[["count_1h", "x_sum_1h"]], tm.Request(rate=float)])
def scaled(count_1h, x_sum_1h, rate):
    return np.where(count_1h > 0, rate * SCALE, x_sum_1h)

everything = tm.FeatureService("everything", features=[v, pair, o, scaled])
"""


class Project(Folder):
    """Two sources, one archived and one in part; what is on demand comes from a module beside the definitions."""

    def __init__(self, path: Path, rng: Random) -> None:
        path.mkdir()
        (path / "near.py").write_text("SCALE = 3\n")
        super().__init__(path, DEFINITIONS)
        made = self._events(rng)
        (path / "other").mkdir()
        self.log(made[:400])
        self.log([{"k": e["k"], "y": e["n"], "at": e["at"]} for e in made[::3]], "../other/o.jsonl")
        self.stream()
        self.log(made[400:], "later.jsonl")

    @staticmethod
    def _events(rng: Random) -> list[dict[str, Any]]:
        made = []
        for i in range(700):
            known = NOW + i * 5 * MINUTE
            at = known - rng.choice((0, 0, SECOND, MINUTE, 3 * HOUR, 3 * DAY, -SECOND))
            made.append(
                {
                    "k": rng.choice(("", "a", "é 1:a", f"c{rng.randrange(20)}")),
                    "n": rng.choice((0, 1, 2, 2**62)),
                    "x": rng.choice((None, 0.1, -0.0, 1e16, 2.0**63, round(rng.uniform(-9, 9), 2))),
                    "s": rng.choice((None, "", "x", "é", f"s{rng.randrange(40)}")),
                    "b": rng.choice((None, True, False)),
                    "id": rng.choice((None, rng.randrange(9))),
                    "at": from_micros(at).isoformat(),
                    "known": rng.choice((None, from_micros(known).isoformat())),
                }
            )
        return made


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("a b") / "the project", Random(11))


@pytest.fixture(scope="module")
def rows(project: Project) -> Path:
    rng = Random(12)
    made = [
        {
            "label": i,
            "k": rng.choice(("", "a", "é 1:a", "nobody", f"c{rng.randrange(20)}")),
            "n": rng.randrange(3),
            "rate": rng.choice((0.5, None, 2.0)),
            "event_timestamp": from_micros(NOW + rng.randrange(-DAY, 4 * DAY)),
        }
        for i in range(500)
    ]
    frame = pl.DataFrame([*made, *made[:20]]).with_columns(pl.col("event_timestamp").dt.convert_time_zone("Europe/Rome"))
    frame.write_parquet(project.path / "ro ws.parquet")
    return project.path / "ro ws.parquet"


@pytest.mark.parametrize(
    "terms", [Terms(), Terms("event_time", 30 * MINUTE)], ids=["what had arrived", "what had happened half an hour before"]
)
def test_it_is_the_same_file(spark: Any, project: Project, rows: Path, terms: Terms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(larger, "_CHUNK", 150)
    here = larger.build(project.env, rows, "everything", project.path / "here.parquet", terms)
    there = on_spark.spark_dataset(project.env, rows, "everything", terms, project.path / "there.parquet", offsets=150, bucket=500)
    assert there.parts > 2
    assert (there.rows, there.knowledge, there.freshness, there.overflows) == (520, here.knowledge, here.freshness, here.overflows)
    assert here.overflows, "sums of 2**62"
    expected, found = pl.read_parquet(here.path), pl.read_parquet(there.path)
    assert_frame_equal(found, expected, check_exact=True)
    assert expected["label"].to_list() == [*range(500), *range(20)]
    assert expected["v__count_lifetime"].n_unique() > 20
    assert not any(
        key for folder in project.env.offline.folders("staging") for key in project.env.offline.folders(folder) if _files(project, key)
    )


def _files(project: Project, folder: str) -> list[str]:
    return project.env.offline.list(folder)


def test_a_row_that_cannot_be_asked_is_refused_before_spark_starts(project: Project, tmp_path: Path) -> None:
    when = [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), None]
    pl.DataFrame({"k": ["a", "b"], "n": [1, 2], "rate": [1.0, 1.0], "event_timestamp": when}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(RequestError, match="row 1: event_timestamp is None"):
        on_spark.spark_dataset(project.env, tmp_path / "rows.parquet", "everything", Terms(), tmp_path / "out.parquet", master="local[1]")
    assert not (tmp_path / "out.parquet").exists()


def test_no_rows_are_a_training_set_too(project: Project, rows: Path, tmp_path: Path) -> None:
    pl.read_parquet(rows).clear().write_parquet(tmp_path / "none.parquet")
    made = on_spark.spark_dataset(project.env, tmp_path / "none.parquet", "everything", Terms(), tmp_path / "out.parquet")
    assert (made.rows, pl.read_parquet(made.path).height) == (0, 0)
