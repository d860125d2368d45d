"""What one task reads: a range of offsets of one archived partition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tidemill.blocks import HISTORY
from tidemill.offline.archive import cover, partition_folder, range_files
from tidemill.offline.history import Part
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


def parts_of_tasks(parts: Sequence[Part], start: int, end: int, events: int) -> list[Range]:
    """(HISTORY, start, end) of imported parts, cut into ranges of about so many events.

    >>> [(a, b) for _, a, b in parts_of_tasks([Part("a", 5), Part("b", 5), Part("c", 1)], 0, 3, 10)]
    [(0, 2), (2, 3)]
    """
    out: list[Range] = []
    at, held = start, 0
    for number in range(start, end):
        held += parts[number].rows
        if held >= events or number + 1 == end:
            out.append((HISTORY, at, number + 1))
            at, held = number + 1, 0
    return out
