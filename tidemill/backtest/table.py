"""The rows of a backtest's table, as text: the command line and the page show the same."""

from __future__ import annotations

from tidemill.backtest.conclusion import digits, interval
from tidemill.backtest.result import Backtest


def header(found: Backtest) -> list[str]:
    """The columns' names."""
    others = [m.text for m in found.metrics[1:]]
    return ["freshness", found.metric.text, "95 % interval", f"vs {found.freshest.age}", "its interval", *others, "nulls", "past"]


def rows(found: Backtest, model: str) -> list[list[str]]:
    """One row per freshness. A difference within noise is in parentheses; `past` says whether requests could have answered so."""
    metric = found.metric
    out = []
    for point in found.points:
        score = point.scores[model][metric.name]
        less, between = "", ""
        if score.difference is not None:
            less, between = f"{score.difference.value:+.4f}", interval(metric, score.difference)
            less = f"({less})" if score.difference.noise else less
        others = [digits(m, point.scores[model][m.name].estimate.value) for m in found.metrics[1:]]
        past = "hypothetical" if point.hypothetical else "as served"
        own = [digits(metric, score.estimate.value), interval(metric, score.estimate)]
        out.append([point.age, *own, less, between, *others, f"{point.null_share:.1%}", past])
    return out


def caveats(found: Backtest) -> list[str]:
    """What has to be said beside the numbers."""
    said = [f"hypothetical at {age}: {reason}" for age, reason in found.hypothetical if age == found.freshest.age]
    older = [age for age, _ in found.hypothetical if age != found.freshest.age]
    if older:
        happened = sorted(view for view, known in found.knowledge.items() if known == "event_time")
        reason = "nothing newer than that is known, while windows still end at the request"
        if found.aged == "values":
            reason = "every value was computed that long before the request, its windows ended then"
        if happened:
            reason += f"; {', '.join(happened)} know what had happened, whether it had arrived or not"
        said.append(f"hypothetical at {', '.join(older)}: {reason}")
    if found.left_out:
        names = ", ".join(f"{name} ({kind})" for name, kind in found.left_out.items())
        said.append(f"left out, because a model takes numbers: {names}")
    for point in found.points:
        said += [f"{model} at {point.age}: {text}" for model, texts in point.warnings.items() for text in texts]
    return said


def data(found: Backtest) -> str:
    """What it was trained and tested on, in a line."""
    from tidemill.times import from_micros

    classes = "" if found.positives is None else f" ({found.positives:.1%} of them positive)"
    unused = [
        f"{n:,} {what}"
        for n, what in ((found.unlabelled, "without a label"), (found.unknown_yet, "whose label was not known at the split yet"))
        if n
    ]
    left = f"; not used: {', '.join(unused)}" if unused else ""
    return f"split at {from_micros(found.split).isoformat()}: trained on {found.train:,} rows, tested on {found.test:,}{classes}{left}"
