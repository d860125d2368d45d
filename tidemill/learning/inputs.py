"""What a learner reads: the journal of predictions, and the log of labels. Each remembers how far it has read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tidemill.environment import Environment
from tidemill.journals import DamagedFileError, JournalFile, exact, plain
from tidemill.journals.reader import journal_files, read_lines
from tidemill.learning.join import Label, Prediction
from tidemill.learning.settings import PREDICTION_ID, LearnerSettings
from tidemill.prediction_log import PREDICTIONS
from tidemill.read_log import log_store

#: Labels read of a partition at a time.
ROWS = 10_000


def key_text(values: Sequence[Any]) -> str:
    """The key by which labels find predictions, of the values of the columns that they are joined by."""
    return values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps([plain(v) for v in values])


class _Entry(msgspec.Struct):
    """Of an entry what a learner needs; columns and features are left as they are until somebody wants them."""

    model: str
    version: str
    definition: str
    at: dict[str, int]
    columns: msgspec.Raw
    ids: list[str]
    x: list[msgspec.Raw]
    score: list[float | None]
    outcome: list[str]


_entries = msgspec.json.Decoder(_Entry)


def _decoded(line: bytes) -> _Entry:
    """Raises `ValueError` for a line that is no prediction."""
    try:
        return _entries.decode(line)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:  # halves of surrogate pairs, which Python writes and reads
        found = json.loads(line)
        for name in ("columns", "x"):
            part = found[name]
            found[name] = [json.dumps(v) for v in part] if name == "x" else json.dumps(part)
        columns, x = msgspec.Raw(found.pop("columns").encode()), [msgspec.Raw(v.encode()) for v in found.pop("x")]
        kept = {f: found[f] for f in _Entry.__struct_fields__ if f in found}
        return _Entry(columns=columns, x=x, **kept)


class PredictionFiles:
    """The files of the journal of predictions that were not read yet. `read`: by writer, the number of the next one.

    A writer's files appear one after the other, so that a number says which of them were read. `meanings`: the digests of what features
    meant, of all predictions so far; a prediction names its own by its place here.
    """

    def __init__(self, env: Environment, settings: LearnerSettings) -> None:
        self._store, self._settings = log_store(env), settings
        self.read: dict[str, int] = {}
        self.meanings: list[str] = []
        self.damaged = 0

    def new(self) -> list[JournalFile]:
        """Those that are there now."""
        files = journal_files(self._store, PREDICTIONS)
        there = {f.writer for f in files}
        self.read = {w: n for w, n in self.read.items() if w in there}  # days that were deleted
        return [f for f in files if f.number >= self.read.get(f.writer, 0)]

    def meaning(self, definition: str) -> int:
        """The place of a digest among `meanings`."""
        if definition not in self.meanings:
            self.meanings.append(definition)
        return self.meanings.index(definition)

    def take(self, file: JournalFile) -> Iterator[Prediction]:
        """A file's predictions of the model. What is damaged is counted; `StoreError` where the store does not answer: read it again."""
        try:
            for line in read_lines(self._store, file):
                entry = _decoded(line)
                if entry.model == self._settings.model:
                    yield from self._predictions(entry)
        except (DamagedFileError, msgspec.MsgspecError, ValueError, TypeError, KeyError):
            self.damaged += 1
        self.read[file.writer] = file.number + 1

    def _predictions(self, entry: _Entry) -> Iterator[Prediction]:
        at, ids, meaning = entry.at["$time"], entry.ids, self.meaning(entry.definition)
        if self._settings.by_id:
            keys = ids
        else:
            columns: dict[str, list[Any]] = {**json.loads(bytes(entry.columns)), PREDICTION_ID: ids}
            joined = [columns[c] for c in self._settings.join]
            # A null is no key: labels with a null there would be those of every such prediction.
            rows = ([exact(column[row]) for column in joined] for row in range(len(ids)))
            keys = [f"null in {id}" if None in row else key_text(row) for id, row in zip(ids, rows, strict=True)]
        for id, key, x, score, outcome in zip(ids, keys, entry.x, entry.score, entry.outcome, strict=True):
            yield Prediction(at, id, key, bytes(x).decode(), score, outcome, entry.version, meaning)


class LabelLog:
    """The log of labels, partition by partition. `positions`: the next offset of each."""

    def __init__(self, env: Environment, settings: LearnerSettings) -> None:
        source = settings.source
        self._log, self._decoder, self._settings = env.log(source), env.decoder(source), settings
        self._readers: dict[int, Any] = {}
        self.positions: dict[int, int] = {}
        self.unreadable = 0

    def read(self) -> list[tuple[int, list[Label]]]:
        """The next labels of each partition; empty where there is nothing new."""
        out = []
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
