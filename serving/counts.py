"""What a worker counts, and the files in which workers tell each other, so that any of them can answer for all.

A worker writes a file of its own about twice a second, and once more when it ends; one that was killed takes what it did since with it.
A worker that takes another's place begins with the counts of those that ended before (`carried`), whose files nobody counts any more.
So sums over all files only grow, from the start of the service on.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct, field

#: Upper bounds of what a request takes, in seconds.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_NAMES = "worker-*.json"
#: What the rows of versions are counted under that are not counted by themselves any more: one who learns publishes ever more of them.
OLDER = "older"
#: So many of a model's versions, the newest, a worker counts by themselves, and so many the metrics show.
KEPT, SHOWN = 200, 20


class Times(Struct):
    """A histogram: counts by `BOUNDS`, the last of those above all, and the sum of seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Loaded(Struct):
    """A model that a worker has loaded, as it was asked for. `held`: a version that was promoted is refused, and this one goes on.

    `looked`: when promotions were last looked for, in seconds since 1970.
    """

    reference: str
    version: str
    held: bool
    looked: float


class Counts(Struct):
    """Since the service began, of one worker. Used by one thread.

    `requests`: by route, then by status. `rows`: by route. `faults`: by type. `scored`: rows by model, version and what became of them.
    `logged`: entries of the logs of reads and predictions, by log and what became of them.
    """

    pid: int = 0
    index: int = 0
    ready: bool = False
    failed: str = ""
    carried: list[str] = field(default_factory=list)
    models: list[Loaded] = field(default_factory=list)
    requests: dict[str, dict[str, int]] = field(default_factory=dict)
    times: dict[str, Times] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    scored: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    logged: dict[str, dict[str, int]] = field(default_factory=dict)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        by_status = self.requests.setdefault(route, {})
        by_status[str(status)] = by_status.get(str(status), 0) + 1
        if route not in self.times:
            self.times[route] = Times()
        self.times[route].add(seconds)

    def scored_rows(self, model: str, version: str, outcomes: dict[str, int]) -> None:
        """Rows were scored by a version."""
        versions = self.scored.setdefault(model, {})
        _into(versions.setdefault(version, {}), outcomes)
        if len(versions) > KEPT:
            self.scored[model] = newest(versions, KEPT // 2)

    def add(self, other: Counts) -> None:
        """Count what another counted too."""
        for route, by_status in other.requests.items():
            _into(self.requests.setdefault(route, {}), by_status)
        for route, times in other.times.items():
            mine = self.times.setdefault(route, Times())
            mine.counts = [a + b for a, b in zip(mine.counts, times.counts, strict=True)]
            mine.total += times.total
        _into(self.rows, other.rows)
        _into(self.faults, other.faults)
        for log, outcomes in other.logged.items():
            _into(self.logged.setdefault(log, {}), outcomes)
        for model, versions in other.scored.items():
            for version, outcomes in versions.items():
                _into(self.scored.setdefault(model, {}).setdefault(version, {}), outcomes)


def newest(versions: dict[str, dict[str, int]], count: int) -> dict[str, dict[str, int]]:
    """The newest versions by themselves, and the rest together as `OLDER`; a version that goes there never comes back.

    >>> newest({"9": {"ok": 1}, "10": {"ok": 2}, "older": {"ok": 4}, "8": {"ok": 8}}, 1)
    {'10': {'ok': 2}, 'older': {'ok': 13}}
    """
    numbers = sorted((int(v) for v in versions if v != OLDER), reverse=True)
    found = {str(n): versions[str(n)] for n in numbers[:count]}
    rest = [versions[str(n)] for n in numbers[count:]] + ([versions[OLDER]] if OLDER in versions else [])
    if rest:
        found[OLDER] = {}
        for outcomes in rest:
            _into(found[OLDER], outcomes)
    return found


def _into(mine: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        mine[name] = mine.get(name, 0) + count


class CountsFile:
    """The file of one worker in the folder that the workers of a service share. `life`: no two workers ever have the same."""

    def __init__(self, folder: Path, life: int, counts: Counts, carry: Iterable[str] = ()) -> None:
        self.path = folder / f"worker-{life}.json"
        self.counts = counts
        self._folder = folder
        for name in carry:
            before = _read(folder / name)
            if before is not None:
                counts.add(before)
                counts.carried = [*counts.carried, *before.carried, name]
        self._written = b""

    def write(self) -> None:
        """Tell the others, if there is anything new. The file is there whole or not at all."""
        data = msgspec.json.encode(self.counts)
        if data != self._written:
            beside = self.path.with_suffix(".new")
            beside.write_bytes(data)
            beside.replace(self.path)
            self._written = data

    def all(self) -> list[Counts]:
        """What every worker of the service has counted, this one as of now."""
        return [self.counts, *read_counts(self._folder, besides=self.path.name, carried=self.counts.carried)]


def read_counts(folder: Path, *, besides: str = "", carried: Iterable[str] = ()) -> list[Counts]:
    """What the workers said last, without those whose counts another carries on."""
    while True:
        names = [path.name for path in sorted(folder.glob(_NAMES)) if path.name != besides]
        found = {name: _read(folder / name) for name in names}
        if None not in found.values():  # else one was removed since it was listed, because another carries it on
            break
    counts = {name: each for name, each in found.items() if each is not None}
    over = {name for each in counts.values() for name in each.carried} | set(carried)
    return [each for name, each in counts.items() if name not in over]


def remove_carried(folder: Path) -> None:
    """Remove the files that another one carries on."""
    for each in read_counts(folder):
        for name in each.carried:
            with contextlib.suppress(FileNotFoundError):
                (folder / name).unlink()


def _read(path: Path) -> Counts | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Counts)
    except FileNotFoundError:
        return None
