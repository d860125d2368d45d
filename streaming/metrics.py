"""What the workers of one supervisor do, as metrics: from the status files that they write about once a second.

Counters count from the supervisor's start, over all workers it has had: those of a worker that has ended are kept, and its successor's are
added. So they only grow while the supervisor runs, and begin at 0 with the next one, which Prometheus takes for what it is. Of a worker
that was killed, what it did after it last wrote its file is missing; and records that it had applied, but not archived, its successor
reads and counts again. They say how much work was done; how much is in the stores, positions say.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields

from tidemill import __version__
from tidemill.metrics import Buckets, Metric, Sample

from . import status
from .histograms import APPLY, FLUSH, LATENCY, Histogram, Measured
from .status import PartitionStatus, WorkerStatus
from .supervisor import Supervisor

#: (source, partition, worker's index), as labels.
Place = tuple[str, str, str]
#: A process, for good: (pid, when it began), because numbers of processes come again.
Process = tuple[int, int]
_PLACE = ("source", "partition", "worker")
_STATES = (status.STARTING, status.READING, status.FOLLOWING, status.WAITING, status.STOPPED, status.FAILED)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a worker counts of a partition."""

    records: int = 0
    events: int = 0
    dead: int = 0
    mismatches: int = 0
    flushes: int = 0
    measured: Measured = field(default_factory=Measured)

    @classmethod
    def of(cls, partition: PartitionStatus) -> Counts:
        """Those of one status file."""
        return cls(*(getattr(partition, f.name) for f in fields(cls)))

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Tally:
    """Counts over all workers that there ever were. Safe for threads.

    To be shown every worker's status before its file is removed, which the next worker to start may do.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._past: dict[Place, Counts] = {}
        self._now: dict[Place, tuple[Process, Counts]] = {}
        self._over: set[Process] = set()

    def see(self, statuses: Sequence[WorkerStatus]) -> None:
        """What workers say of themselves now. The same again changes nothing; nor does what one said earlier."""
        with self._lock:
            for worker in statuses:
                process = worker.pid, worker.started
                if process in self._over:
                    continue
                for partition in worker.partitions:
                    place, counts = _place(worker, partition), Counts.of(partition)
                    before, told = self._now.get(place, (process, Counts()))
                    if before != process:
                        self._past[place] = self._past.get(place, Counts()) + told
                        self._over.add(before)
                    elif counts.records < told.records:
                        continue
                    self._now[place] = process, counts

    def counts(self) -> dict[Place, Counts]:
        """By partition and worker, also of those that no longer have it."""
        with self._lock:
            return {place: self._past.get(place, Counts()) + now for place, (_, now) in sorted(self._now.items())}


class StreamMetrics:
    """The metrics of a supervisor's workers; of the project `project`."""

    def __init__(self, supervisor: Supervisor, project: str) -> None:
        self._supervisor, self._project = supervisor, project
        self._tally = Tally()
        # In time before the next workers remove what the last ones left.
        supervisor.on_end = self._tally.see

    def look(self) -> list[WorkerStatus]:
        """What the workers say now, which is counted. To be called at least about as often as they say it, and for every answer."""
        found = self._supervisor.statuses()
        self._tally.see(found)
        return found

    def counted(self) -> Counts:
        """What all workers together have done, also those that are no more."""
        return sum(self._tally.counts().values(), Counts())

    def collect(self) -> Iterator[Metric]:
        """All metrics, as of now."""
        statuses = self.look()
        yield Metric("tidemill_build_info", "gauge", "Always 1.", ("version", "project"), [Sample((__version__, self._project), 1)])
        yield from self._workers({s.index: s for s in statuses})
        parts = [(_place(s, p), p) for s in statuses for p in s.partitions]
        yield from _gauges(parts)
        yield from _counters(self._tally.counts())

    def _workers(self, found: dict[int, WorkerStatus]) -> Iterator[Metric]:
        indices = range(self._supervisor.workers)
        up = [Sample((str(i),), float(i in found and found[i].alive)) for i in indices]
        yield Metric("tidemill_worker_up", "gauge", "1 while the worker's process runs, and has said so.", ("worker",), up)
        told = [Sample((str(i),), s.time / 1e6) for i, s in sorted(found.items())]
        text = "When the worker last wrote its status, in seconds since 1970; about once a second."
        yield Metric("tidemill_worker_status_timestamp_seconds", "gauge", text, ("worker",), told)
        states = [Sample((str(i), state), float(s.state == state)) for i, s in sorted(found.items()) for state in _STATES]
        yield Metric("tidemill_worker_state", "gauge", "1 for the state that the worker is in.", ("worker", "state"), states)
        restarts = [Sample((cause,), count) for cause, count in sorted(self._supervisor.restarts.items())]
        text = "Restarts of all workers: because one died, or because one asked for it."
        yield Metric("tidemill_restarts_total", "counter", text, ("cause",), restarts)


