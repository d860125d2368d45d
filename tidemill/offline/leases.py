"""Leases: one process at a time for work that it would be wasteful to do twice.

A lease keeps a second batch job from folding what the first one is folding. It never keeps anything *correct*: a process may be
stopped for an hour and go on believing that it holds the lease, and clocks differ. Correctness comes from what is created once
(cuts, versions of the partials) and from compare-and-set in the online store.

Every holding is a generation, `leases/<name>/<generation>.json`, created if absent; so of many who take over an expired lease, one
gets it. The largest generation is the one that counts. Its owner renews it by rewriting its own file, and a late owner who rewrites an
older one changes nothing.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

from tidemill.errors import LeaseError, StoreError
from tidemill.offline.store import OfflineStore, read_json
from tidemill.times import SECOND, from_micros

_NAME = re.compile(r"(\d{8,})\.json")


class Holding(NamedTuple):
    """Who took generation `generation` of a lease, and until when (UTC microseconds; 0 once given back)."""

    generation: int
    owner: str
    until: int


def this_process(pid: int | None = None) -> str:
    """The owner that a lease names by default: host, process id, when it began (in the kernel's count), and whose count of ids it is.

    Containers may share a host's name, and all have a process 1: only within one boot and one namespace does an id say who is dead.
    """
    number = os.getpid() if pid is None else pid
    return f"{socket.gethostname()}:{number}:{_birth(number)}:{_namespace()}"


def _birth(pid: int) -> int:
    """When a process began; 0 for one that is gone, or where that cannot be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def _namespace() -> str:
    """A word for this boot of the machine, and the namespace of process ids; empty where it cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - of what the link names
    except OSError:
        return ""


class Lease:
    """The lease `name`, for `seconds` from each `acquire` or `renew` on. Used by one thread.

    `clock` gives seconds since 1970. Hosts whose clocks differ by more than `seconds` may hold the lease together; see the module's
    text for why that is only a waste. As a context manager it is acquired at the beginning and given back at the end.
    """

    def __init__(
        self, store: OfflineStore, name: str, *, seconds: float = 60.0, clock: Callable[[], float] = time.time, owner: str | None = None
    ) -> None:
        self._store, self._name, self._clock = store, name, clock
        self._micros = round(seconds * SECOND)
        self._owner = this_process() if owner is None else owner
        self._mine: Holding | None = None

    @property
    def generation(self) -> int | None:
        """The generation that this object holds, or believes to hold; None when it never did, gave it back or noticed the loss."""
        return self._mine.generation if self._mine else None

    def holder(self) -> Holding | None:
        """Who holds the lease now, whoever it is; None when it is free."""
        latest = self._latest()
        return latest if latest and latest.until > self._now() else None

    def acquire(self) -> int:
        """Take the lease and return the generation. Raises `LeaseError` while another holds it; it does not wait.

        What a process of this host held that is dead is free at once. Elsewhere one waits for its predecessor's lease to run out: they
        may both be alive.
        """
        while True:
            latest = self._latest()
            now = self._now()
            if latest and latest.until > now and not _dead(latest.owner):
                if self._mine and latest.generation == self._mine.generation:
                    return self.renew()
                self._mine = None
                raise self._held_by(latest)
            mine = Holding(latest.generation + 1 if latest else 1, self._owner, now + self._micros)
            # Looked at again, because a listing made while others take over and forget may have missed the largest generation.
            if self._store.create(self._key(mine.generation), _encoded(mine)) and max(self._generations(), default=0) <= mine.generation:
                self._mine = mine
                self._forget_before(mine.generation)
                return mine.generation

    def renew(self) -> int:
        """Hold the lease for `seconds` from now on; returns the generation, which changes where the lease had run out meanwhile.

        Raises `LeaseError` where it is another's by now, or was never acquired: stop the work.
        """
        if self._mine is None:
            raise LeaseError(f"the lease {self._name!r} is not held by {self._owner}: acquire it before it is renewed")
        now = self._now()
        if self._mine.until <= now:
            # Never revive what has run out: another may be taking it over at this instant. The next generation has one owner.
            self._mine = None
            return self.acquire()
        self._mine = self._mine._replace(until=now + self._micros)
        self._store.write(self._key(self._mine.generation), _encoded(self._mine))
        latest = self._latest()
        if latest and latest.generation > self._mine.generation:
            self._mine = None
            raise self._held_by(latest)
        return self._mine.generation

    def release(self) -> None:
        """Give the lease back, if this object still holds it; otherwise nothing happens."""
        mine, self._mine = self._mine, None
        if mine:
            # Rewritten, not deleted: generations only grow, also for an owner that has slept through several.
            self._store.write(self._key(mine.generation), _encoded(mine._replace(until=0)))

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _now(self) -> int:
        return round(self._clock() * SECOND)

    def _key(self, generation: int) -> str:
        return f"leases/{self._name}/{generation:08d}.json"

    def _generations(self) -> list[int]:
        names = (_NAME.fullmatch(key.rpartition("/")[2]) for key in self._store.list(f"leases/{self._name}"))
        return sorted(int(name[1]) for name in names if name)

    def _latest(self) -> Holding | None:
        while generations := self._generations():
            key = self._key(generations[-1])
            data = self._store.read(key)
            if data is not None:  # Else it was the largest when listed, and has been superseded and forgotten since.
                found = read_json(self._store, key, data)
                owner, until = found.get("owner"), found.get("until")
                if not isinstance(owner, str) or type(until) is not int:
                    raise StoreError(f"{self._store.path(key)} should name the owner of a lease, and until when: delete it if nothing runs")
                return Holding(generations[-1], owner, until)
        return None

    def _forget_before(self, generation: int) -> None:
        for old in self._generations():
            if old < generation:
                self._store.delete(self._key(old))

    def _held_by(self, holding: Holding) -> LeaseError:
        until = from_micros(holding.until).isoformat(timespec="seconds")
        return LeaseError(f"the lease {self._name!r} is held by {_shown(holding.owner)} until {until}: wait for it, or stop that process")


def _shown(owner: str) -> str:
    """Host and process id, for people."""
    parts = owner.rsplit(":", 3)
    return ":".join(parts[:2]) if len(parts) == 4 else owner


def _dead(owner: str) -> bool:
    """Whether the owner was a process of this host, as this one counts processes, that is no more."""
    host, pid, birth, namespace = [*owner.rsplit(":", 3), "", "", ""][:4]
    if host != socket.gethostname() or not namespace or namespace != _namespace() or not pid.isdecimal() or birth in ("", "0"):
        return False
    return str(_birth(int(pid))) != birth


def _encoded(holding: Holding) -> bytes:
    return json.dumps({"owner": holding.owner, "until": holding.until}).encode()
