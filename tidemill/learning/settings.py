"""What a learner is told: the section [learner] of tidemill.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from tidemill.definitions import Source
from tidemill.environment import Environment
from tidemill.errors import DefinitionError
from tidemill.models.journal import CHALLENGER, CHAMPION
from tidemill.times import parse_duration
from tidemill.types import ColumnType

#: The column of a prediction's own id.
PREDICTION_ID = "prediction_id"
Missing = Literal["drop", "negative"]


@dataclass(frozen=True)
class LearnerSettings:
    """See docs/online_learning.md. Durations in microseconds; `publish_every` in seconds.

    `model`: whose predictions are learned from, and of which versions are published. `source`: of the labels; `label`, its column that
    holds them. `join`: the columns by which a label finds its prediction: `prediction_id`, or keys and request columns. `horizon`: for so
    long after its instant a prediction waits for its label. `lateness`: by so much labels of one partition may be out of order.
    `missing`: what becomes of a prediction without a label. `alias`: what the versions are promoted to.
    """

    model: str
    source: Source
    label: str
    horizon: int
    join: tuple[str, ...] = (PREDICTION_ID,)
    lateness: int = 0
    missing: Missing = "drop"
    alias: str = CHAMPION
    publish_examples: int = 1_000
    publish_every: float = 60.0

    def __post_init__(self) -> None:
        schema = self.source.schema
        for column in (self.label, *self.join):
            if column not in schema:
                raise DefinitionError(f"[learner]: source {self.source.name!r} has no column {column!r}; it has {', '.join(schema)}")
        if not self.join:
            raise DefinitionError("[learner] join is empty: name the columns by which a label finds its prediction")
        if self.horizon <= 0:
            raise DefinitionError("[learner] horizon is how long a prediction waits for its label, more than nothing, such as '1d'")
        if self.missing not in ("drop", "negative"):
            raise DefinitionError(f"[learner] missing is drop or negative; got {self.missing!r}")
        if self.alias not in (CHAMPION, CHALLENGER):
            raise DefinitionError(f"[learner] alias is {CHAMPION} or {CHALLENGER}; got {self.alias!r}")
        if self.publish_examples < 1 or self.publish_every <= 0:
            raise DefinitionError("[learner] publish_examples and publish_every are more than nothing")

    @property
    def by_id(self) -> bool:
        """Whether a label names its prediction."""
        return self.join == (PREDICTION_ID,)

    @property
    def kept(self) -> dict[str, Any]:
        """Without these what a checkpoint keeps means nothing: positions are of this log, and labels that wait are of this column."""
        return {
            "labels": self.source.name,
            "label": self.label,
            "horizon": self.horizon,
            "lateness": self.lateness,
            "join": list(self.join),
        }

    def check_join(self, types: Mapping[str, ColumnType]) -> None:
        """Raise `DefinitionError` where labels would never find predictions, whose rows have columns of these types."""
        known = (PREDICTION_ID, *sorted(types))
        for column in self.join:
            if column not in known:
                there = ", ".join(map(repr, known))
                raise DefinitionError(f"[learner] joins by {column!r}, which predictions of {self.model!r} do not have: they have {there}")
            mine, theirs = self.source.schema[column], types.get(column, ColumnType("str"))
            if mine.name != theirs.name and not (mine.numeric and theirs.numeric):
                raise DefinitionError(
                    f"[learner] joins by {column!r}, which is of type {theirs} in predictions, and of type {mine} in labels of "
                    f"{self.source.name!r}: no label would ever be found; declare it as {theirs} there"
                )

    @classmethod
    def of(cls, env: Environment) -> LearnerSettings:
        """What tidemill.toml says. Raises `DefinitionError`, `NotFoundError`."""
        given = dict(env.project.settings.get("learner", {}))
        for key in ("model", "labels", "label", "horizon"):
            if key not in given:
                example = '[learner] model = "delay", labels = "outcomes", label = "late", horizon = "1d"'
                raise DefinitionError(f"tidemill.toml has no learner.{key}; a learner needs at least {example}")
        return cls(
            model=given["model"],
            source=env.definitions.source(given["labels"]),
            label=given["label"],
            horizon=parse_duration(given["horizon"]),
            join=tuple(given.get("join", (PREDICTION_ID,))),
            lateness=parse_duration(given.get("lateness", "0s")),
            missing=cast("Missing", given.get("missing", "drop")),
            alias=given.get("alias", CHAMPION),
            publish_examples=given.get("publish_examples", 1_000),
            publish_every=parse_duration(given.get("publish_every", "1m")) / 1e6,
        )
