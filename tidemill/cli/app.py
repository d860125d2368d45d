"""The Typer app: its commands, and what becomes of their errors."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from tidemill.errors import TidemillError

#: The modules of `tidemill.cli` that hold commands, in the order in which `--help` lists them.
COMMANDS = (
    "init",
    "demo",
    "plan",
    "apply",
    "reshard",
    "stream",
    "batch",
    "backfill",
    "dataset",
    "backtest",
    "train",
    "model",
    "predict",
    "learn",
    "archive_predictions",
    "serve",
    "get",
    "status",
    "audit",
    "dead_letters",
)

#: Set to anything, it makes every error print its traceback too.
DEBUG = "TIDEMILL_DEBUG"


class _OneLineErrors(TyperGroup):
    """Says what went wrong in one line on stderr, and never with a traceback (but see `DEBUG`)."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        try:
            code = super().main(args=args, prog_name="tidemill", standalone_mode=False, **extra)
            sys.stdout.flush()
        except BrokenPipeError:  # `tidemill status | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's own last flush is quiet
            code = 1
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except Exception as error:  # noqa: BLE001 - this is where every error ends
            code = _told(error)
        sys.exit(code if isinstance(code, int) else 0)


class _Command(TyperCommand):
    """A command whose every usage error knows its command; Typer's own forgets it where an option lacks its value."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "ctx", ctx) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            raise


def _told(error: Exception) -> int:
    """Print the line of an error; the exit code."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error, file=sys.stderr)
    code, text = 1, str(error)
    if hasattr(error, "format_message"):  # Typer's own: wrong options and arguments
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "tidemill"
        code, text = getattr(error, "exit_code", 2), f"{error.format_message().rstrip('.')}; see `{where} --help`"
    elif not isinstance(error, TidemillError):
        text = f"{type(error).__name__}: {error} (not an error that tidemill expected: set {DEBUG}=1 to see where it comes from)"
    print("tidemill:", " ".join(text.split()), file=sys.stderr)  # noqa: T201
    return code


def _version(wanted: bool) -> None:
    if wanted:
        from tidemill import __version__

        typer.echo(f"tidemill {__version__}")
        raise typer.Exit


def build() -> typer.Typer:
    """The app with all commands."""
    app = typer.Typer(
        cls=_OneLineErrors,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    @app.callback(invoke_without_command=True, epilog="Begin with:  tidemill init flights")
    def tidemill(
        context: typer.Context,
        version: Annotated[  # noqa: ARG001 - its callback does it
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        """Declare a feature once: the stream, the batch job and the live request all return the same number."""
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    for name in COMMANDS:
        importlib.import_module(f"tidemill.cli.{name}").register(app)
    for each in (app, *(group.typer_instance for group in app.registered_groups)):
        for command in each.registered_commands if each else ():
            command.cls = _Command
    return app


def run() -> None:
    """Run the command of this process's arguments, and exit."""
    typer.main.get_command(build()).main()
