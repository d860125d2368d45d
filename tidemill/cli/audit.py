"""`tidemill audit`: compute what was served once more, and say where it differs."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.options import LOOK, JsonOption, ProjectOption, applied, environment, examples
from tidemill.cli.output import Output, Progress
from tidemill.cli.shown import counted, number
from tidemill.errors import TidemillError

if TYPE_CHECKING:
    from tidemill.audit import Report


def register(app: typer.Typer) -> None:
    """Put `audit` on the app."""
    app.command(
        epilog=examples("tidemill audit", "tidemill audit --since 2026-03-01 --sample 0.1", "tidemill audit --since 1d --oracle"),
        rich_help_panel=LOOK,
    )(audit)


def audit(
    project: ProjectOption = None,
    json: JsonOption = False,
    since: Annotated[
        str | None, typer.Option("--since", metavar="WHEN", help="Only reads logged from then on: an instant, or so long ago, such as 1d.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="WHEN", help="Only reads logged before: an instant, or so long ago, such as 1h.")
    ] = None,
    sample: Annotated[float, typer.Option("--sample", metavar="SHARE", help="This share of them, always the same: from 0 to 1.")] = 1.0,
    oracle: Annotated[bool, typer.Option("--oracle", help="By brute force over the raw events, which takes long.")] = False,
) -> None:
    """Compute logged reads again from the archived events that each answer knew, and compare them to the last bit.

    `[log] reads = 0.01` in tidemill.toml makes clients log that share of their reads. The exit code is 1 if a value differs, or if none
    could be compared.

    JSON: reads, rows, compared, equal, different, uncompared (reason to count), lost, damaged, oracle, differences (request, row, feature,
    entity, at, served, right, status, right_status, positions, count, events).
    """
    from tidemill.audit import audit as run
    from tidemill.journals import plain

    if not 0 < sample <= 1:
        raise typer.BadParameter("--sample is a share, more than 0 and at most 1")
    env, out = environment(project), Output(json=json)
    applied(env)
    with Progress() as shown:
        report = run(env, since=_when(since), until=_when(until), share=sample, oracle=oracle, progress=shown)
    found = asdict(report)
    for told in found["differences"]:
        told["served"], told["right"] = plain(told["served"]), plain(told["right"])
    out.document({**found, "different": report.different})
    _tell(out, report)
    if report.different:
        raise TidemillError(f"{counted(report.different, 'value')} of {number(report.compared)} served are not what the archive says")
    if not report.compared:
        raise TidemillError(f"none of {counted(report.reads, 'logged read')} could be compared; the output says why")


def _tell(out: Output, report: Report) -> None:
    for difference in report.differences[:10]:
        out.say(f"not equal: {difference}", style="red")
    more = report.different - min(len(report.differences), 10)
    if more:
        out.say(
            f"... and {number(report.different - min(len(report.differences), 10))} more; --json has the first {len(report.differences)}"
        )
    rows: list[tuple[Any, ...]] = [(number(count), reason) for reason, count in sorted(report.uncompared.items(), key=lambda x: -x[1])]
    out.table(("not compared", "because"), rows, numbers=("not compared",))
    for text in report.damaged[:3]:
        out.warn(text)
    if len(report.damaged) > 3:
        out.warn(f"{number(len(report.damaged) - 3)} more of the kind")
    if report.lost:
        out.warn(f"{counted(report.lost, 'read')} of that time were dropped by the read log: its queue was full")
    by = "by brute force" if report.oracle else "by the kernel"
    out.say(
        f"{counted(report.reads, 'read')} of {counted(report.rows, 'row')}: {counted(report.compared, 'value')} computed again {by}, "
        f"{number(report.equal)} equal"
    )


def _when(text: str | None) -> int | None:
    """An instant, or a duration before now, in UTC microseconds."""
    from tidemill.errors import DefinitionError
    from tidemill.times import parse_duration, to_micros

    if text is None:
        return None
    try:
        return to_micros(dt.datetime.now(dt.UTC)) - parse_duration(text)
    except DefinitionError:
        try:
            return to_micros(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is no instant (2026-03-01, 2026-03-01T12:00Z) and no duration (1d, 90m)") from None
