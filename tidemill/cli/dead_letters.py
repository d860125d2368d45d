"""`tidemill dead-letters`: records that could not become events, and how they get another chance."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from tidemill.cli.options import LOOK, JsonOption, ProjectOption, applied, environment, examples
from tidemill.cli.output import Output, Progress
from tidemill.cli.shown import counted, number, shortened
from tidemill.errors import NotFoundError

if TYPE_CHECKING:
    from tidemill.environment import Environment

SourceArgument: TypeAlias = Annotated[str | None, typer.Argument(metavar="[SOURCE]", help="Only of this source.")]
ReasonOption: TypeAlias = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Only those whose reason contains this text.")
]


def register(app: typer.Typer) -> None:
    """Put `dead-letters` and its commands on the app."""
    group = typer.Typer()
    group.callback(invoke_without_command=True, epilog=examples("tidemill dead-letters"))(dead_letters)
    group.command("count", epilog=examples("tidemill dead-letters count"))(count)
    group.command("list", epilog=examples("tidemill dead-letters list payments --reason amount"))(list_letters)
    group.command(
        "show", epilog=examples("tidemill dead-letters show payments 4711", "tidemill dead-letters show payments 4711 --partition 2")
    )(show)
    group.command("replay", epilog=examples("tidemill dead-letters replay payments --to data/payments/fixed.jsonl"))(replay)
    app.add_typer(group, name="dead-letters", rich_help_panel=LOOK)


def dead_letters(context: typer.Context) -> None:
    """Look at records that could not become events, and replay them. Alone: count them."""
    if context.invoked_subcommand is None:
        count()


def count(source: SourceArgument = None, project: ProjectOption = None, json: JsonOption = False) -> None:
    """Count dead letters by source and reason.

    JSON: total, sources (source to reason to count), replayed (source to count).
    """
    from tidemill.offline.dead import count_dead
    from tidemill.replay import replayed

    env, out = environment(project), Output(json=json)
    counts = {name: count_dead(env.offline, name) for name in _sources(env, source)}
    again = {name: len(replayed(env.offline, name)) for name in counts}
    total = sum(sum(reasons.values()) for reasons in counts.values())
    out.document({"total": total, "sources": counts, "replayed": again})
    rows = [(number(n), name, shortened(reason, 75)) for name, reasons in counts.items() for reason, n in reasons.items()]
    out.table(("letters", "source", "reason"), rows, numbers=("letters",))
    if rows:
        out.say()
    done = sum(again.values())
    out.say(f"{counted(total, 'dead letter')}" + (f", {number(done)} of them replayed" if done else ""))


def list_letters(
    source: SourceArgument = None,
    reason: ReasonOption = None,
    view: Annotated[str | None, typer.Option("--view", metavar="VIEW", help="Only events that this view could not take.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most so many of each source.")] = 20,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """List dead letters, the earliest in the log first.

    JSON: letters, each with source, partition, offset, view, reason, raw (as text), replayed.
    """
    from tidemill.offline.dead import list_dead
    from tidemill.replay import replayed

    env, out = environment(project), Output(json=json)
    letters: list[dict[str, Any]] = []
    for name in _sources(env, source):
        done = replayed(env.offline, name)
        for row in list_dead(env.offline, name, view=view, reason=reason, limit=limit).iter_rows(named=True):
            raw = row["raw"].decode(errors="replace")
            again = row["view"] is None and (row["partition"], row["offset"]) in done
            letters.append(
                {"source": name, **{k: row[k] for k in ("partition", "offset", "view", "reason")}, "raw": raw, "replayed": again}
            )
    out.document({"letters": letters})
    rows = [
        (
            row["source"],
            number(row["partition"]),
            number(row["offset"]),
            shortened(f"{row['view']}: {row['reason']}" if row["view"] else row["reason"], 36) + (" (replayed)" if row["replayed"] else ""),
            shortened(row["raw"], max(out.width - 70, 16)),
        )
        for row in letters
    ]
    out.table(("source", "part", "offset", "reason", "raw"), rows, numbers=("part", "offset"))
    if rows:
        out.say()
    more = f"; more with --limit, in full with `tidemill dead-letters show {rows[0][0]} OFFSET`" if rows else ""
    out.say(f"{counted(len(rows), 'dead letter')}{more}")


def show(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The source.")],
    offset: Annotated[int, typer.Argument(metavar="OFFSET", help="The record's offset.")],
    partition: Annotated[int, typer.Option("--partition", metavar="N", help="Its partition.")] = 0,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Print the raw bytes of one dead letter, exactly as they came.

    JSON: source, partition, offset, reasons (view, or null, and reason), raw (as text).
    """
    from tidemill.offline.dead import list_dead

    env, out = environment(project), Output(json=json)
    (name,) = _sources(env, source)
    found = [r for r in list_dead(env.offline, name, partition=partition, start=offset).iter_rows(named=True) if r["offset"] == offset]
    if not found:
        raise NotFoundError(f"{name} has no dead letter at partition {partition}, offset {offset}: see `tidemill dead-letters list {name}`")
    raw: bytes = found[0]["raw"]
    reasons = [{"view": r["view"], "reason": r["reason"]} for r in found]
    out.document({"source": name, "partition": partition, "offset": offset, "reasons": reasons, "raw": raw.decode(errors="replace")})
    if not json:
        for row in found:
            typer.echo(f"{row['view']}: {row['reason']}" if row["view"] else row["reason"], err=True)
        sys.stdout.buffer.write(raw + b"\n")
        sys.stdout.buffer.flush()


