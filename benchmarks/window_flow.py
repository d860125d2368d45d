"""The peer of `stream`: one sum and one count over windows of an hour, as Bytewax's own documentation writes it.

`python -m benchmarks.window_flow FILE` runs it over a file of JSON lines. It keeps nothing and writes nothing: no archive, no store,
no other window. That is to its advantage. With `--tuned` its clock is told that events are of the past, which the documentation does not
show: by default each open window is looked at again with every batch, which is slower, the more so the more keys there are.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.connectors.files import FileSource
from bytewax.dataflow import Dataflow
from bytewax.operators.windowing import EventClock, TumblingWindower, fold_window
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main


class _Nothing(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        pass


class _Nowhere(DynamicSink[Any]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Nothing:
        return _Nothing()


def _at(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["at"])


def _add(state: tuple[int, float], event: dict[str, Any]) -> tuple[int, float]:
    return state[0] + 1, state[1] + event["amount"]


def _merge(one: tuple[int, float], other: tuple[int, float]) -> tuple[int, float]:
    return one[0] + other[0], one[1] + other[1]


def flow(path: Path, *, tuned: bool) -> Dataflow:
    """Count and sum of `amount` of each user, for each hour."""
    more: dict[str, Any] = {"to_system_utc": lambda _: None} if tuned else {}
    dataflow = Dataflow("windows")
    lines = op.input("lines", dataflow, FileSource(path))
    events = op.map("decode", lines, json.loads)
    keyed = op.key_on("user", events, lambda event: event["user"])
    windows = fold_window(
        "hourly",
        keyed,
        EventClock(_at, wait_for_system_duration=timedelta(0), **more),
        TumblingWindower(length=timedelta(hours=1), align_to=datetime(2020, 1, 1, tzinfo=UTC)),
        lambda: (0, 0.0),
        _add,
        _merge,
    )
    op.output("out", windows.down, _Nowhere())
    return dataflow


if __name__ == "__main__":
    run_main(flow(Path(sys.argv[-1]), tuned="--tuned" in sys.argv))
