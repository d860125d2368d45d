"""From the library's answers to those that go over the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import polars as pl

from tidemill.answers import OnlineFeatures
from tidemill.models.scores import AWAY, FAILED, Scores
from tidemill.models.serving import GOES_ON
from tidemill.remote.wire import AsOfAnswer, FeaturesAnswer, Known, ScoreAnswer

_NAMES: Mapping[type[pl.DataType], str] = {
    pl.Int64: "int",
    pl.Float64: "float",
    pl.String: "str",
    pl.Boolean: "bool",
    pl.Datetime: "timestamp",
}


class Writer:
    """Writes answers. Keeps what is the same for every answer to the same request, so it is to be kept too."""

    def __init__(self) -> None:
        self._types: dict[int, tuple[Mapping[str, pl.DataType], dict[str, str]]] = {}

    def features(self, answer: OnlineFeatures) -> FeaturesAnswer:
        """Columns, statuses and what was known."""
        rows = len(next(iter(answer.columns.values()), ()))
        return FeaturesAnswer(answer.columns, answer.status, self._types_of(answer), answer.at, _as_of(answer, rows))

    def scores(self, answer: Scores) -> ScoreAnswer:
        """Scores, and the features that they were made of."""
        return ScoreAnswer(
            answer.prediction_id,
            answer.score,
            answer.label,
            answer.status,
            [reason and told(reason) for reason in answer.reason],
            answer.model,
            answer.version,
            answer.warning and answer.warning.partition(GOES_ON)[0] + GOES_ON,
            self.features(answer.features),
        )

    def encode(self, answer: msgspec.Struct) -> bytes:
        """As JSON."""
        return msgspec.json.encode(answer)

    def _types_of(self, answer: OnlineFeatures) -> dict[str, str]:
        """One table of types serves all answers of a plan; a new plan brings a new one, which is held so that its id stays its own."""
        types = answer._types
        kept = self._types.get(id(types))
        if kept is None:
            if len(self._types) > 1000:
                self._types = {}
            kept = self._types[id(types)] = types, {column: _name(kind) for column, kind in types.items()}
        return kept[1]


def told(reason: str) -> str:
    """A row's reason, without what is nobody's business out there: hosts, files and code.

    >>> told("the online store does not answer: redis://10.0.0.7 refuses"), told("2 of 3 features are missing, stale or overflown")
    ('the online store does not answer', '2 of 3 features are missing, stale or overflown')
    """
    return next((said for said in (AWAY, FAILED) if reason.startswith(said)), reason)


def _name(kind: pl.DataType) -> str:
    return f"list[{_name(kind.inner)}]" if isinstance(kind, pl.List) else _NAMES[type(kind)]  # type: ignore[arg-type]  # an inner type is an instance


def _as_of(answer: OnlineFeatures, rows: int) -> AsOfAnswer:
    known = answer.as_of
    return AsOfAnswer(known.time, {view: _known([known.positions(view, row) for row in range(rows)]) for view in known.views})


def _known(by_row: list[dict[int, int]]) -> Known:
    """Rows mostly know the same: each distinct vector once."""
    distinct: dict[tuple[tuple[int, int], ...], int] = {}
    of_row = [distinct.setdefault(tuple(known.items()), len(distinct)) for known in by_row]
    positions: list[dict[str, Any]] = [{str(p): offset for p, offset in known} for known in distinct]
    return Known(positions, of_row)
