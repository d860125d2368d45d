"""What one task reads: a range of offsets of one archived partition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tidemill.offline.archive import cover, partition_folder, range_files
from tidemill.offline.store import OfflineStore

Range = tuple[int, int, int]

#: Offsets of a task's range, about: a second or two of work, which is what starting a task is small beside.
OFFSETS = 1_000_000
_LARGEST = 4


def ranges_of_tasks(store: OfflineStore, source: str, ranges: Sequence[Range], offsets: int) -> list[Range]:
    """(partition, start, end) cut into ranges of about so many offsets, at the ends of files where there are any near.

    A range that lies in two files costs reading both, and one file that lies in two ranges is read twice: in a bucket files are read whole.
    """
    out: list[Range] = []
    for partition, start, end in ranges:
        at = start
        for place in _ends(store, source, partition, start, end, offsets):
            if place - at >= offsets:
                out.append((partition, at, place))
                at = place
        if end > at:
            out.append((partition, at, end))  # with what is not there, if anything is not, so that the reader says which
    return out


def _ends(store: OfflineStore, source: str, partition: int, start: int, end: int, offsets: int) -> Iterator[int]:
    """Where a range may end, ascending: after each file, and within very large ones."""
    files = range_files(store, partition_folder("archive", source, partition))
    for low, high, _ in cover(files, start, end):
        if high - low >= _LARGEST * offsets:
            yield from range(low + offsets, high - offsets + 1, offsets)
        yield high
