"""`tidemill status`: how far everything is, and what needs attention."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from tidemill.cli.options import LOOK, JsonOption, ProjectOption, environment, examples
from tidemill.cli.output import Output, waiting
from tidemill.cli.shown import counted, instant, number, shortened, size, span
from tidemill.errors import TidemillError

if TYPE_CHECKING:
    from tidemill.environment import Environment
    from tidemill.status import PartitionStatus, ProjectStatus

_STATES = {"serving": "green", "empty": "dim", "rebuilding": "yellow", "waiting for batch": "yellow", "unknown": "yellow"}
#: A narrower screen has no room for every column.
_WIDE = 90


def register(app: typer.Typer) -> None:
    """Put `status` on the app."""
    app.command(epilog=examples("tidemill status", "watch tidemill status"), rich_help_panel=LOOK)(status)


def status(project: ProjectOption = None, json: JsonOption = False) -> None:
    """Show how far the stream and batch are, what the stores hold, and what went wrong.

    Where the online store or a log does not answer, the rest is shown all the same, and the exit code is 1.

    JSON: project, version, pending, problem (of the online store), sources (name, watermark, cut, batch, batch_seconds, partitions,
    dead, problem), bundles, workers.
    """
    from tidemill.status import project_status

    env, out = environment(project), Output(json=json)
    with waiting("asking the stores and the logs"):
        found = project_status(env)
    now = dt.datetime.now(dt.UTC)
    workers = _workers(env)
    out.document({**asdict(found), "workers": [asdict(w) for w in workers]})
    _partitions(out, found)
    _sources(out, found, now)
    _bundles(out, found, now)
    _dead(out, found)
    _attention(out, found)
    applied = f"version {found.version}" if found.version else "nothing applied: run `tidemill apply`"
    out.say(f"{found.project}: {applied}, {_streaming(workers)}{_lag(found)}")
    unanswered = ["the online store"] * bool(found.problem) + [f"the log of {source.name}" for source in found.sources if source.problem]
    if unanswered:
        raise TidemillError(f"not everything could be asked: {', '.join(unanswered)} cannot be read")


def _workers(env: Environment) -> list[Any]:
    """What the stream's workers say of themselves; nothing where the stream is not installed."""
    from tidemill.apps import load

    found: list[Any] = load("streaming.status").read_status(env.project.directory)
    return found


def _streaming(workers: Sequence[Any]) -> str:
    """How many workers run here, and what they do if that is not just streaming."""
    alive = [w for w in workers if w.alive]
    states = sorted({w.state for w in alive} - {"reading", "following"})
    return " ".join([counted(len(alive), "worker") if alive else "no workers", *([f"({', '.join(states)})"] if states else [])])


def _partitions(out: Output, found: ProjectStatus) -> None:
    rows: list[tuple[object, ...]] = []
    wide = out.width >= _WIDE
    for source in found.sources:
        rows += [(source.name if i == 0 else "", *_partition(p, wide=wide)) for i, p in enumerate(source.partitions)]
        if not source.partitions:
            rows.append((source.name, *("-" * (7 if wide else 6))))
    columns = ("source", "part", "log end", "position", "lag", "behind", "through (UTC)", *(["archived"] if wide else []))
    out.table(columns, rows, numbers=("part", "log end", "position", "lag", "behind", "archived"))
    if rows:
        out.say()


def _partition(p: PartitionStatus, *, wide: bool) -> tuple[object, ...]:
    behind = Text("-" if p.lag_micros is None else span(p.lag_micros), style="yellow" if p.lag else "")
    lag = Text(number(p.lag), style="yellow" if p.lag else "")
    archived = (number(p.archived),) if wide else ()
    return number(p.partition), number(p.log_end), number(p.position), lag, behind, instant(p.through), *archived


def _sources(out: Output, found: ProjectStatus, now: dt.datetime) -> None:
    rows = []
    took = ["took"] if out.width >= _WIDE else []
    for source in found.sources:
        at = sum(p.cut for p in source.partitions)
        cut = f"{number(source.cut)} (at {number(at)})" if source.cut else "-"
        seconds = "-" if source.batch_seconds is None else span(round(source.batch_seconds * 1e6))
        ran = (_ago(source.batch, now), *([seconds] if took else []))
        rows.append((source.name, instant(source.watermark), cut, *ran, number(sum(source.dead.values()))))
    columns = ("source", "event time (UTC)", "cut", "batch ran", *took, "dead letters")
    out.table(columns, rows, numbers=("cut", "batch ran", "took", "dead letters"))
    if rows:
        out.say()


def _bundles(out: Output, found: ProjectStatus, now: dt.datetime) -> None:
    wide = out.width >= _WIDE
    rows: list[tuple[object, ...]] = []
    for b in found.bundles:
        state = Text(b.state, style=_STATES[b.state])
        folded = f"{number(b.folded)}, {_ago(b.folded_at, now)}" if b.folded_at else number(b.folded)
        if wide:
            rows.append((b.id, number(b.features), state, folded, number(b.published), number(b.cells), size(b.bytes)))
        else:  # the first characters of its hash tell a view's bundles apart
            rows.append((b.id[: len(b.view) + 5], state, folded, number(b.published), size(b.bytes)))
    columns = ("bundle", *(["features"] * wide), "state", "folded", "published", *(["cells"] * wide), "bytes")
    out.table(columns, rows, numbers=("features", "folded", "published", "cells", "bytes"))
    if rows:
        out.say()


def _ago(at: dt.datetime | None, now: dt.datetime) -> str:
    """How long ago, in whole units of the largest that fits."""
    if at is None:
        return "-"
    seconds = max(int((now - at).total_seconds()), 0)
    width, unit = next((w, u) for w, u in ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")) if seconds >= w or w == 1)
    return f"{seconds // width}{unit} ago"


def _dead(out: Output, found: ProjectStatus) -> None:
    rows = [(number(count), source.name, shortened(reason, 70)) for source in found.sources for reason, count in source.dead.items()]
    out.table(("dead letters", "source", "reason"), rows[:10], numbers=("dead letters",))
    if rows:
        out.say("see `tidemill dead-letters list`" + (f"; {len(rows) - 10} more reasons" if len(rows) > 10 else ""))
        out.say()


def _attention(out: Output, found: ProjectStatus) -> None:
    if found.problem:
        out.warn(f"the online store cannot be read: {found.problem}")
    for source in found.sources:
        if source.problem:
            out.warn(f"the log of {source.name} cannot be read: {source.problem}")
    waits = [b for b in found.bundles if b.state == "waiting for batch"]
    if waits:
        features = counted(sum(b.features for b in waits), "feature")
        out.warn(f"{features} of {', '.join(sorted({b.view for b in waits}))} missing until `tidemill batch` has folded the history")
    if found.pending and found.version:
        out.warn("the definitions have changed since they were applied: see `tidemill plan`")
    if found.pending is None:
        out.warn("the definitions file cannot be read: see `tidemill plan`")


def _lag(found: ProjectStatus) -> str:
    lags = [p.lag for s in found.sources for p in s.partitions if p.lag is not None]
    if not lags:
        return ""
    return f", {counted(sum(lags), 'record')} behind" if any(lags) else ", up to date"