def _gauges(parts: Sequence[tuple[Place, PartitionStatus]]) -> Iterator[Metric]:
    """Those of partitions that a worker has now; a value that is not known is absent."""

    def gauge(name: str, text: str, value: Callable[[PartitionStatus], float | None]) -> Metric:
        known = [(place, value(partition)) for place, partition in parts]
        return Metric(f"tidemill_{name}", "gauge", text, _PLACE, [Sample(place, found) for place, found in known if found is not None])

    yield gauge("position", "The next offset to read.", lambda p: p.position)
    yield gauge("log_end", "The offset after the log's last record, when it was last looked at.", lambda p: p.end)
    yield gauge("lag_records", "Records between the position and the log's end.", lambda p: p.lag)
    yield gauge("archived_position", "Everything before this offset is in the archive.", lambda p: p.archived)
    text = "The largest event time applied, in seconds since 1970."
    yield gauge("event_time_watermark_seconds", text, lambda p: None if p.through is None else p.through / 1e6)
    text = "Reads before this instant are refused, in seconds since 1970."
    yield gauge("horizon_seconds", text, lambda p: None if p.horizon is None else p.horizon / 1e6)
    yield gauge("waiting_bundles", "Bundles that need a batch run, or a rebuild, before they take events.", lambda p: len(p.waiting))


def _counters(counts: dict[Place, Counts]) -> Iterator[Metric]:
    def counter(name: str, text: str, value: Callable[[Counts], int]) -> Metric:
        return Metric(f"tidemill_{name}_total", "counter", text, _PLACE, [Sample(place, value(c)) for place, c in counts.items()])

    def histogram(name: str, text: str, bounds: Sequence[float], value: Callable[[Measured], Histogram]) -> Metric:
        found = [(place, value(c.measured)) for place, c in counts.items()]
        samples = [Sample(place, Buckets(bounds, h.counts, h.total)) for place, h in found]
        return Metric(f"tidemill_{name}", "histogram", text, _PLACE, samples)

    yield counter("records", "Records applied: events and dead letters.", lambda c: c.records)
    yield counter("events", "Events applied.", lambda c: c.events)
    yield counter("dead_letters", "Dead letters; an event that one view cannot take is one too, and an event.", lambda c: c.dead)
    yield counter("flushes", "Flushes applied.", lambda c: c.flushes)
    yield counter("position_mismatches", "Flushes refused because a slot stood at another position.", lambda c: c.mismatches)
    text = "Seconds from a record's arrival in the log until it was applied; of logs that have arrival times."
    yield histogram("latency_seconds", text, LATENCY, lambda m: m.latency)
    yield histogram("apply_seconds", "Seconds that the stores took for a flush.", APPLY, lambda m: m.apply)
    yield histogram("flush_records", "Records in a flush.", FLUSH, lambda m: m.flush)


def _place(worker: WorkerStatus, partition: PartitionStatus) -> Place:
    return partition.source, str(partition.partition), str(worker.index)
