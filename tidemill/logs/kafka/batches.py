"""Messages to a `RecordBatch`, in as few steps per message as can be: values one after the other, each ended by a newline, or a list."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np

from tidemill.logs.base import Int64s, RecordBatch
from tidemill.logs.records import RAW_KEPT, too_long

Broken = tuple[tuple[int, bytes, str], ...]

_BROKEN_LINE = "holds a line break, and is not JSON"


def record_batch(
    partition: int,
    start: int,
    end: int,
    offsets: Int64s,
    values: list[bytes | None],
    millis: Iterable[int],
    max_bytes: int,
    *,
    lines: bool = True,
) -> RecordBatch:
    r"""The messages of one partition, by offset, read while the position went from `start` to `end`.

    `millis`: their timestamps, as Kafka has them. A message without a value (a tombstone) is no record. A value of more than
    `max_bytes` is broken. Line breaks between the tokens of a JSON value become spaces; a value with any other line break is broken.
    Not `lines`: values are listed as they are.

    >>> batch = record_batch(0, 5, 9, np.array([5, 6, 8]), [b'{"a":\n1}', None, b"{}"], [1, 2, 3], 100)
    >>> batch.payload, batch.offsets.tolist(), batch.arrival.tolist()
    (b'{"a": 1}\n{}\n', [5, 8], [1000, 3000])
    """
    arrival = np.fromiter(millis, dtype=np.int64, count=len(values)) * 1000
    broken: Broken = ()
    if not lines:
        whole, kept, broken = _one_by_one(offsets, values, max_bytes, lines=False)
        return RecordBatch(partition, start, end, offsets[kept], whole, arrival=arrival[kept], broken=broken)
    try:
        payload = b"\n".join([*values, b""])  # type: ignore[list-item]  # a tombstone raises
    except TypeError:
        plain = False
    else:
        # One value that is too long makes the payload that long; a batch that is as long need not hold any.
        plain = payload.count(b"\n") == len(values) and (len(payload) <= max_bytes or max(map(len, values), default=0) <= max_bytes)  # type: ignore[arg-type]
    if not plain:
        whole, kept, broken = _one_by_one(offsets, values, max_bytes, lines=True)
        payload = b"\n".join([*whole, b""])
        offsets, arrival = offsets[kept], arrival[kept]
    return RecordBatch(partition, start, end, offsets, payload, arrival=arrival, broken=broken)


def _one_by_one(offsets: Int64s, values: list[bytes | None], max_bytes: int, *, lines: bool) -> tuple[list[bytes], Int64s, Broken]:
    """The values (as lines), the numbers of the messages that they are from, and the messages that are none."""
    whole: list[bytes] = []
    kept: list[int] = []
    broken: list[tuple[int, bytes, str]] = []
    for number, (offset, value) in enumerate(zip(offsets.tolist(), values, strict=True)):
        if value is None:
            continue
        if len(value) > max_bytes:
            broken.append((offset, value[:RAW_KEPT], too_long(max_bytes)))
        elif lines and b"\n" in value and not _is_json(value):
            broken.append((offset, value, _BROKEN_LINE))
        else:
            whole.append(value.replace(b"\n", b" ") if lines else value)
            kept.append(number)
    return whole, np.array(kept, dtype=np.int64), tuple(broken)


def _is_json(value: bytes) -> bool:
    """Whether every line break in it is between tokens: JSON allows none inside a string."""
    try:
        json.loads(value.decode())
    except (ValueError, RecursionError):
        return False
    return True
