"""`tidemill serve`: features and scores over HTTP."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tidemill.cli.options import RUN, ProjectOption, applied, environment, examples
from tidemill.cli.output import Output
from tidemill.cli.signals import terminated
from tidemill.errors import TidemillError

_TICK = 0.1


def register(app: typer.Typer) -> None:
    """Put `serve` on the app."""
    app.command(
        epilog=examples("tidemill serve", "tidemill serve --workers 2 --host 0.0.0.0 --keys-file /run/secrets/tidemill-keys"),
        rich_help_panel=RUN,
    )(serve)


def serve(
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Where to listen; 0.0.0.0: on all addresses.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, metavar="PORT", help="0: any free port.")] = 8080,
    workers: Annotated[int, typer.Option("--workers", min=1, max=256, metavar="N", help="Worker processes; about one per core.")] = 1,
    max_body: Annotated[int, typer.Option("--max-body", min=1, metavar="BYTES", help="Larger bodies are refused.")] = 1 << 20,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, metavar="N", help="Requests with more rows are refused.")] = 1000,
    keys_file: Annotated[
        Path | None,
        typer.Option("--keys-file", metavar="FILE", help="API keys, one per line; those in TIDEMILL_API_KEYS count too."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME", help="Not ready before this model is loaded; may be said several times.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=64, metavar="N", help="Requests that a worker computes at once.")] = 2,
    queue: Annotated[int, typer.Option("--queue", min=0, metavar="N", help="Requests that may wait for that, before a 503.")] = 64,
    grace: Annotated[
        float, typer.Option("--grace", min=1.0, metavar="SECONDS", help="What requests get to end, when told to stop.")
    ] = 10.0,
    log_format: Annotated[Literal["text", "json"], typer.Option("--log-format", help="How errors are logged on stderr.")] = "text",
    project: ProjectOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document when ready, and log as JSON.")] = False,
) -> None:
    """Answer requests for features and scores over HTTP, until SIGTERM or Ctrl-C.

    Says in one line when it is ready, and where. /openapi.json there describes the requests; /livez, /readyz and /metrics are for
    those who look after it. Workers that die are started again. On SIGHUP every worker is replaced by a new one, with the definitions
    and keys as they are then, and no request is lost.

    JSON, when ready: url, workers, pids, keys (whether callers need one).
    """
    from tidemill.apps import load
    from tidemill.journal import Journal

    env = environment(project)
    applied(env)
    found = load("serving.keys").load_keys(None if keys_file is None else str(keys_file), dict(os.environ))
    sockets = load("serving.sockets")
    out = Output(json=json)
    settings = load("serving.settings").Settings(
        directory=str(env.project.directory.absolute()),
        host=host,
        port=port,
        workers=workers,
        max_body=max_body,
        max_rows=max_rows,
        threads=threads,
        queue=queue,
        grace=grace,
        models=tuple(model or ()),
        keys_file=None if keys_file is None else str(keys_file.absolute()),
        log_format="json" if json else log_format,
    )
    env.definitions  # noqa: B018 - what is wrong with them is better said before workers are started
    journal = Journal("tidemill", lambda line: typer.echo(line, err=True), log_format=settings.log_format)
    supervisor = load("serving.supervisor").Supervisor(settings, journal)
    if not found and not sockets.is_loopback(host):
        journal.warning(f"whoever reaches {host} may ask: set TIDEMILL_API_KEYS, or --keys-file, to let in only some")
    try:
        with terminated() as stopped:
            _run(supervisor, out, bool(found), stopped)
    finally:
        supervisor.close()


def _run(supervisor: Any, out: Output, keys: bool, stopped: Any) -> None:
    again: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: again.append(number))
    try:
        supervisor.start()
        count = supervisor.settings.workers
        out.document({"url": supervisor.url, "workers": count, "pids": supervisor.pids, "keys": keys})
        told = f"{count} worker{'s' * (count > 1)}, {'with API keys' if keys else 'no API keys'}"
        out.say(f"serving at {supervisor.url} ({told}); Ctrl-C stops it")
        while not stopped():
            supervisor.poll()
            if again:
                again.clear()
                supervisor.replace()
            time.sleep(_TICK)
        if not supervisor.stop():
            raise TidemillError("a worker did not end by itself: requests were under way after --grace seconds, or its log says why")
    finally:
        signal.signal(signal.SIGHUP, before)
