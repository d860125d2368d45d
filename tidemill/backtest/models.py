"""A model that is tried: trained on some rows, and asked about others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from tidemill.errors import RequestError, TidemillError
from tidemill.labelled import Float64s
from tidemill.models.manifest import Kind


def predictions(name: str, factory: Callable[[], Any], x: Float64s, y: Float64s, asked: Float64s, kind: Kind) -> tuple[Float64s, list[str]]:
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
            model.fit(x, y.astype(np.int64) if kind == "classifier" else y)
            found = _positive(model, asked) if kind == "classifier" else np.asarray(model.predict(asked), dtype=np.float64)
        except TidemillError:
            raise
        except Exception as error:
            raise RequestError(f"model {name!r} failed: {type(error).__name__}: {error}") from error
    if found.shape != (len(asked),) or not np.isfinite(found).all():
        raise RequestError(f"model {name!r} must answer one finite number per row; of {len(asked):,} rows it gave {found.shape}")
    if kind == "classifier" and (found.min() < 0 or found.max() > 1):
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
