"""The fold on Spark and the fold here are one fold: the same versions, row for row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.aggregations.cases import CASES, Case
from tidemill.aggregations import Aggregation
from tidemill.apps import load
from tidemill.definitions import Source
from tidemill.errors import StoreError
from tidemill.kernel.bundle import Bundle
from tidemill.offline.archive import ArchiveWriter, partition_folder, range_files
from tidemill.offline.cuts import latest_cut, make_cut
from tidemill.offline.directory import DirectoryStore
from tidemill.offline.partials import Partials, Version
from tidemill.offline.store import OfflineStore
from tidemill.times import DAY, HOUR, MINUTE, SECOND, Window
from tidemill.types import ColumnType

fold = load("batch.fold")
job = load("batch.job")
on_spark = load("batch.spark.fold")
ranges = load("batch.spark.ranges")
session = load("batch.spark.session")

NOW = 20_000 * DAY + 5 * HOUR + 17 * MINUTE
WINDOWS = [Window.parse(w) for w in ("90s", "1h", "1d")]
SCHEMA = {
    "k": "str",
    "g": "int",
    "f": "float",
    "i": "int",
    "b": "bool",
    "s": "str",
    "t": "timestamp",
    "w": "int",
    "id": "int",
    "at": "timestamp",
}
OF_KIND = {"float": "f", "int": "i", "bool": "b", "str": "s", "timestamp": "t"}


def source() -> Source:
    return Source("events", schema={c: _declared(k) for c, k in SCHEMA.items()}, timestamp="at", event_id="id", path="none")


def _declared(kind: str) -> Any:
    import tidemill as tm

    return {"str": str, "int": int, "float": float, "bool": bool, "timestamp": tm.Timestamp}[kind]


def everything(windows: Sequence[Window] = WINDOWS) -> list[Aggregation]:
    """Each kind of aggregation that the conformance suite knows, over each kind of column, with a filter and without."""
    return [replace(_over(case).with_windows(windows), name=f"a{i}") for i, case in enumerate(CASES)]


def _over(case: Case) -> Aggregation:
    keywords = dict(case.make.keywords)
    if "column" in keywords:
        keywords["column"] = OF_KIND[case.kind]
    return case.make.func(**keywords, windows=["1s"], where=case.where)


def bundles(step: int = 1) -> list[Bundle]:
    """Two views: of one key and of two, with a filter and `lifetime`. `step`: every how many-th of the aggregations."""
    types = {c: ColumnType(k) for c, k in SCHEMA.items()}
    more = [*WINDOWS, Window.parse("lifetime")]
    return [
        Bundle("by-card", schema=types, event_id="id", keys=["k"], where=None, aggregations=everything()[::step]),
        Bundle("by-pair", schema=types, event_id="id", keys=["k", "g"], where="w <> 2", aggregations=everything(more)[::5]),
    ]


def rows(rng: Random, count: int, start: int, span: int, arrivals: bool | None) -> pl.DataFrame:
    """Events about in the order of time, some late by days; `arrivals` None: half of them have one."""
    made = []
    for i in range(count):
        at = start + span * i // count
        time = at - rng.choice((0, 0, 0, SECOND, MINUTE, 3 * HOUR, 30 * HOUR, 4 * DAY))
        known = at + rng.randrange(SECOND) if arrivals or (arrivals is None and rng.random() < 0.5 and i > count // 2) else None
        made.append(
            {
                "k": rng.choice(("", "a", "b", "é 1:a", f"c{rng.randrange(9)}")),
                "g": rng.randrange(3),
                "f": rng.choice((None, 0.1, -2.5, 1e16, 2.0**63, 5e-324, round(rng.uniform(-9, 9), 2))),
                "i": rng.choice((None, rng.randrange(-9, 9), 2**62, -(2**63))),
                "b": rng.choice((None, True, False)),
                "s": rng.choice((None, "", "x", "é", f"s{rng.randrange(30)}")),
                "t": rng.choice((None, time)),
                "w": rng.choice((None, 0, 1, 2)),
                "id": rng.choice((None, rng.randrange(50))),
                "at": time,
                "_time": time,
                "_arrival": known,
            }
        )
    kinds = {c: pl.Int64() if k == "timestamp" else ColumnType(k).polars for c, k in SCHEMA.items()}
    frame = pl.DataFrame(made, schema={**kinds, "_time": pl.Int64, "_arrival": pl.Int64})
    return frame.with_columns(pl.col("at", "t").cast(pl.Datetime("us", "UTC")))


def archive(store: OfflineStore, rng: Random, days: int, arrivals: bool | None = True, start: int = 0, count: int = 1200) -> None:
    """Partitions 0 and 3, in a few files each."""
    for partition in (0, 3):
        frame = rows(rng, count, NOW + start * DAY, days * DAY, arrivals)
        first = max((f.end for f in range_files(store, partition_folder("archive", "events", partition))), default=0)
        frame = frame.with_columns(pl.Series("_offset", range(first, first + len(frame)), dtype=pl.Int64))
        writer = ArchiveWriter(store, "events", partition)
        places = sorted(rng.sample(range(1, count), 3))
        for a, b in zip([0, *places], [*places, count], strict=True):
            writer.add(first + a, first + b, frame.slice(a, b - a))
            writer.flush()


def versions(store: OfflineStore, engine: Any, seen: Sequence[Bundle], slack: int = 10 * SECOND) -> dict[str, Version]:
    make_cut(store, "events")
    budget = replace(fold.Budget(), rows=300)  # so that the local engine folds at many horizons
    found: dict[str, Version] = fold.fold(store, source(), seen, latest_cut(store, "events"), slack, budget=budget, engine=engine)
    return found


def engine(store: DirectoryStore) -> Any:
    return on_spark.SparkEngine(on_spark.Place(str(Path(store.path("x")).parent), Path("/")), session.Cluster(), offsets=500)


def tiles(store: OfflineStore, bundle: Bundle, version: Version) -> dict[tuple[str, int | None, int], pl.DataFrame]:
    """The rows of each table and day, by the fold that wrote them, sorted."""
    out: dict[tuple[str, int | None, int], pl.DataFrame] = {}
    for file in version.files:
        place = file.table, file.day, file.k
        assert place not in out, "a fold writes one file for a table and day"
        frame = store.read_frame(file.key)
        assert len(frame) == file.rows
        out[place] = frame.sort(pl.all())
    return out


def assert_same(here: DirectoryStore, there: DirectoryStore, seen: Sequence[Bundle]) -> None:
    for bundle in seen:
        a, b = Partials(here, bundle).latest(), Partials(there, bundle).latest()
        for name in ("k", "generation", "base", "vector", "horizon", "latest", "arrived"):
            assert getattr(a, name) == getattr(b, name), f"{name} of {bundle.id}"
        expected, found = tiles(here, bundle, a), tiles(there, bundle, b)
        assert expected.keys() == found.keys()
        assert expected
        for place, frame in expected.items():
            assert_frame_equal(found[place], frame, check_exact=True)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[DirectoryStore, DirectoryStore]:
    """Paths with spaces, and with what a glob or a URL would take for its own."""
    return DirectoryStore(tmp_path / "a b" / "here"), DirectoryStore(tmp_path / "a b" / "the re [1] %20")


@pytest.mark.parametrize(("arrivals", "step"), [(True, 1), (False, 7), (None, 7)], ids=["with arrival times", "without", "some"])
def test_versions_are_equal_row_for_row(
    spark: Any, stores: tuple[DirectoryStore, DirectoryStore], arrivals: bool | None, step: int
) -> None:
    here, there = stores
    seen = bundles(step)
    for segment in range(2):
        for store in (here, there):
            archive(store, Random(17 + segment), 2, arrivals, start=2 * segment)
        versions(here, None, seen)
        versions(there, engine(there), seen)
        assert_same(here, there, seen)


def test_a_task_that_fails_after_its_work_and_is_tried_again_counts_nothing_twice(
    spark: Any, stores: tuple[DirectoryStore, DirectoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = stores
    seen = bundles()[1:]
    for store in (here, there):
        archive(store, Random(5), 1, count=1100)

    def failing_once(function: Any) -> Any:
        def run(batches: Any) -> Any:
            from pyspark import TaskContext

            yield from function(batches)
            if TaskContext.get().attemptNumber() == 0:
                raise OSError("the machine is gone")

        return run

    mapped = on_spark.mapped
    monkeypatch.setattr(on_spark, "mapped", lambda frame, function, schema: mapped(frame, failing_once(function), schema))
    versions(here, None, seen)
    versions(there, engine(there), seen)
    assert_same(here, there, seen)
    version = Partials(there, seen[0]).latest()
    folders = {f.key.rpartition("/")[0] for f in version.files}
    written = {key for folder in folders for key in there.list(folder)}
    assert written > {f.key for f in version.files}, "the attempts that failed have left files, which no version names"


def test_what_a_task_cannot_read_is_said_as_the_reader_says_it(spark: Any, stores: tuple[DirectoryStore, DirectoryStore]) -> None:
    there = stores[1]
    archive(there, Random(3), 1, count=1100)
    make_cut(there, "events")
    gone = range_files(there, partition_folder("archive", "events", 3))[1]
    there.delete(gone.key)
    with pytest.raises(StoreError, match=f"^offset {gone.start} of events, partition 3, is not in the archive"):
        versions(there, engine(there), bundles()[1:])
    assert Partials(there, bundles()[1]).latest().k == 0


def test_ranges_end_where_files_end_and_cover_everything(stores: tuple[DirectoryStore, DirectoryStore]) -> None:
    store = stores[0]
    archive(store, Random(9), 1, count=2000)
    ends = {f.end for f in range_files(store, partition_folder("archive", "events", 3))}
    found = ranges.ranges_of_tasks(store, "events", [(3, 7, 1990)], 600)
    assert [a for _, a, _ in found] == [7, *(b for _, _, b in found[:-1])]
    assert found[-1][2] == 1990
    assert {b for _, _, b in found[:-1]} < ends
    assert ranges.ranges_of_tasks(store, "events", [(3, 0, 3000)], 10_000) == [(3, 0, 3000)], "what is missing is the reader's to say"
    store.write_frame("archive/big/00000/" + "000000000000000-000000000001000.parquet", pl.DataFrame({"x": []}))
    assert [b for _, _, b in ranges.ranges_of_tasks(store, "big", [(0, 0, 1000)], 200)] == [200, 400, 600, 800, 1000]
