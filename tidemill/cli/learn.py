"""`tidemill learn`: the process that learns online, or what it says of itself."""

from __future__ import annotations

import datetime as dt
import json as jsonlib
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.options import RUN, JsonOption, MetricsHostOption, MetricsPortOption, ProjectOption, environment, examples
from tidemill.cli.output import Output
from tidemill.cli.shown import instant, number
from tidemill.cli.signals import terminated
from tidemill.errors import NotFoundError

if TYPE_CHECKING:
    from tidemill.learning.settings import LearnerSettings


def register(app: typer.Typer) -> None:
    """Put `learn` on the app."""
    app.command(epilog=examples("tidemill learn", "tidemill learn --once", "tidemill learn --status"), rich_help_panel=RUN)(learn)


def learn(
    project: ProjectOption = None,
    json: JsonOption = False,
    once: Annotated[bool, typer.Option("--once", help="Learn what can be learned by now, publish it, and end.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Show what the learner has kept, and learn nothing.")] = False,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = None,
) -> None:
    """Learn online from logged predictions and the labels that came later, and publish versions that scorers take up.

    What is learned is in the section [learner] of tidemill.toml: docs/online_learning.md. May be killed at any instant and run again.

    JSON, with --once and --status: model, version, at, closed_until, waiting, paused, metrics, counts, alerts.
    """
    from tidemill.apps import load
    from tidemill.learning.learner import status_key
    from tidemill.learning.settings import LearnerSettings

    if once and status:
        raise typer.BadParameter("--once and --status go one at a time")
    if (once or status) and (metrics_port is not None or metrics_host is not None):
        raise typer.BadParameter("--metrics-port and --metrics-host go without --once and --status: nobody reads metrics of what ends")
    if metrics_port is None and metrics_host is not None:
        raise typer.BadParameter("--metrics-host needs a port: say --metrics-port")
    env, out = environment(project), Output(json=json)
    settings = LearnerSettings.of(env)
    if status:
        data = env.offline.read(status_key(settings.model))
        if data is None:
            raise NotFoundError(f"the learner of {settings.model!r} has not run yet: start it with `tidemill learn`")
        _tell(out, jsonlib.loads(data))
        return
    app = load("serving.learner")
    if once:
        _tell(out, app.once(env, settings, _say(out)))
        return
    _run(env, out, app, settings, metrics_port, metrics_host)


def _run(env: Any, out: Output, app: Any, settings: LearnerSettings, port: int | None, host: str | None) -> None:
    from tidemill.metrics import LOOPBACK, Endpoint

    newest: dict[str, Any] = {}

    def seen(learner: Any) -> None:
        newest.update(learner.status())

    with terminated() as stopped, ExitStack() as until_the_end:
        if port is not None:
            endpoint = Endpoint(lambda: app.collect(dict(newest)) if newest else (), port, host or LOOPBACK)
            out.say(f"metrics at {until_the_end.enter_context(endpoint).url}")
        out.say(f"learning {settings.model} from labels of {settings.source.name}; Ctrl-C to stop")
        app.run(env, settings, _say(out), stopped, seen=seen)
    out.say("stopped")


def _say(out: Output) -> Any:
    """Lines for people on stdout, with --json on stderr."""

    def say(level: str, message: str, **fields: object) -> None:
        now = instant(dt.datetime.now(dt.UTC))
        text = f"{now}  {message}" + "".join(f" {name}={value}" for name, value in fields.items())
        if out.json:
            print(f"{level}: {text}", file=sys.stderr)  # noqa: T201
        elif level == "warning":
            out.warn(text)
        else:
            out.say(text)

    return say


def _tell(out: Output, found: dict[str, Any]) -> None:
    out.document(found)
    counts = found["counts"]
    rows = [(number(count), name.replace("_", " ")) for name, count in counts.items() if count]
    out.table(("count", "what"), rows, numbers=("count",))
    for alert in found["alerts"][-3:]:
        out.warn(f"the {alert['drift_on']} drifted at {alert['at']}, after {alert['learned']} examples")
    if found["paused"]:
        out.warn(f"paused: {found['paused']}")
    shown = ", ".join(f"{name} {value:.4g}" for name, value in found["metrics"].items())
    out.say(
        f"{found['model']}: version {found['version']} is in force; {number(counts['learned'])} examples learned, "
        f"{number(found['waiting'])} predictions wait for their label; {shown}"
    )
