"""What a backtest says in words, for each way in which it can turn out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tidemill.backtest.result import Backtest, Estimate, Point, Score
from tidemill.measures import METRICS
from tidemill.times import parse_duration

Given = dict[str, tuple[float, float]]


def made(points: Given, metric: str = "auc", base: float = 0.8) -> Backtest:
    """`points`: per freshness the difference to the freshest, and half its interval's width."""
    kind: Any = "classifier" if metric in METRICS["classifier"] else "regressor"
    found = []
    for i, (age, (difference, half)) in enumerate(points.items()):
        less = Estimate(difference, difference - half, difference + half) if i else None
        value = base + difference
        found.append(
            Point(parse_duration(age), None, {"x": 0.0}, {"m": {metric: Score(Estimate(value, value - 0.01, value + 0.01), less)}})
        )
    return Backtest("s", kind, METRICS[kind][metric], ("m",), tuple(found), {}, 0, 1, 1, 0, 0, None, "30 blocks of 1d", 0, {}, {})


FRESH = "m, s: fresh features reach AUC 0.800."
CASES: list[tuple[Given, str]] = [
    (
        {"0s": (0, 0), "10m": (-0.001, 0.002), "1h": (-0.02, 0.005), "1d": (-0.031, 0.01)},
        f"{FRESH} Streaming is worth 0.031 AUC over day-old features (95 % interval 0.021 to 0.041). "  # noqa: ISC004
        "The difference between 0s and 10m is within noise. At 1h 0.020 of it is lost (0.015 to 0.025).",
    ),
    (
        {"0s": (0, 0), "1m": (-0.01, 0.001), "1h": (-0.06, 0.001), "1d": (-0.1, 0.01), "7d": (-0.2, 0.01)},
        f"{FRESH} Streaming is worth 0.100 AUC over day-old features (95 % interval 0.090 to 0.110). "  # noqa: ISC004
        "At 1m 0.010 of it is lost (0.009 to 0.011). More than half is gone by 1h.",
    ),
    (
        {"0s": (0, 0), "1h": (-0.001, 0.01), "1d": (-0.002, 0.01)},
        f"{FRESH} Over day-old features that is worth 0.002 AUC, within noise (95 % interval -0.008 to 0.012). "  # noqa: ISC004
        "No difference between 0s and 1d is beyond noise: on these rows, older features do as well.",
    ),
    (
        {"0s": (0, 0), "1d": (0.05, 0.01)},
        f"{FRESH} Day-old features do better, by 0.050 AUC (95 % interval 0.040 to 0.060): "  # noqa: ISC004
        "look for a feature that means something else now than in the rows trained on.",
    ),
    (
        {"1h": (0, 0), "6h": (-0.05, 0.01)},
        "m, s: 1h-old features reach AUC 0.800. "  # noqa: ISC004
        "Having them at 1h is worth 0.050 AUC over 6h-old features (95 % interval 0.040 to 0.060).",
    ),
]


@pytest.mark.parametrize(("points", "said"), CASES)
def test_it_says_what_to_do(points: Given, said: str) -> None:
    assert made(points).conclusion == said


def test_of_a_loss_less_is_better() -> None:
    found = made({"0s": (0, 0), "1d": (0.031, 0.01)}, "log_loss", 0.4)
    assert found.conclusion == (
        "m, s: fresh features reach log loss 0.400. Streaming is worth 0.031 log loss over day-old features (95 % interval 0.021 to 0.041)."
    )
    assert "Day-old features do better, by 5 MAE (95 % interval 4 to 6)" in made({"0s": (0, 0), "1d": (-5, 1)}, "mae", 40).conclusion


def test_it_speaks_of_the_model_that_does_best() -> None:
    found = made({"0s": (0, 0), "1d": (-0.1, 0.01)})
    better = made({"0s": (0, 0), "1d": (-0.1, 0.01)}, base=0.9)
    both = [
        dataclasses.replace(p, scores={"a": p.scores["m"], "b": q.scores["m"]}) for p, q in zip(found.points, better.points, strict=True)
    ]
    assert dataclasses.replace(found, models=("a", "b"), points=tuple(both)).best == "b"


def test_without_an_interval_nothing_is_beyond_noise() -> None:
    assert Estimate(0.5, None, None).noise
    assert not Estimate(0.5, 0.1, 0.9).noise
    assert Estimate(0.0, 0.0, 0.0).noise
