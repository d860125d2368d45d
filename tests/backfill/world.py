"""A small project whose events come in two ways: some as files of history, in several formats, some in the live log."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

import tidemill as tm
from tests.project import Folder
from tidemill.apps import load
from tidemill.testing import brute_force
from tidemill.times import DAY, HOUR, from_micros, to_micros

job = load("backfill.job")
staging = load("backfill.staging")

START = to_micros("2026-03-01")
SOURCE = """
events = tm.Source("events", schema={"id": int, "k": str, "x": float, "at": tm.Timestamp}, timestamp="at", path="log/**/*.jsonl"%s)
"""
VIEW = """
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=["1d", "lifetime"]), tm.sum("x", windows=["1h", "30d", "lifetime"]), tm.last("x", windows=["lifetime"]),
    tm.quantile("x", 0.5, windows=["lifetime"])])
"""
WITH_ID, WITHOUT_ID = SOURCE % ', event_id="id"' + VIEW, SOURCE % "" + VIEW
KEYS = ("a", "b", "c")
AT = START + 60 * DAY


def make_events(count: int, first: int = 0, every: int = HOUR // 4) -> list[dict[str, Any]]:
    """Events in the order of their ids, each later than the one before."""
    return [{"id": i, "k": KEYS[i % 3], "x": (i * 37 % 101) / 10, "at": START + i * every} for i in range(first, first + count)]


def plain(event: dict[str, Any]) -> dict[str, Any]:
    """As a file has it."""
    return {**event, "at": from_micros(event["at"]).isoformat()}


def write(path: Path, events: Sequence[dict[str, Any]]) -> Path:
    """A file of events, in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame([plain(e) for e in events], schema={"id": pl.Int64, "k": pl.String, "x": pl.Float64, "at": pl.String})
    if path.suffix == ".parquet":
        frame.with_columns(pl.col("at").str.to_datetime(time_zone="UTC")).write_parquet(path, row_group_size=7)
    elif path.suffix == ".csv":
        frame.write_csv(path)
    else:
        text = "".join(json.dumps(plain(e)) + "\n" for e in events)
        data = text.removesuffix("\n").encode()  # complete files need no newline at their end
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


class World(Folder):
    """A `Folder` with history beside its log."""

    def __init__(self, path: Path, definitions: str = WITH_ID) -> None:
        super().__init__(path, definitions)

    def live(self, events: Sequence[dict[str, Any]]) -> None:
        """More events in the live log, streamed."""
        self.log([plain(e) for e in events])
        self.stream()

    def history(self, name: str, events: Sequence[dict[str, Any]]) -> Path:
        """A file of history."""
        return write(self.path / "history" / name, events)

    def backfill(self, *, memory: int | None = None, engine: Any = None, **options: Any) -> Any:
        """Run `tidemill backfill events --from history`."""
        more = {} if memory is None else {"memory": memory}
        options.setdefault("files", ("history",))
        return job.run(self.env, job.Request("events", **more, **options), engine=engine)

    def check(self, events: Sequence[dict[str, Any]], at: int = AT, view: str = "v") -> None:
        """Every feature of every entity equals brute force over these events."""
        store = tm.FeatureStore(self.env, clock=lambda: at)
        answer = store.get_online_features([view], [{"k": k} for k in KEYS])
        applied = self.env.applied().views[view].view
        for name, feature in applied.features.items():
            for row, key in enumerate(KEYS):
                mine = [e for e in events if e["k"] == key]
                schema, by = applied.source.schema, applied.source.event_id
                want = brute_force(feature.aggregation, feature.window, mine, at, schema=schema, timestamp="at", event_id=by)
                got = answer.columns[f"{view}__{name}"][row]
                assert (got, type(got)) == (want, type(want)), f"{name} of {key}: got {got}, want {want}"


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and when it was written."""
    found = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}
