"""Parquet files that are taken as they are: the same events, letters and counts as those of a file that has to be decoded."""

from __future__ import annotations

import math
import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import tidemill as tm
from tests.backfill.test_equal import PHASES, a_world, sizes
from tests.backfill.world import AT, KEYS, START, World, job
from tests.servers.s3 import BUCKET, S3Server, s3, s3_of_session
from tidemill.apps import load
from tidemill.entities import MAX_KEY_BYTES
from tidemill.errors import StoreError
from tidemill.offline.history import Part, iter_parts
from tidemill.offline.segments import iter_history
from tidemill.times import DAY, MAX_TIME, MIN_TIME

__all__ = ["s3", "s3_of_session"]

copies, staging = load("backfill.copies"), load("backfill.staging")

DEFINITIONS = """
events = tm.Source("events", schema={"id": int, "k": str, "x": float, "b": bool, "at": tm.Timestamp, "seen": tm.Timestamp, "y": float},
                   timestamp="at", event_id="id", arrival="seen", max_ahead="1d", path="log/**/*.jsonl")
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=["1d", "lifetime"]), tm.sum("x", windows=["30d"])])
"""
SCHEMA = {"id": pl.Int64, "k": pl.String, "x": pl.Float64, "b": pl.Boolean, "at": pl.Int64, "seen": pl.Int64, "y": pl.Float64}
TIMES = {"at": pl.Datetime("us", "UTC"), "seen": pl.Datetime("us", "UTC")}
#: Values that decoding changes, or that make a record no event, or none for a view.
DIRT = [
    *(("x", x) for x in (math.nan, -0.0, math.inf, -math.inf, 2.0**64, -(2.0**70))),
    *(("at", at) for at in (None, MAX_TIME, -(2**62), AT * 3)),
    *(("seen", at) for at in (MAX_TIME, 2**62, START - 5 * DAY)),
    ("k", None),
    ("k", "k" * MAX_KEY_BYTES),
    ("y", math.nan),
    ("y", -0.0),
]


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    """Rows of a file, all but a few of them clean, in columns of the source's types; not all columns, and in any order."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    rows = [
        {
            "id": i,
            "k": rng.choice([*KEYS, "", "é"]),
            "x": rng.choice([None, rng.uniform(-1e6, 1e6), 0.1, 0.0, 1e15, 5e-324]),
            "b": rng.choice([None, False, True]),
            "at": START + rng.randrange(50 * DAY),
            "seen": rng.choice([None, START + rng.randrange(50 * DAY, 60 * DAY)]),
            "y": rng.choice([None, rng.random()]),
        }
        for i in range(draw(st.integers(1, 40)))
    ]
    for column, value in rng.choices(DIRT, k=draw(st.sampled_from([0, 0, 1, 1, 2]))):
        at = rng.randrange(len(rows))
        rows[at] = {**rows[at], column: value}
    frame = pl.DataFrame(rows, schema=SCHEMA).cast(TIMES)  # type: ignore[arg-type]
    gone = draw(st.sampled_from([(), (), ("x",), ("seen",), ("b", "y")]))
    return frame.select(draw(st.permutations([name for name in frame.columns if name not in gone])))


def bits(frame: pl.DataFrame) -> pl.DataFrame:
    """Floats as their bits: -0.0 is 0.0 to whoever compares, and not to us."""
    return frame.with_columns(
        pl.Series(c.name, [None if v is None else struct.pack("d", v) for v in c], dtype=pl.Binary) for c in frame if c.dtype == pl.Float64
    )


def copied(parts: Sequence[Part]) -> int:
    """How many events lie in parts that are copies."""
    return sum(part.rows for part in parts if part.times is not None)


def imported(frame: pl.DataFrame, groups: int, live: int, size: tuple[int, int, int], **options: Any) -> tuple[Any, ...]:
    """What an import of one file makes: itself, its parts, its events by number, the answers, and the letters."""
    with a_world(DEFINITIONS) as world, sizes(*size), mock.patch.multiple(copies, _TOGETHER=size[0], _ROWS=max(size[0] // 2, 1)):
        world.log([{"id": i, "k": "a", "x": 1.0, "at": "2026-04-29"} for i in range(0, 40, 3)][:live])
        world.stream()
        (world.path / "history").mkdir()
        frame.write_parquet(world.path / "history" / "a.parquet", row_group_size=groups, compression=options.pop("compression"))
        result = world.backfill(bad=job.Bad.parse("100%"), **options)
        made = result.made
        types = {name: kind.polars for name, kind in world.env.applied().sources["events"].schema.items()}
        events = [bits(some) for some in iter_history(world.env.offline, "events", columns=types, rows=7)]
        answers = tm.FeatureStore(world.env, clock=lambda: AT).get_online_features(["v"], [{"k": k} for k in (*KEYS, "é")]).columns
        letters = None if made is None else staging.letters_of(world.env.offline, "events", made.id).drop("file")
        parts = [] if made is None else list(made.parts)
        told = (
            None
            if made is None
            else replace(made, id="", at=0, parts=(), files=tuple(replace(f, name="", size=0, digest="") for f in made.files))
        )
        return told, parts, pl.concat(events) if events else None, answers, letters, result.letters


def is_clean(row: dict[str, Any], since: int | None, until: int | None) -> bool:
    """Whether decoding leaves a row as it is, and the dates asked for have it."""
    for name, value in row.items():
        if isinstance(value, float) and (math.isnan(value) or abs(value) >= 2.0**64 or (value == 0 and math.copysign(1, value) < 0)):
            return False
        if name in ("at", "seen") and value is not None and not MIN_TIME <= value < MAX_TIME:
            return False
    at, seen = row["at"], row.get("seen")
    if at is None or at > time.time_ns() // 1000 or (seen is not None and at - seen > DAY):
        return False
    return (since is None or at >= since) and (until is None or at < until)


@settings(max_examples=60, phases=PHASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    frame=frames(),
    groups=st.integers(1, 9),
    size=st.tuples(st.integers(1, 5), st.integers(1, 30), st.integers(1, 20)),
    dates=st.sampled_from([(None, None), (None, None), (None, START + 45 * DAY), (START + 3 * DAY, None), (START, START + 50 * DAY)]),
    live=st.sampled_from([0, 0, 3]),
    compression=st.sampled_from(["zstd", "snappy", "uncompressed"]),
)
def test_a_copy_is_what_decoding_it_gives(
    frame: pl.DataFrame,
    groups: int,
    size: tuple[int, int, int],
    dates: tuple[int | None, int | None],
    live: int,
    compression: str,
) -> None:
    options = {"since": dates[0], "until": dates[1], "compression": compression}
    copy = imported(frame, groups, live, size, **options)
    decoded = imported(frame.with_columns(more=pl.lit(1)), groups, live, size, **options)
    assert copy[0] == decoded[0], "the import, apart from its parts"
    for a, b in ((copy[2], decoded[2]), (copy[4], decoded[4])):
        assert (a is None) == (b is None)
        if a is not None:
            assert_frame_equal(a, b)
    assert (copy[3], copy[5]) == (decoded[3], decoded[5])
    assert copied(decoded[1]) == 0
    if not live:
        rows = frame.with_columns(pl.col(n).cast(pl.Int64) for n in TIMES if n in frame.columns).rows(named=True)
        clean = [is_clean(row, *dates) for row in rows]
        assert copied(copy[1]) == (len(rows) if all(clean) else copied(copy[1])), "nothing but clean rows: the whole file"
        assert all(clean[: copied(copy[1])]), "no other row lies in a copy"


@pytest.mark.parametrize("dirt", range(len(DIRT)))
def test_behind_a_row_that_decoding_changes_a_file_is_decoded(dirt: int) -> None:
    column, value = DIRT[dirt]
    rows = [{"id": i, "k": "a", "x": 0.0, "b": True, "at": START + i, "seen": None, "y": 0.5} for i in range(20)]
    rows[13] = {**rows[13], "seen": START, column: value}
    frame = pl.DataFrame(rows, schema=SCHEMA).cast(TIMES)  # type: ignore[arg-type]
    options = {"groups": 2, "live": 0, "size": (2, 9, 9), "compression": "zstd"}
    copy = imported(frame, **options)
    decoded = imported(frame.with_columns(more=pl.lit(1)), **options)
    assert_frame_equal(copy[2], decoded[2])
    assert (copy[0], copied(copy[1]), copied(decoded[1])) == (decoded[0], 20 if column == "k" else 12, 0)
    assert [part.rows for part in copy[1]][:2] == [6, 6]


def test_letters_are_in_the_order_of_the_file_however_much_is_read_at_once(world: World) -> None:
    """What is no event, and what no view takes, are found by different checks."""
    rows = [{"id": i, "k": None if i % 3 == 0 else "a", "x": 0.0, "at": None if i % 3 == 1 else START + i} for i in range(20)]
    (world.path / "history").mkdir()
    frame = pl.DataFrame(rows, schema={name: SCHEMA[name] for name in ("id", "k", "x", "at")}).cast({"at": TIMES["at"]})
    frame.write_parquet(world.path / "history" / "a.parquet", row_group_size=7)
    made = world.backfill(bad=job.Bad.parse("100%")).made
    letters = staging.letters_of(world.env.offline, "events", made.id)
    assert letters["offset"].to_list() == [i for i in range(20) if i % 3 < 2]
    assert letters["view"].to_list() == [None if i % 3 else "v" for i in range(20) if i % 3 < 2]


CLEAN = pl.DataFrame(
    [{"id": i, "k": "abc"[i % 3], "x": i / 8, "b": True, "at": START + i, "seen": None, "y": 0.5} for i in range(3_000)],
    schema=SCHEMA,
).cast(TIMES)  # type: ignore[arg-type]


def taken(world: World, write: Callable[[Path], object], **options: Any) -> int:
    """How many events of a file lie in copies; they are all imported, whether they do or not."""
    path = world.path / "history" / "a.parquet"
    path.parent.mkdir()
    write(path)
    made = world.backfill(**options).made
    types = {name: kind.polars for name, kind in world.env.applied().sources["events"].schema.items()}
    there = pl.concat(iter_history(world.env.offline, "events", columns=types)).sort("id")
    assert_frame_equal(there.select(CLEAN.columns), CLEAN)
    assert there["_offset"].to_list() == list(range(3_000))
    folder = Path(world.env.offline.path(f"history/events/{made.id}"))
    used = {Path(part.key).name for part in made.parts}
    assert {file.name for file in folder.glob("*.parquet")} == used, "a copy that is of no use is not kept"
    return copied(made.parts)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "p", DEFINITIONS)


def with_type(column: str, dtype: pl.DataType | pl.DataTypeClass) -> Callable[[Path], object]:
    return lambda path: CLEAN.with_columns(pl.col(column).cast(dtype)).write_parquet(path)


def in_pandas(unit: str) -> pd.DataFrame:
    return CLEAN.to_pandas().astype(dict.fromkeys(TIMES, f"datetime64[{unit}, UTC]"))


WRITERS: dict[str, tuple[Callable[[Path], object], int]] = {
    "Polars": (CLEAN.write_parquet, 3_000),
    "PyArrow": (lambda path: pq.write_table(CLEAN.to_arrow(), path), 3_000),
    "pandas, whose times are in microseconds": (lambda path: in_pandas("us").to_parquet(path), 3_000),
    "pandas, whose times are in nanoseconds": (lambda path: in_pandas("ns").to_parquet(path), 0),
    "pandas with Arrow's types": (lambda path: CLEAN.to_pandas(use_pyarrow_extension_array=True).to_parquet(path), 3_000),
    "DuckDB": (lambda path: duckdb.sql("set timezone = 'UTC'; from CLEAN").write_parquet(str(path)), 3_000),
    "fewer columns": (CLEAN.drop("seen").write_parquet, 3_000),
    "one more column": (CLEAN.with_columns(more=1).write_parquet, 0),
    "times in nanoseconds": (with_type("at", pl.Datetime("ns", "UTC")), 0),
    "times without a zone": (with_type("at", pl.Datetime("us")), 0),
    "times of another zone": (lambda path: CLEAN.with_columns(pl.col("at").dt.convert_time_zone("Asia/Tokyo")).write_parquet(path), 0),
    "numbers of 32 bits": (with_type("id", pl.Int32), 0),
    "floats of 32 bits": (with_type("y", pl.Float32), 0),
    "sorted, it says": (lambda path: pq.write_table(CLEAN.to_arrow(), path, sorting_columns=[pq.SortingColumn(0)]), 0),
    "metadata that is not text": (lambda path: pq.write_table(CLEAN.to_arrow().replace_schema_metadata({b"x": b"\xff"}), path), 0),
    "categories": (with_type("k", pl.Categorical), 0),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_has_the_very_types_is_taken_as_it_is(world: World, name: str) -> None:
    write, expected = WRITERS[name]
    assert taken(world, write) == expected


def test_text_that_is_not_utf_8_is_a_dead_letter_in_a_file_of_the_very_types_too(world: World) -> None:
    table = CLEAN.to_arrow()
    text = pa.array([b"\xff" if i == 2_000 else b"a" for i in range(3_000)]).cast(pa.large_binary()).view(pa.large_string())
    (world.path / "history").mkdir()
    pq.write_table(table.set_column(table.column_names.index("k"), "k", text), world.path / "history" / "a.parquet", row_group_size=500)
    result = world.backfill()
    assert (result.made.events, result.letters) == (2_999, {"k: not UTF-8": 1})
    assert len(staging.letters_of(world.env.offline, "events", result.made.id)) == 1


def test_a_row_group_is_only_read_at_once_where_memory_holds_it(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, source = tmp_path / "a.parquet", world.env.applied().sources["events"]
    CLEAN.with_columns(k=pl.lit("k" * 1_000)).write_parquet(path, row_group_size=1_000)
    store = world.env.offline
    assert copies.Copy.of(store, "history/a.parquet", path, source, 100_000) is None, "7 columns of a thousand rows"
    assert not store.exists("history/a.parquet")
    copy = copies.Copy.of(store, "history/a.parquet", path, source, 160_000)
    assert (store.exists("history/a.parquet"), copy.ends) == (True, [1_000, 2_000, 3_000])
    assert copies.Copy.of(store, "history/a.parquet", path, source, 1 << 30).ends == [3_000]
    monkeypatch.setattr(copies, "_MOST_ROWS", 999)
    assert copies.Copy.of(store, "history/a.parquet", path, source, 1 << 30) is None


def test_a_store_that_reads_files_whole_gets_parts(tmp_path: Path, s3: S3Server) -> None:
    world = World(tmp_path / "p", DEFINITIONS)
    toml = world.path / "tidemill.toml"
    toml.write_text(toml.read_text() + f'[offline]\nurl = "s3://{BUCKET}/copies {os.getpid()}"\n')
    world.define(DEFINITIONS)
    (world.path / "history").mkdir()
    CLEAN.write_parquet(world.path / "history" / "a.parquet")
    made = world.backfill().made
    assert (made.events, copied(made.parts)) == (3_000, 0)


def test_of_two_that_import_a_file_at_once_both_end_with_the_same_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one has less memory, so that its parts end elsewhere, and is faster now and then."""
    (world.path / "history").mkdir()
    CLEAN.write_parquet(world.path / "history" / "a.parquet", row_group_size=100)
    create, made = world.env.offline.create, []

    def other(key: str, data: bytes) -> bool:
        if key.endswith("/journal/00000-000000000600.json") and not made:
            made.append(None)
            with sizes(50, 10, 10), mock.patch.object(copies, "_TOGETHER", 200):
                world.backfill(publishing=False)
        return create(key, data)

    monkeypatch.setattr(world.env.offline, "create", other)
    with sizes(100, 10, 10), mock.patch.object(copies, "_TOGETHER", 100):
        result = world.backfill()
    assert (made, result.made.events, copied(result.made.parts)) == ([None], 3_000, 3_000)
    assert [p.first for p in result.made.parts] == [0, 300, *range(600, 3_000, 200)], "the other's, from row 600 on"
    rows = pl.concat(iter_history(world.env.offline, "events"))
    assert_frame_equal(rows.select(CLEAN.columns), CLEAN)


