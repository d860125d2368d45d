"""What the learner needs of River: a model that learns one example, and detectors of drift.

A model is a pickle here as it is in the registry; whoever can write to the offline store can run code in the learner.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any

import msgspec

from tidemill.models.frameworks import missing_library
from tidemill.models.manifest import Manifest

#: Quickly, where they are all numbers; ints become floats, as when a model is asked.
_numbers = msgspec.json.Decoder(list[float]).decode
#: How the journal writes NaN.
_NAN = {"$float": "nan"}


class RefusedError(Exception):
    """An example that must not be learned: River would keep a value that is not finite for ever."""


class OnlineModel:
    """A River model that learns by the manifest of the version it began as, and what watches over its errors and scores.

    Owned by one thread: while `learn_one` runs, a linear model is not itself.
    """

    def __init__(self, manifest: Manifest, model: Any) -> None:
        adwin = _adwin()
        self.manifest, self.model = manifest, model
        self._columns = manifest.columns
        self._fill = [manifest.fill.get(c) for c in manifest.columns]
        self._classes = None if manifest.classes is None else {c: c for c in manifest.classes}
        self.on_error: Any = adwin()
        self.on_score: Any = adwin()

    @classmethod
    def of(cls, manifest: Manifest, artifact: bytes) -> OnlineModel:
        """The model of a version whose hash, and version of River, were checked."""
        _adwin()  # so that River's absence is said, and not what of it the pickle names first
        return cls(manifest, pickle.loads(artifact))  # noqa: S301 - see the module's text

    def dump(self) -> bytes:
        """The model and its detectors."""
        return pickle.dumps((self.model, self.on_error, self.on_score), protocol=5)

    @classmethod
    def load(cls, manifest: Manifest, data: bytes) -> OnlineModel:
        """What `dump` made; whoever calls has checked the hash, and the version of River."""
        _adwin()
        model, on_error, on_score = pickle.loads(data)  # noqa: S301 - see the module's text
        made = cls(manifest, model)
        made.on_error, made.on_score = on_error, on_score
        return made

    def label(self, value: Any) -> Any:
        """A label as the model knows it: one of its classes, or a finite number. Raises `RefusedError`."""
        if self._classes is not None:
            try:
                return self._classes[value]  # where 1, 1.0 and True are one
            except (KeyError, TypeError):
                pass
        elif isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
        raise RefusedError(f"the label is {value!r}")

    def row(self, x: str) -> dict[str, float]:
        """The features by name, of the JSON of their values; nulls filled in as when it is asked.

        Raises `RefusedError` for what is not finite even so, and for more or fewer values than the model has features.
        """
        try:
            values = _numbers(x)
            total = sum(values)
        except (msgspec.ValidationError, TypeError):
            return self._filled(msgspec.json.decode(x))
        if total - total == 0.0 and len(values) == len(self._columns):  # so that nothing in it is NaN or infinite
            return dict(zip(self._columns, values, strict=True))
        return self._filled(values)

    def _filled(self, values: Sequence[Any]) -> dict[str, float]:
        if len(values) != len(self._columns):
            raise RefusedError(f"{len(values)} values of {len(self._columns)} features")
        found = {}
        for column, value, fill in zip(self._columns, values, self._fill, strict=True):
            given = fill if value is None or value == _NAN else value
            if not isinstance(given, (int, float)) or not math.isfinite(given):
                raise RefusedError(f"{column} is {given!r}")
            found[column] = float(given)
        return found

    def learn(self, row: dict[str, float], label: Any) -> None:
        """One example. Raises `RefusedError` where the model fails: an Adam, say, that squares 1e200.

        What it had taken in by then stays. That is the same whenever the example is learned, so that the order of examples still decides
        everything; and what it makes of the scores the registry sees before anybody else does.
        """
        try:
            self.model.learn_one(row, label)
        except Exception as error:
            raise RefusedError(f"the model fails to learn it: {type(error).__name__}: {error}") from error

    def drifted(self, error: float, score: float) -> list[str]:
        """What changed, by what was predicted and how wrong that was: "error", "score"."""
        on_error, on_score = self.on_error, self.on_score
        on_error.update(error)
        on_score.update(score)
        found = ["error"] if on_error.drift_detected else []
        return [*found, "score"] if on_score.drift_detected else found


def _adwin() -> Any:
    """The detector. Raises `ModelRefusedError` where River is not installed."""
    try:
        from river import drift
    except ModuleNotFoundError as error:
        raise missing_library("river", error) from error
    return drift.ADWIN
