"""How good predictions were, measured as labels come: from the scores that were really served, before the model learns of the label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: Scores are counted in so many equal bins, for the AUC; ties within a bin count half.
_BINS = 1_000
_LEAST = 1e-15


@dataclass
class Prequential:
    """Metrics of a binary classifier (its score is a probability, a label is 0 or 1), or of a regression.

    >>> seen = Prequential("classifier")
    >>> for score, label in ((0.9, 1.0), (0.2, 0.0), (0.6, 0.0)):
    ...     seen.update(score, label)
    >>> {k: round(v, 3) for k, v in seen.metrics().items()}
    {'examples': 3, 'positive_share': 0.333, 'log_loss': 0.415, 'brier': 0.137, 'auc': 1.0}
    """

    kind: Literal["classifier", "regressor"]
    examples: int = 0
    positive: int = 0
    loss: float = 0.0
    squares: float = 0.0
    absolute: float = 0.0
    _bins: list[list[int]] = field(default_factory=lambda: [[0] * _BINS, [0] * _BINS])

    def update(self, score: float, label: float) -> None:
        """One prediction, and what came of it."""
        self.examples += 1
        error = label - score
        self.squares += error * error
        self.absolute += abs(error)
        if self.kind == "classifier":
            right = score if label else 1.0 - score
            self.loss -= math.log(max(right, _LEAST))
            self.positive += bool(label)
            self._bins[bool(label)][min(max(int(score * _BINS), 0), _BINS - 1)] += 1

    def metrics(self) -> dict[str, float]:
        """The metrics by name; of no example only that there was none. The AUC only where both classes were seen."""
        n = self.examples
        if n == 0:
            return {"examples": 0}
        if self.kind == "regressor":
            return {"examples": n, "mae": self.absolute / n, "rmse": math.sqrt(self.squares / n)}
        found = {"examples": n, "positive_share": self.positive / n, "log_loss": self.loss / n, "brier": self.squares / n}
        if 0 < self.positive < n:
            found["auc"] = self._auc()
        return found

    def _auc(self) -> float:
        below = twice = 0
        for negative, positive in zip(*self._bins, strict=True):
            twice += positive * (2 * below + negative)
            below += negative
        return twice / (2 * self.positive * below)

    def state(self) -> dict[str, Any]:
        """Everything, as plain values; the sums by their bits."""
        return {
            "examples": self.examples,
            "positive": self.positive,
            "sums": [self.loss.hex(), self.squares.hex(), self.absolute.hex()],
            "bins": self._bins,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """What `state` said."""
        self.examples, self.positive, self._bins = state["examples"], state["positive"], [list(b) for b in state["bins"]]
        self.loss, self.squares, self.absolute = map(float.fromhex, state["sums"])
