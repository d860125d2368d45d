"""The models that are tried: two of scikit-learn, and anybody's own by its import path."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.backtest.labelled import Float64s, Task
from tidemill.definitions.names import suggestion
from tidemill.errors import RequestError, TidemillError

#: What is tried where nobody names a model; other names are import paths.
DEFAULTS: dict[Task, tuple[str, ...]] = {
    "binary": ("logistic_regression", "hist_gradient_boosting"),
    "regression": ("ridge", "hist_gradient_boosting"),
}


def model_factory(name: str, task: Task, seed: int, directory: Path) -> Callable[[], Any]:
    """What makes a fresh, untrained model: a name of `DEFAULTS`, or `module:factory`, looked for in `directory` too.

    A factory is called without arguments, and returns an estimator with scikit-learn's `fit(X, y)` and `predict_proba(X)` (two classes)
    or `predict(X)`. X is float64 of shape (rows, features), NaN where a feature is null. Raises `RequestError`.
    """
    if ":" in name:
        return _imported(name, directory)
    if name not in DEFAULTS[task]:
        what = "two classes" if task == "binary" else "a regression"
        raise RequestError(f"there is no model {name!r} of {what}; {suggestion(name, DEFAULTS[task])}; your own is written module:factory")
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise TidemillError(f"the model {name!r} needs scikit-learn ({error}): pip install 'tidemill[backtest]'") from None
    return lambda: _boosted(task, seed) if name == "hist_gradient_boosting" else _linear(task)


def _linear(task: Task) -> Any:
    """Null is the median, and a column that says that it was null: a feature without events is not an average one."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    last = LogisticRegression(max_iter=1000) if task == "binary" else Ridge()
    return make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler(), last)


def _boosted(task: Task, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    return (HistGradientBoostingClassifier if task == "binary" else HistGradientBoostingRegressor)(random_state=seed)


def _imported(name: str, directory: Path) -> Callable[[], Any]:
    module_name, _, attribute = name.partition(":")
    with _importable(directory):
        try:
            factory = getattr(importlib.import_module(module_name), attribute)
        except Exception as error:
            raise RequestError(f"model {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(factory):
        raise RequestError(f"model {name!r} is a {type(factory).__name__}: name a function or a class that makes an untrained model")
    return factory  # type: ignore[no-any-return]  # whatever it makes is asked for its methods


@contextmanager
def _importable(directory: Path) -> Iterator[None]:
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))


def predictions(name: str, factory: Callable[[], Any], x: Float64s, y: Float64s, asked: Float64s, task: Task) -> tuple[Float64s, list[str]]:
    """A model trained on (x, y), asked about other rows: probabilities of class 1, or numbers; and what it warned of.

    Columns that are null in all of `x` say nothing and are kept from the model. Raises `RequestError` where the model fails, or answers
    something other than one finite number per row.
    """
    said = ~np.isnan(x).all(axis=0)
    x, asked = x[:, said], asked[:, said]
    if not x.shape[1]:
        # Nothing is known at this age: the best that is left is what is usual.
        return np.full(len(asked), y.mean()), ["no feature has a value: the prediction is the mean label"]
    with warnings.catch_warnings(record=True) as caught, _one_thread():
        warnings.simplefilter("always")
        try:
            model = factory()
            model.fit(x, y.astype(np.int64) if task == "binary" else y)
            found = _positive(model, asked) if task == "binary" else np.asarray(model.predict(asked), dtype=np.float64)
        except TidemillError:
            raise
        except Exception as error:
            raise RequestError(f"model {name!r} failed: {type(error).__name__}: {error}") from error
    if found.shape != (len(asked),) or not np.isfinite(found).all():
        raise RequestError(f"model {name!r} must answer one finite number per row; of {len(asked):,} rows it gave {found.shape}")
    if task == "binary" and (found.min() < 0 or found.max() > 1):
        raise RequestError(f"model {name!r} answers {found.min():g} to {found.max():g}: give it predict_proba, or probabilities in predict")
    return found, sorted({f"{w.category.__name__}: {str(w.message).splitlines()[0]}" for w in caught})


def _one_thread() -> AbstractContextManager[object]:
    """Sums of floats depend on how many threads share them, and a backtest on every machine should say the same."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # it comes with scikit-learn
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def _positive(model: Any, asked: Float64s) -> Float64s:
    if not hasattr(model, "predict_proba"):
        return np.asarray(model.predict(asked), dtype=np.float64)
    both = np.asarray(model.predict_proba(asked), dtype=np.float64)
    return both[:, -1] if both.ndim == 2 else both
