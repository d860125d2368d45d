"""Scoring in process: features in one read of the store, the model, and an answer per row."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.answers import MISSING, AsOf, OnlineFeatures
from tidemill.answers import OK as FEATURE_OK
from tidemill.entity_rows import request_columns, rows_of
from tidemill.errors import ModelError, OverloadedError, RequestError, ScoringError, StoreUnavailableError
from tidemill.models.loaded import LoadedModel
from tidemill.models.manifest import Fallback, check_fallback, check_max_missing
from tidemill.models.prediction_ids import ids_from, prediction_ids
from tidemill.models.registry import Models
from tidemill.models.scores import AWAY, DEGRADED, FAILED, FALLBACK, OK, Scores
from tidemill.models.serving import ServedModels

if TYPE_CHECKING:
    from tidemill.client import FeatureStore

#: How many calls of `score_async` may wait for a thread; one more is refused, instead of being answered when nobody waits for it.
MAX_WAITING = 1_000


class Scorer:
    """Scores with the models of one store. Thread-safe."""

    def __init__(self, store: FeatureStore, models: Models, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        # Weak, so that a store that nobody holds any more is not kept alive by the thread that looks for promotions.
        self.served = ServedModels(models, _Readable(store))
        self._pool: ThreadPoolExecutor | None = None
        self._waiting = 0
        self._lock = threading.Lock()

    def score(
        self, model: str, entity_rows: Any, *, at: Any, fallback: Fallback, max_missing: int | None, request_id: str | None = None
    ) -> Scores:
        """See `FeatureStore.score`."""
        serving = self.served.get(model).now  # once: score and version belong together
        loaded = serving.loaded
        manifest = loaded.manifest
        try:
            instead = manifest.fallback if fallback is None else check_fallback(fallback)
            limit = manifest.max_missing if max_missing is None else check_max_missing(max_missing)
        except ValueError as error:
            raise RequestError(str(error)) from None
        if limit is None and instead is not None:
            limit = 0
        first = None if request_id is None else _uuid(request_id)
        rows = entity_rows if isinstance(entity_rows, list) else rows_of(entity_rows)
        try:
            features = self._store.get_online_features(loaded.request, rows, at=at)
        except StoreUnavailableError as error:
            if not isinstance(instead, float):
                raise
            features = self._nothing(loaded, rows, at)
            reasons: list[str | None] = [f"{AWAY}: {error}"] * len(features.status[manifest.columns[0]])
            raw: list[float | None] = [None] * len(reasons)
            bad = [len(manifest.columns)] * len(reasons)
        else:
            columns = features.columns
            bad = _not_ok([features.status[c] for c in manifest.columns])
            reasons = [_too_many(b, len(manifest.columns)) if limit is not None and b > limit else None for b in bad]
            raw = _asked(loaded, [columns[c] for c in manifest.columns], reasons, instead)
        ids = prediction_ids(len(raw), self._clock()) if first is None else ids_from(first, len(raw))
        scores = self._answer(loaded, ids, features, raw, bad, reasons, instead, serving.warning)
        if self._store.prediction_log is not None:
            self._store.prediction_log.offer(scores)
        return scores

    async def score_async(
        self, model: str, entity_rows: Any, *, at: Any, fallback: Fallback, max_missing: int | None, request_id: str | None = None
    ) -> Scores:
        """See `FeatureStore.score_async`."""
        with self._lock:
            if self._waiting >= MAX_WAITING:
                raise OverloadedError(
                    f"{self._waiting:,} scoring requests wait already: try again, ask for fewer at once, or add processes"
                )
            self._waiting += 1
            if self._pool is None:
                self._pool = ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1)), thread_name_prefix="tidemill-score")
            given = {"at": at, "fallback": fallback, "max_missing": max_missing, "request_id": request_id}
            future = self._pool.submit(self.score, model, entity_rows, **given)
        future.add_done_callback(self._done)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads."""
        self.served.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _done(self, _: object) -> None:
        with self._lock:
            self._waiting -= 1

    def _answer(
        self,
        loaded: LoadedModel,
        ids: list[str],
        features: OnlineFeatures,
        raw: Sequence[float | None],
        bad: Sequence[int],
        reasons: list[str | None],
        instead: Fallback,
        warning: str | None,
    ) -> Scores:
        manifest = loaded.manifest
        scores: list[float | None] = list(raw)
        status = [OK if b == 0 else DEGRADED for b in bad]
        for i, reason in enumerate(reasons):
            if reason is not None:
                if instead == "error":
                    raise ScoringError(f'row {i} has no score of {manifest.title}: {reason} (fallback is "error")')
                scores[i], status[i] = instead, FALLBACK
        return Scores(
            ids,
            scores,
            [manifest.label(s) for s in scores],
            status,
            reasons,
            manifest.model,
            manifest.version,
            features,
            manifest,
            warning,
            tuple(c for c in features.columns if c not in features.status),
        )

    def _nothing(self, loaded: LoadedModel, rows: Sequence[Mapping[str, Any]], at: Any) -> OnlineFeatures:
        """What is known of these rows while the online store is away. Raises `RequestError` as if it were there."""
        plan = self._store._plan(loaded.request)
        for _, output in plan.outputs:
            if output is not None:
                output.check(request_columns(output, rows))
        n = len(rows)
        columns: dict[str, list[Any]] = {name: [r.get(name) for r in rows] for name in plan.row_columns}
        columns.update((c, [None] * n) for c, _ in plan.outputs)
        status = {c: [MISSING] * n for c, _ in plan.outputs}
        return OnlineFeatures(columns, status, AsOf([], lambda _: {}), self._store._instant(at), plan.types)


class _Readable:
    """Whether a version's features can be read here: they are applied, and as they are defined."""

    def __init__(self, store: FeatureStore) -> None:
        import weakref

        self._store = weakref.ref(store)

    def __call__(self, loaded: LoadedModel) -> None:
        store = self._store()
        if store is not None:
            store._plan(loaded.request)


def _uuid(request_id: str) -> str:
    try:
        return ids_from(request_id, 1)[0]
    except (ValueError, TypeError, AttributeError):
        raise RequestError(f"request_id is {request_id!r}: give a UUID, the same for every try of one request") from None


def _not_ok(statuses: Sequence[list[str]]) -> list[int]:
    """Of each row, how many features are not ok."""
    if len(statuses[0]) == 1:
        return [sum(s[0] != FEATURE_OK for s in statuses)]
    return [sum(s != FEATURE_OK for s in row) for row in zip(*statuses, strict=True)]


def _too_many(bad: int, of: int) -> str:
    return f"{bad} of {of} features are missing, stale or overflown"


def _asked(loaded: LoadedModel, columns: Sequence[list[Any]], reasons: list[str | None], instead: Fallback) -> list[float | None]:
    """The model's scores, of the rows that it may score; where one is not finite, None, and its reason."""
    matrix = np.ascontiguousarray(np.array(columns, dtype=np.float64).T)
    rows = [i for i, r in enumerate(reasons) if r is None]
    found: list[float | None] = [None] * len(reasons)
    if not rows:
        return found
    try:
        scores = loaded.predict(matrix if len(rows) == len(reasons) else matrix[rows])
    except ModelError as error:
        if not isinstance(instead, float):
            raise
        for i in rows:
            reasons[i] = f"{FAILED}: {error}"
        return found
    for i, score in zip(rows, scores.tolist(), strict=True):
        if score - score == 0.0:  # finite
            found[i] = score
        else:
            reasons[i] = f"the model's score is {score}"
    return found
