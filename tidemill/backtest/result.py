"""What a backtest found: per freshness and model, each metric with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tidemill.measures import METRICS, Metric
from tidemill.models.manifest import Kind
from tidemill.times import DAY, format_duration, from_micros

#: What is as old as a freshness says: see `Plan`.
Aged: TypeAlias = Literal["events", "values"]

#: The share of resampled test periods that an interval covers.
COVERAGE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value, and its 95 % interval: None where too few resampled test periods have the metric at all."""

    value: float
    low: float | None
    high: float | None

    @property
    def noise(self) -> bool:
        """Whether zero lies within, so that a difference may be chance."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high

    def to_dict(self) -> dict[str, float | None]:
        """As JSON has it."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Score:
    """One metric of one model at one freshness; `difference` is to the freshest (its value less the freshest's; None there itself)."""

    estimate: Estimate
    difference: Estimate | None


@dataclass(frozen=True)
class Point:
    """One freshness, microseconds. `nulls`: of the test rows' features, the share of nulls, by feature.

    `hypothetical`: why no live request could have answered so; None where one would have. `scores` by model and metric.
    """

    freshness: int
    hypothetical: str | None
    nulls: Mapping[str, float]
    scores: Mapping[str, Mapping[str, Score]]
    warnings: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def age(self) -> str:
        """The freshness as text, such as `10m`."""
        return format_duration(self.freshness)

    @property
    def null_share(self) -> float:
        """The share of nulls over all features."""
        return sum(self.nulls.values()) / len(self.nulls)


@dataclass(frozen=True)
class Backtest:
    """All of it. `points` are in the order of their freshness, the freshest first; `metric` is the one that is told and drawn.

    `split` UTC microseconds. `train`, `test`: rows. `unlabelled`: rows without a label; `unknown_yet`: rows before the split whose label
    became known after it; neither is used. `blocks`: what the intervals resample. `left_out`: features that are no numbers, by type.
    """

    features: str
    kind: Kind
    metric: Metric
    models: tuple[str, ...]
    points: tuple[Point, ...]
    knowledge: Mapping[str, str]
    split: int
    train: int
    test: int
    unlabelled: int
    unknown_yet: int
    positives: float | None
    blocks: str
    seed: int
    left_out: Mapping[str, str]
    versions: Mapping[str, str]
    aged: Aged = "events"

    @property
    def freshest(self) -> Point:
        """What the others are compared with."""
        return self.points[0]

    @property
    def reference(self) -> Point:
        """What streaming is weighed against: day-old features, or the oldest that were tried."""
        return next((p for p in self.points[1:] if p.freshness == DAY), self.points[-1])

    @property
    def best(self) -> str:
        """The model that does best with the freshest features."""
        return max(self.models, key=lambda m: self.metric.gain(self.freshest.scores[m][self.metric.name].estimate.value))

    @property
    def hypothetical(self) -> list[tuple[str, str]]:
        """Each freshness that no live request could have answered so, with the reason."""
        return [(p.age, p.hypothetical) for p in self.points if p.hypothetical]

    @property
    def conclusion(self) -> str:
        """What to do with it, in a sentence or three, by the model that does best."""
        from tidemill.backtest.conclusion import conclusion

        return conclusion(self, self.best)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        from tidemill.backtest.conclusion import conclusion

        return {
            "features": self.features,
            "kind": self.kind,
            "metric": self.metric.name,
            "conclusion": self.conclusion,
            "conclusions": {model: conclusion(self, model) for model in self.models},
            "split": from_micros(self.split).isoformat(),
            "rows": {"train": self.train, "test": self.test, "unlabelled": self.unlabelled, "not_known_at_split": self.unknown_yet},
            "positives": self.positives,
            "knowledge": dict(self.knowledge),
            "interval": {"coverage": COVERAGE, "method": "paired bootstrap, percentiles", "resampled": self.blocks},
            "aged": self.aged,
            "seed": self.seed,
            "left_out": dict(self.left_out),
            "versions": dict(self.versions),
            "points": [
                {
                    "freshness": point.age,
                    "hypothetical": point.hypothetical,
                    "null_share": point.null_share,
                    "nulls": dict(point.nulls),
                    "warnings": dict(point.warnings),
                    "models": {
                        model: {
                            name: {**s.estimate.to_dict(), "difference": s.difference.to_dict() if s.difference else None}
                            for name, s in scores.items()
                        }
                        for model, scores in point.scores.items()
                    },
                }
                for point in self.points
            ],
        }

    @property
    def metrics(self) -> list[Metric]:
        """All metrics of the kind, the one that is told first."""
        return [self.metric, *(m for m in METRICS[self.kind].values() if m is not self.metric)]

    def save(self, directory: Path) -> list[Path]:
        """Write `index.html`, `freshness.png` and `backtest.json`; the files. Raises `RequestError` where they cannot be written."""
        from tidemill.backtest.page import save

        return save(self, directory)
