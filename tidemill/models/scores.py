"""What a scoring request's answer is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from tidemill.answers import OnlineFeatures
from tidemill.frames import to_pandas
from tidemill.models.manifest import Class, Manifest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: Of a row: the model's score; its score though features are missing, stale or overflown; not its score.
OK, DEGRADED, FALLBACK = "ok", "degraded", "fallback"
#: How a row's reason begins where the store or the model could not be asked. What comes after it, if anything, names hosts, files and code.
AWAY, FAILED = "the online store does not answer", "the model failed"
_OWN = ("prediction_id", "score", "label", "status", "reason", "model", "version")


@dataclass(frozen=True)
class Scores:
    """The answer to a scoring request, one item per entity row in every list.

    `score`: the probability of the positive class, or a regression's number; always finite, or None. `label`: the class; None for a
    regression, and where there is no score. `status`: `ok`; `degraded`, the model's score of features of which some are missing, stale or
    overflown; `fallback`, the score is not the model's, and `reason` says why. `model` and `version`: what scored all of the rows.
    `features`: what it was given, with a status per feature, and `as_of`. `manifest`: the version's. `warning`: why another version
    than the one that is promoted goes on serving, if so.
    """

    prediction_id: list[str]
    score: list[float | None]
    label: list[Class | None]
    status: list[str]
    reason: list[str | None]
    model: str
    version: str
    features: OnlineFeatures
    manifest: Manifest = field(repr=False)
    warning: str | None = None
    _given: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.score)

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns: keys and request columns as they came, then prediction_id, score, label, status, reason, model, version.

        A key or request column that has one of these names comes as `row_<name>`. The features are in `features.to_dict()`.
        """
        rows = {(f"row_{n}" if n in _OWN else n): self.features.columns[n] for n in self._given}
        return {**rows, **self._own()}

    def to_polars(self) -> pl.DataFrame:
        """The columns of `to_dict` as a typed Polars frame, one row per entity row."""
        types = self.features.to_polars().schema
        rows = [pl.Series(f"row_{n}" if n in _OWN else n, self.features.columns[n], dtype=types[n], strict=False) for n in self._given]
        dtypes: dict[str, Any] = {"score": pl.Float64, "label": None if self.manifest.classes else pl.String}
        own = [pl.Series(n, v, dtype=dtypes.get(n, pl.String)) for n, v in self._own().items()]
        return pl.DataFrame([*rows, *own])

    def to_arrow(self) -> pa.Table:
        """The same as an Arrow table."""
        return self.to_polars().to_arrow()

    def to_df(self) -> pd.DataFrame:
        """The same as a pandas frame. Needs pandas: `pip install 'tidemill[pandas]'`."""
        return to_pandas(self.to_polars())

    def _own(self) -> dict[str, list[Any]]:
        n = len(self)
        return {
            "prediction_id": self.prediction_id,
            "score": self.score,
            "label": self.label,
            "status": self.status,
            "reason": self.reason,
            "model": [self.model] * n,
            "version": [self.version] * n,
        }
