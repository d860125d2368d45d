"""What is known of log files that are complete: their order, their offsets, and how to tell that they are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from tidemill.errors import LogChangedError

#: So much of a file's beginning goes into its digest.
PREFIX = 64 << 10


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One complete file of a partition: its records have the offsets `first` to `first + count`, for good.

    `name` is the path below the pattern's fixed directory, with forward slashes; `size` is in bytes; `digest` is the SHA-256 of the
    first min(size, 64 KiB) bytes, in hexadecimal. Only text and integers, so an entry is JSON as it stands.

    >>> entry = FileEntry("a.jsonl", 0, 2, 34, "ab")
    >>> FileEntry(**entry.to_json()) == entry
    True
    """

    name: str
    first: int
    count: int
    size: int
    digest: str

    @property
    def end(self) -> int:
        """The offset after the file's last record."""
        return self.first + self.count

    def to_json(self) -> dict[str, str | int]:
        """A dict of JSON types; `FileEntry(**d)` reads it back."""
        return asdict(self)


class FileIndex(Protocol):
    """Remembers complete files, so that a restart gives every record its old offset without counting again.

    Entries of a partition are numbered from 0 in the order of the files, and an entry, once saved, never changes.
    """

    def load(self, partition: int) -> list[FileEntry]:
        """The entries 0, 1, 2, ... without a gap, in order; [] when there are none."""
        ...

    def save(self, partition: int, number: int, entries: Iterable[FileEntry]) -> None:
        """Keep these as the entries `number`, `number + 1`, ...; create-if-absent.

        An equal entry that is there already is left (a restart, or a second worker, saves again what was saved). Raises
        `LogChangedError` if a different one is there, and may raise `StoreError`.
        """
        ...


class MemoryIndex:
    """A `FileIndex` that lasts as long as the process."""

    def __init__(self) -> None:
        self._entries: dict[int, list[FileEntry]] = {}

    def load(self, partition: int) -> list[FileEntry]:
        return list(self._entries.get(partition, ()))

    def save(self, partition: int, number: int, entries: Iterable[FileEntry]) -> None:
        known = self._entries.setdefault(partition, [])
        for at, entry in enumerate(entries, number):
            if at < len(known):
                require_same(known[at], entry)
            else:
                known.append(entry)


def require_same(known: FileEntry, entry: FileEntry) -> None:
    """Raise `LogChangedError` unless both say the same. Every index does this before it leaves an entry as it is."""
    if known != entry:
        raise LogChangedError(
            f"{entry.name}: the index of log files has {known.name} with offsets {known.first} to {known.end} in this place, but now it is "
            f"{entry.name} with {entry.first} to {entry.end}; restore the files as they were, or read them as a source with another name"
        )


def prefix_digest(path: Path, length: int) -> str:
    """The SHA-256 of the first `length` bytes (at most 64 KiB) of a file, in hexadecimal. Raises `OSError`."""
    with path.open("rb", buffering=0) as file:
        return hashlib.sha256(file.read(min(length, PREFIX))).hexdigest()
