"""What a model must be to become a version: of these features, numbers all; a regression, or two classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tidemill.definitions.names import suggestion
from tidemill.errors import ModelError
from tidemill.models.loaded import LoadedModel
from tidemill.models.manifest import Class, ModelFeature
from tidemill.models.meaning import check_numeric
from tidemill.models.predictor import Dumped


@dataclass(frozen=True)
class Prepared:
    """A model that was tried and could be kept: loaded from its own bytes, and these, and its golden rows with their scores."""

    loaded: LoadedModel
    artifact: bytes
    golden: bytes


def used_features(
    known: Mapping[str, ModelFeature], names: Sequence[str] | None, width: int | None, service: str
) -> tuple[ModelFeature, ...]:
    """The features of the matrix, in its order."""
    order = [n.replace(":", "__", 1) for n in names] if names is not None else list(known)
    for column in order:
        if column not in known:
            raise ModelError(
                f"the model reads {column!r}, which service {service!r} does not have; {suggestion(column, known)}; where its own names "
                "are others, say features=[...] in the order of its matrix"
            )
    if len(set(order)) != len(order):
        raise ModelError("the model's features name a column twice")
    if width is not None and width != len(order):
        raise ModelError(
            f"the model was fitted on {width} columns, and these are {len(order)} features: say which, features=[...], in its order"
        )
    used = tuple(known[c] for c in order)
    check_numeric(used)
    return used


def check_fill(fill: Mapping[str, float], known: set[str]) -> None:
    """Raise `ModelError` for a fill of no feature, or by no finite number."""
    for feature, value in fill.items():
        if feature not in known:
            raise ModelError(f"fill names {feature!r}, which the model does not read; {suggestion(feature, known)}")
        if not np.isfinite(value):
            raise ModelError(f"fill of {feature!r} is {value}: nulls are replaced by finite numbers")


def two_classes(
    dumped: Dumped, positive: Class | None, threshold: float | None
) -> tuple[tuple[Class, ...] | None, Class | None, float | None]:
    """Of a classifier: its two classes, the positive one, and the threshold."""
    if dumped.kind == "regressor":
        if positive is not None or threshold is not None:
            raise ModelError("a regression has no classes: leave positive and threshold out")
        return None, None, None
    pair = dumped.classes or (False, True)
    if len(pair) != 2:
        raise ModelError(f"a classifier here tells two classes apart; this one has {len(pair)}: {', '.join(map(repr, pair[:10]))}")
    said = [c for c in pair if c == positive] or [c for c in pair if str(c).lower() == str(positive).lower()]
    chosen = pair[1] if positive is None else said[0] if said else None
    if chosen is None:
        raise ModelError(f"positive is {positive!r}, which is none of the model's classes, {pair[0]!r} and {pair[1]!r}")
    limit = 0.5 if threshold is None else float(threshold)
    if not 0.0 <= limit <= 1.0:
        raise ModelError(f"threshold is a probability, from 0 to 1; got {threshold!r}")
    return pair, chosen, limit
