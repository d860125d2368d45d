"""The log of predictions: a share of all scoring answers, with what the model was given, for whoever learns from them or looks back.

An entry of the journal `predictions` is one request: `model`, `version` and `sha256` of the artifact; `service` and `definition`, the
digest of what the features mean; `at`, the instant whose features these are; `columns`, the keys and request columns; `features`, their
names in the model's order; and row by row `ids`, `x` (the values in that order, null where there was none), `status` (of each feature
that is not ok, by its place), `score`, `outcome` (ok, degraded, fallback) and `reason`.

It is written to files, or to a Kafka topic: `predictions_topic` of [log], at the brokers of [stream].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from tidemill.answers import OK
from tidemill.definitions.resolve import resolve_features
from tidemill.errors import TidemillError
from tidemill.journals.topic import TopicJournal
from tidemill.read_log import ShareLog, log_store
from tidemill.types import ColumnType

if TYPE_CHECKING:
    from tidemill.environment import Environment
    from tidemill.models.scores import Scores

#: The journal's name.
PREDICTIONS = "predictions"
#: Rows of an entry at most: a message of a topic must not be too large, and of more rows than may wait at once some are to be noted.
_ROWS = 200
#: The types of a service's keys and request columns, by its name; empty where nobody knows the service any more.
Types = Callable[[str | None], Mapping[str, ColumnType]]


class PredictionLog(ShareLog):
    """Of scoring answers: for `tidemill learn`, and for whoever looks back."""

    name = PREDICTIONS
    most = 20_000

    @classmethod
    def of(cls, env: Environment) -> Self | None:
        """What [log] asks for, in files or a topic; None where it asks for nothing. With a topic all are noted, unless it says less."""
        topic = predictions_topic(env)
        if topic is None:
            return super().of(env)
        from tidemill.logs.kafka.producer import connecting  # needs the extra

        rate = float(env.project.settings["log"].get(cls.name, 1))
        settings = env.kafka_settings()
        settings.pop("client", None)
        connect = connecting(env.project.brokers or "", topic, settings)
        return cls(log_store(env), rate, journal=TopicJournal(cls.name, connect, _key, most=cls.most)) if rate else None

    def offer(self, scores: Scores) -> None:
        """Note an answer, if the dice say so."""
        if not self.chosen():
            return
        manifest, features = scores.manifest, scores.features
        # Copies: the lists are the caller's from now on.
        columns = {n: list(features.columns[n]) for n in features.columns if n not in features.status}
        values = [list(features.columns[n]) for n in manifest.columns]
        statuses = [list(features.status[n]) for n in manifest.columns]
        score, outcome, reason, ids = list(scores.score), list(scores.status), list(scores.reason), list(scores.prediction_id)
        at = features.at

        def entry(some: slice) -> dict[str, Any]:
            rows = range(*some.indices(len(ids)))
            return {
                "model": manifest.model,
                "version": manifest.version,
                "sha256": manifest.artifact.sha256,
                "service": manifest.service,
                "definition": manifest.definition,
                "at": at,
                "columns": {name: column[some] for name, column in columns.items()},
                "features": list(manifest.columns),
                "ids": ids[some],
                "x": [[column[row] for column in values] for row in rows],
                "status": [{str(i): s[row] for i, s in enumerate(statuses) if s[row] != OK} for row in rows],
                "score": score[some],
                "outcome": outcome[some],
                "reason": reason[some],
            }

        for first in range(0, len(ids), _ROWS):
            some = slice(first, first + _ROWS)
            self._journal.put(partial(entry, some), weight=len(ids[some]))


def column_types(env: Environment) -> Types:
    """What the definitions say of the columns of entries."""
    known: dict[str | None, Mapping[str, ColumnType]] = {}

    def types(service: str | None) -> Mapping[str, ColumnType]:
        if service not in known:
            try:
                wanted = resolve_features(service or [], env.definitions)
                known[service] = {**wanted.keys, **wanted.request}
            except TidemillError:  # the service has gone since, or the model has none
                known[service] = {}
        return known[service]

    return types


def predictions_topic(env: Environment) -> str | None:
    """The topic that predictions are logged to, if it is one."""
    found: str | None = env.project.settings.get("log", {}).get("predictions_topic")
    return found


def _key(entry: Mapping[str, Any]) -> str:
    """An id is as good as random, so that keys spread."""
    ids = entry["ids"]
    return ids[0] if ids else ""
