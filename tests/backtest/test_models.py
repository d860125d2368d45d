"""A model of one's own, and what becomes of one that misbehaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tidemill.backtest.models import predictions
from tidemill.errors import ModelError, RequestError
from tidemill.estimators import ESTIMATORS, estimator_factory

MODELS = """
import warnings
import numpy as np

class Threshold:
    def fit(self, x, y):
        assert x.dtype == np.float64 and y.dtype in (np.int64, np.float64)
        return self

    def predict(self, x):
        return (x[:, 0] > 0) * 0.8 + 0.1

class Both(Threshold):
    def predict_proba(self, x):
        p = self.predict(x)
        return np.stack([1 - p, p], axis=1)

class Loud(Both):
    def fit(self, x, y):
        warnings.warn("it went badly", RuntimeWarning)
        return self

class Short(Threshold):
    def predict(self, x):
        return np.zeros(1)

class Wild(Threshold):
    def predict(self, x):
        return x[:, 0] * 10

class Empty(Threshold):
    def predict(self, x):
        return x[:, 0] * np.nan

class Failing(Threshold):
    def fit(self, x, y):
        raise ValueError("too few rows")

NUMBER = 5
"""
X = np.array([[1.0, np.nan], [-1.0, np.nan], [2.0, np.nan], [-2.0, np.nan]])
Y = np.array([1.0, 0.0, 1.0, 0.0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine_to_try.py").write_text(MODELS)
    return tmp_path


@pytest.mark.parametrize("name", ["Threshold", "Both"])
def test_a_model_of_ones_own_is_found_in_the_projects_folder(folder: Path, name: str) -> None:
    factory = estimator_factory(f"mine_to_try:{name}", "classifier", folder)
    found, warned = predictions(name, factory, X, Y, X, "classifier")
    assert found.tolist() == [0.9, 0.1, 0.9, 0.1]
    assert warned == []


def test_what_it_warns_of_is_kept(folder: Path) -> None:
    assert predictions("m", estimator_factory("mine_to_try:Loud", "classifier", folder), X, Y, X, "classifier")[1] == [
        "RuntimeWarning: it went badly"
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine_to_try:Short", "must answer one finite number per row"),
        ("mine_to_try:Wild", "answers -20 to 20: give it predict_proba"),
        ("mine_to_try:Empty", "must answer one finite number per row"),
        ("mine_to_try:Failing", "failed: ValueError: too few rows"),
        ("mine_to_try:NUMBER", "is a int: name a function or a class"),
        ("mine_to_try:Nobody", "cannot be imported: module 'mine_to_try' has no attribute 'Nobody'"),
        ("ridge", "there is no model 'ridge' of two classes; there are logistic_regression, hist_gradient_boosting"),
    ],
)
def test_one_that_misbehaves_is_named(folder: Path, name: str, said: str) -> None:
    with pytest.raises((RequestError, ModelError)) as caught:
        predictions(name, estimator_factory(name, "classifier", folder), X, Y, X, "classifier")
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_models_of_scikit_learn_take_nulls_and_columns_that_are_always_null(kind: str) -> None:
    dice = np.random.default_rng(0)
    x = dice.normal(size=(300, 3))
    y = (x[:, 0] > 0).astype(float)
    x[dice.random(300) < 0.2, 0] = np.nan
    x[:, 1] = np.nan
    for name in ESTIMATORS[kind]:  # type: ignore[index]
        found, warned = predictions(name, estimator_factory(name, kind, Path()), x[:200], y[:200], x[200:], kind)  # type: ignore[arg-type]
        known = ~np.isnan(x[200:, 0])
        assert ((found > 0.5) == (y[200:] == 1))[known].mean() > 0.9
        assert warned == []


def test_a_column_that_is_null_only_where_it_is_tested_is_no_trouble() -> None:
    x = np.array([[1.0, 1], [0, 2], [1, 3], [0, 4]] * 10)
    asked = np.array([[1.0, np.nan], [0, np.nan]])
    for name in ESTIMATORS["classifier"]:
        found, _ = predictions(name, estimator_factory(name, "classifier", Path()), x, x[:, 0], asked, "classifier")
        assert found[0] > found[1]
