"""scikit-learn, stored by skops: no pickle, and only types that are allowed by name are made when it is read.

Allowed are the types that skops trusts by itself, those listed here, and those that tidemill.toml names in `[models] trusted`; what the
version itself says about trust does not count. It is a list of names, not a sandbox.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tidemill.errors import ModelError, ModelRefusedError
from tidemill.models.adapters.linear import linear_form
from tidemill.models.manifest import Class, Kind, Manifest
from tidemill.models.predictor import Context, Dumped, Matrix, Predictor

#: Parts of scikit-learn's own estimators that skops does not trust by itself. (A forged tree could crash the process that asks it: the
#: hash in the manifest is what stands against that.)
TRUSTED = (
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.tree._tree.Tree",
)


class SklearnPredictor:
    """Asks an estimator. One that was fitted on a frame is given a frame, because it finds its columns by their names."""

    def __init__(self, estimator: Any, positive: int | None, names: tuple[str, ...] | None) -> None:
        self._estimator = estimator
        self._positive = positive
        self._names = names

    def predict(self, matrix: Matrix) -> Matrix:
        given: Any = matrix
        if self._names is not None:
            import pandas as pd

            given = pd.DataFrame(matrix, columns=list(self._names))
        if self._positive is None:
            return np.asarray(self._estimator.predict(given), dtype=np.float64)
        return np.asarray(self._estimator.predict_proba(given)[:, self._positive], dtype=np.float64)


def dump(model: Any, kind: Kind | None, classes: tuple[Class, ...] | None, context: Context) -> Dumped:
    """A fitted estimator, or the bytes of a .skops file."""
    from skops.io import dumps

    data = model if isinstance(model, bytes) else dumps(model)
    estimator = _loaded(data, context, "this model")
    from sklearn.base import is_classifier, is_regressor
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError) as error:
        raise ModelError(f"{type(estimator).__name__} is no fitted estimator of scikit-learn: fit it first ({error})") from None
    found: Kind = "classifier" if is_classifier(estimator) else "regressor"
    if not (is_classifier(estimator) or is_regressor(estimator)):
        raise ModelError(f"{type(estimator).__name__} is neither a classifier nor a regressor of scikit-learn")
    if kind is not None and kind != found:
        raise ModelError(f"{type(estimator).__name__} is a {found}, and was said to be a {kind}")
    own = None
    if found == "classifier":
        if not hasattr(estimator, "predict_proba"):
            raise ModelError(
                f"{type(estimator).__name__} gives no probabilities: wrap it in sklearn.calibration.CalibratedClassifierCV, or take another"
            )
        own = tuple(c.item() if isinstance(c, np.generic) else c for c in estimator.classes_)
        if classes is not None and tuple(classes) != own:
            raise ModelError(f"{type(estimator).__name__} has the classes {own}, in this order, and was said to have {classes}")
    names = getattr(estimator, "feature_names_in_", None)
    return Dumped(
        "model.skops",
        data,
        found,
        own,
        names=None if names is None else tuple(str(n) for n in names),
        width=getattr(estimator, "n_features_in_", None),
        libraries=("scikit-learn", "skops", "numpy", "scipy"),
        pinned=("scikit-learn",),
        options={"estimator": type(estimator).__name__, "frame": names is not None},
    )


def load(data: bytes, manifest: Manifest, context: Context) -> Predictor:
    """The estimator; of a linear one the same sums without scikit-learn's checks, which take longer than the sums."""
    estimator = _loaded(data, context, manifest.title)
    positive = manifest.positive_index if manifest.kind == "classifier" else None
    general = SklearnPredictor(estimator, positive, manifest.columns if manifest.options.get("frame") else None)
    return linear_form(estimator, positive, general, len(manifest.features)) or general


def _loaded(data: bytes, context: Context, what: str) -> Any:
    from skops.io import get_untrusted_types, loads

    allowed = {*TRUSTED, *context.trusted}
    try:
        unknown = sorted(set(get_untrusted_types(data=data)) - allowed)
        if not unknown:
            return loads(data, trusted=sorted(set(get_untrusted_types(data=data)) & allowed))
    except ModelError:
        raise
    except Exception as error:
        raise ModelRefusedError(f"{what} cannot be read as a model in the format of skops: {type(error).__name__}: {error}") from error
    names = ", ".join(f'"{name}"' for name in unknown)
    raise ModelRefusedError(
        f"{what} holds types that are not allowed here: {', '.join(unknown)}; if you trust their code, add them to tidemill.toml: "
        f"[models] trusted = [{names}]"
    )
