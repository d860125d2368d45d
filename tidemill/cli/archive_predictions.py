"""`tidemill archive-predictions`: logged predictions into Parquet."""

from __future__ import annotations

from dataclasses import asdict

import typer

from tidemill.cli.options import RUN, JsonOption, ProjectOption, environment, examples
from tidemill.cli.output import Output, Progress
from tidemill.cli.shown import counted


def register(app: typer.Typer) -> None:
    """Put `archive-predictions` on the app."""
    app.command("archive-predictions", epilog=examples("tidemill archive-predictions"), rich_help_panel=RUN)(archive_predictions)


def archive_predictions(project: ProjectOption = None, json: JsonOption = False) -> None:
    """Fold the log of predictions into Parquet, a row a prediction, by model and day, to look back and to train from.

    Takes what was logged since the last time, from files and from the topic, each entry once. May be killed at any instant and run again.
    The log stays as it is: docs/online_learning.md.

    JSON: rows, files, damaged (entries that were none), lost (offsets that the brokers had deleted), models.
    """
    from tidemill.logged.archive import archive

    env, out = environment(project), Output(json=json)
    with Progress() as shown:
        report = archive(env, report=lambda rows: shown("archive predictions", rows, rows))
    out.document(asdict(report))
    if report.damaged:
        out.warn(f"{counted(report.damaged, 'entry', 'entries')} of the log were damaged, and passed over")
    if report.lost:
        gone = counted(report.lost, "offset")
        out.warn(f"{gone} of the topic were deleted before they were archived: run this more often, or let the topic keep them longer")
    if report.rows:
        where = env.offline.path("logged/predictions")
        out.say(f"archived {counted(report.rows, 'prediction')} in {counted(report.files, 'file')} below {where}")
    else:
        out.say("nothing new")
