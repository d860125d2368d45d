"""Features as the matrix that a model gets: float64, a column per feature in the order of the request, NaN for null."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from tidemill.errors import RequestError
from tidemill.labelled import Float64s


@dataclass(frozen=True)
class Matrix:
    """`values`: float64 of shape (rows, columns). `left_out`: features that are no numbers, with their type."""

    values: Float64s
    columns: tuple[str, ...]
    left_out: dict[str, str]


def matrix(frame: pl.DataFrame, columns: Sequence[str]) -> Matrix:
    """Numbers and booleans as they are served to a model; text, lists and instants are left out. Raises `RequestError`.

    >>> found = matrix(pl.DataFrame({"n": [1, None], "seen": [True, False], "city": ["Rome", "Oslo"]}), ["n", "seen", "city"])
    >>> found.values.tolist(), found.left_out
    ([[1.0, 1.0], [nan, 0.0]], {'city': 'String'})
    """
    kept, left_out = [], {}
    for name in columns:
        kind = frame.schema[name]
        if kind == pl.Boolean or kind.is_numeric():
            kept.append(name)
        else:
            left_out[name] = str(kind)
    if not kept:
        raise RequestError(f"none of these features is a number, which is what a model takes: {', '.join(columns)}")
    values = frame.select(pl.col(kept).cast(pl.Float64)).fill_null(float("nan")).to_numpy(order="c")
    return Matrix(values, tuple(kept), left_out)


def nulls(values: Float64s) -> Float64s:
    """The share of nulls of each column, float64 of shape (columns,)."""
    share: Float64s = np.isnan(values).mean(axis=0)
    return share
