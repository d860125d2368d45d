"""Registered models as batch predictions ask them: one version throughout, online as `FeatureStore.score` does, or over the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tidemill.datasets.questions import TIMESTAMP
from tidemill.definitions import resolve_features
from tidemill.errors import RequestError, ScoringError, StoreUnavailableError
from tidemill.models.prediction_ids import prediction_ids
from tidemill.models.scores import AWAY
from tidemill.models.scores import FALLBACK as NOT_ITS_OWN
from tidemill.predictions.scorer import DEGRADED, FALLBACK, MISSING, NONFINITE, OK, Scored

if TYPE_CHECKING:
    from tidemill.client import FeatureStore
    from tidemill.models.manifest import Manifest

#: How `Scores.reason` says it.
_NOT_FINITE = "the model's score is "


class ModelScorer:
    """A `Scorer` of one version of a registered model: `reference` is `name`, `name@alias` or `name@version`.

    `version`: the one to go on with, where a run was begun with it. Raises `NotFoundError`, `ModelRefusedError`.
    """

    def __init__(self, store: FeatureStore, reference: str, version: str | None = None) -> None:
        name = reference.partition("@")[0]
        self._store = store
        self._loaded = store.scorer.served.get(reference if version is None else f"{name}@{version}").now.loaded
        manifest = self._loaded.manifest
        self.model, self.version = manifest.model, manifest.version
        self.wanted = resolve_features(
            list(self._loaded.request) if isinstance(self._loaded.request, tuple) else self._loaded.request, store.env.definitions
        )
        self.range = (0.0, 1.0) if manifest.kind == "classifier" else None
        self._pinned = f"{self.model}@{self.version}"

    def score(self, rows: list[dict[str, Any]], at: int) -> Scored:
        scores = self._store.score(self._pinned, rows, at=at)
        status = []
        for score, said, reason in zip(scores.score, scores.status, scores.reason, strict=True):
            if reason is not None and reason.startswith(AWAY):
                # A request is answered with the fallback then; a batch had better wait than publish a default for everyone.
                raise StoreUnavailableError(f"{reason}; run this again")
            status.append(_status(score, said == NOT_ITS_OWN, said == "degraded", reason))
        features = scores.features.to_polars().select(self.wanted.columns)
        return Scored(scores.prediction_id, scores.score, scores.label, status, features)

    def score_past(self, rows: pl.DataFrame, at: int) -> Scored:
        """See `Scorer`. A feature that is null counts as missing; a count of 0 of an entity that was never seen does not."""
        if TIMESTAMP in rows.columns:
            raise RequestError(f"a key or request column is called {TIMESTAMP}, which is the history's own: rename it")
        asked = rows.with_columns(pl.lit(at, pl.Int64).cast(pl.Datetime("us", "UTC")).alias(TIMESTAMP))
        features = self._store.get_historical_features(asked, self._loaded.request).to_polars().select(self.wanted.columns)
        manifest = self._loaded.manifest
        given = features.select(pl.col(c).cast(pl.Float64) for c in manifest.columns)
        missing = given.select(pl.sum_horizontal(pl.all().is_null())).to_series().to_list()
        allowed = np.array([_may(manifest, bad) for bad in missing], dtype=bool)
        raw = np.full(len(missing), np.nan)
        if allowed.any():
            matrix = np.ascontiguousarray(given.fill_null(np.nan).to_numpy())
            raw[allowed] = self._loaded.predict(matrix[allowed])
        score: list[float | None] = []
        status: list[str] = []
        for value, may, bad in zip(raw.tolist(), allowed.tolist(), missing, strict=True):
            fine = np.isfinite(value)
            reason = None if fine else f"{_NOT_FINITE}{value}" if may else f"{bad} features are missing"
            if reason is not None and manifest.fallback == "error":
                raise ScoringError(f'{self._pinned} gives no score of a row: {reason} (fallback is "error")')
            instead = manifest.fallback if isinstance(manifest.fallback, float) else None
            score.append(value if fine else instead)
            status.append(_status(score[-1], not fine, bool(bad), reason))
        ids = prediction_ids(len(score), self._store._clock())
        return Scored(ids, score, [manifest.label(s) for s in score], status, features)


def _status(score: float | None, not_its_own: bool, degraded: bool, reason: str | None) -> str:
    if score is None:
        return NONFINITE if reason is not None and reason.startswith(_NOT_FINITE) else MISSING
    return FALLBACK if not_its_own else DEGRADED if degraded else OK


def _may(manifest: Manifest, bad: int) -> bool:
    """Whether a row with so many features missing may be scored: as `FeatureStore.score` decides."""
    limit = 0 if manifest.max_missing is None and manifest.fallback is not None else manifest.max_missing
    return limit is None or bad <= limit
