"""River. It has no format but pickle, which runs code when it is read and is tied to River's version.

So only what this registry wrote is ever read: the hash and the version are checked before, and a file from elsewhere cannot be registered.
River checks no input: a row with a null that nothing fills in is not shown to the model, and scores NaN.
"""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np

from tidemill.errors import ModelError
from tidemill.models.manifest import Class, Kind, Manifest
from tidemill.models.predictor import Context, Dumped, Matrix


class RiverPredictor:
    """Asks a model row by row, as it learned. Asking changes nothing in it."""

    def __init__(self, model: Any, columns: tuple[str, ...], positive: Class | None) -> None:
        self._model, self._columns, self._positive = model, columns, positive

    def predict(self, matrix: Matrix) -> Matrix:
        ask = self._number if self._positive is None else self._probability
        rows = zip(matrix.tolist(), np.atleast_1d(np.isfinite(matrix).all(axis=1)).tolist(), strict=True)
        found = [ask(dict(zip(self._columns, row, strict=True))) if finite else math.nan for row, finite in rows]
        return np.array(found, dtype=np.float64)

    def _probability(self, row: dict[str, float]) -> float:
        """Of a class that it has not seen yet, 0; before it has seen any, it cannot say."""
        found = self._model.predict_proba_one(row)
        return float(found.get(self._positive, 0.0)) if found else math.nan

    def _number(self, row: dict[str, float]) -> float:
        found = self._model.predict_one(row)
        return math.nan if found is None else float(found)


def dump(model: Any, kind: Kind | None, classes: tuple[Class, ...] | None, context: Context) -> Dumped:  # noqa: ARG001 - no pickle of others is read
    """A live model."""
    from river import base, compose

    if isinstance(model, bytes):
        raise ModelError("a model of River is registered from Python, as it is in memory: its files are pickles, which run code when read")
    last = model
    while isinstance(last, compose.Pipeline):
        last = list(last.steps.values())[-1]
    found: Kind | None = "classifier" if isinstance(last, base.Classifier) else "regressor" if isinstance(last, base.Regressor) else kind
    if found is None or kind not in (None, found):
        raise ModelError(
            f"{type(last).__name__} is {'a ' + found if found else 'neither a classifier nor a regressor'} of River; say kind="
        )
    try:
        data = pickle.dumps(model, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ModelError(f"this model cannot be pickled ({error}): replace its lambdas by functions that a module defines") from None
    return Dumped(
        "model.pkl",
        data,
        found,
        (classes or (False, True)) if found == "classifier" else None,
        libraries=("river", "numpy"),
        pinned=("river",),
        options={"model": type(last).__name__},
    )


def load(data: bytes, manifest: Manifest, context: Context) -> RiverPredictor:  # noqa: ARG001 - as above
    """The model. Whoever calls has checked the hash against the manifest, and River's version."""
    import river  # noqa: F401 - so that its absence is said, and not what of it the pickle names first

    model = pickle.loads(data)  # noqa: S301 - see the module's text
    return RiverPredictor(model, manifest.columns, manifest.positive if manifest.kind == "classifier" else None)
