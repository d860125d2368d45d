"""Linear models of scikit-learn as one product of matrices.

`predict_proba` of one row checks its input for longer than everything else of a request takes together. A linear model, with or without
an imputer and a scaler before it, is a few lines of NumPy; they are used only where they were seen to answer as the estimator does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.models.predictor import Matrix, Predictor

#: How far the short form may be from the estimator's own answer, on a probability or relative to the number.
TOLERANCE = 1e-12


class _Imputed:
    """What SimpleImputer does to nulls."""

    def __init__(self, fill: Matrix, indicated: npt.NDArray[np.intp] | None) -> None:
        self._fill, self._indicated = fill, indicated

    @property
    def width(self) -> int:
        """How many columns come out."""
        return len(self._fill) + (0 if self._indicated is None else len(self._indicated))

    def __call__(self, matrix: Matrix) -> Matrix:
        null = np.isnan(matrix)
        filled: Matrix = np.where(null, self._fill, matrix)
        return filled if self._indicated is None else np.concatenate([filled, null[:, self._indicated]], axis=1)


class LinearPredictor:
    """Nulls replaced, and told in columns of their own where `indicated` says; then scaled, weighted, summed, and a link for `sign`."""

    def __init__(self, imputed: _Imputed | None, mean: Matrix, scale: Matrix, weights: Matrix, bias: float, sign: float | None) -> None:
        self.imputed, self._mean, self._scale = imputed, mean, scale
        self._weights, self._bias, self._sign = weights, bias, sign

    def predict(self, matrix: Matrix) -> Matrix:
        if self.imputed is not None:
            matrix = self.imputed(matrix)
        line: Matrix = ((matrix - self._mean) / self._scale) @ self._weights + self._bias
        if self._sign is None:
            return line
        with np.errstate(invalid="ignore"):  # a null that nothing replaces scores NaN, and is dealt with as that
            # The logistic function, also where exp(-line) would overflow.
            probabilities: Matrix = np.exp(-np.logaddexp(0.0, -self._sign * line))
        return probabilities


def linear_form(estimator: Any, positive: int | None, general: Predictor, width: int) -> Predictor | None:
    """The short form of a fitted estimator; None where it has none, or where its answers were not seen to be the same."""
    try:
        form = _form(estimator, positive, width)
        return form if form is not None and _same(form, general, width) else None
    except (AttributeError, TypeError, ValueError):
        return None


def _same(form: LinearPredictor, general: Predictor, width: int) -> bool:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(64, width)) * np.exp(rng.normal(scale=3, size=(64, width)))
    rows[:4] = [[0.0], [1.0], [-1.0], [1e6]]
    if form.imputed is not None:
        rows[rng.random(rows.shape) < 0.2] = np.nan
    theirs = general.predict(rows)
    mine = np.concatenate([form.predict(rows[:32]), *(form.predict(rows[i : i + 1]) for i in range(32, 64))])
    same = np.abs(mine - theirs) <= TOLERANCE * np.maximum(1.0, np.abs(theirs))
    return bool(np.all(same))


def _form(estimator: Any, positive: int | None, width: int) -> LinearPredictor | None:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    steps = [step for _, step in estimator.steps] if type(estimator) is Pipeline else [estimator]
    steps = [step for step in steps if step is not None and step != "passthrough"]
    imputed: _Imputed | None = None
    if type(steps[0]) is SimpleImputer:
        imputer = steps.pop(0)
        fill = np.asarray(imputer.statistics_, dtype=np.float64)
        plain = isinstance(imputer.missing_values, float) and math.isnan(imputer.missing_values)
        if not plain or bool(np.isnan(fill).any()):
            return None
        imputed = _Imputed(fill, np.asarray(imputer.indicator_.features_) if imputer.add_indicator else None)
        width = imputed.width
    mean, scale = np.zeros(width), np.ones(width)
    if type(steps[0]) is StandardScaler:
        scaler = steps.pop(0)
        mean = mean if scaler.mean_ is None or not scaler.with_mean else np.asarray(scaler.mean_)
        scale = scale if scaler.scale_ is None else np.asarray(scaler.scale_)
    (model,) = steps
    if positive is not None:
        if type(model) is not LogisticRegression:
            return None
        return LinearPredictor(
            imputed, mean, scale, model.coef_[0].astype(np.float64), float(model.intercept_[0]), 1.0 if positive else -1.0
        )
    if type(model) not in (LinearRegression, Ridge, Lasso, ElasticNet):
        return None
    return LinearPredictor(imputed, mean, scale, np.ravel(model.coef_).astype(np.float64), float(np.ravel(model.intercept_)[0]), None)
