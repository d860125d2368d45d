"""The command line, run through its real entry point, in a folder of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from tidemill.apps.streaming.ingest import PartitionIngest
from tidemill.cli.app import build
from tidemill.environment import Environment

FEATURES = """\
import tidemill as tm

tx = tm.Source(
    "tx", schema={"id": int, "card": str, "amount": float, "at": tm.Timestamp}, timestamp="at", event_id="id", path="data/*.jsonl"
)
card = tm.FeatureView(
    "card",
    source=tx,
    entity=tm.Entity("card"),
    aggregations=[tm.count(windows=["1h", "1d"]), tm.sum("amount", windows=["1d"])],
)


@tm.on_demand(inputs=[card, tm.Request(amount=float)])
def share(amount, amount_sum_1d):
    return amount / amount_sum_1d


s = tm.FeatureService("s", features=[card, share])
"""
START = "2026-01-05T00:00:00"


class Ran(NamedTuple):
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        assert self.code == 0, self.err
        return json.loads(self.out)


class Project:
    """A project in `root`, and the command line in it."""

    def __init__(self, root: Path, chdir: Callable[[Path], None]) -> None:
        self.root = root
        self._chdir = chdir

    def write(self, name: str, text: str) -> Path:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def run(self, line: str) -> Ran:
        """`tidemill <line>`, in this process."""
        self._chdir(self.root)
        result = CliRunner().invoke(build(), shlex.split(line))
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return Ran(result.exit_code, result.stdout, result.stderr)

    def process(self, line: str) -> Ran:
        """`tidemill <line>`, as a process of its own."""
        done = subprocess.run(self.command(line), cwd=self.root, capture_output=True, text=True, timeout=120, check=False)
        return Ran(done.returncode, done.stdout, done.stderr)

    def command(self, line: str) -> list[str]:
        return [sys.executable, "-c", "from tidemill.cli import main; main()", *shlex.split(line)]

    def environment(self) -> Environment:
        return Environment.load(self.root)

    def refused(self, line: str, code: int = 1) -> str:
        """The one line on stderr of a command that could not do it, without `tidemill: `."""
        ran = self.run(line)
        assert (ran.code, ran.out) == (code, ""), ran
        assert ran.err.startswith("tidemill: "), ran.err
        assert ran.err.count("\n") == 1, ran.err
        assert "Traceback" not in ran.err
        return ran.err.removeprefix("tidemill: ").strip()

    def stream(self) -> None:
        """Everything that the logs have, to the stores."""
        env = self.environment()
        applied = env.applied()
        for source in applied.sources.values():
            log = env.log(source)
            for partition in log.partitions():
                ingest = PartitionIngest(
                    source,
                    partition,
                    log,
                    env.decoder(source),
                    env.online,
                    env.offline,
                    applied.of_source(source.name),
                    applied.shards,
                    env.project.slack,
                    now=lambda: time.time_ns() // 1000,
                )
                ingest.restore()
                ingest.run()
                ingest.archive()
                ingest.idle()
                ingest.close()
            getattr(log, "close", lambda: None)()  # a topic's has connections
        env.online.close()


def line(i: int, card: str = "a", amount: object = 1.0, hour: int = 0) -> str:
    """An event as a line of JSON."""
    return json.dumps({"id": i, "card": card, "amount": amount, "at": f"2026-01-05T{hour:02}:{i // 60 % 60:02}:{i % 60:02}"}) + "\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that counts payments by card: events of cards a and b, none applied yet."""
    found = Project(tmp_path / "p", monkeypatch.chdir)
    found.write("tidemill.toml", '[project]\nname = "p"\n[online]\nshards = 4\n')
    found.write("features.py", FEATURES)
    found.write("data/1.jsonl", "".join(line(i, "ab"[i % 2], 0.5) for i in range(1500)))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty folder."""
    return Project(tmp_path, monkeypatch.chdir)


@pytest.fixture
def event() -> Callable[..., str]:
    """Makes an event as a line of JSON: (id, card, amount, hour)."""
    return line
