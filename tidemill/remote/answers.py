"""What comes back over HTTP, in the same form as in process: see `tidemill.OnlineFeatures` and `tidemill.Scores`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidemill.errors import RequestError
from tidemill.models.prediction_ids import ids_from
from tidemill.remote.wire import AsOfAnswer, FeaturesAnswer, ScoreAnswer

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa


class RemoteAsOf:
    """What an answer was computed from: `tidemill.AsOf`, as the service told it."""

    def __init__(self, told: AsOfAnswer) -> None:
        self._told = told

    def __repr__(self) -> str:
        return f"AsOf({self.time.isoformat() if self.time else 'nothing applied'})"

    @property
    def time(self) -> dt.datetime | None:
        """The instant (aware, UTC) through which every partition of every source read is known to be applied; None when nothing is."""
        return self._told.through

    def positions(self, view: str, row: int = 0) -> dict[int, int]:
        """The offset per partition up to which the view's events are in the values of this request row."""
        if view not in self._told.views:
            raise RequestError(f"the request reads no view {view!r}; it reads {', '.join(self._told.views)}")
        known = self._told.views[view]
        return {int(partition): offset for partition, offset in known.positions[known.of_row[row]].items()}


@dataclass(frozen=True)
class RemoteFeatures:
    """The answer to a request, one item per entity row everywhere: `tidemill.OnlineFeatures`, with the same attributes and values.

    `columns`: the keys and request columns as they were given, then the features asked for. Frames need Polars.
    """

    columns: dict[str, list[Any]]
    status: dict[str, list[str]]
    as_of: RemoteAsOf
    at: dt.datetime
    _types: Mapping[str, str] = field(repr=False, default_factory=dict)

    def to_dict(self) -> dict[str, list[Any]]:
        """The columns: lists of plain Python values, None for null."""
        return dict(self.columns)

    def to_polars(self) -> pl.DataFrame:
        """A typed Polars frame, one row per entity row. Needs Polars."""
        import polars as pl

        kinds: dict[str, Any] = {
            "int": pl.Int64(),
            "float": pl.Float64(),
            "str": pl.String(),
            "bool": pl.Boolean(),
            "timestamp": pl.Datetime("us", "UTC"),
        }
        kinds |= {f"list[{name}]": pl.List(kind) for name, kind in kinds.items()}
        return pl.DataFrame([pl.Series(n, v, dtype=kinds.get(self._types.get(n, "")), strict=False) for n, v in self.columns.items()])

    def to_arrow(self) -> pa.Table:
        """A typed Arrow table. Needs Polars and PyArrow."""
        return self.to_polars().to_arrow()

    def to_df(self) -> pd.DataFrame:
        """A pandas frame. Needs Polars and pandas."""
        from tidemill.frames import to_pandas

        return to_pandas(self.to_polars())


@dataclass(frozen=True)
class RemoteScores:
    """The answer to a scoring request, one item per entity row in every list: `tidemill.Scores`, without the version's manifest.

    Where the service could not be asked and the caller gave a score for that, every row has it, with the status `fallback` and the
    reason; `version` is then empty, and `features` has the columns of the rows alone.
    """

    prediction_id: list[str]
    score: list[float | None]
    label: list[str | int | float | bool | None]
    status: list[str]
    reason: list[str | None]
    model: str
    version: str
    features: RemoteFeatures
    warning: str | None = None

    def __len__(self) -> int:
        return len(self.score)

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns: keys and request columns as they came, then prediction_id, score, label, status, reason, model, version.

        A key or request column that has one of these names comes as `row_<name>`. The features are in `features.to_dict()`.
        """
        n = len(self)
        own: dict[str, list[Any]] = {
            "prediction_id": self.prediction_id,
            "score": self.score,
            "label": self.label,
            "status": self.status,
            "reason": self.reason,
            "model": [self.model] * n,
            "version": [self.version] * n,
        }
        given = [(name, values) for name, values in self.features.columns.items() if name not in self.features.status]
        return {**{(f"row_{name}" if name in own else name): values for name, values in given}, **own}


def scores_of(told: ScoreAnswer, rows: Sequence[Mapping[str, Any]]) -> RemoteScores:
    """The answer for whoever asked with these rows."""
    return RemoteScores(
        told.prediction_id,
        told.score,
        told.label,
        told.status,
        told.reason,
        told.model,
        told.version,
        features_of(told.features, rows),
        told.warning,
    )


def scores_instead(request_id: str, model: str, score: float, reason: str, rows: Sequence[Mapping[str, Any]], now: int) -> RemoteScores:
    """What stands in for an answer that could not be had. `now`: UTC microseconds.

    With the ids that the service would have given: it may have scored the request, and logged that, and only its answer did not come.
    """
    n = len(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    nothing = RemoteAsOf(AsOfAnswer(None, {}))
    at = dt.datetime.fromtimestamp(now // 1_000_000, dt.UTC).replace(microsecond=now % 1_000_000)
    features = RemoteFeatures({name: [row.get(name) for row in rows] for name in names}, {}, nothing, at)
    name = model.partition("@")[0]
    return RemoteScores(ids_from(request_id, n), [score] * n, [None] * n, ["fallback"] * n, [reason] * n, name, "", features)


def features_of(told: FeaturesAnswer, rows: Sequence[Mapping[str, Any]]) -> RemoteFeatures:
    """The answer for whoever asked with these rows: their own columns as they gave them, and instants as datetimes."""
    columns: dict[str, list[Any]] = {}
    for name, values in told.columns.items():
        if name in told.status:
            columns[name] = _read(told.types.get(name, ""), values)
        else:
            columns[name] = [row.get(name) for row in rows]
    return RemoteFeatures(columns, told.status, RemoteAsOf(told.as_of), told.at, told.types)


def _read(kind: str, values: list[Any]) -> list[Any]:
    if kind == "timestamp":
        return [None if v is None else dt.datetime.fromisoformat(v) for v in values]
    if kind == "list[timestamp]":
        return [None if v is None else _read("timestamp", v) for v in values]
    return values
