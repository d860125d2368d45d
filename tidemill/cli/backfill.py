"""`tidemill backfill`: features over history, from the archive or from files."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tidemill.cli.options import RUN, EngineOption, JsonOption, MasterOption, ProjectOption, applied, environment, examples
from tidemill.cli.output import Output, Progress
from tidemill.cli.shown import counted, number, shortened, size, span
from tidemill.errors import NotFoundError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Put `backfill` on the app."""
    lines = (
        "tidemill backfill payments",
        "tidemill backfill payments --from 'history/**/*.parquet' --dry-run",
        "tidemill backfill payments --from 's3://bucket/2024/*.jsonl.gz' --until 2025-01-01",
    )
    app.command(epilog=examples(*lines), rich_help_panel=RUN)(backfill)


def backfill(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The source whose history it is.")],
    files: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="FILES", help="Files of history: a path, a folder or a glob in quotes, here or s3://."),
    ] = None,
    view: Annotated[list[str] | None, typer.Option("--view", metavar="VIEW", help="Fold only this view; may be repeated.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only events that happened at this time or later.")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only events that happened before this time.")] = None,
    overlap: Annotated[
        str | None,
        typer.Option("--overlap", metavar="HOW", help="How events that the log has too are found: by-id, by-time or none."),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option("--before", metavar="TIME", help="With by-time: only what came before this. Default: the log's first event."),
    ] = None,
    max_bad: Annotated[str, typer.Option("--max-bad", metavar="N", help="How many records may be no events: a number, or a share.")] = "1%",
    skip_imported: Annotated[bool, typer.Option("--skip-imported", help="Leave out files that were imported before.")] = False,
    format: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="jsonl, csv or parquet, where the names do not say it.")
    ] = None,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="About how much memory to take.")] = "2GiB",
    threads: Annotated[int, typer.Option("--threads", min=0, metavar="N", help="Files read at once; 0: as many as there are cores.")] = 0,
    no_publish: Annotated[bool, typer.Option("--no-publish", help="Leave publishing to `tidemill batch`.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be read and written; write nothing.")] = False,
    engine: EngineOption = None,
    master: MasterOption = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Give features their history: from what the stream has archived, or from files of earlier events.

    Without --from: fold the archive into views that do not have it yet, as `tidemill batch` does. With --from: import the files first.
    What the live log holds too is left out or refused, and counted. It may be killed at any instant: run the same again, and it goes on.

    With --engine spark, or batch.engine in tidemill.toml, Spark folds, imports too; files are read and compared here.

    JSON: import (number, id, events, left_out, repeated, without_id, log_without_id, before, files), letters (reason to count), folded
    (as in batch; null where a running batch job will do it), seconds. With --dry-run files, bytes, events, folder, imported, known, views.
    """
    from tidemill.apps import load
    from tidemill.definitions.names import suggestion

    env, out = environment(project), Output(json=json)
    sources = applied(env).sources
    if source not in sources:
        raise NotFoundError(f"there is no applied source {source!r}; {suggestion(source, sources)}")
    views = {b.view for b in env.applied().of_source(source)}
    for name in view or ():
        if name not in views:
            raise NotFoundError(f"there is no applied view {name!r} of {source!r}; {suggestion(name, views)}")
    if not files and any(option is not None for option in (since, until, overlap, before, format)):
        raise typer.BadParameter("--since, --until, --overlap, --before and --format go with --from")
    if overlap not in (None, "by-id", "by-time", "none"):
        raise typer.BadParameter(f"--overlap is by-id, by-time or none; got {overlap!r}")
    if before is not None and (overlap or ("by-id" if sources[source].event_id else "by-time")) != "by-time":
        raise typer.BadParameter("--before goes with --overlap by-time")
    if overlap == "by-id" and sources[source].event_id is None:
        raise typer.BadParameter(f"--overlap by-id: source {source!r} has no event_id")
    job = load("backfill.job")
    request = job.Request(
        source,
        tuple(files or ()),
        format,
        None if view is None else tuple(view),
        _time("--since", since),
        _time("--until", until),
        overlap,
        _time("--before", before),
        _bad(job.Bad, max_bad),
        skip_imported,
        not no_publish,
        parse_size(memory),
        threads,
    )
    if dry_run:
        _planned(out, request, load("backfill.plan").plan(env, request))
        return
    chosen = load("batch.engines").engine_of(env, engine, master)
    with Progress(rate=True) as shown:
        result = job.run(env, request, shown, engine=chosen)
    _report(out, request, result)


def parse_size(text: str) -> int:
    """Bytes.

    >>> parse_size("2GiB"), parse_size("512M")
    (2147483648, 536870912)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise typer.BadParameter(f"--memory is a size such as 2GiB or 512MiB; got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _time(option: str, text: str | None) -> int | None:
    from tidemill.times import to_micros

    try:
        return None if text is None else to_micros(text)
    except ValueError:
        raise typer.BadParameter(f"{option} is a time such as 2025-01-01 or 2025-01-01T12:00:00Z; got {text!r}") from None


def _bad(kind: Any, text: str) -> Any:
    try:
        return kind.parse(text)
    except ValueError:
        raise typer.BadParameter(f"--max-bad is a number of records, or a share such as 1%; got {text!r}") from None


def _planned(out: Output, request: Any, plan: Any) -> None:
    out.document({**asdict(plan), "files": [asdict(file) for file in plan.files]})
    rows = [(shortened(file.name, 90), size(file.size)) for file in plan.files[:_SHOWN]]
    out.table(("file", "size"), rows, numbers=("size",))
    if plan.files:
        more = f", of which {number(len(plan.files) - _SHOWN)} are not shown" if len(plan.files) > _SHOWN else ""
        events = "an unknown number of" if plan.events is None else f"about {number(plan.events)}"
        out.say(f"would read {counted(len(plan.files), 'file')}{more}: {size(plan.bytes)}, {events} events")
        if plan.imported is not None:
            out.say(f"they are import {plan.imported} already: nothing would be imported")
        else:
            out.say(f"would copy them to {plan.folder}")
        for name, made in list(plan.known.items())[:_SHOWN] if plan.imported is None else ():
            out.warn(f"{name} has the name and size of a file of import {made}")
    out.table(
        ("view", "bundle", "version", "events to fold"),
        [(v.view, v.bundle, number(v.version), number(v.events)) for v in plan.views],
        numbers=("version", "events to fold"),
    )
    written = counted(sum(v.events > 0 for v in plan.views), "version")
    out.say(f"would write {written} of the partials" + (" and publish what they touch" if request.publishing else "") + "; wrote nothing")


def _report(out: Output, request: Any, result: Any) -> None:
    made, folded = result.made, result.folded
    told = None if made is None else {k: v for k, v in asdict(made).items() if k != "parts"}
    out.document(
        {"import": told, "letters": result.letters, "folded": None if folded is None else asdict(folded), "seconds": result.seconds}
    )
    if request.files:
        _imported(out, result)
    if folded is None:
        out.say("another process holds the lease of batch: its next run folds and publishes this")
        return
    rows = [(bundle, number(k), number(folded.published.get(bundle, 0))) for bundle, k in folded.versions.items()]
    out.table(("bundle", "version", "published"), rows, numbers=("version", "published"))
    if not rows:
        out.say("nothing to fold yet: the stream has archived less than a block (1,024 records) of this source")
        return
    published = sum(folded.published.values())
    said = f"published {counted(published, 'entity', 'entities')}" if request.publishing else "published nothing: run `tidemill batch`"
    out.say(f"folded {request.source} to version {folded.k}, {said}, in {span(round(result.seconds * 1e6))}")


def _imported(out: Output, result: Any) -> None:
    made = result.made
    if made is None:
        out.say("imported nothing: no event of these files is left, or all files were imported before")
    else:
        from tidemill.times import from_micros

        records = sum(file.records for file in made.files)
        verb = "imported" if result.fresh else f"was import {made.number} already:"
        out.say(f"{verb} {counted(made.events, 'event')} of {counted(records, 'record')} in {counted(len(made.files), 'file')}")
        bound = "" if made.before is None else f" (from {from_micros(made.before).isoformat()} on)"
        for count, what in (
            (sum(file.outside for file in made.files), "outside the dates asked for"),
            (made.left_out, f"left out, because the log or an earlier import has them{bound}"),
            (made.repeated, "left out, because their id came before in these files"),
        ):
            if count:
                out.say(f"  {number(count)} {what}")
        if made.without_id:
            out.warn(f"{counted(made.without_id, 'event')} without an id could not be compared with the log, and count")
        if made.log_without_id:
            out.warn(f"{counted(made.log_without_id, 'event')} of the log and of earlier imports have no id: what is in both counts twice")
    for reason, count in list(result.letters.items())[:_SHOWN]:
        out.say(f"  {counted(count, 'dead letter')}: {shortened(reason, 90)}")
