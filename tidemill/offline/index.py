"""The index of log files, kept in the offline store: what makes a source's files keep their offsets through every restart.

The entries of a partition are a chain of files `index/<source>/<partition>/<number>.json`, each `{"entries": [...]}` from entry
`number` on; the next file is named by the number after its last entry. Each is created once and never changed, so of many workers
that find new log files at the same time, one decides where these lie, and the others learn it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tidemill.errors import StoreError
from tidemill.logs.index import FileEntry, require_same
from tidemill.offline.store import OfflineStore, read_json


class StoredFileIndex:
    """The `tidemill.logs.index.FileIndex` of one source in an offline store. Many processes may use one index; an object, one thread."""

    def __init__(self, store: OfflineStore, source: str) -> None:
        self._store, self._source = store, source
        self._known: dict[int, list[FileEntry]] = {}

    def load(self, partition: int) -> list[FileEntry]:
        """All entries so far, in order. Raises `StoreError` for a damaged file."""
        return list(self._refreshed(partition))

    def save(self, partition: int, number: int, entries: Iterable[FileEntry]) -> None:
        """See `FileIndex.save`. Raises `ValueError` where entries before `number` were never saved."""
        mine = list(entries)
        while True:
            known = self._refreshed(partition)
            if number > len(known):
                raise ValueError(f"{self._source}, partition {partition}: entry {number} cannot be saved, the index ends at {len(known)}")
            for theirs, entry in zip(known[number:], mine, strict=False):
                require_same(theirs, entry)
            new = mine[len(known) - number :]
            if not new:
                return
            data = json.dumps({"entries": [entry.to_json() for entry in new]}).encode()
            if self._store.create(self._key(partition, len(known)), data):
                known += new
                return

    def _refreshed(self, partition: int) -> list[FileEntry]:
        """The chain as far as it goes now. What was read before is not read again: it cannot have changed."""
        known = self._known.setdefault(partition, [])
        while (data := self._store.read(self._key(partition, len(known)))) is not None:
            known += self._parsed(self._key(partition, len(known)), data)
        return known

    def _parsed(self, key: str, data: bytes) -> list[FileEntry]:
        entries = read_json(self._store, key, data).get("entries")
        try:
            if isinstance(entries, list) and entries:  # Without an entry it would be followed by itself, for ever.
                return [FileEntry(**entry) for entry in entries]
        except TypeError:
            pass
        raise StoreError(f"{self._store.path(key)} should list entries of the index of log files: restore it from a copy")

    def _key(self, partition: int, number: int) -> str:
        return f"index/{self._source}/{partition:05d}/{number:08d}.json"
