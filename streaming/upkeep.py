"""What a worker process does beside reading: it compacts, learns of new definitions and cuts, and tells how it is doing.

`turn` is called again and again between readings, and does what is due by now, a little at a time; `flushed` is called after every
flush, so that compaction keeps step with what is appended.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from tidemill.applied import Applied
from tidemill.environment import Environment
from tidemill.errors import NotAppliedError
from tidemill.journal import Journal
from tidemill.logs.base import Log
from tidemill.offline.cuts import Cuts
from tidemill.times import BEGINNING

from .compactor import Compactor
from .ends import LogEnds, Part
from .histograms import Measures
from .ingest import Flush, PartitionIngest
from .reading import NOT_NOW, Orders, Reading
from .shares import WHOLE, Share
from .status import FOLLOWING, READING, WAITING, PartitionStatus, WorkerStatus, birth_of, this_host, totals, write_status

#: The exit code that asks for a start of all workers: there is something new that a running dataflow cannot take up.
RESTART = 75

#: In seconds.
_DEFINITIONS_EVERY, _STATUS_EVERY, _JOURNAL_EVERY, _PARTITIONS_EVERY, _SWEEP_EVERY = 1.0, 1.0, 10.0, 2.0, 0.5
#: What compaction may take after a flush, at least, and as a share of what the flush took. More often it takes nothing.
_LEAST_BUDGET, _BUDGET = 0.005, 0.3
#: Looking for new partitions takes at most this share of the time.
_LOOKING = 0.05
#: In seconds: the longest pause when there is nothing to do, and the time over which events per second are counted.
_PAUSE, _RATE_OVER = 0.01, 5.0


def parts_of(applied: Applied, logs: Callable[[str], Log], share: Share = WHOLE) -> list[Part]:
    """The partitions, in order, that this share has of every source that applied views read. Raises `LogError`."""
    parts = [(name, partition) for name in sorted(applied.sources) for partition in logs(name).partitions()]
    return [part for part in parts if share.has(part)]


@dataclass(frozen=True, slots=True)
class Who:
    """Which worker of this host this is, and since when (UTC microseconds); and the host's share of all partitions."""

    index: int
    of: int
    started: int
    share: Share = WHOLE

    def status(self, state: str, reason: str = "") -> WorkerStatus:
        """What is to be said of a worker that has not opened anything yet."""
        pid = os.getpid()
        now = time.time_ns() // 1000
        return WorkerStatus(self.index, self.of, pid, birth_of(pid), this_host(), self.started, now, state, 0, reason)