@contextmanager
def settings_of(rows: int, together: int, most: int = 1 << 20) -> Iterator[None]:
    """Parts of about so many rows, which are read so many at a time; row groups of more than `most` are not taken as they are."""
    with sizes(rows, 50, 50), mock.patch.multiple(copies, _TOGETHER=together, _MOST_ROWS=most):
        yield


@pytest.mark.parametrize(
    ("first", "second"),
    [((100, 30), (100, 30)), ((100, 30), (100, 30, 5)), ((10, 30), (1_000, 1_000)), ((100, 30, 5), (100, 30))],
    ids=["alike", "the second has less memory", "the second has more", "the first has less"],
)
def test_whoever_comes_second_leaves_what_the_first_has_imported(
    world: World, monkeypatch: pytest.MonkeyPatch, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    """The first one commits while the second has looked at an empty journal, and has not yet begun."""
    (world.path / "history").mkdir()
    x = [math.nan if i == 2_900 else 0.5 for i in range(3_000)]
    CLEAN.with_columns(x=pl.Series(x)).write_parquet(world.path / "history" / "a.parquet", row_group_size=30)
    journal, made = staging.Staging.journal, []

    def late(self: Any, files: Any) -> Any:
        found = journal(self, files)
        if not made:
            made.append(None)
            with settings_of(*first):
                made[0] = world.backfill(publishing=False).made
        return found

    monkeypatch.setattr(staging.Staging, "journal", late)
    with settings_of(*second):
        assert world.backfill(publishing=False).made == made[0]
    rows = pl.concat(iter_history(world.env.offline, "events", columns={"id": pl.Int64(), "x": pl.Float64()}))
    assert rows["id"].to_list() == list(range(3_000))
    assert rows["x"].null_count() == 1


def test_parts_of_wide_rows_are_small_however_a_file_holds_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    make = job.Staging
    monkeypatch.setattr(job, "Staging", lambda *a, **k: make(*a, **{**k, "bytes": 1_000_000}))
    (world.path / "history").mkdir()
    texts = [f"{i:04}" * 500 for i in range(3_000)]
    for name, text in (("a", texts), ("b", texts[:1] * 3_000), ("c", [*texts[:1_500], *["x" * 100_000] * 1_500])):
        wide = CLEAN.with_columns(k=pl.Series(text), x=pl.lit(ord(name) / 4))
        wide.write_parquet(world.path / "history" / f"{name}.parquet", row_group_size=100)
    made = world.backfill(bad=job.Bad.parse("100%"), overlap="none").made
    assert made.events == 9_000
    parts = [part for part in made.parts if part.times is not None]
    assert [sum(part.rows for part in parts if f"/0000{i}-" in part.key) for i in range(3)] == [3_000, 0, 800], "texts of 2,000 bytes"
    sizes_of = [copies.size_of(frame) for part in parts for _, frame in iter_parts(world.env.offline, (part,), rows=part.rows)]
    assert max(sizes_of) <= 2_000_000, "a part ends with the read that makes it large enough"


def test_a_copy_that_ends_early_is_not_taken(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, source = tmp_path / "a.parquet", world.env.applied().sources["events"]
    CLEAN.write_parquet(path)
    copy = copies.Copy.of(world.env.offline, "history/a.parquet", path, source, 1 << 30)
    copy.ends[-1] += 1
    with pytest.raises(StoreError, match="has not the 3001 rows"):
        list(copy.read(0))
