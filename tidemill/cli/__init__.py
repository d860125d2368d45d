"""The command line, `tidemill`: thin commands over the library, one module each.

To add a command, write `tidemill/cli/<name>.py` with a function `register(app)` that puts it on the Typer app it is given, and
add its name to `tidemill.cli.app.COMMANDS`. What it needs beyond Typer it imports inside the function that runs, so that
`tidemill --help` stays fast. Errors are raised, not printed: `tidemill.cli.app` makes one line of them.
"""

from __future__ import annotations


def main() -> None:
    """The entry point. Exits with 0, 1 (it could not), 2 (it was called wrongly), or 130 (Ctrl-C)."""
    from tidemill.cli.app import run

    run()
