"""How good scores are: scikit-learn's metrics, over all test rows and by slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from tidemill.models.manifest import Kind
from tidemill.models.predictor import Matrix

#: Metric to the text for people, and whether more is better.
NAMES: dict[Kind, dict[str, tuple[str, bool]]] = {
    "classifier": {"auc": ("AUC", True), "log_loss": ("log loss", False), "brier": ("Brier score", False)},
    "regressor": {"rmse": ("RMSE", False), "mae": ("MAE", False)},
}
#: Of a slice's values, so many are shown, the most frequent first.
MAX_VALUES = 20

Measured = dict[str, float | None]


def measure(kind: Kind, y: Matrix, scores: Matrix) -> Measured:
    """The metrics of these rows. AUC is None where all labels are the same.

    >>> measure("regressor", np.array([1.0, 2.0]), np.array([1.0, 4.0]))["mae"]
    1.0
    """
    from sklearn import metrics

    if kind == "regressor":
        return {
            "rmse": float(metrics.root_mean_squared_error(y, scores)),
            "mae": float(metrics.mean_absolute_error(y, scores)),
        }
    both = len(np.unique(y)) == 2
    return {
        "auc": float(metrics.roc_auc_score(y, scores)) if both else None,
        "log_loss": float(metrics.log_loss(y, scores, labels=[0.0, 1.0])),
        "brier": float(np.mean((y - scores) ** 2)),
    }


def by_slice(kind: Kind, y: Matrix, scores: Mapping[str, Matrix], slices: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Per slice column, per value: rows, the mean label, and the metrics of each who scored."""
    found: dict[str, list[dict[str, Any]]] = {}
    for column in slices.columns:
        values = slices[column].cast(pl.String).fill_null("null")
        counted = values.value_counts(sort=True).head(MAX_VALUES)[column].to_list()
        found[column] = []
        for value in counted:
            rows = np.flatnonzero((values == value).to_numpy())
            who = {name: measure(kind, y[rows], s[rows]) for name, s in scores.items()}
            found[column].append({"value": value, "rows": len(rows), "mean_label": float(y[rows].mean()), **who})
    return found
