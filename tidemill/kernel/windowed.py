"""Records to the state of each window, compiled: what a live request computes.

All functions take the records of n entities in one table, one entity after the other, each entity's published records before those of its
tail: `ends` (2n,) says where either ends. What was published is told by three arrays: `version` (n,), at which version each entity stands,
and per version its `k`, and its `cut`, one row of offsets per version. `edges` are the windows' old edges, ascending, so that windows are
numbered from the longest: window `i` is `[edges[i], t)`. A tile counts by its start alone, since its width is such that no served window
cuts it; and one that lies in a window lies in all longer ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tidemill.blocks import OFFSET_MASK, PARTITION_SHIFT
from tidemill.kernel.compiled import compiled
from tidemill.kernel.table import Bools, Int64s
from tidemill.kernel.tiles import RUNG_BITS

Array = Any
#: The minimum of nothing.
NOTHING = np.iinfo(np.int64).max


@compiled
def _window(start: int, edges: Array, t: int) -> int:
    """The narrowest window that a tile lies in, -1 for none."""
    if start >= t:
        return -1
    window = len(edges) - 1
    while window >= 0 and edges[window] > start:
        window -= 1
    return window


def counted(tags: Int64s, k: int, vector: Int64s) -> Bools:
    """Which tiles of a tail lie outside what is published, shape (n,): version `k` (0: nothing is), with an offset per partition.

    >>> counted(np.array([-1, -2, 0, 1024]), 1, np.array([1024])).tolist()
    [False, True, False, True]
    """
    held = np.empty(len(tags), dtype=np.bool_)
    _all_held(tags, k, vector, held)
    return ~held


@compiled
def _all_held(tags: Array, k: int, cut: Array, out: Array) -> None:
    for i in range(len(tags)):
        out[i] = _held(tags[i], k, cut)


@compiled
def _held(tag: int, k: int, cut: Array) -> bool:
    """Whether a published value holds a tile: by the segment that a negative tag names, or by its partition and the start of its block."""
    if k == 0:
        return False
    if tag < 0:
        return -tag <= k
    partition = tag >> PARTITION_SHIFT
    return partition < len(cut) and (tag & OFFSET_MASK) < cut[partition]


@compiled
def narrowest(span: Array, tag: Array, ends: Array, version: Array, k: Array, cut: Array, edges: Array, t: int, out: Array) -> None:
    """Per record the narrowest window that it counts in; -1 for none."""
    at = 0
    for part in range(len(ends)):
        v = version[part >> 1]
        for i in range(at, ends[part]):
            out[i] = -1 if part & 1 and _held(tag[i], k[v], cut[v]) else _window(span[i] >> RUNG_BITS, edges, t)
        at = ends[part]


@compiled
def sums(words: Array, ends: Array, version: Array, k: Array, cut: Array, edges: Array, t: int, adds: int, out: Array) -> None:
    """Per entity and window the words of all records inside: `words` is (records, 2 + n), `out` (entities, windows, n).

    Before them come a record's span and tag. The first `adds` add up, of nothing to 0; the others take the minimum, of nothing NOTHING.
    """
    windows, width = out.shape[1], out.shape[2]
    at = 0
    for part in range(len(ends)):
        e, tail = part >> 1, part & 1
        v, inside = version[e], out[e]
        if not tail:
            inside[:, :adds] = 0
            inside[:, adds:] = NOTHING
        for i in range(at, ends[part]):
            w = _window(words[i, 0] >> RUNG_BITS, edges, t)
            if w < 0 or (tail and _held(words[i, 1], k[v], cut[v])):
                continue
            for j in range(adds):
                inside[w, j] += words[i, 2 + j]
            for j in range(adds, width):
                inside[w, j] = min(inside[w, j], words[i, 2 + j])
        at = ends[part]
        if tail:
            for w in range(windows - 2, -1, -1):
                for j in range(adds):
                    inside[w, j] += inside[w + 1, j]
                for j in range(adds, width):
                    inside[w, j] = min(inside[w, j], inside[w + 1, j])


@compiled
def histograms(words: Array, ends: Array, version: Array, k: Array, cut: Array, edges: Array, t: int, bits: int) -> Any:
    """The buckets of each entity, ascending, and how often each was counted per window.

    `words` is (records, 3): behind span and tag, `bucket << bits | count`. What is returned: where each entity's buckets begin and end,
    (entities,) each; the buckets; and (windows, buckets) counts, none above 2**bits - 1, which stands for everything that is larger. Where
    an entity's buckets lie close, all between them are listed too.
    """
    entities, windows = len(ends) // 2, len(edges)
    window = np.empty(len(words), dtype=np.int64)
    narrowest(words[:, 0], words[:, 1], ends, version, k, cut, edges, t, window)
    begin, end = np.empty(entities, dtype=np.int64), np.empty(entities, dtype=np.int64)
    lowest, dense = np.empty(entities, dtype=np.int64), np.empty(entities, dtype=np.bool_)
    first = room = 0
    for e in range(entities):
        last = ends[2 * e + 1]
        n, low, high = 0, 1 << 62, -(1 << 62)
        for i in range(first, last):
            if window[i] >= 0:
                bucket = words[i, 2] >> bits
                low, high = min(low, bucket), max(high, bucket)
                n += 1
        first = last
        if n == 0:
            low, high = 0, -1
        lowest[e], dense[e], begin[e] = low, high - low < 4 * n, room  # a few empty ones cost less than sorting
        room += high - low + 1 if dense[e] else n
        end[e] = room
    buckets, counts = np.empty(room, dtype=np.int64), np.zeros((windows, room), dtype=np.int64)
    first = 0
    for e in range(entities):
        a, last = begin[e], ends[2 * e + 1]
        if dense[e]:
            for j in range(a, end[e]):
                buckets[j] = lowest[e] + j - a
        else:
            j = a
            for i in range(first, last):
                if window[i] >= 0:
                    buckets[j] = words[i, 2] >> bits
                    j += 1
            end[e] = a + _distinct(buckets[a:j])
        _tallied(words[first:last, 2], window[first:last], buckets[a : end[e]], dense[e], bits, counts[:, a : end[e]])
        first = last
    return begin, end, buckets, counts


@compiled
def _distinct(values: Array) -> int:
    """Bring the distinct values to the front, ascending; how many they are. By a heap: NumPy's sort takes seconds to compile."""
    n = len(values)
    for root in range(n // 2 - 1, -1, -1):
        _sink(values, root, n)
    for last in range(n - 1, 0, -1):
        values[0], values[last] = values[last], values[0]
        _sink(values, 0, last)
    kept = 0
    for i in range(n):
        if kept == 0 or values[i] != values[kept - 1]:
            values[kept] = values[i]
            kept += 1
    return kept


@compiled
def _sink(heap: Array, node: int, size: int) -> None:
    """Let a node sink to where it is no smaller than those below it."""
    while 2 * node + 1 < size:
        child = 2 * node + 1
        if child + 1 < size and heap[child] < heap[child + 1]:
            child += 1
        if heap[node] >= heap[child]:
            break
        heap[node], heap[child] = heap[child], heap[node]
        node = child


@compiled
def _tallied(packed: Array, window: Array, buckets: Array, dense: bool, bits: int, counts: Array) -> None:
    """One entity's part of `histograms`: its counts, (windows, buckets)."""
    full = (1 << bits) - 1
    for i in range(len(packed)):
        w = window[i]
        if w >= 0:
            bucket = packed[i] >> bits
            j = bucket - buckets[0]
            if not dense:
                j, above = 0, len(buckets)
                while j < above:
                    middle = (j + above) >> 1
                    if buckets[middle] < bucket:
                        j = middle + 1
                    else:
                        above = middle
            counts[w, j] = min(counts[w, j] + (packed[i] & full), full)
    for w in range(len(counts) - 2, -1, -1):
        for j in range(len(buckets)):
            counts[w, j] = min(counts[w, j] + counts[w + 1, j], full)


@compiled
def of_rank(
    begin: Array, end: Array, buckets: Array, counts: Array, part: int, whole: int, bits: int, shift: int, out: Array, n: Array
) -> Any:
    """The middle of the bucket of rank floor(part / whole * (n - 1)), and n: how many values there are, -1 where a count is full.

    `begin`, `end`, `buckets` and `counts` are from `histograms`; `out`, the bits of floats, and `n` are (windows, entities). What is
    returned is the lowest n, if that is 0 or -1, else 1.
    """
    most, lowest = (1 << bits) - 1, 1
    for w in range(len(counts)):
        for e in range(len(begin)):
            own = counts[w, begin[e] : end[e]]
            total = largest = 0
            for j in range(len(own)):
                total += own[j]
                largest = max(largest, own[j])
            if total == 0 or largest == most:
                out[w, e], n[w, e] = 0, -1 if total else 0
                lowest = min(lowest, n[w, e])
                continue
            rank = (total - 1) // whole * part + (total - 1) % whole * part // whole
            j, below = 0, own[0]
            while below <= rank:
                j += 1
                below += own[j]
            out[w, e], n[w, e] = _middle(buckets[begin[e] + j], shift), total
    return lowest


@compiled
def _middle(bucket: int, shift: int) -> Any:
    """The bits of the float that stands for a bucket: the middle of those that agree with it but for `shift` bits. Mirrored below 0."""
    if bucket == 0:
        return 0
    middle = (abs(bucket) << shift) | (1 << (shift - 1))
    return middle if bucket > 0 else middle | np.int64(-(2**63))


@compiled
def middles(buckets: Array, shift: int, out: Array) -> None:
    """`_middle` of many, (n,) each."""
    for i in range(len(buckets)):
        out[i] = _middle(buckets[i], shift)


@compiled
def registers(chunk: Array, ranks: Array, window: Array, ends: Array, registers: int, out: Array) -> None:
    """Per entity and window, how many of the `registers` hold each rank: `out` is (entities, windows, ranks), zero at first.

    A record has the ranks of neighbouring registers, (records, lanes), the `chunk`-th of them all; `window` as from `narrowest`.
    """
    windows, lanes = out.shape[1], ranks.shape[1]
    highest = np.empty((windows, registers), dtype=np.uint8)
    at = 0
    for e in range(len(ends) // 2):
        highest[:] = 0
        for i in range(at, ends[2 * e + 1]):
            w, first = window[i], chunk[i] * lanes
            if w < 0:
                continue
            if first < 0 or first + lanes > registers:
                raise ValueError("a record of registers that do not exist")
            for j in range(lanes):
                highest[w, first + j] = max(highest[w, first + j], ranks[i, j])
        at = ends[2 * e + 1]
        for w in range(windows - 1, -1, -1):
            for j in range(registers):
                if w + 1 < windows:
                    highest[w, j] = max(highest[w, j], highest[w + 1, j])
                out[e, w, min(highest[w, j], out.shape[2] - 1)] += 1
