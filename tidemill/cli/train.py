"""`tidemill train`: a labelled frame becomes a candidate, with its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.model import ByOption, NameArgument, WhyOption, fallback_of
from tidemill.cli.options import (
    RUN,
    FallbackOption,
    JsonOption,
    MaxMissingOption,
    ProjectOption,
    ThresholdOption,
    examples,
    project_directory,
)
from tidemill.cli.output import Output, Progress
from tidemill.cli.shown import counted, number

if TYPE_CHECKING:
    from tidemill.models.training import Trained


def register(app: typer.Typer) -> None:
    """Put `train` on the app."""
    text = examples(
        "tidemill train delay --service delay_v1 --rows labels.parquet --label late --label-time known",
        "tidemill train delay --service delay_v1 --rows labels.csv --label late --split 2013-10-01 --slice carrier",
        "tidemill train delay --service delay_v1 --rows labels.parquet --label late --model hist_gradient_boosting --auto",
    )
    app.command(epilog=text, rich_help_panel=RUN)(train)


def train(
    name: NameArgument,
    service: Annotated[str, typer.Option("--service", metavar="SERVICE", help="The feature service that it reads.")],
    rows: Annotated[
        Path, typer.Option("--rows", metavar="FILE", help="Keys, event_timestamp, request columns, label: .parquet, .csv or .jsonl.")
    ],
    label: Annotated[
        str, typer.Option("--label", metavar="COLUMN", help="0 and 1 or booleans, or numbers for a regression; null: none.")
    ] = "label",
    label_time: Annotated[
        str | None, typer.Option("--label-time", metavar="COLUMN", help="When the label became known. Default: at the row's instant.")
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="TIME", help="Test on rows from this instant on, or after this share of them.")
    ] = "0.75",
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="logistic_regression, ridge, hist_gradient_boosting, or module:factory of your own."),
    ] = None,
    slices: Annotated[
        list[str] | None, typer.Option("--slice", metavar="COLUMN", help="Report by the values of this column; may be repeated.")
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Promote it if it passes the gates.")] = False,
    min_gain: Annotated[
        float,
        typer.Option("--min-gain", metavar="N", help="Gate: AUC so much above the champion's; of a regression, RMSE lower by this share."),
    ] = 0.001,
    min_rows: Annotated[int, typer.Option("--min-rows", min=1, metavar="N", help="Gate: so many test rows.")] = 1_000,
    min_of_class: Annotated[int, typer.Option("--min-of-class", min=1, metavar="N", help="Gate: so many test rows of each class.")] = 50,
    knowledge: Annotated[
        str | None,
        typer.Option("--knowledge", metavar="WHAT", help="arrival: what had arrived by then; event_time: what had happened."),
    ] = None,
    freshness: Annotated[
        str | None, typer.Option("--freshness", metavar="DURATION", help="Know nothing newer than this, such as 1h.")
    ] = None,
    threshold: ThresholdOption = None,
    fallback: FallbackOption = None,
    max_missing: MaxMissingOption = None,
    by: ByOption = None,
    why: WhyOption = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Train a candidate: features as they were served at each row's instant, a split by time, metrics beside the champion's.

    The candidate becomes a new version, with report.json and report.md in its folder. It is promoted by hand, or with --auto where it
    passes every gate: enough test rows, of each class too, better than the champion (or than nothing), finite on its golden rows.

    JSON: model, version, promoted, and the report: metrics, slices, rows, gates, notes.
    """
    from tidemill.client import FeatureStore
    from tidemill.definitions import resolve_features
    from tidemill.labelled import read_labelled
    from tidemill.models.training import Gates
    from tidemill.models.training import train as train_model

    store, out = FeatureStore(project_directory(project)), Output(json=json)
    frame = read_labelled(rows, resolve_features(service, store.env.definitions))
    gates = Gates(min_rows, min_of_class, min_gain)
    with Progress() as progress:
        done = train_model(
            store,
            name,
            frame,
            service=service,
            label=label,
            label_time=label_time,
            split_at=split,
            model=model,
            slices=slices or [],
            knowledge=knowledge,
            freshness=freshness,
            threshold=threshold,
            fallback=fallback_of(fallback),
            max_missing=max_missing,
            auto=gates if auto else None,
            by=by,
            why=why,
            progress=progress,
        )
    out.document({"model": name, "version": done.manifest.version, "promoted": done.promoted, "report": done.report})
    _show(out, done, auto=auto)


def _show(out: Output, done: Trained, *, auto: bool) -> None:
    from tidemill.models.training.report import shown, table

    report: dict[str, Any] = done.report
    counts, who = report["rows"], list(report["metrics"])
    out.table(("metric", *who), table(report["kind"], report["metrics"]), numbers=who)
    for column, found in report["slices"].items():
        out.say()
        metric = next(iter(report["metrics"]["candidate"]))
        scored = [w for w in who if w != "naive"]
        rows = [(f["value"], number(f["rows"]), shown(f["mean_label"]), *(shown(f[w][metric]) for w in scored)) for f in found]
        heads = [f"{metric}, {w}" for w in scored]
        out.table((column, "rows", "mean label", *heads), rows, numbers=("rows", "mean label", *heads))
    out.say()
    for note in report["notes"]:
        out.say(note, style="dim")
    left = f", {number(counts['unknown_yet'])} not trained on because their label was not known yet" if counts["unknown_yet"] else ""
    tested = f"tested on {number(counts['test'])} from {report['split']} on"
    out.say(f"trained {done.manifest.title} on {counted(counts['train'], 'row')}, {tested}{left}")
    failed = [g.text for g in done.gates if not g.passed]
    if done.promoted:
        out.say(f"promoted {done.manifest.title}: it passed every gate")
    elif auto:
        out.warn(f"not promoted: {'; '.join(failed)}")
    else:
        out.say(f"tidemill model promote {done.manifest.model} {done.manifest.version}", style="dim")
