"""Tiles: where they may lie, and how wide they may be, given that no read comes before the horizon.

A tile `[start, start+width)` is named by one int64, its span: `start << 4 | rung`. Spans sort by start. The lifetime tile, which
begins before everything, is `LIFETIME`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from tidemill.times import BEGINNING, RUNGS, Window, window_start

Int64s = npt.NDArray[np.int64]

RUNG_BITS = 4
_RUNG_MASK = (1 << RUNG_BITS) - 1
_LIFETIME_RUNG = _RUNG_MASK
_WIDTHS = np.array(RUNGS, dtype=np.int64)

#: The one unbounded tile, older than every window's edge.
LIFETIME = BEGINNING << RUNG_BITS | _LIFETIME_RUNG


def span_of(start: int, rung: int) -> int:
    """The span of a tile.

    >>> span_of(60_000_000, 3) >> RUNG_BITS
    60000000
    """
    return start << RUNG_BITS | rung


def span_starts(spans: Int64s) -> Int64s:
    """The first instant of each tile, UTC microseconds."""
    return spans >> RUNG_BITS


def span_widths(spans: Int64s) -> Int64s:
    """The width of each tile in microseconds; 0 for the lifetime tile."""
    rungs = spans & _RUNG_MASK
    return np.where(rungs == _LIFETIME_RUNG, 0, _WIDTHS[np.minimum(rungs, len(RUNGS) - 1)])


class Ladder:
    """Which rung a tile may take, for a set of windows. Pure: the horizon is an argument.

    A tile `[s, s+q)` may be widened to rung `r` if every window whose hop is below `r` (so that its old edge can fall inside the wider
    tile) has it wholly below its floored old edge, for every read at `t >= horizon`: `s+q <= floor(horizon - W, hop)`. The
    head counts as a window of length 0 and hop 1 us, so tiles are instants until the horizon has passed them. Because rungs
    divide one another, the limits fall as rungs widen, and the widest allowed rung is one binary search.
    """

    def __init__(self, windows: Iterable[Window]) -> None:
        distinct = set(windows)
        self.windows = sorted((w for w in distinct if w.length is not None), key=lambda w: (w.length or 0, w.hop))
        self.lifetime = any(w.length is None for w in distinct)
        head = Window(0, RUNGS[0])
        self._edges = [*self.windows, head]

    def limits(self, horizon: int) -> Int64s:
        """Per rung, the latest tile end that it may swallow; falling, shape (rungs,)."""
        out = []
        for rung in RUNGS:
            finer = [w for w in self._edges if w.hop < rung]
            out.append(min((window_start(horizon, w) for w in finer), default=2**62))
        return np.array(out, dtype=np.int64)

    def expired(self, horizon: int) -> int:
        """Tiles that end here or before are below every window's floored old edge: dropped, or part of the lifetime tile."""
        return min((window_start(horizon, w) for w in self.windows), default=window_start(horizon, Window(0, RUNGS[0])))

    def place(self, times: Int64s, horizon: int) -> Int64s:
        """The spans that events at these instants go to. Events that every window has passed go to `LIFETIME` (see `keep`).

        >>> from tidemill.times import HOUR, MINUTE
        >>> ladder = Ladder([Window.parse("1h"), Window.parse("1d")])
        >>> horizon = 100 * HOUR
        >>> [int(w) // MINUTE for w in span_widths(ladder.place(np.array([0, 60 * HOUR, 80 * HOUR, 99 * HOUR + 1]), horizon))]
        [0, 0, 60, 1]
        """
        return self._widen(times, times + 1, np.zeros(len(times), dtype=np.int64), horizon)

    def widen(self, spans: Int64s, horizon: int) -> Int64s:
        """The spans that these tiles may take now; never narrower than they are."""
        starts, rungs = spans >> RUNG_BITS, spans & _RUNG_MASK
        lifetime = rungs == _LIFETIME_RUNG
        rungs = np.where(lifetime, 0, rungs)
        return np.where(lifetime, spans, self._widen(starts, starts + _WIDTHS[rungs], rungs, horizon))

    def keep(self, spans: Int64s) -> npt.NDArray[np.bool_] | None:
        """Which tiles are still reached by a window; None if all are."""
        if self.lifetime:
            return None
        kept: npt.NDArray[np.bool_] = spans != LIFETIME
        return None if kept.all() else kept

    def _widen(self, starts: Int64s, ends: Int64s, rungs: Int64s, horizon: int) -> Int64s:
        # Rung 0 has no limit, and the rest fall: the widest allowed is the count of limits that are not below the tile's end.
        limits = self.limits(horizon)[1:]
        widest = np.searchsorted(-limits, -ends, side="right")
        rungs = np.maximum(widest, rungs)
        widths = _WIDTHS[rungs]
        spans = (starts // widths * widths) << RUNG_BITS | rungs
        return np.where(ends <= self.expired(horizon), LIFETIME, spans)

    def most_tiles(self) -> int:
        """An upper bound of the tiles that one entity can have behind the head: what `plan` prints.

        >>> Ladder([Window.parse("1h"), Window.parse("1d")]).most_tiles()
        85
        """
        total, newest = 0, 0
        for window in self.windows:  # shortest first: each stretch of age holds tiles of the finest hop still needed there
            length = window.length or 0
            hop = min(w.hop for w in self.windows if (w.length or 0) >= length)
            total += -(-max(length - newest, 0) // hop) + 1
            newest = max(newest, length)
        return total + int(self.lifetime)
