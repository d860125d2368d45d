"""Where logged predictions are read from: files, and the partitions of a topic; a portion at a time, and any portion once more."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidemill.environment import Environment
from tidemill.errors import StoreError
from tidemill.journals import DamagedFileError
from tidemill.journals.reader import JournalFile, files_to_read, journal_files, read_lines
from tidemill.journals.topic import MAX_ENTRY
from tidemill.logged.rows import DAMAGED, Place, Portion
from tidemill.prediction_log import PREDICTIONS, Types, predictions_topic
from tidemill.read_log import log_store

if TYPE_CHECKING:
    from tidemill.logs.kafka import KafkaLog

_MESSAGES, _PAUSE = 5_000, 0.005


@dataclass(slots=True)
class Taken:
    """What a portion was made of. `files`: of the journal, by key. `offsets`: of the topic, by partition, [from, to).

    `damaged`: entries that were none; of files whose end is missing, or which cannot be read, one each. `lost`: offsets that the brokers
    had deleted before they were read.
    """

    files: list[str] = field(default_factory=list)
    offsets: dict[int, tuple[int, int]] = field(default_factory=dict)
    damaged: int = 0
    lost: int = 0


class Sources:
    """The log of predictions of a project. `close` gives back connections."""

    def __init__(self, env: Environment, types: Types) -> None:
        self._env, self._types, self._store = env, types, log_store(env)
        self._log: KafkaLog | None = None
        self._ends: dict[int, int] = {}
        self.topic: str | None = None  # its id, or on old brokers its name
        name = predictions_topic(env)
        if name is not None:
            from tidemill.logs.kafka import KafkaLog  # needs the extra

            settings = env.kafka_settings()
            client: Any = settings.pop("client", None)
            self._log = KafkaLog(env.project.brokers or "", name, client=client, settings=settings, max_bytes=MAX_ENTRY)
            try:
                self.topic = self._log.topic_id or name
                self._ends = self._log.ends()
            except BaseException:
                self._log.close()
                raise

    def next(self, read: dict[str, int], positions: dict[int, int], most: int) -> tuple[Portion, Taken]:
        """About `most` rows that were not taken yet; both mappings are moved on.

        `read`: by writer of files, the number of the next. `positions`: by partition, the next offset; one that is not there begins where
        the topic does. Of the topic that much is taken as was there when this was opened. Raises `StoreError`, `LogError`.
        """
        portion, taken = Portion(self._types), Taken()
        files = files_to_read(self._store, PREDICTIONS, read)
        there = {f.writer for f in files}
        if there:  # else the folder is not mounted, perhaps, and comes back
            for writer in read.keys() - there:  # its days were deleted
                del read[writer]
        for file in files:
            if file.number < read.get(file.writer, 0):
                continue
            if portion.rows >= most:
                return portion, taken
            taken.damaged += self._file(portion, file)
            taken.files.append(file.key)
            read[file.writer] = file.number + 1
        for partition, end in sorted(self._ends.items()):
            if portion.rows >= most:
                break
            assert self._log is not None
            known = positions.get(partition)
            first = self._log.start(partition)
            start = first if known is None else max(known, first)
            taken.lost += start - (start if known is None else known)
            if start < end:
                to, bad = self._offsets(portion, partition, start, end, most)
                taken.offsets[partition], taken.damaged = (start, to), taken.damaged + bad
                start = to
            positions[partition] = start
        return portion, taken

    def again(self, taken: Taken) -> Portion:
        """The same portion. Raises `StoreError` or `LogError` where it is not there any more."""
        portion = Portion(self._types)
        files = {f.key: f for f in journal_files(self._store, PREDICTIONS)}
        for key in taken.files:
            if key not in files:
                raise StoreError(f"{self._store.path(key)} is not there any more")
            self._file(portion, files[key])
        for partition, (start, end) in sorted(taken.offsets.items()):
            self._offsets(portion, partition, start, end, None)
        return portion

    def close(self) -> None:
        """Give back connections."""
        if self._log is not None:
            self._log.close()

    def _file(self, portion: Portion, file: JournalFile) -> int:
        damaged = 0
        try:
            for line, text in enumerate(read_lines(self._store, file)):
                damaged += _added(portion, Place(f"files {file.writer}", file.number, line), text)
        except DamagedFileError:
            damaged += 1
        return damaged

    def _offsets(self, portion: Portion, partition: int, start: int, end: int, most: int | None) -> tuple[int, int]:
        """Add what lies in [start, end), or as much as makes `most` rows; how far that is, and how many messages were none."""
        if self._log is None:
            raise StoreError("tidemill.toml names no topic of predictions any more ([log] predictions_topic)")
        damaged, at = 0, start
        reader = self._log.open(partition, start)
        try:
            while at < end and (most is None or portion.rows < most):
                batch = reader.read(min(_MESSAGES, end - at))
                if batch is None:
                    time.sleep(_PAUSE)  # a fetch is under way
                    continue
                assert isinstance(batch.payload, bytes)
                damaged += sum(offset < end for offset, _, _ in batch.broken)
                for offset, text in zip(batch.offsets.tolist(), batch.payload.split(b"\n"), strict=False):
                    if offset < end:
                        damaged += _added(portion, Place(f"topic {self.topic} {partition}", offset, 0), text)
                at = min(batch.end, end)
            reader.confirm()
        finally:
            reader.close()
        return at, damaged


def _added(portion: Portion, place: Place, text: bytes) -> int:
    """0, or 1 where the text was no entry."""
    try:
        portion.add(place, text)
    except DAMAGED:
        return 1
    return 0
