"""Places in a log: blocks, segments, and the tags that tail tiles carry.

A block is a run of consecutive offsets, a pure function of the offset alone, so that any reader, replay or zombie labels an
event alike. Blocks grow with the log, from 1 Ki to 64 Ki offsets and never more than a sixty-fourth of what came before: a
young partition can be cut finely, a huge one pre-aggregates well.

A tag is one int64. Not negative: `partition << 44 | first offset of the block`. Negative: `-k`, the segment (or version) k.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import xxhash

Int64s = npt.NDArray[np.int64]

_SMALLEST, _LARGEST = 10, 16  # log2 of the block sizes
PARTITION_SHIFT = 44
OFFSET_MASK = (1 << PARTITION_SHIFT) - 1
#: Far fewer than a tag has room for: every published cell carries the vector of its cut, 8 bytes for each partition up to the highest.
MAX_PARTITION = (1 << 12) - 1
#: The partition under which a slot keeps how much of the imported history it holds, in `STEPS`; see `tidemill.imported`. Never in a vector.
HISTORY = MAX_PARTITION + 1
#: Steps for the imports of each segment: `HISTORY_STEPS * k` means that those of segments 1 to k are there. An entity has one of the steps.
HISTORY_STEPS = 64
_STEP_SEED = 1
#: Where the block size doubles.
_STEPS = np.array([1 << (bits + 6) for bits in range(_SMALLEST + 1, _LARGEST + 1)], dtype=np.int64)


def block_start(offset: int) -> int:
    """The first offset of the block that `offset` lies in. Also the largest cut that is not beyond `offset`.

    >>> block_start(1023), block_start(1024), block_start(10_000_000) % 65536
    (0, 1024, 0)
    """
    bits = min(max(offset.bit_length() - 7, _SMALLEST), _LARGEST)
    return offset >> bits << bits


def block_starts(offsets: Int64s) -> Int64s:
    """`block_start` of many offsets at once.

    >>> offsets = np.array([0, 1023, 1024, 131071, 131072, 133119, 133120, 10_000_000])
    >>> bool((block_starts(offsets) == [block_start(int(o)) for o in offsets]).all())
    True
    """
    bits = np.searchsorted(_STEPS, offsets, side="right") + _SMALLEST
    return offsets >> bits << bits


def block_tags(partition: int, offsets: Int64s) -> Int64s:
    """The tags of events at these offsets of a partition."""
    return block_starts(offsets) | (partition << PARTITION_SHIFT)


def segment_tag(k: int) -> int:
    """The tag of tiles that are known to lie in segment `k` >= 1."""
    return -k


def vector_of(positions: Mapping[int, int]) -> Int64s:
    """A vector over partitions as a dense array; absent means 0.

    >>> vector_of({2: 5}).tolist()
    [0, 0, 5]
    """
    out = np.zeros(max(positions, default=-1) + 1, dtype=np.int64)
    for partition, offset in positions.items():
        out[partition] = offset
    return out


def relabel(tags: Int64s, cuts: Mapping[int, Int64s]) -> Int64s:
    """Block tags that a cut covers become the tag of their segment, for ever; others stay.

    `cuts` maps every k from 1 on to its vector. Cuts never decrease, so the first that covers a block is its segment.

    >>> relabel(np.array([0, 1024, 2048]), {1: np.array([1024]), 2: np.array([2048])}).tolist()
    [-1, -2, 2048]
    """
    distinct, index = np.unique(tags, return_inverse=True)  # few: records share blocks, and there may be thousands of cuts
    labels: Int64s = np.array([_label(tag, cuts) for tag in distinct.tolist()], dtype=np.int64)[index]
    return labels


def step_of(entity: str) -> int:
    """The step, 0 to `HISTORY_STEPS` - 1, in which an entity gets its part of an import. Stays the same for ever, as shards do.

    >>> step_of("JFK")
    30
    """
    return xxhash.xxh3_64_intdigest(entity.encode(), seed=_STEP_SEED) % HISTORY_STEPS


def known_imports(position: int, entity: str, published: int) -> int:
    """The k up to which the imports of all segments are in an entity's values: by its slot's position under `HISTORY`, and its version.

    >>> [known_imports(HISTORY_STEPS * 2 + steps, "JFK", 0) for steps in (0, 30, 31, 63)]
    [2, 2, 3, 3]
    """
    done, steps = divmod(position, HISTORY_STEPS)
    return max(done + (step_of(entity) < steps), published)


def _label(tag: int, cuts: Mapping[int, Int64s]) -> int:
    if tag < 0:
        return tag
    partition, start = tag >> PARTITION_SHIFT, tag & OFFSET_MASK

    def covered(k: int) -> bool:
        return partition < len(cuts[k]) and start < cuts[k][partition]

    k = bisect_left(range(1, len(cuts) + 1), True, key=covered) + 1
    return segment_tag(k) if k <= len(cuts) else tag
