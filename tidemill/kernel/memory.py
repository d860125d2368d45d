"""Memory that is used again, instead of being given back to the system and asked for anew."""

from __future__ import annotations

import numpy as np

#: The largest block that glibc takes for a hint: just below its DEFAULT_MMAP_THRESHOLD_MAX.
_LARGEST = (32 << 20) - 8192


def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MiB of freed memory for the next arrays. Call it once, where the same work is done again and again.

    glibc maps large blocks one by one, and gives freed memory back to the system, above thresholds that follow the largest block freed so
    far (mallopt(3), M_MMAP_THRESHOLD). NumPy's arrays of a few megabytes are then paged in anew for each request, which takes as long as
    the work on them. Freeing one large block, which is never touched, raises the thresholds for good. Elsewhere it does nothing.

    >>> keep_freed_memory()
    """
    np.empty(_LARGEST, dtype=np.uint8)
