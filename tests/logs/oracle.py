"""What a JSON line means, line by line, in plain Python: what the decoder must equal."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from dataclasses import dataclass

import polars as pl

from tidemill.times import MAX_TIME, MIN_TIME
from tidemill.types import ColumnType

_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d)(?::(\d\d)(?:[.,](\d+))?)?(?:([Zz])|([+-])(\d\d)(?::?(\d\d))?)?)?",
    re.ASCII,
)
_FACTOR = {"s": 1_000_000, "ms": 1_000, "us": 1}


class DeadError(Exception):
    """This line is a dead letter; its argument is the reason's first word."""


def iso(text: str) -> int | None:
    """UTC microseconds, by `datetime.fromisoformat`."""
    match = _ISO.fullmatch(text)
    if match is None or len(text) > 64:
        return None
    day, clock, second, fraction, _zulu, sign, hours, minutes = match.groups()
    if (hours and int(hours) > 23) or (minutes and int(minutes) > 59):
        return None
    try:
        naive = dt.datetime.fromisoformat(f"{day}T{clock or '00:00'}:{second or '00'}+00:00")
    except ValueError:
        return None
    micros = (naive - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1) + int((fraction or "0").ljust(6, "0")[:6])
    shift = (int(hours or 0) * 3600 + int(minutes or 0) * 60) * 1_000_000
    return micros + shift if sign == "-" else micros - shift


def _first(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record: dict[str, object] = {}
    for key, value in pairs:
        record.setdefault(key, value)
    return record


def _value(name: str, kind: ColumnType, value: object) -> object:
    if value is None:
        return None
    wrong = DeadError(f"{name}: not")
    if kind.name == "bool":
        if not isinstance(value, bool):
            raise wrong
        return value
    if isinstance(value, bool):
        raise wrong
    if kind.name == "int":
        if not isinstance(value, int):
            raise wrong
        if not -(2**63) <= value < 2**63:
            raise DeadError(f"{name}: outside the 64-bit")
        return value
    if kind.name == "float":
        if not isinstance(value, (int, float)):
            raise wrong
        return float(value)
    if kind.name == "str":
        if not isinstance(value, str):
            raise wrong
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise wrong from error
        return value
    if kind.unit is None:
        if not isinstance(value, str) or (micros := iso(value)) is None:
            return wrong  # found out later than the others
        return micros
    if not isinstance(value, (int, float)):
        raise wrong
    if isinstance(value, int):
        return value * _FACTOR[kind.unit]
    if math.isnan(value):
        return None
    micros = value * _FACTOR[kind.unit]
    return round(micros) if math.isfinite(micros) else MAX_TIME


@dataclass(frozen=True)
class Oracle:
    """The rules for one source."""

    schema: dict[str, ColumnType]
    timestamp: str
    arrival: str | None = None
    max_ahead: int | None = None

    def decode(self, line: bytes) -> dict[str, object] | str:
        """The event, or the beginning of the reason why it is none."""
        try:
            text = line.decode()
        except UnicodeDecodeError:
            return "not UTF-8"
        try:
            record = json.loads(text, object_pairs_hook=_first)
        except ValueError:
            return "not JSON"
        if not isinstance(record, dict):
            return "not a JSON object"
        try:
            return self._event({name: _value(name, kind, record.get(name)) for name, kind in self.schema.items()})
        except DeadError as dead:
            return str(dead)

    def _event(self, event: dict[str, object]) -> dict[str, object]:
        for name, kind in self.schema.items():
            value = event[name]
            if isinstance(value, DeadError):
                raise value
            if isinstance(value, float):
                if math.isinf(value):
                    raise DeadError(f"{name}: infinite")
                if abs(value) >= 2**64:
                    raise DeadError(f"{name}: 2**64")
                event[name] = None if math.isnan(value) else value + 0.0
            if kind.name == "timestamp":
                if value is None and name == self.timestamp:
                    raise DeadError(f"{name}: missing")
                if isinstance(value, int) and not MIN_TIME <= value < MAX_TIME:
                    raise DeadError(f"{name}: outside the years")
        time, arrival = event[self.timestamp], event[self.arrival] if self.arrival else None
        if self.max_ahead is not None and isinstance(time, int) and isinstance(arrival, int) and time - arrival > self.max_ahead:
            raise DeadError(f"{self.timestamp}: more than")
        return event | {"_time": time, "_arrival": arrival}


def as_oracle(frame: pl.DataFrame) -> list[dict[str, object]]:
    """A decoded frame as the oracle's events."""
    return frame.with_columns(pl.col(pl.Datetime).cast(pl.Int64)).drop("_offset").rows(named=True)
