"""Windows that move over an entity's events: the state of every window at many instants, in one pass per entity.

A training set asks for one entity at many instants. Deriving each answer by itself would look at the same events again and again, so
here the instants are visited in order, and each window gains the events that became visible and loses those that its old edge
passed. An event is seen at `t` if `visible <= t`, whenever that is: events may become visible in another order than they happened.

All functions take *runs*: run `e` has the events `begin[e]:end[e]` of one entity, which ascend in time, and the rows `row[e]:row[e+1]`,
which ascend in `t`. `edges` is (rows, windows), the old edge of each window at each row. Compiled by Numba, one core each, without the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tidemill.kernel.compiled import compiled_for_threads as _compiled
from tidemill.kernel.table import Int64s

Array = Any
#: The minimum of nothing.
NOTHING = np.iinfo(np.int64).max


def grouped(entity: Int64s, at: Int64s, entities: int) -> Int64s:
    """The order that sorts by entity (numbers below `entities`), then by `at`. Fast where each entity's are in order already.

    >>> grouped(np.array([1, 0, 1, 0]), np.array([5, 7, 4, 8]), 2).tolist()
    [1, 3, 2, 0]
    """
    order = np.empty(len(entity), dtype=np.int64)
    _grouped(entity, at, np.zeros(entities + 1, dtype=np.int64), order)
    return order


@_compiled
def _grouped(entity: Array, at: Array, ends: Array, order: Array) -> None:
    for e in entity:
        ends[e + 1] += 1
    for e in range(len(ends) - 1):
        ends[e + 1] += ends[e]
    place = ends.copy()
    for i in range(len(entity)):
        order[place[entity[i]]] = i
        place[entity[i]] += 1
    for e in range(len(ends) - 1):
        for i in range(ends[e] + 1, ends[e + 1]):
            if at[order[i - 1]] > at[order[i]]:
                run = order[ends[e] : ends[e + 1]].copy()
                order[ends[e] : ends[e + 1]] = run[np.argsort(at[run], kind="mergesort")]
                break


@_compiled
def sums(begin: Array, end: Array, row: Array, time: Array, visible: Array, words: Array, t: Array, edges: Array, out: Array) -> None:
    """Per row and window, the sum of the `words` (events, n) of the events inside: `out` is (rows, windows, n), zero at first."""
    windows, width = edges.shape[1], words.shape[1]
    running = np.zeros((windows, width), dtype=np.int64)
    low = np.zeros(windows, dtype=np.int64)
    for e in range(len(begin)):
        a, b = begin[e], end[e]
        if a == b or row[e] == row[e + 1]:
            continue
        order = np.argsort(visible[a:b], kind="mergesort")
        seen = np.zeros(b - a, dtype=np.bool_)
        running[:] = 0
        low[:] = 0
        at = 0
        for r in range(row[e], row[e + 1]):
            for w in range(windows):
                i, edge = low[w], edges[r, w]
                while i < b - a and time[a + i] < edge:
                    if seen[i]:
                        for k in range(width):
                            running[w, k] -= words[a + i, k]
                    i += 1
                low[w] = i
            while at < b - a and visible[a + order[at]] <= t[r]:
                i = order[at]
                seen[i] = True
                for w in range(windows):
                    if i >= low[w]:
                        for k in range(width):
                            running[w, k] += words[a + i, k]
                at += 1
            for w in range(windows):
                for k in range(width):
                    out[r, w, k] = running[w, k]


@_compiled
def minima(begin: Array, end: Array, row: Array, time: Array, visible: Array, words: Array, t: Array, edges: Array, out: Array) -> None:
    """The same with the minimum of each word, NOTHING of nothing. A tree over the events of one entity holds the minima of runs."""
    windows, width = edges.shape[1], words.shape[1]
    for e in range(len(begin)):
        a, b = begin[e], end[e]
        if row[e] == row[e + 1]:
            continue
        n = b - a
        tree = np.full((2 * max(n, 1), width), NOTHING, dtype=np.int64)
        order = np.argsort(visible[a:b], kind="mergesort")
        low = np.zeros(windows, dtype=np.int64)
        at = 0
        for r in range(row[e], row[e + 1]):
            while at < n and visible[a + order[at]] <= t[r]:
                i = order[at]
                for k in range(width):
                    node, word = i + n, words[a + i, k]
                    while node >= 1 and word < tree[node, k]:
                        tree[node, k] = word
                        node >>= 1
                at += 1
            for w in range(windows):
                i, edge = low[w], edges[r, w]
                while i < n and time[a + i] < edge:
                    i += 1
                low[w] = i
                for k in range(width):
                    out[r, w, k] = NOTHING
                left, right = i + n, 2 * n
                while left < right:
                    if left & 1:
                        for k in range(width):
                            out[r, w, k] = min(out[r, w, k], tree[left, k])
                        left += 1
                    if right & 1:
                        right -= 1
                        for k in range(width):
                            out[r, w, k] = min(out[r, w, k], tree[right, k])
                    left >>= 1
                    right >>= 1


@_compiled
def ranked(
    begin: Array,
    end: Array,
    row: Array,
    time: Array,
    visible: Array,
    value: Array,
    t: Array,
    edges: Array,
    part: int,
    whole: int,
    out: Array,
    n_out: Array,
) -> None:
    """Per row and window, the value of rank `(n - 1) * part // whole` among the n inside, and n: `out`, `n_out` are (rows, windows).

    Each window counts its values in a Fenwick tree over the different values of the entity.
    """
    windows = edges.shape[1]
    low = np.zeros(windows, dtype=np.int64)
    count = np.zeros(windows, dtype=np.int64)
    for e in range(len(begin)):
        a, b = begin[e], end[e]
        if row[e] == row[e + 1]:
            continue
        n = b - a
        values = np.unique(value[a:b])
        place = np.searchsorted(values, value[a:b])
        size = len(values)
        top = 1
        while 2 * top <= size:
            top *= 2
        tree = np.zeros((windows, size + 1), dtype=np.int64)
        order = np.argsort(visible[a:b], kind="mergesort")
        seen = np.zeros(n, dtype=np.bool_)
        low[:] = 0
        count[:] = 0
        at = 0
        for r in range(row[e], row[e + 1]):
            for w in range(windows):
                i, edge = low[w], edges[r, w]
                while i < n and time[a + i] < edge:
                    if seen[i]:
                        count[w] -= 1
                        node = place[i] + 1
                        while node <= size:
                            tree[w, node] -= 1
                            node += node & -node
                    i += 1
                low[w] = i
            while at < n and visible[a + order[at]] <= t[r]:
                i = order[at]
                seen[i] = True
                for w in range(windows):
                    if i >= low[w]:
                        count[w] += 1
                        node = place[i] + 1
                        while node <= size:
                            tree[w, node] += 1
                            node += node & -node
                at += 1
            for w in range(windows):
                n_out[r, w] = count[w]
                if count[w] == 0:
                    continue
                left = (count[w] - 1) * part // whole
                node, step = 0, top
                while step:
                    if node + step <= size and tree[w, node + step] <= left:
                        node += step
                        left -= tree[w, node]
                    step >>= 1
                out[r, w] = values[node]


@_compiled
def outermost(
    begin: Array,
    end: Array,
    row: Array,
    time: Array,
    visible: Array,
    t: Array,
    edges: Array,
    last: bool,
    most: int,
    out: Array,
    n_out: Array,
) -> None:
    """Per row and window, the first or last `most` events, from the outside inwards: `out` (rows, windows, most), `n_out` how many."""
    windows = edges.shape[1]
    low = np.zeros(windows, dtype=np.int64)
    for e in range(len(begin)):
        a, b = begin[e], end[e]
        if row[e] == row[e + 1]:
            continue
        n = b - a
        order = np.argsort(visible[a:b], kind="mergesort")
        seen = np.zeros(n, dtype=np.bool_)
        low[:] = 0
        at, top = 0, -1
        for r in range(row[e], row[e + 1]):
            while at < n and visible[a + order[at]] <= t[r]:
                i = order[at]
                seen[i] = True
                top = max(top, i)
                at += 1
            for w in range(windows):
                i, edge = low[w], edges[r, w]
                while i < n and time[a + i] < edge:
                    i += 1
                low[w] = i
                found = 0
                if last:
                    i = top
                    while i >= low[w] and found < most:
                        if seen[i]:
                            out[r, w, found] = a + i
                            found += 1
                        i -= 1
                else:
                    while i <= top and found < most:
                        if seen[i]:
                            out[r, w, found] = a + i
                            found += 1
                        i += 1
                n_out[r, w] = found


@_compiled
def registers(
    begin: Array,
    end: Array,
    row: Array,
    time: Array,
    visible: Array,
    register: Array,
    rank: Array,
    size: int,
    t: Array,
    edges: Array,
    out: Array,
) -> None:
    """Per row and window, how many of `size` registers hold each rank 1, 2, ... at most: `out` is (rows, windows, ranks).

    A register counts its events by rank, and a word of bits says which ranks there are, so that an event can leave again.
    """
    windows, ranks = edges.shape[1], out.shape[2]
    counts = np.zeros((windows, size, ranks), dtype=np.int32)
    held = np.zeros((windows, size), dtype=np.uint64)
    histogram = np.zeros((windows, ranks), dtype=np.int64)
    low = np.zeros(windows, dtype=np.int64)
    one = np.uint64(1)
    for e in range(len(begin)):
        a, b = begin[e], end[e]
        if row[e] == row[e + 1]:
            continue
        n = b - a
        order = np.argsort(visible[a:b], kind="mergesort")
        seen = np.zeros(n, dtype=np.bool_)
        low[:] = 0
        at = 0
        for r in range(row[e], row[e + 1] + 1):
            over = r == row[e + 1]  # then everything leaves, for the next entity
            for w in range(windows):
                i = low[w]
                while i < n and (over or time[a + i] < edges[r, w]):
                    if seen[i]:
                        g, k = register[a + i], rank[a + i]
                        counts[w, g, k] -= 1
                        if counts[w, g, k] == 0:
                            histogram[w, _highest(held[w, g])] -= 1
                            held[w, g] ^= one << np.uint64(k)
                            if held[w, g]:
                                histogram[w, _highest(held[w, g])] += 1
                    i += 1
                low[w] = i
            if over:
                break
            while at < n and visible[a + order[at]] <= t[r]:
                i = order[at]
                seen[i] = True
                g, k = register[a + i], rank[a + i]
                for w in range(windows):
                    if i >= low[w]:
                        counts[w, g, k] += 1
                        if counts[w, g, k] == 1:
                            if held[w, g]:
                                histogram[w, _highest(held[w, g])] -= 1
                            held[w, g] |= one << np.uint64(k)
                            histogram[w, _highest(held[w, g])] += 1
                at += 1
            for w in range(windows):
                for k in range(ranks):
                    out[r, w, k] = histogram[w, k]


@_compiled
def _highest(bits: Any) -> int:
    """The position of the highest bit of a word that is not 0."""
    at, step = 0, 32
    while step:
        if bits >> np.uint64(step):
            bits >>= np.uint64(step)
            at += step
        step >>= 1
    return at
