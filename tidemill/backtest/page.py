"""A backtest as files: a page that needs nothing but itself, its plot, and everything as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tidemill.backtest.conclusion import conclusion
from tidemill.backtest.plot import png
from tidemill.backtest.result import Backtest
from tidemill.backtest.table import caveats, data, header, rows
from tidemill.errors import RequestError

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.lead { font-size: 1.1rem; } .soft, caption, footer { color: var(--soft); font-size: .9rem; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
"""


def save(found: Backtest, directory: Path) -> list[Path]:
    """See `Backtest.save`."""
    picture = png(found)
    contents = {
        "index.html": page(found, picture).encode(),
        "freshness.png": picture,
        "backtest.json": (json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n").encode(),
    }
    files = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            files.append(directory / name)
            files[-1].write_bytes(content)
    except OSError as error:
        raise RequestError(f"{directory} cannot be written: {error.strerror or error}") from None
    return files


def page(found: Backtest, picture: bytes) -> str:
    """HTML without a script or an address: the plot is in it."""
    title = f"What freshness is worth: {found.features}"
    alt = f"{found.metric.text} by freshness. {found.conclusion}"
    source = base64.b64encode(picture).decode()
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(found.conclusion)}</p>',
        f'<p class="soft">{escape(data(found))}</p>',
        f'<img alt="{escape(alt)}" src="data:image/png;base64,{source}">',
    ]
    for model in found.models:
        body.append(f"<h2>{escape(model)}</h2>")
        if model != found.best:
            body.append(f"<p>{escape(conclusion(found, model))}</p>")
        body.append(_table(header(found), rows(found, model)))
    body.append('<p class="soft">A difference in parentheses is within noise: its interval holds zero.</p>')
    if said := caveats(found):
        body.append("<h2>To keep in mind</h2><ul>" + "".join(f"<li>{escape(text)}</li>" for text in said) + "</ul>")
    body.append("<h2>Which features fade</h2>")
    body.append('<p class="soft">The share of the test rows where a feature is null. (Counts and sums of nothing are 0.)</p>')
    body.append(_table(["feature", *(p.age for p in found.points)], _fading(found)))
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    known = ", ".join(f"{view}: {what}" for view, what in found.knowledge.items())
    body.append(
        f"<footer><p>Intervals: 95 %, paired bootstrap over {escape(found.blocks)}; seed {found.seed}. "
        f"Knowledge of the views: {escape(known)}. Made with {escape(versions)}.</p></footer>"
    )
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _fading(found: Backtest) -> list[list[str]]:
    """A row per feature that is null more often at some freshness, those that fade most first."""
    names = [n for n in found.freshest.nulls if any(p.nulls[n] > 0 for p in found.points)]
    names.sort(key=lambda n: found.freshest.nulls[n] - max(p.nulls[n] for p in found.points))
    return [[name, *(f"{p.nulls[name]:.1%}" for p in found.points)] for name in names]


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    lines = ["<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in cells]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n' + "\n".join(lines) + "\n</tbody></table></div>"
