"""The report of a training run: one document, as JSON for programs and as Markdown for people, kept in the version's folder."""

from __future__ import annotations

import json
from typing import Any

from tidemill.measures import METRICS
from tidemill.models.manifest import Kind

Report = dict[str, Any]


def encode(report: Report) -> bytes:
    """As JSON."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode()


def markdown(report: Report) -> str:
    """As Markdown."""
    rows, who = report["rows"], list(report["metrics"])
    lines = [
        f"# {report['model']}: a candidate for {report['service']}",
        "",
        f"{report['estimator']}, trained on {rows['train']:,} rows, tested on {rows['test']:,} rows from {report['split']} on.",
        "",
        f"- {rows['unlabelled']:,} rows had no label and were left out",
        f"- {rows['unknown_yet']:,} rows before the split had no label by then and were not trained on",
        *(f"- {note}" for note in report["notes"]),
        "",
        *_table(report["kind"], [("", report["metrics"])], who, {}),
    ]
    for column, found in report["slices"].items():
        counts = {f["value"]: f["rows"] for f in found}
        lines += ["", f"## By {column}", ""]
        lines += _table(report["kind"], [(f["value"], {w: f[w] for w in who if w != "naive"}) for f in found], who, counts)
    lines += ["", "## Gates", "", *(f"- {'passed' if g['passed'] else 'FAILED'}: {g['text']}" for g in report["gates"]), ""]
    return "\n".join(lines)


def table(kind: Kind, metrics: dict[str, dict[str, float | None]]) -> list[tuple[str, ...]]:
    """A row for each metric: its name, and what each has who scored."""
    return [(text, *(shown(metrics[who][name]) for who in metrics)) for name, text in _names(kind).items()]


def shown(value: float | None) -> str:
    """A metric, for people."""
    return "-" if value is None else f"{value:.5g}"


def _table(kind: Kind, groups: list[tuple[str, dict[str, Any]]], who: list[str], counts: dict[str, int]) -> list[str]:
    if not counts:
        (_, metrics) = groups[0]
        head = ["metric", *who]
        body = [list(row) for row in table(kind, metrics)]
    else:
        scored = [w for w in who if w != "naive"]
        names = _names(kind)
        head = ["value", "rows", *(f"{text}, {w}" for text in names.values() for w in scored)]
        body = [[value, f"{counts[value]:,}", *(shown(m[w][name]) for name in names for w in scored)] for value, m in groups]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def _names(kind: Kind) -> dict[str, str]:
    return {name: metric.text for name, metric in METRICS[kind].items()}
