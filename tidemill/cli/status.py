"""`tidemill status`: how far everything is, and what needs attention."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from tidemill.cli.options import LOOK, JsonOption, ProjectOption, environment, examples
from tidemill.cli.output import Output, waiting
from tidemill.cli.shown import counted, instant, number, shortened, size, span

if TYPE_CHECKING:
    from tidemill.environment import Environment
    from tidemill.status import PartitionStatus, ProjectStatus

_STATES = {"serving": "green", "empty": "dim", "rebuilding": "yellow", "waiting for batch": "yellow"}


def register(app: typer.Typer) -> None:
    """Put `status` on the app."""
    app.command(epilog=examples("tidemill status", "watch tidemill status"), rich_help_panel=LOOK)(status)


def status(project: ProjectOption = None, json: JsonOption = False) -> None:
    """Show how far the stream and batch are, what the stores hold, and what went wrong.

    JSON: project, version, pending, sources (name, cut, partitions, dead, problem), bundles, workers.
    """
    from tidemill.status import project_status

    env, out = environment(project), Output(json=json)
    with waiting("counting what is in the logs"):
        found = project_status(env)
    workers = _workers(env)
    out.document({**asdict(found), "workers": [asdict(w) for w in workers]})
    _partitions(out, found)
    _bundles(out, found)
    _dead(out, found)
    _attention(out, found)
    alive = [w for w in workers if w.alive]
    streaming = counted(len(alive), "worker") if alive else "no workers"
    applied = f"version {found.version}" if found.version else "nothing applied: run `tidemill apply`"
    out.say(f"{found.project}: {applied}, {streaming}{_lag(found)}")


def _workers(env: Environment) -> list[Any]:
    """What the stream's workers say of themselves; nothing where the stream is not installed."""
    from tidemill.apps import load

    found: list[Any] = load("streaming.status").read_status(env.project.directory)
    return found


def _partitions(out: Output, found: ProjectStatus) -> None:
    rows: list[tuple[object, ...]] = []
    for source in found.sources:
        rows += [(source.name if i == 0 else "", *_partition(p, source.cut)) for i, p in enumerate(source.partitions)]
        if not source.partitions:
            rows.append((source.name, "-", "-", "-", "-", "-", "-", "-", "-"))
    columns = ("source", "part", "log end", "position", "lag", "behind", "through (UTC)", "archived", "cut")
    out.table(columns, rows, numbers=("part", "log end", "position", "lag", "behind", "archived", "cut"))
    if rows:
        out.say()


def _partition(p: PartitionStatus, k: int) -> tuple[object, ...]:
    behind = Text("-" if p.lag_micros is None else span(p.lag_micros), style="yellow" if p.lag else "")
    lag = Text(number(p.lag), style="yellow" if p.lag else "")
    cut = f"{number(p.cut)} (k={k})" if k else "-"
    return number(p.partition), number(p.log_end), number(p.position), lag, behind, instant(p.through), number(p.archived), cut


def _bundles(out: Output, found: ProjectStatus) -> None:
    rows = []
    for b in found.bundles:
        state = Text(b.state, style=_STATES[b.state])
        rows.append((b.id, number(b.features), state, number(b.folded), number(b.published), number(b.cells), size(b.bytes)))
    columns = ("bundle", "features", "state", "folded", "published", "cells", "bytes")
    out.table(columns, rows, numbers=("features", "folded", "published", "cells", "bytes"))
    if rows:
        out.say()


def _dead(out: Output, found: ProjectStatus) -> None:
    rows = [(number(count), source.name, shortened(reason, 70)) for source in found.sources for reason, count in source.dead.items()]
    out.table(("dead letters", "source", "reason"), rows[:10], numbers=("dead letters",))
    if rows:
        out.say("see `tidemill dead-letters list`" + (f"; {len(rows) - 10} more reasons" if len(rows) > 10 else ""))
        out.say()


def _attention(out: Output, found: ProjectStatus) -> None:
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