def replay(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The source.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="A new file of the source's log, or JSON lines to append to. Default: its topic."),
    ] = None,
    reason: ReasonOption = None,
    again: Annotated[bool, typer.Option("--again", help="Also what was replayed before: it will count twice.")] = False,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Decode dead letters with today's schema, and write those that are good now where the log delivers them again.

    That is the source's topic, or a file of its log. Each is replayed once. Letters that only one view refused stay: the other views
    have counted the event.

    JSON: source, to (null: the topic), written, failing (reason to count), refused, before, delivered.
    """
    from tidemill.replay import replay as replay_letters

    env, out = environment(project), Output(json=json)
    (name,) = _sources(env, source)
    definition = env.definitions.source(name)
    with Progress() as progress:
        done = replay_letters(env, definition, to, reason=reason, again=again, progress=progress)
    out.document(
        {
            "source": name,
            "to": None if to is None else str(to),
            "written": done.written,
            "failing": dict(done.failing),
            "refused": done.refused,
            "before": done.before,
            "delivered": done.delivered,
        }
    )
    out.table(("still failing", "reason"), [(number(n), shortened(why, 80)) for why, n in done.failing.items()], numbers=("still failing",))
    if done.failing:
        out.say()
    if done.written and not done.delivered and env.project.brokers is not None and definition.topic is not None:
        out.warn(f"{name} is read from the topic {definition.topic}, and not from {to}: produce what it holds there, or leave --to out")
    elif done.written and not done.delivered:
        out.warn(f"{to} is not in the log of {name} ({definition.path}): put it there, under a name that sorts after its files")
    place = f"topic {definition.topic}" if to is None else to
    said = [f"wrote {counted(done.written, 'event')} to {place}" if done.written else "wrote nothing"]
    if done.failing:
        said.append(f"{number(sum(done.failing.values()))} still fail")
    if done.before:
        said.append(f"{number(done.before)} were replayed before")
    if done.refused:
        said.append(f"{number(done.refused)} that only one view refused stay")
    out.say("; ".join(said))


def _sources(env: Environment, wanted: str | None) -> list[str]:
    """The source that is wanted, or all."""
    from tidemill.definitions.names import suggestion

    sources = applied(env).sources
    if wanted is not None and wanted not in sources:
        raise NotFoundError(f"there is no applied source {wanted!r}; {suggestion(wanted, sources)}")
    return sorted(sources) if wanted is None else [wanted]
