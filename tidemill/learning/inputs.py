"""What a learner reads: the log of predictions, in files or a topic, and the log of labels. Each remembers how far it has read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tidemill.environment import Environment
from tidemill.journals import DamagedFileError, JournalFile
from tidemill.journals.reader import files_to_read, read_lines
from tidemill.learning.entries import DAMAGED, Entries, key_text
from tidemill.learning.join import Label, Prediction
from tidemill.learning.settings import LearnerSettings
from tidemill.learning.topic import PredictionTopic
from tidemill.offline.begin import begun
from tidemill.prediction_log import PREDICTIONS, column_types, predictions_topic
from tidemill.read_log import log_store

#: Labels read of a partition at a time.
ROWS = 10_000


class Predictions:
    """The logged predictions that were not read yet: those in the topic, if tidemill.toml names one, and those in files.

    Files always, so that nothing is lost by naming a topic, whichever process goes over to it first.
    """

    def __init__(self, env: Environment, settings: LearnerSettings) -> None:
        self.entries = Entries(settings, column_types(env))
        self.files = PredictionFiles(env, self.entries)
        name = predictions_topic(env)
        self.topic = None if name is None else PredictionTopic(env, name, self.entries, settings.model)
        self._topic_state: Mapping[str, Any] | None = None

    @property
    def meanings(self) -> list[str]:
        """See `Entries`."""
        return self.entries.meanings

    @property
    def damaged(self) -> int:
        """See `Entries`."""
        return self.entries.damaged

    def new(self) -> Iterator[list[Prediction]]:
        """All that was in the log when this was called, in batches. Take all of them, or begin at a checkpoint again.

        Raises `StoreError` and `LogError`.
        """
        for file in self.files.new():
            yield list(self.files.take(file))
        if self.topic is not None:
            yield from self.topic.new()

    def state(self) -> dict[str, Any]:
        """How far it has read, for a checkpoint."""
        topic = self._topic_state if self.topic is None else self.topic.state()
        return {"read": self.files.read, "topic": topic, "damaged": self.damaged, "meanings": self.meanings}

    def restore(self, state: Mapping[str, Any], definition: str) -> None:
        """What `state` said; `definition`: what features meant, where a checkpoint does not say it yet."""
        self.files.read, self.entries.damaged = dict(state["read"]), state["damaged"]
        self.entries.meanings = list(state.get("meanings", [definition]))
        self._topic_state = state.get("topic")  # kept while no topic is named: it may be again
        if self.topic is not None and self._topic_state is not None:
            self.topic.restore(self._topic_state)

    def close(self) -> None:
        """Give back connections."""
        if self.topic is not None:
            self.topic.close()


class PredictionFiles:
    """The files of the journal of predictions. `read`: by writer, the number of the next one.

    A writer's files appear one after the other, so that a number says which of them were read.
    """

    def __init__(self, env: Environment, entries: Entries) -> None:
        self._store, self._entries = log_store(env), entries
        self.read: dict[str, int] = {}

    def new(self) -> list[JournalFile]:
        """Those that are there now."""
        files = files_to_read(self._store, PREDICTIONS, self.read)
        there = {f.writer for f in files}
        if there:  # else the folder is not mounted, perhaps, and comes back
            self.read = {w: n for w, n in self.read.items() if w in there}  # days that were deleted
        return [f for f in files if f.number >= self.read.get(f.writer, 0)]

    def take(self, file: JournalFile) -> Iterator[Prediction]:
        """A file's predictions. What is damaged is counted; `StoreError` where the store does not answer: read it again."""
        try:
            for line in read_lines(self._store, file):
                try:
                    yield from self._entries.predictions(line)
                except DAMAGED:
                    self._entries.damaged += 1
        except DamagedFileError:
            self._entries.damaged += 1
        self.read[file.writer] = file.number + 1


class LabelLog:
    """The log of labels, partition by partition. `positions`: the next offset of each."""

    def __init__(self, env: Environment, settings: LearnerSettings) -> None:
        source = settings.source
        self._env, self._log, self._decoder, self._settings = env, env.log(source), env.decoder(source), settings
        self._readers: dict[int, Any] = {}
        self.positions: dict[int, int] = {}
        self.unreadable = 0

    def read(self) -> list[tuple[int, list[Label]]]:
        """The next labels of each partition; empty where there is nothing new."""
        out = []
        if not self._readers:
            self._env.remember_topic(self._settings.source, self._log)
            if not self.positions:
                self.positions = self._begin()
        for partition in self._log.partitions():
            if partition not in self._readers:
                self._readers[partition] = self._log.open(partition, self.positions.setdefault(partition, 0))
            batch = self._readers[partition].read(ROWS)
            if batch is None:
                continue
            events = self._decoder.decode(batch)
            self.positions[partition] = batch.end
            self.unreadable += events.dead.height
            out.append((partition, list(self._labels(events.frame))))
        return out

    def _begin(self) -> dict[int, int]:
        """Where a source begins that says where to `start` in a topic: where the stream does, if that reads it too.

        Partitions that are not named begin at 0.
        """
        source = self._settings.source
        find = getattr(self._log, "begin", None)  # a topic has it; files are read whole
        if source.start is None or find is None:
            return {}
        decided = begun(self._env.offline, source.name)
        return dict(find(source.start)) if decided is None else decided

    @property
    def at_end(self) -> bool:
        """After `read` gave nothing: whether that was the end of every partition, as of a moment ago. Else more may be on its way."""
        return all(reader.at_end for reader in self._readers.values())

    def close(self) -> None:
        """Give back files and connections."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._log.close()

    def _labels(self, frame: Any) -> Iterator[Label]:
        join, label = self._settings.join, self._settings.label
        columns = [frame[c].to_list() for c in join]
        keys = columns[0] if len(join) == 1 else zip(*columns, strict=True)
        arrival, time = frame["_arrival"].to_list(), frame["_time"].to_list()
        for key, value, known, at in zip(keys, frame[label].to_list(), arrival, time, strict=True):
            if value is None:
                self.unreadable += 1
                continue
            text = key if type(key) is str else key_text(key if type(key) is tuple else (key,))
            yield Label(text, value, at, at if known is None else known)
