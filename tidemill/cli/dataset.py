"""`tidemill dataset`: a training set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tidemill.cli.options import RUN, JsonOption, ProjectOption, environment, examples
from tidemill.cli.output import Output, Progress
from tidemill.cli.shown import counted, span
from tidemill.errors import RequestError

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "B": 1}


def register(app: typer.Typer) -> None:
    """Put `dataset` on the app."""
    text = examples(
        "tidemill dataset delay_v1 --rows labels.parquet --out train.parquet",
        "tidemill dataset origin_departures:count_1h carriers --rows labels.csv --out train.parquet --freshness 1h",
    )
    app.command(epilog=text, rich_help_panel=RUN)(dataset)


def dataset(
    features: Annotated[list[str], typer.Argument(metavar="FEATURES", help="A service, views, view:feature.")],
    rows: Annotated[Path, typer.Option("--rows", metavar="FILE", help="Keys, event_timestamp, request columns: .parquet, .csv or .jsonl.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The training set: a .parquet file, replaced when it is complete.")],
    knowledge: Annotated[
        str | None,
        typer.Option(
            "--knowledge",
            metavar="WHAT",
            help="arrival: what had arrived by then; event_time: what had happened. Default: arrival, where the source has arrival times.",
        ),
    ] = None,
    freshness: Annotated[
        str | None, typer.Option("--freshness", metavar="DURATION", help="Know nothing newer than this, such as 1h.")
    ] = None,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="About what the work may take; with less, it is done in more parts.")
    ] = "4GiB",
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Make a training set: each row with its features as a live request at its event_timestamp would have answered.

    Row order is kept, and so are all other columns. Rows and events may be larger than memory.

    JSON: path, rows, events (read), parts, knowledge (per view), freshness (microseconds), overflows (per column), seconds.
    """  # fmt: skip
    import time

    from tidemill.datasets import Terms, larger

    begun = time.monotonic()
    limit = size(memory)
    env, shown = environment(project), Output(json=json)
    requested: Any = features[0] if len(features) == 1 else features
    with Progress() as progress:
        made = larger.build(env, rows, requested, out, Terms.parse(knowledge, freshness), memory=limit, progress=progress)
    seconds = time.monotonic() - begun
    shown.document({**asdict(made), "path": str(made.path), "seconds": seconds})
    for column, n in made.overflows.items():
        shown.warn(f"{counted(n, 'value')} of {column} did not fit, and are null")
    happened = [view for view, known in made.knowledge.items() if known == "event_time"]
    if happened:
        shown.say(f"{', '.join(happened)}: what had happened is known, whether it had arrived or not", style="dim")
    parts = "" if made.parts == 1 else f", in {made.parts} parts"
    took, read = span(round(seconds * 1e6)), counted(made.events, "event")
    shown.say(f"wrote {counted(made.rows, 'row')} to {out}, over {read} read{parts}, in {took}")


def size(text: str) -> int:
    """Bytes of a size such as `512MiB` or `4GiB`. Raises `RequestError`.

    >>> size("2GiB")
    2147483648
    """
    for unit, factor in _UNITS.items():
        number = text.removesuffix(unit).strip()
        if text.endswith(unit) and number.replace(".", "", 1).isdecimal() and float(number) > 0:
            return int(float(number) * factor)
    raise RequestError(f"{text!r} is not a size: write a number and a unit ({', '.join(_UNITS)}), such as 4GiB")
