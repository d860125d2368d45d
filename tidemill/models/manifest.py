"""What a version of a model is: the JSON document beside its artifact, never changed once it is written."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from tidemill.errors import ModelRefusedError

#: The layout of a version. Raised when an older tidemill could no longer read what a newer one writes.
FORMAT = 1
#: A class of a classifier, as JSON has it.
Class = bool | int | float | str
Kind = Literal["classifier", "regressor"]
#: What stands in where the model may not, or cannot, score: a score, or an error. None: no score.
Fallback = float | Literal["error"] | None


@dataclass(frozen=True, slots=True)
class ModelFeature:
    """One column of the matrix that the model is given. `digest` is of what its values mean, see `meaning`."""

    name: str
    type: str
    digest: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A file in the version's folder."""

    file: str
    sha256: str
    size: int

    @classmethod
    def of(cls, file: str, data: bytes) -> Stored:
        """The file that holds `data`."""
        return cls(file, hashlib.sha256(data).hexdigest(), len(data))

    def check(self, data: bytes | None, where: str) -> bytes:
        """`data`, if it is what was stored. Raises `ModelRefusedError`."""
        if data is None:
            raise ModelRefusedError(f"{where} is not there: restore it from a copy, or register the model anew")
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise ModelRefusedError(
                f"{where} has the SHA-256 {found[:12]}..., and its manifest says {self.sha256[:12]}...: it was changed or damaged after it "
                "was registered; restore it from a copy, or register the model anew"
            )
        return data


@dataclass(frozen=True)
class Manifest:
    """One immutable version of a model.

    `features`: the columns of the matrix, in order. `definition`: a digest of what all of them mean. `classes`: of a classifier, the two,
    in the model's own order; `positive` is the one that the score is the probability of. `threshold`: from this score on the row is
    in the positive class. `fill`: what replaces a null, per feature; other nulls are NaN. `fallback` and `max_missing`: see
    `FeatureStore.score`. `libraries`: what it was made with; of those in `pinned`, major and minor version must be the same to load it.
    `options`: the adapter's own. `metrics`, `data` (from, to and rows of the training set) and `description` are for people.
    """

    model: str
    version: str
    framework: str
    kind: Kind
    service: str
    definition: str
    features: tuple[ModelFeature, ...]
    artifact: Stored
    golden: Stored
    created_at: str
    classes: tuple[Class, ...] | None = None
    positive: Class | None = None
    threshold: float | None = None
    fill: dict[str, float] = field(default_factory=dict)
    fallback: Fallback = None
    max_missing: int | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    pinned: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    format: int = FORMAT

    @property
    def columns(self) -> tuple[str, ...]:
        """The features' names, in order."""
        return tuple(f.name for f in self.features)

    @property
    def title(self) -> str:
        """The model and its version, for people."""
        return f"{self.model} {self.version}".strip()

    @property
    def negative(self) -> Class | None:
        """The class that is not `positive`."""
        return next((c for c in self.classes or () if c != self.positive), None)

    @property
    def positive_index(self) -> int:
        """The place of the positive class among `classes`."""
        return (self.classes or ()).index(self.positive)

    def label(self, score: float | None) -> Class | None:
        """The class of a score; None for a regression."""
        if score is None or self.threshold is None:
            return None
        return self.positive if score >= self.threshold else self.negative

    def encode(self) -> bytes:
        """As it is stored: JSON for people, sorted as the fields stand."""
        return msgspec.json.format(msgspec.json.encode(self, enc_hook=_scalar), indent=1)

    @classmethod
    def decode(cls, data: bytes, where: str) -> Manifest:
        """What `encode` made. Raises `ModelRefusedError` for anything else."""
        try:
            found = msgspec.json.decode(data)
            if isinstance(found, Mapping) and found.get("format") != FORMAT:
                raise ModelRefusedError(
                    f"{where} has format {found.get('format')!r}, and this tidemill reads {FORMAT}: use the version that wrote it"
                )
            manifest = msgspec.convert(found, cls)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ModelRefusedError(f"{where} is not a model's manifest ({error}): restore it from a copy") from None
        if manifest.classes is not None and (len(manifest.classes) != 2 or manifest.positive not in manifest.classes):
            raise ModelRefusedError(
                f"{where} names two classes and the positive one of them; got {manifest.classes}, {manifest.positive!r}"
            )
        return manifest


def _scalar(value: Any) -> Any:
    """A number of NumPy's, as metrics often are. Raises `TypeError` for anything else."""
    if not hasattr(value, "dtype") or getattr(value, "shape", None) != ():
        raise TypeError(f"{value!r} is a {type(value).__name__}")
    return value.item()


def check_fallback(fallback: object) -> Fallback:
    """`fallback` itself, if it is one. Raises `ValueError`.

    >>> check_fallback(0.5), check_fallback("error"), check_fallback(None)
    (0.5, 'error', None)
    """
    if fallback is None or fallback == "error":
        return fallback
    if isinstance(fallback, (int, float)) and not isinstance(fallback, bool):
        with contextlib.suppress(OverflowError):  # an int that no float can hold
            if math.isfinite(fallback):
                return float(fallback)
    raise ValueError(f'fallback is a finite score such as 0.1, "error", or None; got {fallback!r}')


def check_max_missing(limit: object) -> int | None:
    """`limit` itself, if it is a number of features. Raises `ValueError`."""
    if limit is None or (isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0):
        return limit
    raise ValueError(f"max_missing is how many of a row's features may be missing or stale, such as 0; got {limit!r}")
