"""What a backtest says, in words that a person can act on."""

from __future__ import annotations

from tidemill.backtest.result import Backtest, Estimate, Point
from tidemill.measures import Metric
from tidemill.times import DAY, SECOND


def digits(metric: Metric, value: float) -> str:
    """A metric's value: three decimals, or four digits where it is large or small.

    >>> from tidemill.measures import METRICS
    >>> digits(METRICS["classifier"]["auc"], 0.81461), digits(METRICS["regressor"]["rmse"], 41.237)
    ('0.815', '41.24')
    """
    return f"{value:.3f}" if metric.name in ("auc", "log_loss", "brier") else f"{value:.4g}"


def interval(metric: Metric, estimate: Estimate) -> str:
    """An interval, or a dash."""
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{digits(metric, estimate.low)} to {digits(metric, estimate.high)}"


def conclusion(found: Backtest, model: str) -> str:
    """What freshness is worth to one model."""
    metric, fresh = found.metric, found.freshest
    value = fresh.scores[model][metric.name].estimate.value
    begin = f"{model}, {found.features}: {_aged(fresh)} features reach {metric.text} {digits(metric, value)}."
    if len(found.points) == 1:
        return f"{begin} Only one freshness was tried: there is nothing to compare it with."
    return " ".join([begin, _worth(found, model), _how_fresh(found, model)]).rstrip()


def _worth(found: Backtest, model: str) -> str:
    """Streaming against what a daily job serves."""
    metric, old = found.metric, found.reference
    gain = _gain(metric, _difference(old, model, metric))
    said = f"{digits(metric, abs(gain.value))} {metric.text}"
    between = f"95 % interval {interval(metric, gain)}"
    if gain.noise:
        return f"Over {_aged(old)} features that is worth {digits(metric, gain.value)} {metric.text}, within noise ({between})."
    subject = "Streaming is" if found.freshest.freshness < 10 * SECOND else f"Having them at {found.freshest.age} is"
    if gain.value > 0:
        return f"{subject} worth {said} over {_aged(old)} features ({between})."
    flipped = interval(metric, Estimate(-gain.value, _minus(gain.high), _minus(gain.low)))
    return (
        f"{_aged(old).capitalize()} features do better, by {said} (95 % interval {flipped}): "
        "look for a feature that means something else now than in the rows trained on."
    )


def _how_fresh(found: Backtest, model: str) -> str:
    """The age up to which nothing is lost, and where most of it is."""
    metric, fresh = found.metric, found.freshest
    gains = [(p, _gain(metric, _difference(p, model, metric))) for p in found.points[1:]]
    fine = []
    for point, gain in gains:
        if not gain.noise and gain.value > 0:
            break
        fine.append(point)
    lost = [(p, g) for p, g in gains if p not in fine]
    parts = []
    if any(not g.noise and g.value < 0 for _, g in gains):
        return ""  # the worth says that something is odd; what may be lost is beside the point
    if not lost:
        return f"No difference between {fresh.age} and {gains[-1][0].age} is beyond noise: on these rows, older features do as well."
    if fine:
        parts.append(f"The difference between {fresh.age} and {fine[-1].age} is within noise.")
    point, gain = lost[0]
    if point is not found.reference:
        parts.append(f"At {point.age} {digits(metric, gain.value)} of it is lost ({interval(metric, gain)}).")
    whole = _gain(metric, _difference(found.reference, model, metric)).value
    half = next((p for p, g in gains if whole > 0 and g.value >= whole / 2), None)
    if half is not None and half is not found.reference and half is not point:
        parts.append(f"More than half is gone by {half.age}.")
    return " ".join(parts)


def _aged(point: Point) -> str:
    """What features of this age are called."""
    if point.freshness == 0:
        return "fresh"
    return "day-old" if point.freshness == DAY else f"{point.age}-old"


def _difference(point: Point, model: str, metric: Metric) -> Estimate:
    found = point.scores[model][metric.name].difference
    assert found is not None, "only the freshest is compared with nothing"
    return found


def _gain(metric: Metric, difference: Estimate) -> Estimate:
    """What the freshest is better by: the other's difference to it, turned so that more is better."""
    if not metric.higher:
        return difference
    return Estimate(-difference.value, _minus(difference.high), _minus(difference.low))


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
