"""The horizon that applied events allow: no read is served before it, so tiles that only earlier reads would need may widen."""

from __future__ import annotations

import polars as pl

from tidemill.times import BEGINNING


def horizon_of(latest: int, arrived: int, slack: int) -> int:
    """The smaller of the largest event time and the largest arrival time (where the log has any), less the slack. UTC microseconds.

    Never a worker's clock: a clock that jumps ahead would refuse every read, and one event far in the future must not.

    >>> horizon_of(100, 90, 10), horizon_of(100, BEGINNING, 10), horizon_of(BEGINNING, BEGINNING, 10) == BEGINNING
    (80, 90, True)
    """
    known = latest if arrived == BEGINNING else min(latest, arrived)
    return max(known - slack, BEGINNING)


def latest_of(times: pl.Series) -> int:
    """The largest of some times, Int64 UTC microseconds; BEGINNING where there is none, as where no event has an arrival time.

    >>> latest_of(pl.Series([3, None, 5])), latest_of(pl.Series([None], dtype=pl.Int64)) == BEGINNING
    (5, True)
    """
    found = times.max()
    return found if isinstance(found, int) else BEGINNING
