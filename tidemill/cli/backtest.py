"""`tidemill backtest`: what freshness is worth to a model, before anyone builds a stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.options import LOOK, JsonOption, ProjectOption, examples, project_directory
from tidemill.cli.output import Output, Progress

if TYPE_CHECKING:
    from tidemill.backtest import Backtest


def register(app: typer.Typer) -> None:
    """Put `backtest` on the app."""
    text = examples(
        "tidemill backtest delay_v1 --labels flights.parquet --split 2013-10-01",
        "tidemill backtest delay_v1 --labels flights.csv --split 0.75 --freshness 0s,1h,1d --model logistic_regression --json",
        "tidemill backtest card:count_1h card:amount_sum_1d --labels fraud.parquet --split 0.8 --model mymodels:make",
    )
    app.command(epilog=text, rich_help_panel=LOOK)(backtest)


def backtest(
    features: Annotated[list[str], typer.Argument(metavar="FEATURES", help="A service, views, view:feature, on-demand features.")],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels", metavar="FILE", help="Keys, request columns, event_timestamp, label and label_time: .parquet, .csv or .jsonl."
        ),
    ],
    split: Annotated[
        str, typer.Option("--split", metavar="TIME", help="Train before it and test after it: an instant, or a fraction of the rows.")
    ] = "0.75",
    freshness: Annotated[
        str, typer.Option("--freshness", metavar="AGES", help="How old the newest event known is at least; several with commas.")
    ] = "0s,1m,10m,1h,6h,1d,7d",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="MODEL", help="logistic_regression (ridge), hist_gradient_boosting, or module:factory; several: repeat it."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="auc, log_loss or brier; of a regression rmse, mae."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="TASK", help="binary or regression. Default: what the labels look like.")
    ] = None,
    knowledge: Annotated[
        str | None, typer.Option("--knowledge", metavar="WHAT", help="arrival (what had arrived), or event_time (what had happened).")
    ] = None,
    aged: Annotated[
        str,
        typer.Option("--aged", metavar="WHAT", help="events: newer ones are unknown; values: they were computed that long before."),
    ] = "events",
    timestamp: Annotated[str, typer.Option("--timestamp", metavar="COLUMN", help="The instant of each row.")] = "event_timestamp",
    label: Annotated[str, typer.Option("--label", metavar="COLUMN", help="The label.")] = "label",
    label_time: Annotated[str, typer.Option("--label-time", metavar="COLUMN", help="When the label became known.")] = "label_time",
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the models and of the resampling.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where index.html, freshness.png and backtest.json are written.")
    ] = Path("backtest"),
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Show what freshness is worth: one model, trained and tested once per age of what its features may know.

    Models are trained on rows before the split whose label was known by then, and tested on the rows after it.

    JSON: features, kind, metric, conclusion, conclusions (by model), split, rows, positives, knowledge, interval, aged, seed, left_out,
    versions, files, and points: freshness, hypothetical, null_share, nulls (by feature), warnings, models (by model and metric: value,
    low, high, difference).
    """
    from tidemill.backtest import Names, Plan, read_labelled
    from tidemill.backtest import backtest as run
    from tidemill.client import FeatureStore
    from tidemill.definitions import resolve_features

    if kind not in (None, "classifier", "regressor"):
        raise typer.BadParameter(f"--kind {kind!r}: say binary or regression")
    plan = Plan(
        split=split,
        freshness=[age.strip() for age in freshness.split(",") if age.strip()],
        metric=metric,
        kind=kind,  # type: ignore[arg-type]  # one of the two
        knowledge=knowledge,
        aged=aged,  # type: ignore[arg-type]  # what it is not, the backtest says
        names=Names(timestamp, label, label_time),
        seed=seed,
        models=model,
    )
    output = Output(json=json)
    store = FeatureStore(project_directory(project))
    requested = features[0] if len(features) == 1 else features
    try:
        frame = read_labelled(labels, resolve_features(requested, store.env.definitions))
        with Progress() as progress:
            found = run(store, frame, requested, plan, progress)
    finally:
        store.close()
    files = found.save(out)
    output.document({**found.to_dict(), "files": [str(file) for file in files]})
    if not json:
        _show(output, found, files)


def _show(out: Output, found: Backtest, files: list[Path]) -> None:
    from tidemill.backtest.table import caveats, data, header, rows

    columns = header(found)
    for model in found.models:
        cells: Any = rows(found, model)
        out.table(columns, cells, numbers=columns[1:-1], title=model)
        out.say()
    out.say("a difference in parentheses is within noise; nulls: of the test rows' features")
    out.say(data(found))
    for text in caveats(found):
        out.say(text)
    out.say()
    out.say(found.conclusion, style="bold")
    out.say(f"wrote {', '.join(str(file) for file in files)}")