@dataclass
class Upkeep:
    """See the module's text. `clock` gives seconds, and need not be a wall clock; `now` wall-clock UTC microseconds, to be shown."""

    env: Environment
    orders: Orders
    journal: Journal
    who: Who
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], int] = lambda: time.time_ns() // 1000
    sleep: Callable[[float], None] = time.sleep
    archive_seconds: float = 10.0
    readings: dict[Part, Reading] = field(default_factory=dict, init=False)
    parts: list[Part] = field(default_factory=list, init=False)
    #: Why all workers are to start again, if so.
    reason: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.applied = self.env.applied()
        self._logs: dict[str, Log] = {}
        self._cuts: dict[str, Cuts] = {}
        self.compactor = Compactor(self.env.online, {}, {}, self.env.project.slack, share=self._sweeps())
        self._ends = LogEnds(self._behind, lambda name: self.env.log(self.applied.sources[name]))
        self._began = self.clock()
        self._due: dict[str, float] = {}
        self._rates: dict[Part, deque[tuple[float, int]]] = {}
        self._measures: dict[Part, Measures] = {}
        self._flushes_swept, self._flushes_before = -1, 0
        self._compile()

    def _sweeps(self) -> tuple[int, int]:
        mine = self.who.share.among(self.who.index, self.who.of)
        return mine.index, mine.of

    # ---- at the start -----------------------------------------------------------------------------------------------------------

    def look(self) -> list[Part]:
        """Take up what is applied now, and list what there is to read; the dataflow is built over that. Raises `LogError`."""
        self.applied = self.env.applied()
        if not self.applied.version and self.orders.until_end:
            raise NotAppliedError("no definitions are applied, so there is nothing to stream: run `tidemill apply`")
        self._compile()
        self.parts = parts_of(self.applied, self._log, self.who.share)
        return self.parts

    def open(self, part: Part) -> Reading:
        """The reading of one partition, by this process from now on."""
        name, partition = part
        source = self.applied.sources[name]
        ingest = PartitionIngest(
            source,
            partition,
            self._log(name),
            self.env.decoder(source),
            self.env.online,
            self.env.offline,
            self.applied.of_source(name),
            self.applied.shards,
            self.env.project.slack,
            now=self.now,
            noted=self.compactor.note,
            archive_seconds=self.archive_seconds,
        )
        self._measures[part] = Measures(self.now)
        self.readings[part] = Reading(ingest, self.orders, self.journal, self.clock, self.env.project.linger / 1e6)
        if len(self.readings) == 1:
            self._ends.start()
        return self.readings[part]

    def _log(self, name: str) -> Log:
        """A source's log, shared by the readings of this process."""
        if name not in self._logs:
            source = self.applied.sources[name]
            log = self._logs[name] = self.env.log(source)
            self.env.remember_topic(source, log)
        return self._logs[name]

    def _compile(self) -> None:
        self.compactor.bundles = {b.bundle.id: b.bundle for b in self.applied.bundles}
        for name in self.applied.sources:
            if name not in self._cuts:
                self._cuts[name] = Cuts(self.env.offline, name)
        self.compactor.cuts = {b.bundle.id: self._cuts[b.source].arrays for b in self.applied.bundles}

    # ---- again and again --------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Do what is due, and pause for a moment if no reading has anything to do. Raises StopIteration when all of them have ended."""
        if self.over:
            raise StopIteration
        try:
            self._chores()
        except NOT_NOW as error:
            self.journal.debug(f"upkeep: {error}")  # the readings say so, and go on when it is back
        pause = min((r.awake_at for r in self.readings.values() if not r.ended), default=self.clock() + _PAUSE) - self.clock()
        if pause > 0 and not self.orders.stop.is_set():
            self.sleep(min(pause, _PAUSE))

    @property
    def over(self) -> bool:
        """Whether every reading of this process has ended. At first there are none: which ones there will be is learned in a moment."""
        ended = all(r.ended for r in self.readings.values())
        settled = bool(self.readings) or self.clock() > self._began + 1.0
        return ended and (self.orders.stop.is_set() or (self.orders.until_end and settled))

    def applied_flush(self, reading: Reading, flush: Flush, fresh: int, seconds: float) -> None:
        """A flush was applied in so many seconds, with `fresh` records at its end that this worker had not counted before."""
        events = flush.events
        new = events["_arrival"].filter(events["_offset"] >= flush.end - fresh) if len(events) else pl.Series(dtype=pl.Int64)
        self._measures[reading.ingest.source.name, reading.ingest.partition].took(seconds, flush.end - flush.start, new)

    def flushed(self, seconds: float) -> None:
        """Compact some of what has grown, now that a flush was made, which took so long."""
        deadline = self.clock() + max(_LEAST_BUDGET, _BUDGET * seconds)
        try:
            while self.compactor.due and self.clock() < deadline:
                self.compactor.step()
        except NOT_NOW as error:
            self.journal.debug(f"compaction: {error}")

    def _chores(self) -> None:
        if self.compactor.due and self._idle:
            self.compactor.step()
        if self._is_due("status", _STATUS_EVERY):
            self.tell()
        if self._is_due("journal", _JOURNAL_EVERY) and self.readings:
            self._report()
        if self._is_due("sweep", _SWEEP_EVERY):
            self._sweep()
        if self._is_due("definitions", _DEFINITIONS_EVERY):
            self._definitions()
            for cuts in self._cuts.values():
                cuts.refresh()
            for reading in self.readings.values():
                if reading.ingest.counters.waiting:
                    reading.admit()
        if self._is_due("partitions", _PARTITIONS_EVERY) and not self.orders.until_end:
            self._partitions()

    @property
    def _idle(self) -> bool:
        return all(r.ended or r.following or r.waiting for r in self.readings.values())

    def _is_due(self, chore: str, every: float) -> bool:
        now = self.clock()
        if now < self._due.setdefault(chore, now if chore == "status" else now + every):
            return False
        self._due[chore] = now + every
        return True

    # ---- the chores -------------------------------------------------------------------------------------------------------------

    def _definitions(self) -> None:
        """Take up a newer version of the registry, without a restart if the logs are the same."""
        before, after = self.applied, self.env.applied()
        if after.version == before.version:
            return
        self.journal.info("new definitions", version=after.version)
        old, new = before.sources, after.sources
        moved = {n for n in {*old, *new} if n not in old or n not in new or _place(old[n]) != _place(new[n])}
        if moved:
            self._restart(f"other logs are to be read now ({', '.join(sorted(moved))})")
            return
        self.applied = after
        self._compile()
        for (name, _), reading in self.readings.items():
            bundles = after.of_source(name)
            if new[name] != old[name] or [b.bundle.id for b in bundles] != [b.bundle.id for b in before.of_source(name)]:
                self._redefine(reading, name)

    def _redefine(self, reading: Reading, name: str) -> None:
        source = self.applied.sources[name]
        bundles, shards = self.applied.of_source(name), self.applied.shards
        reading.redefine(lambda: reading.ingest.redefine(source, self.env.decoder(source), bundles, shards))
        self.journal.info(f"{reading.name} goes on from offset {reading.ingest.position}", version=self.applied.version)

    def _partitions(self) -> None:
        begun = self.clock()
        new = set(parts_of(self.applied, self._log, self.who.share)) - set(self.parts)
        self._due["partitions"] = self.clock() + max(_PARTITIONS_EVERY, (self.clock() - begun) / _LOOKING)
        if new:
            self._restart(f"there are new partitions ({', '.join(f'{name}:{partition}' for name, partition in sorted(new))})")

    def _restart(self, why: str) -> None:
        self.journal.info(f"starting again: {why}")
        self.reason = why
        self.orders.exit_code = RESTART
        self.orders.stop.set()

    def _sweep(self) -> None:
        """One page of all cells; nothing after a whole round without a flush, because then no horizon has moved."""
        flushes = sum(r.ingest.counters.flushes for r in self.readings.values())
        if flushes == self._flushes_swept:
            return
        rounds = self.compactor.rounds
        self.compactor.sweep(self.applied.shards)
        if self.compactor.rounds > rounds:
            self._flushes_swept, self._flushes_before = self._flushes_before, flushes

    # ---- telling ----------------------------------------------------------------------------------------------------------------

    def tell(self, state: str = "", reason: str = "") -> None:
        """Write the status file."""
        write_status(self.env.project.directory, self.snapshot(state, reason))

    def snapshot(self, state: str = "", reason: str = "") -> WorkerStatus:
        """How this worker is doing now."""
        parts = tuple(self._partition(part, reading) for part, reading in sorted(self.readings.items()))
        told = self.who.status(state or self._state(), reason)
        return replace(told, time=self.now(), version=self.applied.version, partitions=parts)

    def _state(self) -> str:
        readings = self.readings.values()
        if any(r.waiting for r in readings):
            return WAITING
        return FOLLOWING if all(r.following or r.ended for r in readings) else READING

    def _partition(self, part: Part, reading: Reading) -> PartitionStatus:
        ingest = reading.ingest
        end = ingest.position if reading.following or reading.ended else self._ends.of(part)
        return PartitionStatus(
            source=part[0],
            partition=part[1],
            position=ingest.position,
            end=end,
            lag=None if end is None else max(end - ingest.position, 0),
            records=ingest.counters.records,
            events=ingest.counters.events,
            dead=ingest.counters.dead,
            archived=ingest.archived,
            mismatches=ingest.counters.mismatches,
            events_per_second=self._rate(part, ingest.counters.events),
            through=_known(ingest.latest),
            horizon=_known(ingest.horizon),
            waiting=ingest.counters.waiting,
            flushes=ingest.counters.flushes,
            measured=self._measures[part].told(),
        )

    def _rate(self, part: Part, events: int) -> float:
        """Events per second over the last few seconds."""
        now = self.clock()
        samples = self._rates.setdefault(part, deque([(self._began, 0)]))
        samples.append((now, events))
        while len(samples) > 2 and samples[1][0] <= now - _RATE_OVER:
            samples.popleft()
        (then, before) = samples[0]
        return (events - before) / (now - then) if now > then else 0.0

    def _report(self) -> None:
        sums = totals([self.snapshot()])
        fields: dict[str, object] = {
            "events": sums.events,
            "events_per_second": round(sums.events_per_second),
            "lag": sums.lag,
            "dead_letters": sums.dead,
            "mismatches": sums.mismatches,
        }
        if sums.waiting:
            fields["waiting_for_batch"] = ",".join(sums.waiting)
        self.journal.info(self._state(), **fields)

    def _behind(self) -> Sequence[Part]:
        """The partitions whose end is not known from reading them to it."""
        return [part for part, reading in list(self.readings.items()) if not (reading.following or reading.ended)]


def _place(source: object) -> tuple[object, ...]:
    """Where a source's log lies, and how it is written."""
    return tuple(getattr(source, name) for name in ("path", "topic", "format", "value_format"))


def _known(instant: int) -> int | None:
    return None if instant == BEGINNING else instant
