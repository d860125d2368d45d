"""`tidemill batch`: cut, fold and publish; once, again and again, or back."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.options import (
    RUN,
    EngineOption,
    JsonOption,
    MasterOption,
    MetricsHostOption,
    MetricsPortOption,
    ProjectOption,
    applied,
    environment,
    examples,
    metrics,
)
from tidemill.cli.output import Output, Progress
from tidemill.cli.shown import counted, instant, number, span
from tidemill.cli.signals import terminated
from tidemill.errors import NotFoundError
from tidemill.metrics import Endpoint

if TYPE_CHECKING:
    from tidemill.environment import Environment


def register(app: typer.Typer) -> None:
    """Put `batch` on the app."""
    app.command(
        epilog=examples(
            "tidemill batch", "tidemill batch --every 1d", "tidemill batch --engine spark", "tidemill batch --rollback payments"
        ),
        rich_help_panel=RUN,
    )(batch)


def batch(
    project: ProjectOption = None,
    json: JsonOption = False,
    source: Annotated[str | None, typer.Option("--source", metavar="SOURCE", help="Only this source.")] = None,
    every: Annotated[
        str | None, typer.Option("--every", metavar="DURATION", help="Again and again, such as 1d or 6h, until it is stopped.")
    ] = None,
    rollback: Annotated[
        str | None, typer.Option("--rollback", metavar="SOURCE", help="Take back the newest version of this source instead.")
    ] = None,
    engine: EngineOption = None,
    master: MasterOption = None,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = None,
) -> None:
    """Fold what the stream has archived into daily partials, and publish them.

    Changes no value: a batch run makes state smaller, and gives features their history. It may be killed at any instant and run again,
    while the stream goes on.

    With --engine spark, or batch.engine in tidemill.toml, Spark folds: on this machine, or on the cluster that --master, or
    spark.master, names. The versions are the same.

    With --every, metrics are served where --metrics-port, or batch.metrics in tidemill.toml, names a port.

    JSON: sources, each with source, k, versions, published, seconds; with --every one document a run, each on its line, or
    error and again_in_seconds where a store did not answer; with --rollback
    source and versions.
    """
    from tidemill.apps import load
    from tidemill.definitions.names import suggestion
    from tidemill.times import parse_duration

    if sum(option is not None for option in (source, every, rollback)) > 1:
        raise typer.BadParameter("--source, --every and --rollback go one at a time")
    seconds = None if every is None else parse_duration(every) / 1e6
    if seconds is not None and seconds <= 0:
        raise typer.BadParameter("--every must be more than nothing, such as 1d")
    if every is None and (metrics_port is not None or metrics_host is not None):
        raise typer.BadParameter("--metrics-port and --metrics-host go with --every: nobody reads the metrics of a process that ends")
    env, out, job = environment(project), Output(json=json), load("batch.job")
    chosen = load("batch.engines").engine_of(env, engine, master)
    sources = applied(env).sources
    for name in (source, rollback):
        if name is not None and name not in sources:
            raise NotFoundError(f"there is no applied source {name!r}; {suggestion(name, sources)}")
    if rollback is not None:
        with job.alone(env):
            _roll_back(out, rollback, job.rollback(env, rollback))
    elif seconds is not None:
        _repeat(env, out, job, seconds, chosen, metrics(env, "batch", metrics_port, metrics_host))
    else:
        with Progress() as shown, job.alone(env, shown) as progress:
            results = [job.run_source(env, source, progress, engine=chosen)] if source is not None else job.run(env, progress, chosen)
        _report(out, results)


def _report(out: Output, results: Sequence[Any]) -> None:
    """What one run did: a row per bundle, and a line."""
    out.document({"sources": [asdict(r) for r in results]})
    rows = []
    for result in results:
        for bundle, k in result.versions.items():
            rows.append((result.source, bundle, number(k), number(result.published.get(bundle, 0))))
    out.table(("source", "bundle", "version", "published"), rows, numbers=("version", "published"))
    if rows:
        out.say()
    took = span(round(sum(r.seconds for r in results) * 1e6))
    published = sum(sum(r.published.values()) for r in results)
    if published:
        out.say(f"folded {counted(len(results), 'source')} and published {counted(published, 'entity', 'entities')} in {took}")
    elif rows:
        out.say(f"nothing new: everything that can be folded was folded and published before ({took})")
    else:
        out.say("nothing to fold yet: the stream has archived less than a block (1,024 records) of every source")


def _roll_back(out: Output, source: str, versions: dict[str, int]) -> None:
    out.document({"source": source, "versions": versions})
    stands = ", ".join(f"{bundle} at version {k}" if k else f"{bundle} before its first version" for bundle, k in versions.items())
    out.say(f"rolled back {source}: {stands}; its features are missing until a worker has rebuilt them")


def _repeat(env: Environment, out: Output, job: Any, seconds: float, engine: Any, place: tuple[int, str] | None) -> None:
    """Until SIGTERM, or Ctrl-C. The lease is given back either way. `place`: of the metrics, a port and a host."""
    from tidemill.apps import load

    runs: list[int] = []
    measured = load("batch.metrics").BatchMetrics(env)

    def report(results: Sequence[Any]) -> None:
        measured.ran(env, results)
        out.document({"sources": [asdict(r) for r in results]})
        published = sum(sum(r.published.values()) for r in results)
        folded = ", ".join(f"{r.source} to {r.k}" for r in results if r.k) or "nothing"
        now = instant(dt.datetime.now(dt.UTC))
        out.say(f"{now}  folded {folded}; published {counted(published, 'entity', 'entities')}")
        if not runs:
            out.say(f"again every {span(round(seconds * 1e6))}; Ctrl-C to stop")
        runs.append(1)

    def failed(error: Exception, pause: float) -> None:
        out.document({"error": str(error), "again_in_seconds": pause})
        out.warn(f"{instant(dt.datetime.now(dt.UTC))}  {error}; again in {span(round(pause * 1e6))}")

    with terminated() as stopped, ExitStack() as until_the_end:
        if place is not None:
            out.say(f"metrics at {until_the_end.enter_context(Endpoint(measured.collect, *place)).url}")
        job.run_every(env, seconds, stopped, time.sleep, report, failed, engine=engine)
    out.say("stopped")
