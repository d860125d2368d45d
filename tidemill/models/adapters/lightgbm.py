"""LightGBM, stored in its own text format, which runs no code and which later versions read.

Asked with one thread: a request's few rows are faster so, and a server's threads do not take each other's cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tidemill.errors import ModelError, ModelRefusedError
from tidemill.models.manifest import Class, Kind, Manifest
from tidemill.models.predictor import Context, Dumped, Matrix

_BINARY = ("binary", "cross_entropy", "xentropy")
_NUMBERS = ("regression", "regression_l1", "huber", "fair", "poisson", "quantile", "mape", "gamma", "tweedie")


class BoosterPredictor:
    """Asks a booster. It says the probability of its second class."""

    def __init__(self, booster: Any, second: bool) -> None:
        self._booster = booster
        self._second = second

    def predict(self, matrix: Matrix) -> Matrix:
        if not len(matrix):
            return np.empty(0)
        scores: Matrix = np.asarray(self._booster.predict(matrix, num_threads=1), dtype=np.float64)
        return scores if self._second else 1.0 - scores


def dump(model: Any, kind: Kind | None, classes: tuple[Class, ...] | None, context: Context) -> Dumped:  # noqa: ARG001 - a text trusts nobody
    """A booster, a fitted LGBMClassifier or LGBMRegressor, or the bytes of a text file."""
    import lightgbm

    if isinstance(model, bytes):
        data = model
    else:
        own = getattr(model, "classes_", None)
        classes = classes if own is None else tuple(c.item() if isinstance(c, np.generic) else c for c in own)
        booster = model if isinstance(model, lightgbm.Booster) else model.booster_
        data = booster.model_to_string().encode()
    found = _booster(data, "this model")
    objective = _objective(data)
    if objective in _BINARY:
        inferred: Kind = "classifier"
    elif objective in _NUMBERS:
        inferred = "regressor"
    else:
        raise ModelError(f"LightGBM's objective {objective!r} scores no single number a row: take binary, or one of {', '.join(_NUMBERS)}")
    if kind not in (None, inferred):
        raise ModelError(f"LightGBM's objective {objective!r} makes a {inferred}, and it was said to be a {kind}")
    names = tuple(found.feature_name())
    made_up = names == tuple(f"Column_{i}" for i in range(len(names)))
    return Dumped(
        "model.txt",
        data,
        inferred,
        (classes or (0, 1)) if inferred == "classifier" else None,
        names=None if made_up else names,
        width=found.num_feature(),
        libraries=("lightgbm", "numpy"),
        options={"objective": objective},
    )


def load(data: bytes, manifest: Manifest, context: Context) -> BoosterPredictor:  # noqa: ARG001 - as above
    """The booster of a text."""
    second = manifest.kind == "regressor" or manifest.positive_index == 1
    return BoosterPredictor(_booster(data, manifest.title), second)


def _booster(data: bytes, what: str) -> Any:
    import lightgbm

    if not data.startswith(b"tree\n"):  # LightGBM itself would end the process with some of what is none
        raise ModelRefusedError(f"{what} is no model in LightGBM's text format, which begins with a line 'tree': write it with save_model")
    try:
        return lightgbm.Booster(model_str=data.decode())
    except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:
        raise ModelRefusedError(f"{what} cannot be read as a model in LightGBM's text format: {error}") from error


def _objective(data: bytes) -> str | None:
    for line in data.split(b"\n", 20)[:20]:
        if line.startswith(b"objective="):
            return line.removeprefix(b"objective=").split(b" ")[0].decode()
    return None
