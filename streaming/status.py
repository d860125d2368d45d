"""What the workers of a project are doing: a small JSON file per worker process, written about once a second, and read by anyone.

The files lie in `.tidemill/run/worker-<pid>.json` of the project and are replaced as a whole, so a reader sees the old one or the
new one. A process that died leaves its file behind; `read_status` says which are alive, and the next worker to start removes the others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from .histograms import Measured

#: A worker on another machine counts as alive while its file is at most this old; on this one we can look.
FRESH_SECONDS = 10.0
#: So many files of workers that failed are kept.
_NOISES = 5

STARTING, READING, FOLLOWING, WAITING, STOPPED, FAILED = "starting", "reading", "following", "waiting", "stopped", "failed"


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One partition of one source, as its worker sees it. Offsets count records; times are UTC microseconds, None where unknown.

    `position`: the next offset to read. `end`: the log's end when it was last looked at. `lag`: records between the two. `records`,
    `events`, `dead`, `mismatches`, `flushes`: since the worker began, and so what was `measured`. `archived`: everything before it is in
    the archive. `through`: the largest event time applied; `horizon`: reads before it are refused. `waiting`: bundles that need a
    batch run, or a rebuild, first.
    """

    source: str
    partition: int
    position: int
    end: int | None
    lag: int | None
    records: int
    events: int
    dead: int
    archived: int
    mismatches: int
    events_per_second: float
    through: int | None
    horizon: int | None
    waiting: tuple[str, ...] = ()
    flushes: int = 0
    measured: Measured = field(default_factory=Measured)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker process. `time` and `started` in UTC microseconds.

    `state`: `starting`; `reading`; `following` (at the end of every partition it has); `waiting` (for the online store, or for data);
    `stopped` and `failed` once it is over, the latter with its `reason`. `version`: of the registry.
    """

    index: int
    of: int
    pid: int
    birth: int
    host: str
    started: int
    time: int
    state: str
    version: int
    reason: str = ""
    partitions: tuple[PartitionStatus, ...] = ()
    alive: bool = False


@dataclass(frozen=True, slots=True)
class Totals:
    """All partitions of some workers together. `lag` is None while it is not known of every partition."""

    partitions: int
    records: int
    events: int
    dead: int
    mismatches: int
    events_per_second: float
    lag: int | None
    waiting: tuple[str, ...]


def run_directory(project: Path) -> Path:
    """Where a project's workers leave their status files."""
    return project / ".tidemill" / "run"


def write_status(project: Path, status: WorkerStatus) -> None:
    """Replace a worker's file. A disk that is full must not stop the stream, so a failure leaves the old one."""
    path = _path(project, status.pid)
    temporary = path.with_suffix(f".{status.pid}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(status))
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_status(project: Path) -> list[WorkerStatus]:
    """Every worker that left a file, by index, with `alive` as of now; unreadable files are left out."""
    found = []
    for path in run_directory(project).glob("worker-*.json"):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            status = msgspec.json.decode(path.read_bytes(), type=WorkerStatus)
            found.append(replace(status, alive=_alive(status)))
    return sorted(found, key=lambda s: (s.index, s.started, s.pid))


def remove_stale(project: Path) -> None:
    """Remove the files of workers that are no longer, but for the last few with what Bytewax and Rust printed when one failed."""
    for status in read_status(project):
        if not status.alive:
            _path(project, status.pid).unlink(missing_ok=True)
    noises = sorted((info.st_mtime, path, info.st_size) for path, info in _noises(project) if not birth_of(_pid_of(path)))
    kept = [path for _, path, size in noises if size][-_NOISES:]
    for _, path, _ in noises:
        if path not in kept:
            path.unlink(missing_ok=True)


def noise_path(project: Path, pid: int) -> Path:
    """Where a worker sends what Bytewax and Rust print."""
    return run_directory(project) / f"worker-{pid}.err"


def _noises(project: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in run_directory(project).glob("worker-*.err"):
        with contextlib.suppress(OSError):
            yield path, path.stat()


def _pid_of(path: Path) -> int:
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def totals(statuses: Sequence[WorkerStatus]) -> Totals:
    """The sums over all partitions of these workers."""
    partitions = [p for s in statuses for p in s.partitions]
    lags = [p.lag for p in partitions]
    return Totals(
        partitions=len(partitions),
        records=sum(p.records for p in partitions),
        events=sum(p.events for p in partitions),
        dead=sum(p.dead for p in partitions),
        mismatches=sum(p.mismatches for p in partitions),
        events_per_second=sum(p.events_per_second for p in partitions),
        lag=None if any(lag is None for lag in lags) else sum(lag for lag in lags if lag is not None),
        waiting=tuple(sorted({bundle for p in partitions for bundle in p.waiting})),
    )


def status_line(statuses: Sequence[WorkerStatus]) -> str:
    """One line about these workers, for people.

    >>> status_line([])
    'no workers'
    >>> part = PartitionStatus("tx", 0, 900, 1000, 100, 900, 899, 1, 500, 0, 1234.5, None, None, ("card-1f",))
    >>> status_line([WorkerStatus(0, 1, 4711, 0, "here", 0, 0, READING, 1, partitions=(part,))])
    '1 worker · 899 events · 1,234 events/s · lag 100 · dead letters 1 · waiting for batch: card-1f'
    """
    if not statuses:
        return "no workers"
    sums = totals(statuses)
    parts = [f"{len(statuses)} worker{'s' * (len(statuses) != 1)}"]
    states = {s.state for s in statuses}
    parts += [state for state in (STARTING, WAITING, FAILED) if state in states]
    parts += [f"{sums.events:,} events", f"{int(sums.events_per_second):,} events/s"]
    parts += ["lag ?" if sums.lag is None else f"lag {sums.lag:,}", f"dead letters {sums.dead:,}"]
    if sums.waiting:
        parts.append(f"waiting for batch: {', '.join(sums.waiting)}")
    return " · ".join(parts)


def this_host() -> str:
    """The machine's name, as status files give it."""
    return socket.gethostname()


def birth_of(pid: int) -> int:
    """When a process began, in the kernel's own count; with the pid it names a process for good. 0 where it cannot be known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def _path(project: Path, pid: int) -> Path:
    return run_directory(project) / f"worker-{pid}.json"


def _alive(status: WorkerStatus) -> bool:
    if status.state in (STOPPED, FAILED):
        return False
    if status.host != this_host():
        return time.time() - status.time / 1e6 <= FRESH_SECONDS
    if status.birth:
        return birth_of(status.pid) == status.birth
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
