"""A version in memory, checked: what scorers swap as one reference, so that a score and the version it names belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tidemill.errors import ModelError, ModelRefusedError
from tidemill.models import frameworks
from tidemill.models.golden import Golden
from tidemill.models.manifest import Manifest
from tidemill.models.predictor import Context, Matrix, Predictor


@dataclass(frozen=True)
class LoadedModel:
    """A predictor with its manifest. `request` is what to ask `get_online_features` for."""

    manifest: Manifest
    predictor: Predictor
    request: str | tuple[str, ...]
    fill: Matrix | None

    def predict(self, matrix: Matrix) -> Matrix:
        """The scores of rows; a null is replaced as the manifest says. NaN where the model gives nothing finite.

        Raises `ModelError` where the model fails, or returns something else than a number a row.
        """
        if self.fill is not None:
            matrix = np.where(np.isnan(matrix), self.fill, matrix)
        what = self.manifest.title
        try:
            scores = np.asarray(self.predictor.predict(matrix), dtype=np.float64)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{what} failed: {type(error).__name__}: {error}") from error
        if scores.shape != (len(matrix),):
            raise ModelError(f"{what} returned scores of shape {scores.shape} for {len(matrix)} rows, and one number a row was expected")
        return scores


def load_model(manifest: Manifest, artifact: bytes, golden: Golden, request: str | tuple[str, ...], context: Context) -> LoadedModel:
    """The model of an artifact whose hash was checked, after it has scored its golden rows. Raises `ModelRefusedError`."""
    loaded = unchecked(manifest, artifact, request, context)
    what = manifest.title
    if golden.features != manifest.columns:
        raise ModelRefusedError(f"{what}: its golden rows are of other features than its manifest: restore both from a copy")
    rows = golden.matrix()
    golden.check(score_finite(loaded, rows), what)
    # A row alone takes other paths through many libraries than a batch does, and it is what requests ask for.
    golden.check(np.concatenate([score_finite(loaded, rows[i : i + 1]) for i in range(len(rows))]), what)
    return loaded


def unchecked(manifest: Manifest, artifact: bytes, request: str | tuple[str, ...], context: Context) -> LoadedModel:
    """The model of an artifact. Raises `ModelRefusedError`."""
    frameworks.check_libraries(manifest)
    adapter = frameworks.adapter(manifest.framework)
    try:
        predictor = adapter.load(artifact, manifest, context)
    except ModelError:
        raise
    except ModuleNotFoundError as error:
        raise frameworks.missing_library(manifest.framework, error) from error
    except (Exception, SystemExit) as error:
        raise ModelRefusedError(f"{manifest.title} cannot be loaded: {type(error).__name__}: {error}") from error
    fill = np.array([manifest.fill.get(c, np.nan) for c in manifest.columns]) if manifest.fill else None
    return LoadedModel(manifest, predictor, request, fill)


def score_finite(loaded: LoadedModel, rows: Matrix) -> Matrix:
    """The scores of golden rows. Raises `ModelRefusedError` where one is not finite, or no probability though it should be one."""
    what = loaded.manifest.title
    try:
        scores = loaded.predict(rows)
    except ModelError as error:
        nulls = (
            "" if not np.isnan(rows).any() else "; if it is nulls that it cannot take, say what to fill in for them: fill={feature: value}"
        )
        raise ModelRefusedError(f"{error}{nulls}") from error
    for row, score in zip(rows, scores, strict=True):
        if not np.isfinite(score):
            null = [c for c, v in zip(loaded.manifest.columns, row, strict=True) if np.isnan(v)]
            fix = f"say what to fill in for nulls, fill={{{null[0]!r}: value, ...}}" if null else "train it again"
            raise ModelRefusedError(f"{what} scores {score} on a golden row, {_row(loaded, row)}, and would so in a request: {fix}")
        if loaded.manifest.kind == "classifier" and not 0.0 <= score <= 1.0:
            raise ModelRefusedError(f"{what} scores {score} on a golden row, and a classifier's score is a probability, from 0 to 1")
    return scores


def _row(loaded: LoadedModel, row: Matrix) -> str:
    shown = [f"{c}={'null' if np.isnan(v) else v}" for c, v in zip(loaded.manifest.columns, row, strict=True)]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
