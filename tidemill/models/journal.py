"""Which versions of a model are champion, challenger and previous, and who moved them, when and why.

The journal is the aliases: `models/<name>/journal/<n>.json`, each entry with all aliases as they are after it; the largest n is in force.
An entry is created once, as n+1 of the entry that it was made for, so of two who move an alias at once one is refused, what is in force and
what is written about it cannot differ, and nothing is ever lost. A reader that stands at n asks for n+1: one small read, mostly of nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from tidemill.errors import StoreError
from tidemill.offline.store import OfflineStore

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)
Action = Literal["register", "promote", "rollback"]

_NAME = re.compile(r"(\d{8,})\.json")


#: So many champions an entry carries, for rolling back. One who publishes every minute would else write ever longer ones.
MAX_STANDING = 50


@dataclass(frozen=True)
class Entry:
    """One line of the journal. `by` and `why` are what the caller said, never guessed.

    `aliases`: alias to version, after it. `standing`: the champions that rolling back goes through, the one in force last; it is here so
    that a roll-back reads one entry, however long the journal is.
    """

    n: int
    at: str
    action: Action
    version: str
    alias: str | None = None
    by: str | None = None
    why: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    standing: tuple[str, ...] = ()


@dataclass(frozen=True)
class State:
    """What an entry leaves in force, and what a move makes of it.

    >>> state = State().promoted("1").promoted("2").promoted("3").promoted("2")
    >>> state.aliases
    {'champion': '2', 'previous': '3'}
    >>> state.rolled_back().rolled_back().aliases
    {'champion': '2', 'previous': '1'}
    >>> state.challenged("4").promoted("4").aliases
    {'champion': '4', 'previous': '2'}
    """

    standing: tuple[str, ...] = ()
    challenger: str | None = None

    @classmethod
    def after(cls, entry: Entry) -> State:
        """What this entry left."""
        return cls(entry.standing, entry.aliases.get(CHALLENGER))

    @property
    def aliases(self) -> dict[str, str]:
        """Alias to version."""
        found = dict(zip((CHAMPION, PREVIOUS), reversed(self.standing), strict=False))
        return found if self.challenger is None else {**found, CHALLENGER: self.challenger}

    def promoted(self, version: str) -> State:
        """The version on top, unless it is there already. A challenger that becomes champion is one no more."""
        standing = self.standing if self.standing[-1:] == (version,) else (*self.standing, version)
        return State(standing[-MAX_STANDING:], None if self.challenger == version else self.challenger)

    def challenged(self, version: str) -> State:
        """The version as challenger."""
        return State(self.standing, version)

    def rolled_back(self) -> State:
        """The top taken away."""
        return State(self.standing[:-1], self.challenger)


NOTHING = Entry(0, "", "register", "")


class Journal:
    """The journal of one model. Remembers the entry that it saw last, and goes on from there."""

    def __init__(self, store: OfflineStore, model: str) -> None:
        self._store = store
        self._folder = f"models/{model}/journal"
        self._seen = 0

    def newest(self) -> Entry:
        """The entry in force; `NOTHING` before the first."""
        entry = self._read(self._seen) if self._seen else None
        if entry is None:
            n = max(self._numbers(), default=0)
            entry = (self._read(n) if n else None) or NOTHING
        entry = [entry, *self.after(entry.n)][-1]
        self._seen = entry.n
        return entry

    def after(self, n: int) -> Iterator[Entry]:
        """The entries that came after `n`, oldest first."""
        while (entry := self._read(n + 1)) is not None:
            yield entry
            n += 1

    def history(self, last: int | None = None) -> list[Entry]:
        """All entries, or the last ones, oldest first."""
        numbers = self._numbers()
        return [entry for n in (numbers if last is None else numbers[-last:]) if (entry := self._read(n)) is not None]

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
