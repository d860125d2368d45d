"""What the commands have in common: their options, and how they find the project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from tidemill.errors import NotAppliedError, NotFoundError

if TYPE_CHECKING:  # Polars comes with it, and `--help` does without
    from tidemill.applied import Applied
    from tidemill.environment import Environment

ProjectOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--project", metavar="DIR", help="The project's folder. Default: this one, or the nearest above that has a tidemill.toml."
    ),
]
MetricsPortOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65_535,
        metavar="PORT",
        help="Serve metrics for Prometheus at http://HOST:PORT/metrics; 0: any free port.",
    ),
]
MetricsHostOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--metrics-host", metavar="HOST", help="Where to listen for that: 127.0.0.1, or 0.0.0.0 for all of this machine's addresses."
    ),
]
EngineOption: TypeAlias = Annotated[
    str | None, typer.Option("--engine", metavar="ENGINE", help="What runs it: local, or spark.", show_default=False)
]
MasterOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--master", metavar="URL", help="Spark's master, such as local[4], yarn or spark://host:7077.", show_default=False),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

#: The panels of `tidemill --help`.
SET_UP, RUN, LOOK = "Set up", "Run", "Look"

#: Of a model, for `model register` and `train`.
FallbackOption: TypeAlias = Annotated[
    str | None, typer.Option("--fallback", metavar="SCORE", help="The score, or 'error', where the model may not or cannot score.")
]
MaxMissingOption: TypeAlias = Annotated[
    int | None, typer.Option("--max-missing", min=0, metavar="N", help="How many features of a row may be missing or stale before that.")
]
ThresholdOption: TypeAlias = Annotated[
    float | None, typer.Option("--threshold", metavar="P", help="From this score on a row is in the positive class. Default: 0.5.")
]


def examples(*lines: str) -> str:
    """The end of a command's help. The lines hold no square brackets, which are markup there."""
    return "\n\n".join(["[bold]Example:[/]" if len(lines) == 1 else "[bold]Examples:[/]", *(f"[cyan]{line}[/]" for line in lines)])


def project_directory(given: Path | None) -> Path:
    """The folder given, or the nearest one from here upward with a tidemill.toml. Raises `NotFoundError`."""
    if given is not None:
        return given
    here = Path.cwd()
    for folder in (here, *here.parents):
        if os.path.exists(folder / "tidemill.toml"):  # noqa: PTH110 - false, not an error, where this user may not look
            return folder
    raise NotFoundError(
        f"no project here: {here} has no tidemill.toml, nor has a folder above it; run `tidemill init`, or say --project DIR"
    )


def environment(project: Path | None) -> Environment:
    """The project, opened."""
    from tidemill.environment import Environment

    return Environment.load(project_directory(project))


def metrics(env: Environment, section: str, port: int | None, host: str | None) -> tuple[int, str] | None:
    """Where to serve metrics: what the options say, else `metrics` and `metrics_host` in this section of tidemill.toml; None: nowhere."""
    from tidemill.metrics import LOOPBACK

    settings = env.project.settings.get(section, {})
    port = settings.get("metrics") if port is None else port
    if port is None and host is not None:
        raise typer.BadParameter(f"--metrics-host needs a port: say --metrics-port, or set {section}.metrics in tidemill.toml")
    return None if port is None else (port, host or str(settings.get("metrics_host", LOOPBACK)))


def applied(env: Environment) -> Applied:
    """What is applied. Raises `NotAppliedError` if nothing is."""
    found = env.applied()
    if not found.version:
        raise NotAppliedError(f"nothing is applied in {env.project.directory} yet: run `tidemill apply`")
    return found
