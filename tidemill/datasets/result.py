"""What a training set comes back as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from tidemill.frames import to_pandas
from tidemill.times import format_duration

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True)
class HistoricalFeatures:
    """The rows that were asked for, in their order, with all their columns, and the features beside them as `view__feature`.

    `knowledge`: per view, whether its answers know what had arrived ("arrival") or what had happened ("event_time"). `freshness`: how
    old the newest event that they know is at least, microseconds. `overflows`: per column, how many of its nulls are numbers that do
    not fit (a live request says `overflow`).
    """

    frame: pl.DataFrame = field(repr=False)
    knowledge: Mapping[str, str]
    freshness: int = 0
    overflows: Mapping[str, int] = field(default_factory=dict)

    @property
    def hypothetical(self) -> str | None:
        """Why no live request could have answered so; None where one would have."""
        happened = sorted(view for view, known in self.knowledge.items() if known == "event_time")
        reasons = []
        if happened:
            reasons.append(f"{', '.join(happened)} know what had happened, whether it had arrived or not")
        if self.freshness:
            reasons.append(f"nothing newer than {format_duration(self.freshness)} is known")
        return "; ".join(reasons) or None

    def to_df(self) -> pd.DataFrame:
        """A pandas frame, as `tidemill.frames.to_pandas` has it. Needs pandas: `pip install 'tidemill[pandas]'`."""
        return to_pandas(self.frame)

    def to_polars(self) -> pl.DataFrame:
        """A Polars frame."""
        return self.frame

    def to_arrow(self) -> pa.Table:
        """An Arrow table."""
        return self.frame.to_arrow()
