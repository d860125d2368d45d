"""Frames for people who use pandas, without a changed number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    import pandas as pd

#: Integers up to here are floats too; beyond, every second one is not.
_EXACT = 2**53


def to_pandas(frame: pl.DataFrame) -> pd.DataFrame:
    """A pandas frame with the same numbers. Needs pandas.

    pandas has no null among its plain integers, and makes floats of a column that has one. Where a float would not be the same
    number, the column is of pandas' nullable `Int64` (or the like) instead.

    >>> found = to_pandas(pl.DataFrame({"few": [1, None], "large": [2**53 + 1, None]}))
    >>> [str(kind) for kind in found.dtypes], int(found["large"][0]) == 2**53 + 1
    (['float64', 'Int64'], True)
    """
    out = frame.to_pandas()
    for column in frame:
        if column.dtype in (pl.Int64, pl.UInt64) and column.null_count() and _beyond_floats(column):
            kind = str(column.dtype)  # pandas calls its nullable integers as Polars does its own
            out[column.name] = column.to_pandas(use_pyarrow_extension_array=True).astype(kind)
    return out


def _beyond_floats(column: pl.Series) -> bool:
    ends = [end for end in (column.min(), column.max()) if isinstance(end, int)]
    return any(abs(end) > _EXACT for end in ends)
