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
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

#: The panels of `tidemill --help`.
SET_UP, RUN, LOOK = "Set up", "Run", "Look"


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


def applied(env: Environment) -> Applied:
    """What is applied. Raises `NotAppliedError` if nothing is."""
    found = env.applied()
    if not found.version:
        raise NotAppliedError(f"nothing is applied in {env.project.directory} yet: run `tidemill apply`")
    return found
