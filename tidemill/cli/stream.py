"""`tidemill stream`: worker processes that read the logs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tidemill.cli.options import (
    RUN,
    JsonOption,
    MetricsHostOption,
    MetricsPortOption,
    ProjectOption,
    applied,
    environment,
    examples,
    metrics,
)
from tidemill.cli.output import Live, Output
from tidemill.cli.shown import counted, span
from tidemill.cli.signals import terminated
from tidemill.errors import TidemillError
from tidemill.metrics import Endpoint

if TYPE_CHECKING:
    from tidemill.environment import Environment

_TICK = 0.1


def register(app: typer.Typer) -> None:
    """Put `stream` on the app."""
    text = examples("tidemill stream --once", "tidemill stream --workers 4 --metrics-port 9464", "tidemill stream --share 2/3")
    app.command(epilog=text, rich_help_panel=RUN)(stream)


def stream(
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, metavar="N", help="Worker processes. Default: stream.workers in tidemill.toml, else 1."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Read every log to its end, and stop.")] = False,
    share: Annotated[
        str | None,
        typer.Option("--share", metavar="I/N", envvar="TIDEMILL_SHARE", help="With N hosts: which part of all partitions this one reads."),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option("--log-level", help="What the workers log on stderr. Default: info; with --once nothing, but the error that ends it."),
    ] = None,
    log_format: Annotated[Literal["text", "json"], typer.Option("--log-format", help="How they log it.")] = "text",
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Read the logs, and keep the features up to date, until Ctrl-C.

    Workers that die are started again, and go on from what the store holds. Where there is new data, a new definition or a second
    stream by mistake, nothing is counted twice or lost.

    Metrics are off unless --metrics-port, or stream.metrics in tidemill.toml, names a port: one for all workers.

    JSON, at the end: workers, records, events, dead, lag, waiting (bundles that need a batch run), seconds.
    """
    with _errors_as(log_format):
        _stream(workers, once, share, log_level, log_format, (metrics_port, metrics_host), project, Output(json=json))


@contextmanager
def _errors_as(log_format: Literal["text", "json"]) -> Iterator[None]:
    """Who reads lines of JSON gets the last one as JSON too."""
    from tidemill.journal import Journal

    try:
        yield
    except TidemillError as error:
        if log_format == "text":
            raise
        Journal("tidemill", partial(typer.echo, err=True), log_format="json").error(str(error))
        raise typer.Exit(1) from None


def _stream(
    workers: int | None,
    once: bool,
    share: str | None,
    log_level: str | None,
    log_format: Literal["text", "json"],
    port_and_host: tuple[int | None, str | None],
    project: Path | None,
    out: Output,
) -> None:
    from tidemill.apps import load

    env = environment(project)
    sources = applied(env).sources
    _check(env, logs=once)
    count = workers or int(env.project.settings.get("stream", {}).get("workers", 1))
    place = metrics(env, "stream", *port_and_host)
    told, begun = load("streaming.status"), time.monotonic()
    shares = load("streaming.shares")
    mine = shares.WHOLE if share is None else shares.Share.parse(share)
    with ExitStack() as until_the_end:
        live, stopped = until_the_end.enter_context(Live()), until_the_end.enter_context(terminated())
        quiet = once and log_level is None
        supervisor = load("streaming.supervisor").Supervisor(
            env.project.directory,
            count,
            once=once,
            share=mine,
            log_level=log_level or "info",
            log_format=log_format,
            on_line=(lambda _: None) if quiet else live.line,
        )
        measured = load("streaming.metrics").StreamMetrics(supervisor, env.project.name)
        if place is not None:
            endpoint = until_the_end.enter_context(Endpoint(measured.collect, *place))
            supervisor.journal.info("metrics", at=endpoint.url)
        finished = interrupted = False
        try:
            supervisor.start()
            while not (finished or stopped()):
                finished = _over(supervisor)
                statuses = measured.look()
                live.show(told.status_line(statuses) if statuses else f"starting {counted(count, 'worker')}")
                time.sleep(0 if finished else _TICK)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sums = told.totals(supervisor.statuses())
            supervisor.stop()
    seconds, read = time.monotonic() - begun, measured.counted()
    done = {"records": read.records, "events": read.events, "dead": read.dead, "lag": sums.lag, "waiting": sums.waiting}
    out.document({"workers": count, **done, "seconds": seconds})
    of_it = "" if share is None else f"share {mine} of "
    how = f"read {of_it}{counted(len(sources), 'source')} to the end" if finished else "stopped"
    waits = f"; waiting for batch: {', '.join(sums.waiting)}" if sums.waiting else ""
    events = f"{counted(read.events, 'event')}, {counted(read.dead, 'dead letter')}"
    out.say(f"{how}: {events} with {counted(count, 'worker')} in {span(round(seconds * 1e6))}{waits}")
    if interrupted:
        raise KeyboardInterrupt


def _over(supervisor: Any) -> bool:
    """Look after the workers; whether they have read everything. Raises `TidemillError` where starting them again is no use."""
    event = supervisor.poll()
    if event is not None and event.kind == "failed":
        raise TidemillError(event.reason)
    return event is not None and event.kind == "finished"


def _check(env: Environment, *, logs: bool) -> None:
    """What would end every worker is better said before one is started. Raises `TidemillError`."""
    env.online.slots([])
    env.online.close()
    if logs:
        for source in env.applied().sources.values():
            with closing(env.log(source)) as log:
                log.partitions()
