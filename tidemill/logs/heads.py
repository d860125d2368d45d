"""What is known, from one run to the next, of the one log file of a partition that still grows: how it began."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Protocol

from tidemill.errors import StoreError


@dataclass(frozen=True, slots=True)
class Head:
    """File `number` of a partition as it was once seen: it had `size` bytes, and `digest` is that of its beginning.

    `name` and `digest` are as in `FileEntry`. The file may have grown since.

    >>> head = Head(3, "a.jsonl", 34, "ab")
    >>> Head(**asdict(head)) == head
    True
    """

    number: int
    name: str
    size: int
    digest: str


class Heads(Protocol):
    """Remembers the newest head of each partition. Unlike entries of the index, a head is replaced as its file grows."""

    def load(self, partition: int) -> Head | None:
        """The head that was saved last."""
        ...

    def save(self, partition: int, head: Head) -> None:
        """Keep this one instead. Of several at once any may stay: each is true of a file that only grows."""
        ...


class MemoryHeads:
    """`Heads` that last as long as the process."""

    def __init__(self) -> None:
        self._heads: dict[int, Head] = {}

    def load(self, partition: int) -> Head | None:
        return self._heads.get(partition)

    def save(self, partition: int, head: Head) -> None:
        self._heads[partition] = head


class KeyStore(Protocol):
    """What `StoredHeads` needs of an offline store."""

    def read(self, key: str) -> bytes | None: ...
    def write(self, key: str, data: bytes) -> None: ...
    def path(self, key: str) -> str: ...


class StoredHeads:
    """The heads of one source in an offline store, each in `index/<source>/open/<partition>.json`. Operations raise `StoreError`."""

    def __init__(self, store: KeyStore, source: str) -> None:
        self._store, self._source = store, source

    def load(self, partition: int) -> Head | None:
        key = self._key(partition)
        data = self._store.read(key)
        try:
            return None if data is None else Head(**json.loads(data))
        except (ValueError, TypeError):
            path = self._store.path(key)
            raise StoreError(
                f"{path} should say how a log file begins, and is damaged: delete it, if that file is still the same"
            ) from None

    def save(self, partition: int, head: Head) -> None:
        self._store.write(self._key(partition), json.dumps(asdict(head)).encode())

    def _key(self, partition: int) -> str:
        return f"index/{self._source}/open/{partition:05d}.json"
