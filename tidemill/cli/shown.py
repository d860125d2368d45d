"""Numbers, sizes, instants and durations, as people read them."""

from __future__ import annotations

import datetime as dt

_SPANS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def number(value: int | None) -> str:
    """With separators; a dash for what is not known.

    >>> number(1234567), number(None)
    ('1,234,567', '-')
    """
    return "-" if value is None else f"{value:,}"


def counted(value: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "feature"), counted(2, "entity", "entities")
    ('1 feature', '2 entities')
    """
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def size(value: int | None) -> str:
    """Bytes.

    >>> size(87), size(14_200), size(3_400_000)
    ('87 B', '14.2 kB', '3.4 MB')
    """
    if value is None:
        return "-"
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def span(micros: int | None) -> str:
    """A duration, by its two largest units.

    >>> span(1_250_000), span(90_000_000), span(0), span(3 * 86_400_000_000)
    ('1.2s', '1m 30s', '0s', '3d')
    """
    if micros is None:
        return "-"
    seconds = micros / 1e6
    if 0 < seconds < 10:
        return f"{seconds:.1f}s" if seconds >= 0.1 else "<0.1s"
    left, parts = round(seconds), []
    for width, unit in _SPANS:
        if left >= width:
            parts.append(f"{left // width}{unit}")
            left %= width
    return " ".join(parts[:2]) or "0s"


def instant(value: dt.datetime | None) -> str:
    """To the second, UTC.

    >>> instant(dt.datetime(2026, 1, 5, 0, 0, 12, 5, tzinfo=dt.UTC))
    '2026-01-05 00:00:12'
    """
    return "-" if value is None else value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def shortened(text: str, width: int) -> str:
    r"""At most `width` characters, control characters shown as dots.

    >>> shortened("a\tlong line", 7)
    'a·long…'
    """
    visible = "".join(c if c.isprintable() else "·" for c in text[: width + 1])
    return visible if len(visible) <= width else visible[: width - 1] + "…"
