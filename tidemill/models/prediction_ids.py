"""Prediction ids: UUIDs of version 7 (RFC 9562), unique everywhere, and sorted by time within a process."""

from __future__ import annotations

import os
import threading
import uuid

_lock = threading.Lock()
#: The last time part given out: 48 bits of milliseconds, and 12 bits of fractions of one.
_last = 0
#: The bits of an id that are drawn.
_RANDOM = (1 << 62) - 1


def prediction_ids(count: int, now: int) -> list[str]:
    """So many ids, each greater than all that this process gave out before; `now` is the wall clock, UTC microseconds.

    A clock that goes back makes no id smaller: they count on from the last.

    >>> first, second = prediction_ids(2, 1_700_000_000_000_000)
    >>> first < second, len(first), first[14]
    (True, 36, '7')
    """
    global _last  # noqa: PLW0603 - one order for the whole process
    with _lock:
        begin = max(now // 1000 << 12 | now % 1000 * 4096 // 1000, _last + 1)
        _last = begin + count - 1
    entropy = os.urandom(8 * count)
    return [_formatted(begin + i, int.from_bytes(entropy[8 * i : 8 * i + 8])) for i in range(count)]


def ids_from(first: str, count: int) -> list[str]:
    """So many ids that follow from the first: a request that is made twice makes the same predictions.

    Raises `ValueError` for what is no UUID.

    >>> ids_from("018bcfe5-6800-7000-8000-0000000000ff", 2)
    ['018bcfe5-6800-7000-8000-0000000000ff', '018bcfe5-6800-7000-8000-000000000100']
    """
    number = uuid.UUID(first).int
    return [str(uuid.UUID(int=number & ~_RANDOM | number + i & _RANDOM)) for i in range(count)]


def _formatted(time: int, entropy: int) -> str:
    text = f"{time >> 12:012x}7{time & 0xFFF:03x}{entropy & _RANDOM | 0x8000000000000000:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
