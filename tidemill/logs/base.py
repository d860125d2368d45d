"""Logs: where events come from. A log has partitions, a partition has records at offsets that never change.

Readers hand out whole batches of records, undecoded; `tidemill.logs.decode` makes columns of them. Nothing here blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Consecutive records of one partition, as they lie in the log.

    `end` is the position after the batch, `start` the position before it; `offsets` (int64, n) may have gaps, but lie in [start, end).
    `payload` is either `bytes`: n records, each ended by a newline (JSON objects); or a list of n values as they came, whatever they
    hold (Avro, Protobuf); or a frame of n rows: columns read from a format with its own types (Parquet), or all columns as text (CSV,
    `text=True`).
    `arrival` (int64 UTC microseconds, n) where the log itself records it (Kafka), else None.
    `broken`: records that could not even be split into columns, as (offset, raw bytes, reason); they are not in `payload` or `offsets`.
    """

    partition: int
    start: int
    end: int
    offsets: Int64s
    payload: bytes | list[bytes] | pl.DataFrame
    text: bool = False
    arrival: Int64s | None = None
    broken: tuple[tuple[int, bytes, str], ...] = ()


class PartitionReader(Protocol):
    """Reads one partition onward from an offset. Used by one thread.

    `at_end`: after `read` gave None, whether that was the end of the log, as of a moment ago; else more may be on its way.
    """

    @property
    def at_end(self) -> bool: ...

    def read(self, max_records: int) -> RecordBatch | None:
        """Up to `max_records` records, or None: nothing new for now. Never blocks; raises `LogError`."""
        ...

    def confirm(self) -> None:
        """Raise `LogChangedError` unless all that was read is of the log that was opened; for whoever is about to count it.

        `LogUnavailableError` where that cannot be known now.
        """
        ...

    def seek(self, offset: int) -> None:
        """Go on from this offset instead. Raises `LogTruncatedError` if the log no longer has it."""
        ...

    def close(self) -> None:
        """Give back files and connections."""
        ...


class Log(Protocol):
    """One source's log."""

    def partitions(self) -> list[int]:
        """The partitions that exist now, ascending."""
        ...

    def start(self, partition: int) -> int:
        """The first offset that the log still has."""
        ...

    def end(self, partition: int) -> int:
        """The offset after the last complete record."""
        ...

    def open(self, partition: int, offset: int) -> PartitionReader:
        """A reader that begins at `offset`."""
        ...

    def close(self) -> None:
        """Give back what it holds: connections, threads. Used again, it takes them again."""
        ...
