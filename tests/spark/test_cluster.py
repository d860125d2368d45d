"""The commands against a real Spark cluster: a standalone master, two workers, and executors, all processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.backfill.world import START, WITH_ID, World, make_events
from tests.servers.spark import SparkCluster, spark_cluster
from tidemill.offline.partials import Partials
from tidemill.times import DAY, HOUR, from_micros

EVERY = make_events(3_900)
AT = EVERY[-1]["at"] + DAY
SERVICE = '\ns = tm.FeatureService("s", features=[v])\n'
#: A driver that executors reach, and small executors.
SETTINGS = """
[spark]
"spark.driver.host" = "127.0.0.1"
"spark.driver.bindAddress" = "127.0.0.1"
"spark.driver.memory" = "1g"
"spark.executor.memory" = "512m"
"spark.sql.shuffle.partitions" = 4
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    with spark_cluster(tmp_path_factory.mktemp("spark")) as running:
        yield running


def a_world(path: Path) -> World:
    """History in files, of which some are taken as they are, and a log."""
    world = World(path, WITH_ID + SERVICE)
    with (world.path / "tidemill.toml").open("a") as file:
        file.write(SETTINGS)
    for i in range(0, 1_800, 600):
        world.history(f"{i}.{'csv' if i == 600 else 'parquet'}", EVERY[i : i + 600])
    world.live(EVERY[1_800:])
    return world


def command(world: World, *arguments: str) -> subprocess.Popen[str]:
    run = [sys.executable, "-c", "from tidemill.cli import main; main()", *arguments, "--json", "--project", str(world.path)]
    env = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    return subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=world.path)


def ended(process: subprocess.Popen[str]) -> Any:
    told, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return json.loads(told)


def tiles(world: World) -> list[pl.DataFrame]:
    bundle = world.env.applied().bundles[0].bundle
    partials = Partials(world.env.offline, bundle)
    version = partials.latest()
    found = []
    for i, table in enumerate(bundle.tables):
        mine = [file for file in version.files if file.table == table.key]
        found.append(bundle.merge(i, partials.scan(i, mine), version.horizon).sort(*bundle.keys, "_span", *table.cell))
    return found


@pytest.mark.soak
def test_a_backfill_and_a_training_set_are_what_they_are_here_also_when_a_worker_dies(cluster: SparkCluster, tmp_path: Path) -> None:
    here, there = a_world(tmp_path / "here"), a_world(tmp_path / "there")
    ended(command(here, "backfill", "events", "--from", "history/**/*.*"))
    spark = ["--engine", "spark", "--master", cluster.url]
    told = ended(command(there, "backfill", "events", "--from", "history/**/*.*", *spark))
    assert told["import"]["events"] == 1_800
    assert all(cluster.executors(worker) for worker in (0, 1)), "both workers had a part in it"
    for a, b in zip(tiles(here), tiles(there), strict=True):
        assert a.height > 100
        assert_frame_equal(a, b)
    there.check(EVERY, at=AT)

    rows = pl.DataFrame({"k": ["a", "b", "c", "none"] * 100, "event_timestamp": [from_micros(START + i * 3 * HOUR) for i in range(400)]})
    for world in (here, there):
        rows.write_parquet(world.path / "rows.parquet")
    asked = ["dataset", "s", "--rows", "rows.parquet", "--out", "out.parquet"]
    ended(command(here, *asked))
    before = [len(cluster.executors(worker)) for worker in (0, 1)]
    running = command(there, *asked, *spark)
    while running.poll() is None and len(cluster.executors(1)) == before[1]:
        time.sleep(0.05)
    cluster.workers[1].kill()
    ended(running)
    assert len(cluster.executors(1)) > before[1], "it was killed while it had an executor of this run"
    assert_frame_equal(pl.read_parquet(there.path / "out.parquet"), pl.read_parquet(here.path / "out.parquet"))
