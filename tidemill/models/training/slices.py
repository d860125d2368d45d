"""How good scores are by slice: for each value of a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from tidemill.measures import measure
from tidemill.models.manifest import Kind
from tidemill.models.predictor import Matrix

#: Of a slice's values, so many are shown, the most frequent first.
MAX_VALUES = 20


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
