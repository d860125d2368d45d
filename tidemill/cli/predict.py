"""`tidemill predict`: score a file of entities, or those with events since the last run, and publish; or roll back."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.options import RUN, JsonOption, MetricsHostOption, MetricsPortOption, ProjectOption, applied, environment, examples
from tidemill.cli.output import Output, Progress
from tidemill.cli.shown import counted, instant, number, span
from tidemill.cli.signals import terminated

if TYPE_CHECKING:
    from tidemill.environment import Environment
    from tidemill.predictions.checks import Limits
    from tidemill.predictions.table import PredictionTable

#: The exit code of a run that its checks have blocked.
BLOCKED = 3
_SOURCES = ("auto", "online", "history")


def register(app: typer.Typer) -> None:
    """Put `predict` on the app."""
    lines = ("tidemill predict fraud --to sqlite:///scores.db", "tidemill predict fraud --every 5m", "tidemill predict fraud --rollback")
    app.command(epilog=examples(*lines), rich_help_panel=RUN)(predict)


def predict(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What these predictions are called, in folders and tables.")],
    project: ProjectOption = None,
    json: JsonOption = False,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="A registered model. Default: the one named NAME.")] = None,
    entities: Annotated[
        Path | None, typer.Option("--entities", metavar="FILE", help="Score these rows: Parquet, CSV or JSON lines, with keys.")
    ] = None,
    id: Annotated[str | None, typer.Option("--id", metavar="COLUMN", help="What names a row of --entities, if not its keys.")] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="INSTANT", help="As of this instant, as was known then. Default: now.")] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="An id; the same id again does nothing twice.")] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="URL", help="sqlite:///FILE or postgresql://USER@HOST/DATABASE, to publish to as well.")
    ] = None,
    features_from: Annotated[
        str | None, typer.Option("--features-from", metavar="WHERE", help="online, history, or auto: online while that is possible.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", metavar="SCORE", help="From here on a score is in the view NAME_above.")
    ] = None,
    check: Annotated[
        list[str] | None, typer.Option("--check", metavar="CHECK=LIMIT", help="Such as block_psi=0.3 or min_score=off; again for more.")
    ] = None,
    chunk: Annotated[int | None, typer.Option("--chunk", min=1, metavar="ROWS", help="Rows to score at a time. Default: 1000.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Score and check, and write nothing.")] = False,
    every: Annotated[
        str | None, typer.Option("--every", metavar="DURATION", help="Again and again, such as 5m, until it is stopped.")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Take back the run that was published last instead.")] = False,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = None,
) -> None:
    """Score entities with a model, all as of one instant, and publish the run at once.

    Without --entities, those are scored that got an event since the last published run, late or not. A run may be killed at any instant;
    the next call goes on with it. Checks come before publishing: where one blocks, the last good run stays, and the exit code is 3.

    A password in --to is refused: it comes from PGPASSWORD, ~/.pgpass, or through ${VARIABLE} in tidemill.toml.

    JSON: name, run, outcome (published, blocked, unchanged, already published, dry run), at, model, version, statistics, findings, seconds,
    resumed, warning; with --every one document a run, each on its line; with --rollback name, run and current.
    """
    from tidemill.apps import load
    from tidemill.definitions.project import has_password
    from tidemill.predictions.runs import check_name

    for given, option in ((at, "--at"), (run, "--run"), (dry_run, "--dry-run")):
        if every is not None and given:
            raise typer.BadParameter(f"--every and {option} do not go together")
    others = (entities, id, at, run, every, model, features_from, threshold, chunk)
    if rollback and (dry_run or check or any(given is not None for given in others)):
        raise typer.BadParameter("--rollback goes alone, or with --to")
    if id is not None and entities is None:
        raise typer.BadParameter("--id names the rows of --entities: without that file, entities are named by their keys")
    if threshold is not None and not math.isfinite(threshold):
        raise typer.BadParameter(f"--threshold is a score; got {threshold}")
    if to is not None and has_password(to):
        raise typer.BadParameter(
            "--to holds a password, which others would see: leave it to PGPASSWORD, ~/.pgpass, or ${...} in tidemill.toml"
        )
    if every is None and (metrics_port is not None or metrics_host is not None):
        raise typer.BadParameter("--metrics-port and --metrics-host go with --every: nobody reads the metrics of a process that ends")
    env, out = environment(project), Output(json=json)
    check_name(name)
    settings = _settings(env, name)
    url = to if to is not None else settings.get("to")
    with ExitStack() as until_the_end:
        table = None if url is None else until_the_end.enter_context(closing(_table(env, url)))
        if rollback:
            with load("batch.job").alone(env, None, f"predict-{name}"):
                state = load("batch.predict").rollback(env, name, table, _now)
            _rolled_back(out, name, state)
            return
        applied(env)
        where = _choice(features_from or settings.get("features_from") or ("history" if at is not None else "auto"))
        request = load("batch.predict").Request(
            name,
            entities,
            id if id is not None else settings.get("id"),
            None if at is None else _instant(at),
            run,
            where,
            _limits(settings, check or []),
            threshold if threshold is not None else settings.get("threshold"),
            chunk if chunk is not None else settings.get("chunk", 1_000),
            dry_run=dry_run,
        )
        scorers = until_the_end.enter_context(closing(_Scorers(env, model or settings.get("model") or name, dry_run=dry_run)))
        if every is not None:
            _repeat(env, out, request, scorers, table, _seconds(every), _place(settings, metrics_port, metrics_host))
            return
        with Progress() as shown, ExitStack() as leased:
            # A dry run changes nothing, so it need not wait for one that does.
            progress = shown if dry_run else leased.enter_context(load("batch.job").alone(env, shown, f"predict-{name}"))
            result = load("batch.predict").run(env, request, scorers, table, progress)
    _report(out, result, None)
    if any(f.blocks for f in result.findings):
        raise typer.Exit(BLOCKED)


# ---- what was asked for ---------------------------------------------------------------------------------------------------------


def _settings(env: Environment, name: str) -> dict[str, Any]:
    """What tidemill.toml says in [predict], and of these predictions in [predict.NAME], which counts more."""
    section = env.project.settings.get("predict", {})
    general = {key: value for key, value in section.items() if not isinstance(value, dict)}
    own = {} if name == "checks" else section.get(name)
    own = own if isinstance(own, dict) else {}  # of predictions that are called as a setting is
    return {**general, **own, "checks": {**section.get("checks", {}), **own.get("checks", {})}}


def _limits(settings: dict[str, Any], options: list[str]) -> Limits:
    from tidemill.predictions.checks import Limits

    said: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise typer.BadParameter(f"--check {option}: write CHECK=LIMIT, such as block_psi=0.3")
        said[key.strip()] = value.strip()
    return Limits().changed(settings["checks"]).changed(said)


def _table(env: Environment, url: str) -> PredictionTable:
    from tidemill.predictions.urls import open_table

    return open_table(url, base=env.project.directory)


def _choice(where: str) -> str:
    if where not in _SOURCES:
        raise typer.BadParameter(f"--features-from is one of {', '.join(_SOURCES)}; got {where!r}")
    return where


def _instant(at: str) -> int:
    from tidemill.times import to_micros

    try:
        return to_micros(at)
    except ValueError as error:
        raise typer.BadParameter(f"--at {at}: write an instant such as 2026-03-01T12:00:00Z ({error})") from None


def _seconds(every: str) -> float:
    from tidemill.times import parse_duration

    seconds = parse_duration(every) / 1e6
    if seconds <= 0:
        raise typer.BadParameter("--every must be more than nothing, such as 5m")
    return seconds


def _place(settings: dict[str, Any], port: int | None, host: str | None) -> tuple[int, str] | None:
    from tidemill.metrics import LOOPBACK

    port = settings.get("metrics") if port is None else port
    if port is None and host is not None:
        raise typer.BadParameter("--metrics-host needs a port: say --metrics-port, or set predict.metrics in tidemill.toml")
    return None if port is None else (port, host or str(settings.get("metrics_host", LOOPBACK)))


def _now() -> int:
    return time.time_ns() // 1000


class _Scorers:
    """A model by its version, or as it is in force."""

    def __init__(self, env: Environment, reference: str, *, dry_run: bool) -> None:
        from tidemill.client import FeatureStore

        self._store, self._reference = FeatureStore(env), reference
        # A run is its own log. A learner would else learn of predictions that were made twice, blocked, rolled back or only tried.
        self._store.prediction_log = None
        if dry_run:
            self._store.read_log = None

    def __call__(self, version: str | None) -> Any:
        from tidemill.predictions.models import ModelScorer

        return ModelScorer(self._store, self._reference, version)

    def close(self) -> None:
        self._store.close()


# ---- what was done --------------------------------------------------------------------------------------------------------------


def _report(out: Output, result: Any, warning: str | None) -> None:
    from tidemill.times import from_micros

    document = {**asdict(result), "at": from_micros(result.at).isoformat(), "warning": warning}
    document["statistics"].pop("buckets")
    out.document(document)
    for finding in result.findings:
        out.warn(f"{'blocked' if finding.blocks else 'check'}: {finding.check}: {finding.text}")
    if warning:
        out.warn(warning)
    out.say(summary(result))


def summary(result: Any) -> str:
    """One line about a run."""
    from tidemill.times import from_micros

    found = result.statistics
    what = f"{result.name}: run {result.run}"
    if result.outcome == "unchanged":
        return f"{result.name}: no entity has had an event since the last run, so there is nothing to score"
    if result.outcome == "already published":
        return f"{what} was published before, with {counted(found.rows, 'row')}; nothing was done"
    statuses = ", ".join(f"{number(count)} {status}" for status, count in found.statuses.items())
    ends = {
        "published": "published",
        "blocked": "is blocked, and the last good run stays",
        "dry run": "would be published (nothing was written)",
    }
    end = ends[result.outcome]
    if result.outcome == "dry run" and any(f.blocks for f in result.findings):
        end = "would be blocked (nothing was written)"
    scores = "" if found.low is None else f", scores {found.low:.4g} to {found.high:.4g}"
    again = ", going on where it was cut short" if result.resumed else ""
    at = instant(from_micros(result.at))
    model = f"{result.model} {result.version}"
    return f"{what} {end}: {counted(found.rows, 'row')} ({statuses or 'none'}){scores}, as of {at} by {model}, in {_took(result)}{again}"


def _took(result: Any) -> str:
    return span(round(result.seconds * 1e6))


def _rolled_back(out: Output, name: str, state: Any) -> None:
    current = state.current.run if state.current else None
    out.document({"name": name, "run": state.run, "current": current})
    now = f"run {current} is current again" if current else "no run is left"
    out.say(f"{name}: run {state.run} was taken back; {now}, and its entities are scored again by the next run")


def _repeat(
    env: Environment,
    out: Output,
    request: Any,
    scorers: Callable[[str | None], Any],
    table: PredictionTable | None,
    seconds: float,
    place: tuple[int, str] | None,
) -> None:
    """Until SIGTERM, or Ctrl-C. The lease is given back either way. `place`: of the metrics, a port and a host."""
    from tidemill.apps import load
    from tidemill.metrics import Endpoint

    predictor = load("batch.predict")
    measured = load("batch.predict_metrics").PredictMetrics(env, request.name)
    runs: list[int] = []

    def report(result: Any, warning: str | None) -> None:
        measured.ran(result, time.time())
        _report(out, result, warning)
        if not runs:
            out.say(f"again every {span(round(seconds * 1e6))}; Ctrl-C to stop")
        runs.append(1)

    def failed(error: Exception, pause: float) -> None:
        out.document({"error": str(error), "again_in_seconds": pause})
        out.warn(f"{instant(dt.datetime.now(dt.UTC))}  {error}; again in {span(round(pause * 1e6))}")

    with terminated() as stopped, ExitStack() as until_the_end:
        if place is not None:
            out.say(f"metrics at {until_the_end.enter_context(Endpoint(measured.collect, *place)).url}")
        alive = until_the_end.enter_context(load("batch.job").alone(env, None, f"predict-{request.name}"))
        predictor.run_every(
            lambda: predictor.run(env, request, scorers, table, alive),
            seconds,
            stopped,
            time.sleep,
            report,
            failed,
            lambda: alive("", 0, 0),
        )
    out.say("stopped")
