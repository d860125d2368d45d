"""A backfill that Spark folds: imported files and the archive, equal to brute force, and to the version that is folded here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.backfill.world import WITHOUT_ID, World, make_events
from tidemill.apps import load
from tidemill.offline.partials import Partials
from tidemill.times import DAY

engines = load("batch.engines")
on_spark = load("batch.spark.fold")
session = load("batch.spark.session")


def engine(world: World) -> Any:
    return on_spark.SparkEngine(on_spark.Place.of(world.env), session.Cluster(), offsets=400)


def test_imported_files_and_the_archive_are_folded_as_they_are_here(spark: Any, tmp_path: Path) -> None:
    every = make_events(3900)
    worlds = [World(tmp_path / name, WITHOUT_ID) for name in ("here", "there ")]
    for world, chosen in zip(worlds, (None, engine(worlds[1])), strict=True):
        for i in range(0, 1800, 600):
            world.history(f"{i}.parquet", every[i : i + 600])
        world.live(every[1800:])
        made = world.backfill(engine=chosen)
        assert (made.made.events, made.folded.k) == (1800, 1)
        world.check(every, at=every[-1]["at"] + DAY)
    [here, there] = [Partials(w.env.offline, w.env.applied().bundles[0].bundle) for w in worlds]
    a, b = here.latest(), there.latest()
    for name in ("k", "vector", "horizon", "latest", "arrived", "imports"):
        assert getattr(a, name) == getattr(b, name), name
    bundle = worlds[0].env.applied().bundles[0].bundle
    for i, table in enumerate(bundle.tables):
        merged = [
            bundle.merge(i, p.scan(i, [f for f in v.files if f.table == table.key]), v.horizon).sort(*bundle.keys, "_span", *table.cell)
            for p, v in ((here, a), (there, b))
        ]
        assert merged[0].height > 100
        assert merged[0].equals(merged[1])
