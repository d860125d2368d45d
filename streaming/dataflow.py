"""The dataflow: log -> decode and pre-aggregate in columns -> store (and archive, dead letters).

Bytewax gives each partition to one of the processes, and asks for batches of columns, never for single events. Nothing that matters is
here: `reading` says when to read, `ingest` what a batch does, and both are tested without Bytewax.

What of Bytewax this stands on:

- A batch stays in the process, and in the thread, that read it: no step here exchanges anything, so nothing is ever pickled.
- A source is asked again only after what it gave has passed through `map` and the sink, so at most one batch per partition is in
  flight. (Backpressure beyond that works by epoch only, which is why epochs are short.)
- Its recovery is off: values and positions lie together in the online store, and there is no second truth to reconcile.
- It measures its pauses by the wall clock, and would sleep for an hour if that were put back by one. So it never gets an instant to
  wait for: partitions are always due, answer at once that they have nothing, and `Upkeep.turn` pauses for all of them together.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from .ends import Part
from .ingest import Flush, Polled
from .reading import Reading
from .upkeep import Upkeep

EPOCH = dt.timedelta(milliseconds=500)
_ALWAYS = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

Read = tuple[Reading, Polled]
Tiled = tuple[Reading, Flush, float]
T = TypeVar("T")


def dataflow(upkeep: Upkeep, fail: Callable[[BaseException], NoReturn]) -> Dataflow:
    """The flow of one process over `upkeep.parts`. `fail` ends the process: an exception would come out of Bytewax as a Rust panic."""
    steps = Steps(upkeep, fail)
    flow = Dataflow("tidemill")
    read = op.input("log", flow, LogSource(steps))
    tiled = op.map("tile", read, steps.tile)
    op.output("store", tiled, StoreSink(steps))
    return flow


class Steps:
    """What the flow does, so that whatever goes wrong in it ends the process with one clear line."""

    def __init__(self, upkeep: Upkeep, fail: Callable[[BaseException], NoReturn]) -> None:
        self.upkeep, self._fail = upkeep, fail

    def safely(self, call: Callable[[], T]) -> T:
        """The call's result. StopIteration, which tells Bytewax that a partition has ended, passes."""
        try:
            return call()
        except StopIteration:
            raise
        except BaseException as error:  # noqa: BLE001  (the process ends here, whatever it was)
            self._fail(error)

    def tile(self, read: Read) -> Tiled:
        reading, polled = read
        begun = time.monotonic()
        return reading, self.safely(lambda: reading.tile(polled)), begun

    def store(self, tiled: Tiled) -> None:
        reading, flush, begun = tiled
        if self.upkeep.orders.stop.is_set():
            reading.drop()  # a large flush would keep the process from ending at once; the log still has it
            return
        counters, before, tiled_at = reading.ingest.counters, reading.ingest.counters.records, time.monotonic()
        if self.safely(lambda: reading.apply(flush)):
            self.upkeep.applied_flush(reading, flush, counters.records - before, time.monotonic() - tiled_at)
        self.safely(lambda: self.upkeep.flushed(time.monotonic() - begun))


class LogSource(FixedPartitionedSource[Read, None]):
    """The partitions of all logs, listed in every process alike, and one of this process's own for its upkeep."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._own = f"upkeep of worker {steps.upkeep.who.index}"
        self._parts: dict[str, Part] = {f"{name}:{partition}": (name, partition) for name, partition in steps.upkeep.parts}

    def list_parts(self) -> list[str]:
        return [*self._parts, self._own]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> Partition[Read]:
        if for_part == self._own:
            return Partition(self._steps, self._upkeep)
        reading = self._steps.safely(lambda: self._steps.upkeep.open(self._parts[for_part]))
        return Partition(self._steps, lambda: self._read(reading))

    def _upkeep(self) -> list[Read]:
        self._steps.upkeep.turn()
        return []

    @staticmethod
    def _read(reading: Reading) -> list[Read]:
        polled = reading.turn()
        return [] if polled is None else [(reading, polled)]


class Partition(StatefulSourcePartition[T, None], Generic[T]):
    """Asks `turn` for the next batch, whenever Bytewax comes round."""

    def __init__(self, steps: Steps, turn: Callable[[], list[T]]) -> None:
        self._steps, self._turn = steps, turn

    def next_batch(self) -> list[T]:
        return self._steps.safely(self._turn)

    def next_awake(self) -> dt.datetime:
        return _ALWAYS

    def snapshot(self) -> None:
        return None


class StoreSink(DynamicSink[Tiled]):
    """Writes what this process has tiled."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Writer:
        return Writer(self._steps)


class Writer(StatelessSinkPartition[Tiled]):
    """Writes one flush after the other."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def write_batch(self, items: list[Tiled]) -> None:
        for item in items:
            self._steps.store(item)
