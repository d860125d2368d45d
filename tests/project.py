"""A small project in a folder, streamed without processes: for tests of what definitions, batch and requests make of a log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tidemill as tm
from tidemill.apps import load
from tidemill.environment import Environment

ingest = load("streaming.ingest")
job = load("batch.job")

EVENTS = 'events = tm.Source("events", schema={"k": str, "x": int, "at": tm.Timestamp}, timestamp="at", path="log/**/*.jsonl")\n'
VIEW = 'v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[tm.count(windows=["lifetime"])])\n'


class Folder:
    """A project with one log; `define` writes its definitions and applies them."""

    def __init__(self, path: Path, definitions: str = EVENTS + VIEW) -> None:
        self.path = path
        (path / "log").mkdir(parents=True)
        (path / "tidemill.toml").write_text('[project]\nname = "p"\n[online]\nshards = 2\nslack = "3650d"\n')
        self.env = self.define(definitions)

    def define(self, definitions: str) -> Environment:
        self.write(definitions)
        self.env.apply()
        return self.env

    def write(self, definitions: str) -> None:
        """Definitions that are not applied yet."""
        (self.path / "features.py").write_text("import tidemill as tm\n" + definitions)
        if hasattr(self, "env"):
            self.env.online.close()
        self.env = Environment.load(self.path)

    def log(self, events: Sequence[Mapping[str, Any]], file: str = "a.jsonl") -> None:
        """More events at the log's end."""
        with (self.path / "log" / file).open("a") as lines:
            lines.writelines(json.dumps(e) + "\n" for e in events)

    def stream(self) -> None:
        """All that is in the log, and then the archive."""
        applied = self.env.applied()
        for name, source in applied.sources.items():
            log = self.env.log(source)
            for partition in log.partitions():
                bundles = applied.of_source(name)
                part = ingest.PartitionIngest(
                    source,
                    partition,
                    log,
                    self.env.decoder(source),
                    self.env.online,
                    self.env.offline,
                    bundles,
                    applied.shards,
                    self.env.project.slack,
                    now=lambda: 0,
                )
                part.restore()
                part.run()
                part.archive()

    def batch(self) -> None:
        job.run(self.env)

    def get(self, *features: str, **key: Any) -> dict[str, Any]:
        """The features of one entity, by column."""
        store = tm.FeatureStore(self.env, clock=lambda: tm.times.to_micros("2026-06-01"))
        got = store.get_online_features(list(features) or ["v"], [key or {"k": "a"}])
        return {name: got.columns[name][0] for name in got.status}


def events(count: int, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Events of entity `a`, one a second from 2026-05-01 on, with x = 1."""
    start = tm.times.to_micros("2026-05-01")
    return [{"k": "a", "x": 1, "at": tm.times.from_micros(start + i * 1_000_000).isoformat(), **more} for i in range(first, first + count)]
