"""The one way in which a model is asked, whatever made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tidemill.models.manifest import Class, Kind, Manifest

Matrix: TypeAlias = npt.NDArray[np.float64]


class Predictor(Protocol):
    """A model that can be asked, from several threads at once."""

    def predict(self, matrix: Matrix) -> Matrix:
        """Scores, float64 of shape (n,), of a float64 matrix of shape (n, features) in the manifest's order; null is NaN.

        Of a classifier the probability of the positive class, of a regression the number itself.
        """
        ...


@dataclass(frozen=True)
class Dumped:
    """A model as bytes, and what it says of itself. `names`: the features' names in order, where the model knows them."""

    file: str
    data: bytes
    kind: Kind
    classes: tuple[Class, ...] | None = None
    names: tuple[str, ...] | None = None
    width: int | None = None
    libraries: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What loading may depend on besides the version's own files: where the project lies, and which types it trusts."""

    directory: Path
    trusted: tuple[str, ...] = ()


class Adapter(Protocol):
    """What an adapter's module has. Its own library is imported inside, when a model needs it."""

    def dump(self, model: Any, kind: Kind | None, classes: tuple[Class, ...] | None, context: Context) -> Dumped:
        """A live model, or what a file of it holds (bytes), as it is stored. Raises `ModelError`."""
        ...

    def load(self, data: bytes, manifest: Manifest, context: Context) -> Predictor:
        """The model of bytes whose hash was checked. Raises `ModelRefusedError`."""
        ...
