"""What is trained: a named estimator of scikit-learn, or anybody's own by its import path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidemill.definitions.names import suggestion
from tidemill.errors import ModelError, TidemillError
from tidemill.models.adapters.python import imported
from tidemill.models.manifest import Kind

NAMED = ("logistic", "linear", "hist_gradient_boosting")


def estimator(name: str | None, kind: Kind, directory: Path) -> Any:
    """An untrained model: a name of `NAMED`, or what `module:factory`, called without arguments, returns.

    Default: logistic for classes, linear for numbers. It has scikit-learn's `fit(X, y)` and `predict_proba` or `predict`; X is float64 of
    shape (rows, features), NaN where a feature is null. Raises `ModelError`.
    """
    if name is not None and ":" in name:
        factory = imported(name, directory).found
        made = factory() if callable(factory) else None
        if not hasattr(made, "fit"):
            raise ModelError(f"{name} is to return an untrained model with a method fit; it gave a {type(made).__name__}")
        return made
    name = name or ("logistic" if kind == "classifier" else "linear")
    makers: dict[str, Callable[[], Any]] = (
        {"logistic": _logistic, "hist_gradient_boosting": lambda: _boosted(kind)}
        if kind == "classifier"
        else {"linear": _linear, "hist_gradient_boosting": lambda: _boosted(kind)}
    )
    if name not in makers:
        raise ModelError(f"there is no {kind} {name!r}; {suggestion(name, makers)}; your own is written module:factory")
    return makers[name]()


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
        raise TidemillError(f"training needs scikit-learn ({error}): pip install scikit-learn skops") from None


def _prepared(last: Any) -> Any:
    """Null is the median, and a column that says that it was null: a feature without events is not an average one."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler(), last)


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return _prepared(LogisticRegression(max_iter=1000))


def _linear() -> Any:
    from sklearn.linear_model import Ridge

    return _prepared(Ridge())


def _boosted(kind: Kind) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    return (HistGradientBoostingClassifier if kind == "classifier" else HistGradientBoostingRegressor)(random_state=0)
