"""Instants, durations, rungs and windows. Everything inside is UTC microseconds since 1970, as int.

A window `W` at the instant `t` covers `floor(t - W, hop(W)) <= event_time < t`. `window_start` is the only place in the
project that computes that old edge, and `in_window` the only comparison.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tidemill.errors import DefinitionError

MICROSECOND = 1
MILLISECOND = 1_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

#: The allowed tile widths, narrowest first; each divides the next, and all are aligned to the epoch.
RUNGS: tuple[int, ...] = (MICROSECOND, SECOND, 10 * SECOND, MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, DAY)

#: Before every event: the old edge of a `lifetime` window, and the start of the unbounded lifetime tile.
BEGINNING = -(2**58)
#: After every event.
END = 2**58

#: Event times must lie in [MIN_TIME, MAX_TIME): the years 1 to 9999, which every engine at the edges can show.
MIN_TIME = -62_135_596_800 * SECOND
MAX_TIME = 253_402_300_800 * SECOND

_UNITS = {"us": MICROSECOND, "ms": MILLISECOND, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_DURATION = re.compile(r"(\d+)(us|ms|s|m|h|d|w)")

IntOrArray = TypeVar("IntOrArray", int, npt.NDArray[np.int64])


def parse_duration(text: str | dt.timedelta) -> int:
    """A duration such as `"90s"`, `"1h"`, `"1d12h"`, or a timedelta, in microseconds.

    Units: us, ms, s, m (minutes), h, d, w. Raises `DefinitionError`.

    >>> parse_duration("1h") == 60 * parse_duration("1m") == 3_600_000_000
    True
    >>> parse_duration("1d12h") // HOUR
    36
    """
    if isinstance(text, dt.timedelta):
        return text // dt.timedelta(microseconds=1)
    parts = _DURATION.findall(text) if isinstance(text, str) else []
    if not parts or "".join(n + u for n, u in parts) != text:
        raise DefinitionError(f"{text!r} is not a duration: write a number and a unit (us, ms, s, m, h, d, w), such as '30m' or '1d12h'")
    return sum(int(n) * _UNITS[u] for n, u in parts)


def format_duration(micros: int) -> str:
    """The shortest text that `parse_duration` reads back.

    >>> format_duration(90 * SECOND), format_duration(36 * HOUR), format_duration(7 * DAY), format_duration(0)
    ('90s', '36h', '7d', '0s')
    """
    if micros == 0:
        return "0s"
    unit = next(u for u in ("d", "h", "m", "s", "ms", "us") if micros % _UNITS[u] == 0)
    return f"{micros // _UNITS[unit]}{unit}"


def floor_to(t: IntOrArray, width: int) -> IntOrArray:
    """The largest multiple of `width` that is <= t, also before 1970.

    >>> floor_to(-1, 10), floor_to(19, 10)
    (-10, 10)
    """
    return t // width * width


def default_hop(length: int) -> int:
    """The widest rung that is at most a 24th of the window, at least one second.

    >>> [format_duration(default_hop(parse_duration(w))) for w in ("1m", "1h", "1d", "7d", "30d")]
    ['1s', '1m', '1h', '6h', '1d']
    """
    return max(r for r in RUNGS if r <= max(length // 24, SECOND))


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A look-back length and the hop in which its old edge moves; `length` None is `lifetime`. Microseconds.

    >>> Window.parse("1h")
    Window(length=3600000000, hop=60000000)
    >>> Window.parse("lifetime").name
    'lifetime'
    """

    length: int | None
    hop: int

    @classmethod
    def parse(cls, text: str | dt.timedelta, hop: str | dt.timedelta | None = None) -> Window:
        """`"30d"`, a timedelta, or `"lifetime"`. `hop` may only be a rung, and not wider than the default."""
        if text == "lifetime":
            return cls(None, RUNGS[-1])
        length = parse_duration(text)
        if length <= 0 or length % SECOND:
            raise DefinitionError(f"window {text!r}: no rung divides it; a window is a positive multiple of 1s")
        widest = default_hop(length)
        chosen = widest if hop is None else parse_duration(hop)
        if chosen not in RUNGS or chosen > widest:
            names = ", ".join(format_duration(r) for r in RUNGS if r <= widest)
            raise DefinitionError(f"hop {hop!r} of window {text!r}: choose one of {names}")
        return cls(length, chosen)

    @property
    def name(self) -> str:
        return "lifetime" if self.length is None else format_duration(self.length)


def window_start(t: IntOrArray, window: Window) -> IntOrArray:
    """The old edge of `window` at the instant `t` (UTC microseconds): inclusive, and floored to the hop.

    >>> window_start(10 * HOUR + 90 * SECOND, Window.parse("1h")) == 9 * HOUR + MINUTE
    True
    """
    if window.length is None:
        return t * 0 + BEGINNING
    return floor_to(t - window.length, window.hop)


def to_micros(value: dt.datetime | int | str | np.datetime64) -> int:
    """An instant as UTC microseconds. A naive datetime or text is read as UTC; an int is microseconds already.

    >>> to_micros("1970-01-01T00:00:01"), to_micros("1970-01-01T01:00:01+01:00"), to_micros(dt.datetime(1970, 1, 2))
    (1000000, 1000000, 86400000000)
    """
    if isinstance(value, bool):
        raise TypeError("an instant is a datetime, an ISO 8601 text or UTC microseconds, not a bool")
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, np.datetime64):
        return int(value.astype("datetime64[us]").astype(np.int64))
    moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, dt.datetime):
        raise TypeError(f"an instant is a datetime, an ISO 8601 text or UTC microseconds, not {type(value).__name__}")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - _EPOCH) // dt.timedelta(microseconds=1)


def from_micros(micros: int) -> dt.datetime:
    """The aware UTC datetime of an instant.

    >>> from_micros(0).isoformat()
    '1970-01-01T00:00:00+00:00'
    """
    return _EPOCH + dt.timedelta(microseconds=micros)


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
