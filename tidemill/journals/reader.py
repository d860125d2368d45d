"""What a journal says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from tidemill.errors import StoreError, StoreVersionError
from tidemill.journals.writer import FORMAT
from tidemill.offline.store import OfflineStore

_NAME = re.compile(r"(\d{16})-(\d{16})-([0-9a-f]{8})-(\d{6,})\.jsonl")


class DamagedFileError(StoreError):
    """A journal's file that is gone, or does not hold what it should: reading it again will not help."""


class JournalFile(NamedTuple):
    """A file, with the instants of its first and last entry by its name, UTC microseconds."""

    first: int
    last: int
    writer: str
    number: int
    key: str


class Lost(NamedTuple):
    """What a journal does not hold: entries that were dropped, as files say, and the files that could not be read."""

    entries: int
    files: list[str]


def journal_files(store: OfflineStore, name: str, since: int | None = None, until: int | None = None) -> list[JournalFile]:
    """The files with entries of [since, until), by their first entry, each writer's by their numbers; other names are not ours."""
    found = []
    for folder in store.folders(f"journals/{name}"):
        for key in store.list(folder):
            match = _NAME.fullmatch(key.rpartition("/")[2])
            if match is None:
                continue
            file = JournalFile(int(match[1]), int(match[2]), match[3], int(match[4]), key)
            if (since is None or file.last >= since) and (until is None or file.first < until):
                found.append(file)
    return _in_order(found)


def files_to_read(store: OfflineStore, name: str, read: Mapping[str, int]) -> list[JournalFile]:
    """All files, for whoever remembers of each writer the number of the next one to `read`: none is missing before one that is there.

    A store lists folder by folder. Meanwhile a writer may put a file into a folder that was listed, and the next one into one that is still
    to come, at midnight above all. Where a number is missing it is looked for once more: if it is there at all, it is by then.
    """
    files = journal_files(store, name)
    numbers: dict[str, set[int]] = {}
    for file in files:
        numbers.setdefault(file.writer, set()).add(file.number)
    newest = {writer: max(some) for writer, some in numbers.items()}
    if all(numbers[writer].issuperset(range(read.get(writer, 0), last)) for writer, last in newest.items()):
        return files
    return [file for file in journal_files(store, name) if file.number <= newest.get(file.writer, -1)]


def _in_order(files: list[JournalFile]) -> list[JournalFile]:
    """By the first entry, but for a writer whose clock was set back: its files come in the order in which they were written."""
    begun: dict[str, int] = {}
    placed = []
    for file in sorted(files, key=lambda f: (f.writer, f.number)):
        begun[file.writer] = max(file.first, begun.get(file.writer, file.first))
        placed.append((begun[file.writer], file.writer, file.number, file))
    return [file for *_, file in sorted(placed)]


def entries(
    store: OfflineStore,
    name: str,
    since: int | None = None,
    until: int | None = None,
    *,
    damaged: Callable[[JournalFile, str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """The entries noted in [since, until), UTC microseconds, file by file; within a file in the order in which they were noted.

    `logged` is when. Values are as `plain` wrote them. A file that is damaged raises `DamagedFileError`, or is told to `damaged` and passed
    over from the bad line on. A store that does not answer raises `StoreError` either way: what it holds may be as good as new.
    """
    for file in journal_files(store, name, since, until):
        try:
            for entry in read_file(store, file):
                if (since is None or entry["logged"] >= since) and (until is None or entry["logged"] < until):
                    yield entry
        except DamagedFileError as error:
            if damaged is None:
                raise
            damaged(file, str(error))


def read_file(store: OfflineStore, file: JournalFile) -> Iterator[dict[str, Any]]:
    """One file's entries. Raises `DamagedFileError` at the first line that is none."""
    for i, line in enumerate(read_lines(store, file)):
        entry = _object(line)
        if entry is None or type(entry.get("logged")) is not int:
            raise DamagedFileError(f"{store.path(file.key)}, line {i + 2}: not an entry; delete the file, or restore it from a copy")
        yield entry


def read_lines(store: OfflineStore, file: JournalFile) -> Iterator[bytes]:
    """One file's entries as they lie there. Raises `DamagedFileError`, at its end too, where some are missing."""
    head, lines = _split(store, file)
    yield from lines
    if len(lines) != head.get("entries"):
        said = head.get("entries")
        raise DamagedFileError(f"{store.path(file.key)} has {len(lines)} entries, and says that it has {said}: it was cut short")


def lost(store: OfflineStore, name: str, since: int | None = None, until: int | None = None) -> Lost:
    """What was dropped, by the first lines of the files with entries of [since, until)."""
    total, bad = 0, []
    for file in journal_files(store, name, since, until):
        try:
            total += int(_split(store, file)[0].get("lost", 0))
        except DamagedFileError:
            bad.append(file.key)
    return Lost(total, bad)


def _split(store: OfflineStore, file: JournalFile) -> tuple[dict[str, Any], list[bytes]]:
    data = store.read(file.key)
    if data is None:
        raise DamagedFileError(f"{store.path(file.key)} is not there any more")
    first, *lines = data.removesuffix(b"\n").split(b"\n")
    head = _object(first)
    if head is None or "journal" not in head:
        raise DamagedFileError(f"{store.path(file.key)} does not begin as a journal's file: delete it, or restore it from a copy")
    if head.get("format") != FORMAT:
        raise StoreVersionError(
            f"{store.path(file.key)} has format {head.get('format')!r}, and this tidemill reads {FORMAT}: use the version that wrote it"
        )
    return head, lines


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(line)
    except msgspec.DecodeError:  # or what it does not take: halves of surrogate pairs
        try:
            value = json.loads(line)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None
