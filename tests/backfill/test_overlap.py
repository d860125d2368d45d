"""What is left out by id: against a set, in Python."""

from __future__ import annotations

from typing import Any
from unittest import mock

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.backfill.test_equal import PHASES, a_world, sizes
from tests.backfill.world import START
from tidemill.apps import load
from tidemill.offline.segments import iter_history

overlap = load("backfill.overlap")

DEFINITIONS = """
events = tm.Source("events", schema={"id": %s, "k": str, "at": tm.Timestamp}, timestamp="at", event_id="id", path="log/*.jsonl")
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[tm.count(windows=["lifetime"])])
"""
#: Ids that grow, those that repeat, those in no order, and none at all; each from some number on.
RUNS = st.tuples(st.integers(0, 60), st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sampled_from(["up", "up", "any", "null"]))


def run_of(start: int, steps: list[int], how: str) -> list[int | None]:
    """The ids of a run: sums of steps, some of which are none."""
    ids: list[int | None] = [start + sum(steps[:i]) for i in range(len(steps))]
    if how == "any":
        ids = ids[::2] + ids[1::2][::-1]
    return [None if how == "null" and i % 3 == 1 else id for i, id in enumerate(ids)]


@pytest.mark.parametrize("kind", ["int", "str"])
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(
    log=st.lists(RUNS, max_size=2),
    earlier=st.lists(RUNS, max_size=2),
    files=st.lists(RUNS, min_size=1, max_size=5),
    size=st.integers(1, 4),
    bytes=st.sampled_from([1, 1 << 28]),
)
def test_every_id_counts_once_and_what_has_none_counts(
    kind: str, log: list[Any], earlier: list[Any], files: list[Any], size: int, bytes: int
) -> None:
    dtype = pl.Int64() if kind == "int" else pl.String()

    def as_id(n: int | None) -> Any:
        return n if n is None or kind == "int" else f"id-{n:03}"

    with a_world(DEFINITIONS % kind) as world, sizes(size, 50, 50), mock.patch.object(overlap, "_ID_BYTES", bytes):
        known = [as_id(n) for run in log for n in run_of(*run)]
        if known and not any(known):
            known.append(as_id(7))
        (world.path / "log" / "a.jsonl").write_text("")
        world.log([{"id": id, "k": "a", "at": "2026-03-01"} for id in known])
        world.stream()
        seen = {id for id in known if id is not None}
        without = sum(id is None for id in known)
        total = len(known)
        for folder, runs in (("earlier", earlier), ("history", files)):
            ids = [[as_id(n) for n in run_of(*run)] for run in runs]
            for number, some in enumerate(ids):
                (world.path / folder).mkdir(exist_ok=True)
                frame = pl.DataFrame({"id": pl.Series(some, dtype=dtype), "k": "a", "at": START})
                # Beside each other, so that no two files are the same.
                frame = frame.with_columns(at=(pl.col("at") + (folder == "history") * 100 + number).cast(pl.Datetime("us", "UTC")))
                frame.write_parquet(world.path / folder / f"{number}.parquet", row_group_size=size)
            if not ids:
                continue
            result = world.backfill(files=(folder,), memory=(400 << 20) + 2 * bytes, overlap=overlap.BY_ID)
            left_out = repeated = nulls = 0
            new = set[Any]()
            for id in (id for some in ids for id in some):
                nulls += id is None
                left_out += id in seen
                repeated += id in new and id not in seen
                new |= {id} - {None}
            count = sum(map(len, ids)) - left_out - repeated
            if count == 0:
                assert result.made is None
                continue
            made = result.made
            assert (made.events, made.left_out, made.repeated, made.without_id) == (count, left_out, repeated, nulls)
            assert made.log_without_id == without
            seen, without, total = seen | new, without + nulls, total + count
        there = [id for frame in iter_history(world.env.offline, "events") for id in frame["id"]]
        whole = [id for id in there if id is not None]
        assert len(whole) == len(set(whole))
        assert len(there) == total - len(known)
        assert set(whole) == seen - {id for id in known if id is not None}
        assert world.get("v:count_lifetime") == {"v__count_lifetime": total}


def test_ids_that_grow_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_world(DEFINITIONS % "int") as world, sizes(10, 50, 50):
        world.log([{"id": 1_000 + i, "k": "a", "at": "2026-03-01"} for i in range(10)])
        world.stream()
        (world.path / "history").mkdir()
        rows = pl.DataFrame({"id": range(100), "k": "a", "at": START}).cast({"at": pl.Datetime("us", "UTC")})
        for number in range(4):
            rows[25 * number : 25 * number + 25].write_parquet(world.path / "history" / f"{number}.parquet", row_group_size=5)

        def numbered(*_: object) -> None:
            raise AssertionError("no two ranges meet")

        monkeypatch.setattr(overlap, "_numbered", numbered)
        assert world.backfill().made.events == 100
