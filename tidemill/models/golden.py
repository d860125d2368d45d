"""Golden rows: rows that a version was asked when it was made, with its scores. Whoever loads it asks again.

So a version that cannot score, or scores otherwise than where it was made, is found before it is asked for anything that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from tidemill.errors import ModelRefusedError
from tidemill.models.predictor import Matrix

#: How far a score may be from the one that was noted, absolute and relative: other processors round sums otherwise, float32 models more.
TOLERANCE = 1e-5
FILE = "golden.json"


@dataclass(frozen=True)
class Golden:
    """The features' names, the rows (None for null), and the score of each."""

    features: tuple[str, ...]
    rows: tuple[tuple[float | None, ...], ...]
    scores: tuple[float, ...]

    def matrix(self) -> Matrix:
        """The rows as a model is given them."""
        return np.array(self.rows, dtype=np.float64).reshape(len(self.rows), len(self.features))

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes, where: str) -> Golden:
        """What `encode` made. Raises `ModelRefusedError`."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ModelRefusedError(f"{where} holds no golden rows ({error}): restore it from a copy") from None

    def check(self, scores: Matrix, what: str) -> None:
        """Raise `ModelRefusedError` unless these are the scores that were noted."""
        noted = np.array(self.scores)
        wrong = np.flatnonzero(~(np.abs(scores - noted) <= TOLERANCE * np.maximum(1.0, np.abs(noted))))
        if len(wrong):
            i = int(wrong[0])
            raise ModelRefusedError(
                f"{what} scores {float(scores[i])!r} on golden row {i}, and {float(noted[i])!r} was noted when it was registered: what it "
                "needs is not the same here; compare the libraries of its manifest with those installed, or train it again"
            )


def golden_rows(width: int, given: Matrix | None) -> Matrix:
    """The rows to ask: those given, and always one of nulls, as an entity never seen has it, one of zeros, one of ones."""
    always: Sequence[Sequence[float]] = ([np.nan] * width, [0.0] * width, [1.0] * width)
    rows = np.array(always, dtype=np.float64).reshape(3, width)
    return rows if given is None else np.concatenate([rows, given])
