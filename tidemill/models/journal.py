"""Which versions of a model are champion, challenger and previous, and who moved them, when and why.

The journal is the aliases: `models/<name>/journal/<n>.json`, each entry with all aliases as they are after it; the largest n is in force.
An entry is created once, as n+1 of the entry that it was made for, so of two who move an alias at once one is refused, what is in force and
what is written about it cannot differ, and nothing is ever lost. A reader that stands at n asks for n+1: one small read, mostly of nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from tidemill.errors import StoreError
from tidemill.offline.store import OfflineStore

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)
Action = Literal["register", "promote", "rollback"]

_NAME = re.compile(r"(\d{8,})\.json")


@dataclass(frozen=True)
class Entry:
    """One line of the journal. `by` and `why` are what the caller said, never guessed. `aliases`: alias to version, after it."""

    n: int
    at: str
    action: Action
    version: str
    alias: str | None = None
    by: str | None = None
    why: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)


NOTHING = Entry(0, "", "register", "")


class Journal:
    """The journal of one model."""

    def __init__(self, store: OfflineStore, model: str) -> None:
        self._store = store
        self._folder = f"models/{model}/journal"

    def newest(self) -> Entry:
        """The entry in force; `NOTHING` before the first."""
        n = max(self._numbers(), default=0)
        return self._read(n) or NOTHING if n else NOTHING

    def after(self, n: int) -> Iterator[Entry]:
        """The entries that came after `n`, oldest first."""
        while (entry := self._read(n + 1)) is not None:
            yield entry
            n += 1

    def history(self) -> list[Entry]:
        """All entries, oldest first."""
        return [entry for n in self._numbers() if (entry := self._read(n)) is not None]

    def append(self, entry: Entry) -> bool:
        """Write `entry` as the one after `entry.n - 1`; False where someone else was faster."""
        return self._store.create(self._key(entry.n), msgspec.json.encode(entry))

    def _numbers(self) -> list[int]:
        names = (_NAME.fullmatch(key.rpartition("/")[2]) for key in self._store.list(self._folder))
        return sorted(int(name[1]) for name in names if name)

    def _read(self, n: int) -> Entry | None:
        data = self._store.read(self._key(n))
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=Entry)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise StoreError(
                f"{self._store.path(self._key(n))} is no entry of a model's journal ({error}): restore it from a copy"
            ) from None

    def _key(self, n: int) -> str:
        return f"{self._folder}/{n:08d}.json"


def before_promotion(history: list[Entry], version: str) -> Mapping[str, str]:
    """The aliases as they stood before `version` was last made champion; none where it never was."""
    aliases: Mapping[str, str] = {}
    last: Mapping[str, str] = {}
    for entry in history:
        if entry.action == "promote" and entry.alias == CHAMPION and entry.version == version:
            aliases = last
        last = entry.aliases
    return aliases
