"""Which runs are visible: `predictions/<name>/_journal/<n>.json`, each entry with all that holds after it; the largest n is in force.

An entry is created once, as n+1 of the entry that it was made for; so of two who would change what holds one is refused, and no instant
has two truths. Everything else (the tables, `current.json`) follows the entry in force, and is brought up to it by the next call if a call
was cut short.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import msgspec

from tidemill.errors import LeaseError, StoreError
from tidemill.offline.store import OfflineStore
from tidemill.predictions.runs import check_name

#: So many published runs can be rolled back, one after the other.
VISIBLE = 100
#: So many entries of the journal are kept.
_KEPT = 200
_NAME = re.compile(r"(\d{8,})\.json")


@dataclass(frozen=True, slots=True)
class Published:
    """A run that is visible. `seq` grows from run to run: the later one's score of an entity counts. `at`: its instant.

    `replaced`: the threshold that was in force before, where the run brought one of its own; else nothing.
    """

    run: str
    seq: int
    at: int
    replaced: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """What holds after entry `n`. `event` happened to `run`: begin, publish, block or rollback; `when` by the machine's clock.

    `pending`: the run that is under way, or was cut short. `visible`: the published runs, oldest first; the last one is current.
    """

    n: int = 0
    event: str = ""
    run: str = ""
    when: int = 0
    why: str = ""
    pending: str | None = None
    visible: tuple[Published, ...] = ()
    threshold: float | None = None

    @property
    def current(self) -> Published | None:
        """The newest visible run."""
        return self.visible[-1] if self.visible else None

    def after(self, event: str, run: str, when: int, why: str = "") -> State:
        """The next state, if nothing else changes."""
        return replace(self, n=self.n + 1, event=event, run=run, when=when, why=why)


class Journal:
    """The journal of predictions `name`."""

    def __init__(self, store: OfflineStore, name: str) -> None:
        self._store, self._name = store, name
        self._folder = f"predictions/{check_name(name)}/_journal"

    def state(self) -> State:
        """What holds now."""
        while numbers := self._numbers():
            data = self._store.read(self._key(numbers[-1]))
            if data is not None:  # else others have written so many that this one was forgotten
                try:
                    return msgspec.json.decode(data, type=State)
                except (msgspec.DecodeError, msgspec.ValidationError) as error:
                    where = self._store.path(self._key(numbers[-1]))
                    raise StoreError(f"{where} is no entry of a journal of predictions ({error}): restore it from a copy") from None
        return State()

    def append(self, state: State) -> State:
        """Write `state` as the entry after the one that it was made of. Raises `LeaseError` where someone else did."""
        if not self._store.create(self._key(state.n), msgspec.json.encode(state)):
            raise LeaseError(
                f"another process works on the predictions {self._name!r}: which runs there are has just changed; run this again"
            )
        for n in self._numbers():
            if n <= state.n - _KEPT:
                self._store.delete(self._key(n))
        return state

    def _numbers(self) -> list[int]:
        names = (_NAME.fullmatch(key.rpartition("/")[2]) for key in self._store.list(self._folder))
        return sorted(int(name[1]) for name in names if name)

    def _key(self, n: int) -> str:
        return f"{self._folder}/{n:08d}.json"
