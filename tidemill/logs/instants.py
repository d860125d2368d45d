"""ISO 8601 text to UTC microseconds, in NumPy over whole columns.

Not with a library's parser: Polars' costs four times as much, and what it takes for a time (a second 60, more than nine digits)
is not what Python does.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
#: Days since 1970 of the first of each month, from January of year 0 (a row that no date uses) to January of year 10000.
_MONTHS = np.array(
    [0] * 12 + [dt.date(y, m, 1).toordinal() - _EPOCH_DAY for y in range(1, 10_000) for m in range(1, 13)] + [2_932_897], dtype=np.int32
)
_MIN_LENGTH, _MAX_LENGTH = 10, 64

Chars = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


def parse_iso(text: pl.Series) -> pl.Series:
    """The instants (Int64, UTC microseconds) of ISO 8601 texts; null where the text is null or no such instant.

    A date, and optionally `T` or a space, hours and minutes, seconds, a fraction of any length (cut to microseconds), and a zone:
    `Z`, `+02`, `+0200` or `+02:00`; without a zone it is UTC. Years 1 to 9999. At most 64 characters.

    >>> parse_iso(pl.Series(["1970-01-01", "1970-01-01T02:00:00.0000019+02:00", "soon", None])).to_list()
    [0, 1, None, None]
    """
    micros = np.zeros(len(text), dtype=np.int64)
    good = np.zeros(len(text), dtype=np.bool_)
    for rows, chars in _by_length(text):
        micros[rows], good[rows] = _parse(chars)
    parsed = pl.Series(text.name, micros)
    return parsed if good.all() else parsed.set(pl.Series(~good), None)


def _by_length(text: pl.Series) -> Iterator[tuple[Int64s | slice, Chars]]:
    """The texts of each length as one array, (length, texts): a handful of lengths is all that one producer writes."""
    lengths = text.str.len_bytes().fill_null(0).to_numpy()
    for length in np.unique(lengths).tolist():
        if not _MIN_LENGTH <= length <= _MAX_LENGTH:
            continue
        rows = np.flatnonzero(lengths == length)
        everything = len(rows) == len(lengths)
        some = text if everything else text.gather(rows)
        array = some.to_arrow(compat_level=pl.CompatLevel.oldest())
        start = int(np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset]) if len(array) else 0
        data = np.frombuffer(array.buffers()[2], dtype=np.uint8)[start : start + length * len(rows)]
        yield slice(None) if everything else rows, np.ascontiguousarray(data.reshape(len(rows), length).T)


def _parse(chars: Chars) -> tuple[Int64s, Mask]:
    """Texts of one length. Which zone they have shows at the end; the rest then lies at fixed places."""
    length = len(chars)
    rest = np.ones(chars.shape[1], dtype=np.bool_)
    micros = np.zeros(chars.shape[1], dtype=np.int64)
    good = np.zeros(chars.shape[1], dtype=np.bool_)
    for zone in (1, 6, 5, 3, 0):
        body = length - zone
        if (body not in (10, 16, 19) and body < 21) or (zone and body == 10):
            continue
        here = rest & _has_zone(chars, zone)
        if here.all():
            return _instants(chars, body, zone)
        if here.any():
            micros[here], good[here] = _instants(np.ascontiguousarray(chars[:, here]), body, zone)
            rest &= ~here
    return micros, good


def _has_zone(chars: Chars, width: int) -> Mask:
    if width == 0:
        return np.ones(chars.shape[1], dtype=np.bool_)
    mark = chars[-width]
    zulu: Mask = (mark == ord("Z")) | (mark == ord("z"))
    signed: Mask = (mark == ord("+")) | (mark == ord("-"))
    colon: Mask = chars[-3] == ord(":")
    return zulu if width == 1 else signed & colon if width == 6 else signed


def _instants(chars: Chars, body: int, zone: int) -> tuple[Int64s, Mask]:
    """Texts of one form: the first `body` characters are date and time, the last `zone` the zone."""
    digits = chars - np.uint8(ord("0"))  # wraps below "0", so every other character is above 9
    places = [0, 1, 2, 3, 5, 6, 8, 9]
    good = (chars[4] == ord("-")) & (chars[7] == ord("-"))
    month = _two(digits, 5)
    day = _two(digits, 8)
    seconds = np.zeros(chars.shape[1], dtype=np.int32)
    fraction = np.zeros(chars.shape[1], dtype=np.int32)
    if body >= 16:
        places += [11, 12, 14, 15]
        hour, minute = _two(digits, 11), _two(digits, 14)
        good &= ((chars[10] == ord("T")) | (chars[10] == ord(" ")) | (chars[10] == ord("t"))) & (chars[13] == ord(":"))
        good &= (hour < 24) & (minute < 60)
        seconds += hour * np.int32(3600) + minute * np.int32(60)
    if body >= 19:
        places += [17, 18]
        second = _two(digits, 17)
        good &= (chars[16] == ord(":")) & (second < 60)
        seconds += second
    if body >= 21:
        places += range(20, body)
        good &= (chars[19] == ord(".")) | (chars[19] == ord(","))
        for power, at in zip((100_000, 10_000, 1_000, 100, 10, 1), range(20, body), strict=False):
            fraction += digits[at] * np.int32(power)
    if zone >= 3:
        at = body + 1
        places += [at, at + 1]
        hours = _two(digits, at)
        good &= hours < 24
        shift = hours * np.int32(3600)
        if zone > 3:
            places += [body + zone - 2, body + zone - 1]
            minutes = _two(digits, body + zone - 2)
            good &= minutes < 60
            shift += minutes * np.int32(60)
        seconds -= np.where(chars[body] == ord("-"), -shift, shift)
    good &= digits[places].max(axis=0) <= 9
    year = _two(digits, 0) * np.int32(100) + _two(digits, 2)
    good &= (year >= 1) & (month >= 1) & (month <= 12) & (day >= 1)
    which = np.where(good, year * np.int32(12) + month - 1, 12)
    start = _MONTHS[which]
    good &= day <= _MONTHS[which + 1] - start
    days = (start + day - 1).astype(np.int64)
    return (days * 86_400 + seconds) * 1_000_000 + fraction, good


def _two(digits: Chars, at: int) -> npt.NDArray[np.int32]:
    number: npt.NDArray[np.int32] = digits[at] * np.int32(10) + digits[at + 1]
    return number
