"""The metric against freshness, as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from tidemill.backtest.conclusion import digits
from tidemill.backtest.result import Backtest
from tidemill.errors import TidemillError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito's colours, which most people tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#666666"


def png(found: Backtest) -> bytes:
    """A PNG, 1296 pixels wide; the same bytes for the same result. Needs Matplotlib: `pip install 'tidemill[backtest]'`."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TidemillError(f"the plot needs Matplotlib ({error}): pip install 'tidemill[backtest]'") from None
    # Without pyplot: no display is looked for, and nobody's settings or open figures are touched.
    figure = Figure(figsize=(9, 4.8), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    for i, model in enumerate(found.models):
        beside = 0.06 * (i - (len(found.models) - 1) / 2)  # so that no bar hides another
        _line(axes, found, model, _COLOURS[i % len(_COLOURS)], beside)
    axes.set_xticks(range(len(found.points)), [p.age for p in found.points])
    axes.set_xlim(-0.4, len(found.points) - 0.6)
    axes.set_xlabel("the newest event that the features know is at least this old" if found.aged == "events" else "the values are this old")
    axes.set_ylabel(f"{found.metric.text} ({'higher' if found.metric.higher else 'lower'} is better)")
    axes.set_title(f"What freshness is worth: {found.features}", loc="left", fontsize=12, fontweight="bold")
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    axes.text(1, -0.19, f"bars: 95 % intervals, {found.blocks} resampled", transform=axes.transAxes, ha="right", fontsize=8, color=_GREY)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _line(axes: Axes, found: Backtest, model: str, colour: str, beside: float) -> None:
    estimates = [p.scores[model][found.metric.name].estimate for p in found.points]
    values = [e.value for e in estimates]
    below = [e.value - e.low if e.low is not None else 0.0 for e in estimates]
    above = [e.high - e.value if e.high is not None else 0.0 for e in estimates]
    bars = [[max(b, 0.0) for b in below], [max(a, 0.0) for a in above]]
    style: dict[str, Any] = {"marker": "o", "markersize": 5, "linewidth": 2, "color": colour, "capsize": 3, "elinewidth": 1}
    places = [i + beside for i in range(len(values))]
    axes.errorbar(places, values, bars, label=model, **style)
    if model == found.best:  # only one line bears its numbers: two that lie close would cover each other's
        for x, value in zip(places, values, strict=True):
            axes.annotate(digits(found.metric, value), (x, value), (7, 6), textcoords="offset points", fontsize=8.5, color=colour)
