"""What is trained: a named estimator of scikit-learn, or anybody's own by its import path. For training and for the backtest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidemill.definitions.names import suggestion
from tidemill.errors import ModelError, TidemillError
from tidemill.models.adapters.python import imported
from tidemill.models.manifest import Kind

#: Names by kind, the usual one first; other names are import paths.
ESTIMATORS: dict[Kind, tuple[str, ...]] = {
    "classifier": ("logistic_regression", "hist_gradient_boosting"),
    "regressor": ("ridge", "hist_gradient_boosting"),
}


def estimator_factory(name: str, kind: Kind, directory: Path, seed: int = 0) -> Callable[[], Any]:
    """What makes a fresh, untrained model: a name of `ESTIMATORS`, or `module:factory`, looked for in `directory` too.

    A factory is called without arguments, and returns an estimator with scikit-learn's `fit(X, y)` and `predict_proba(X)` (two classes)
    or `predict(X)`. X is float64 of shape (rows, features), NaN where a feature is null. Raises `ModelError`; `TidemillError` without
    scikit-learn.
    """
    if ":" in name:
        factory = imported(name, directory).found
        if not callable(factory):
            raise ModelError(f"model {name!r} is a {type(factory).__name__}: name a function or a class that makes an untrained model")
        return lambda: _made(name, factory)
    if name not in ESTIMATORS[kind]:
        what = "two classes" if kind == "classifier" else "a regression"
        raise ModelError(f"there is no model {name!r} of {what}; {suggestion(name, ESTIMATORS[kind])}; your own is written module:factory")
    need_sklearn()
    return lambda: _boosted(kind, seed) if name == "hist_gradient_boosting" else _linear(kind)


def takes_nulls(model: Any) -> bool:
    """Whether an estimator says that it takes NaN. One that says nothing is believed to."""
    try:
        from sklearn.utils import get_tags

        return bool(get_tags(model).input_tags.allow_nan)
    except (ImportError, AttributeError, TypeError):
        return True


def need_sklearn() -> None:
    """Raise `TidemillError` where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise TidemillError(f"training needs scikit-learn ({error}): pip install 'tidemill[sklearn]'") from None


def _made(name: str, factory: Callable[[], Any]) -> Any:
    made = factory()
    if not hasattr(made, "fit"):
        raise ModelError(f"{name} is to return an untrained model with a method fit; it gave a {type(made).__name__}")
    return made


def _linear(kind: Kind) -> Any:
    """Null is the median, and a column that says that it was null: a feature without events is not an average one."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    filled = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    return make_pipeline(filled, StandardScaler(), LogisticRegression(max_iter=1000) if kind == "classifier" else Ridge())


def _boosted(kind: Kind, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    return (HistGradientBoostingClassifier if kind == "classifier" else HistGradientBoostingRegressor)(random_state=seed)
