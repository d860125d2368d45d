"""Predictions that were logged to a Kafka topic, for a learner: read to the end of every partition before anything is made of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tidemill.environment import Environment
from tidemill.errors import LogChangedError, LogTruncatedError, LogUnavailableError
from tidemill.journals.topic import MAX_ENTRY
from tidemill.learning.checkpoint import checkpoint_key
from tidemill.learning.entries import DAMAGED, Entries
from tidemill.learning.join import Prediction

if TYPE_CHECKING:
    from tidemill.logs.base import RecordBatch
    from tidemill.logs.kafka import KafkaLog, KafkaReader

#: Messages read of a partition at a time.
MESSAGES = 5_000
#: In seconds, between two looks at what a client has fetched.
_PAUSE = 0.005


class PredictionTopic:
    """The topic's predictions that were not read yet. `positions`: the next offset of each partition; `topic_id`: of which topic.

    A partition that is new to it is read from the first offset that the brokers still have.
    """

    def __init__(self, env: Environment, name: str, entries: Entries, model: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.name, self.topic_id = name, ""
        self.positions: dict[int, int] = {}
        self._env, self._entries, self._sleep = env, entries, sleep
        self._checkpoint = checkpoint_key(model)
        self._log: KafkaLog | None = None
        self._readers: dict[int, KafkaReader] = {}

    def new(self) -> Iterator[list[Prediction]]:
        """All that lies before the ends that the partitions have when this is called, in batches; then it is certain what they were of.

        However far ahead a partition is: nobody may go on before the last of them is read. Raises `LogChangedError` where the topic is
        another one than before, `LogTruncatedError`, `LogUnavailableError`, `LogError`.
        """
        from tidemill.logs.kafka.admin import MissingTopicError

        try:
            yield from self._to(self._ends())
        except MissingTopicError as error:
            if not self.topic_id:
                raise
            raise LogUnavailableError(f"{error}; predictions were read from it before") from error  # brokers that have just started
        except (LogChangedError, LogTruncatedError) as error:
            what = str(error).partition("; read it as")[0]
            raise type(error)(
                f"predictions, {what}. What was not read of it is lost to the learner: log to another topic ([log] predictions_topic), or "
                f"delete {self._env.offline.path(self._checkpoint)} to begin from the champion and all that the topic has now"
            ) from error

    def _ends(self) -> dict[int, int]:
        if self._log is None:
            from tidemill.logs.kafka import KafkaLog  # needs the extra

            settings = self._env.kafka_settings()
            client: Any = settings.pop("client", None)
            brokers = self._env.project.brokers or ""
            self._log = KafkaLog(brokers, self.name, client=client, settings=settings, topic_id=self.topic_id or None, max_bytes=MAX_ENTRY)
            self.topic_id = self._log.topic_id
        return self._log.ends()

    def _to(self, ends: Mapping[int, int]) -> Iterator[list[Prediction]]:
        assert self._log is not None
        for partition in ends.keys() - self._readers.keys():
            at = self.positions.get(partition)
            at = self._log.start(partition) if at is None else at
            self._readers[partition] = self._log.open(partition, at)
            self.positions[partition] = at
        behind = touched = [p for p in sorted(ends) if self.positions[p] < ends[p]]
        while behind:
            came = False
            for partition in behind:
                batch = self._readers[partition].read(MESSAGES)
                if batch is not None:
                    came = True
                    yield list(self._taken(batch))
                    self.positions[partition] = batch.end
            behind = [p for p in behind if self.positions[p] < ends[p]]
            if behind and not came:
                self._sleep(_PAUSE)
        for partition in touched:
            self._readers[partition].confirm()

    def _taken(self, batch: RecordBatch) -> Iterator[Prediction]:
        self._entries.damaged += len(batch.broken)
        assert isinstance(batch.payload, bytes)
        for line in batch.payload.split(b"\n")[:-1]:
            try:
                yield from self._entries.predictions(line)
            except DAMAGED:
                self._entries.damaged += 1

    def state(self) -> dict[str, Any]:
        """How far it has read, and of what."""
        return {"name": self.name, "id": self.topic_id, "positions": {str(p): o for p, o in self.positions.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """What `state` said, if it was of this topic; another one is read from its beginning."""
        if state["name"] == self.name:
            self.topic_id, self.positions = state["id"], {int(p): o for p, o in state["positions"].items()}

    def close(self) -> None:
        """Give back connections."""
        self._readers.clear()
        if self._log is not None:
            self._log.close()  # and its readers
            self._log = None
