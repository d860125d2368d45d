"""JSON lines to typed columns: Polars reads whole batches, and the lines that it cannot be trusted with are read one by one.

The meaning is that of the slow path, `_slowly`; the fast path is for lines of which Polars says the same. It raises on a wrong
type and on anything that is not JSON, but (measured, Polars 2.1) turns numbers, booleans and objects in a text column into text,
and an escaped half of a surrogate pair into a NUL. `_doubtful` finds such lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.logs.records import Int64s, not_utf8, too_long
from tidemill.logs.typed import (
    Schema,
    Typed,
    epoch_micros,
    epoch_micros_of_floats,
    epoch_micros_of_ints,
    may_be_rounded,
    reason_not,
    reason_too_large,
)
from tidemill.types import ColumnType

#: Fewer lines than this are read one by one: a call of `read_ndjson` costs as much as a hundred of them.
_FEW = 64
_LEAF = 512
#: A line nested deeper is read by Polars or not at all (it stops at 1024): Python's own limit depends on who calls.
_DEPTH = 400
_LARGE = 10**40

_LONE_SURROGATE = re.compile(
    rb"\\\\u[dD]|\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_NOT_A_NUMBER = re.compile(rb"NaN|Infinity")
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_VALUE = {
    "int": rb"(?:0|-?[1-9]\d{0,17})\s*[,}]",
    "float": rb"-?(?:0|[1-9]\d{0,30})(?:\.\d+)?(?:[eE][-+]?\d{1,2})?\s*[,}]",
    "bool": rb"true|false",
}

Scalar = int | float | str | bool | None
Scalars = list[Scalar]


class JsonColumns:
    """Reads the schema's columns from JSON lines. `max_record`: bytes in a line, without its newline."""

    def __init__(self, schema: Schema, max_record: int) -> None:
        self.schema = schema
        self._max = max_record
        self._epochs = {name: kind.micros_per_unit for name, kind in schema.items() if kind.unit is not None}
        self._text = [name for name, kind in schema.items() if kind.name == "str"]
        self._types = {name: pl.String() if _is_text(kind) else kind.polars for name, kind in schema.items()}
        self._types |= dict.fromkeys(self._epochs, pl.Int64())
        self._float_types = self._types | dict.fromkeys(self._epochs, pl.Float64())
        self._not_text = {name: [re.compile(_key(name, escaped) + rb'[^"\sn]') for escaped in (False, True)] for name in self._text}
        self._suspicious = [
            re.compile(_key(name, False) + rb"(?!null|" + _VALUE["float" if name in self._epochs else kind.name] + rb")")
            for name, kind in schema.items()
            if not _is_text(kind)
        ]
        self._converters = [_converter(kind) for kind in schema.values()]

    def read(self, data: bytes, count: int) -> Typed:
        """`count` lines, each ended by a newline. Raises `ValueError` if there are more or fewer."""
        lines = _Lines(data)
        if len(lines.ends) != count or (count and lines.ends[-1] != len(data) - 1):
            raise ValueError(f"a batch of {count} records has {len(lines.ends)} lines")
        rows = np.arange(count, dtype=np.int64)
        dead: list[tuple[int, str]] = []
        if len(data) > self._max:
            long = lines.ends - lines.starts > self._max
            dead = [(int(row), too_long(self._max)) for row in np.flatnonzero(long)]
            rows = rows[~long]
        good, slow = self._quickly(lines, rows)
        frame, kept, more = self._slowly(lines, np.sort(slow))
        if len(kept):
            good.append((kept, frame))
        dead += more
        if not good:
            return Typed(pl.DataFrame(schema=self._types), rows[:0], dead)
        if len(good) == 1:
            return Typed(good[0][1], good[0][0], dead)
        rows = np.concatenate([r for r, _ in good])
        order = np.argsort(rows)
        return Typed(pl.concat([f for _, f in good])[order], rows[order], dead)

    def _quickly(self, lines: _Lines, rows: Int64s) -> tuple[list[tuple[Int64s, pl.DataFrame]], Int64s]:
        """What Polars can be trusted with, in parts, and the rows of the other lines."""
        good: list[tuple[Int64s, pl.DataFrame]] = []
        slow: list[Int64s] = []

        def attempt(part: Int64s) -> bool:
            blob = lines.join(part)
            frame = self._polars(blob, len(part))
            if frame is None:
                return False
            doubtful = self._doubtful(frame, blob)
            if "\0rounded" in frame.columns:
                frame = frame.drop("\0rounded")
            if len(doubtful):
                trusted = np.ones(len(part), dtype=np.bool_)
                trusted[doubtful] = False
                slow.append(part[doubtful])
                part, frame = part[trusted], frame.filter(pl.Series(trusted))
            good.append((part, frame))
            return True

        def halve(part: Int64s) -> None:
            # Not by calling itself: such a function is a cycle, which would keep the batch until the garbage collector comes by.
            waiting = [part]
            while waiting:
                part = waiting.pop()
                if len(part) <= _LEAF:
                    slow.append(part)
                else:
                    waiting += [half for half in (part[: len(part) // 2], part[len(part) // 2 :]) if not attempt(half)]

        if len(rows) <= _FEW:
            return good, rows
        if not attempt(rows):
            suspects = self._suspects(lines)
            slow.append(np.intersect1d(rows, suspects))
            rest = np.setdiff1d(rows, suspects)
            if len(rest) <= _FEW:
                slow.append(rest)
            elif len(rest) == len(rows) or not attempt(rest):
                halve(rest)
        return good, np.concatenate([rows[:0], *slow])

    def _polars(self, blob: bytes, count: int) -> pl.DataFrame | None:
        """The lines as Polars reads them, or None if it reads none of them, or drops some (blank ones)."""
        frame = _read_ndjson(blob, self._types)
        if frame is not None:
            if self._epochs:
                frame = frame.with_columns(epoch_micros_of_ints(name, factor) for name, factor in self._epochs.items())
        elif self._epochs and (frame := _read_ndjson(blob, self._float_types)) is not None:
            rounded = pl.any_horizontal(may_be_rounded(name) for name in self._epochs).alias("\0rounded")
            frame = frame.with_columns(rounded, *(epoch_micros_of_floats(name, factor) for name, factor in self._epochs.items()))
        return frame if frame is not None and frame.height == count else None

    def _doubtful(self, frame: pl.DataFrame, blob: bytes) -> Int64s:
        """Numbers of lines whose columns may be other than what the line says."""
        places: list[int] = []
        escapes = b"\\u" in blob if b"\\" in blob else False
        if self._text:
            hits = frame.select(_looks_coerced(name).any() for name in self._text).row(0)
            for name, hit in zip(self._text, hits, strict=True):
                if hit:
                    places += [match.start() for match in self._not_text[name][escapes].finditer(blob)]
            if escapes:
                places += [match.start() for match in _LONE_SURROGATE.finditer(blob)]
        rows = np.empty(0, dtype=np.int64)
        if places:
            rows = np.searchsorted(_newlines(blob), np.array(places)).astype(np.int64)
        if "\0rounded" in frame.columns:
            rows = np.concatenate([rows, np.flatnonzero(frame["\0rounded"].fill_null(False).to_numpy())])
        return np.unique(rows)

    def _suspects(self, lines: _Lines) -> Int64s:
        """Lines that probably made Polars raise. A guess, for speed: what it misses is found by halving."""
        data = lines.data
        view = np.frombuffer(data, dtype=np.uint8)
        last = np.maximum(lines.ends - 1 - (view[np.maximum(lines.ends - 1, 0)] == ord("\r")), 0)
        shape = np.flatnonzero((view[lines.starts] != ord("{")) | (view[last] != ord("}")))
        places = [match.start() for pattern in [*self._suspicious, _NOT_A_NUMBER] for match in pattern.finditer(data)]
        found = np.searchsorted(lines.ends, np.array(places, dtype=np.int64)).astype(np.int64)
        return np.unique(np.concatenate([shape, found, not_utf8(data, lines.ends + 1)]))

    def _slowly(self, lines: _Lines, rows: Int64s) -> tuple[pl.DataFrame, Int64s, list[tuple[int, str]]]:
        """Line by line. This is what a line means."""
        kept: list[int] = []
        dead: list[tuple[int, str]] = []
        values: list[Scalars] = []
        for row in rows.tolist():
            found = self._line(lines.data[lines.starts[row] : lines.ends[row]])
            if isinstance(found, str):
                dead.append((row, found))
            else:
                kept.append(row)
                values.append(found)
        frame = pl.DataFrame(values, schema=self._types, orient="row")
        return frame, np.array(kept, dtype=np.int64), dead

    def _line(self, line: bytes) -> Scalars | str:
        """The values of a line, or the reason why it has none."""
        try:
            text = line.decode()
        except UnicodeDecodeError:
            return "not UTF-8"
        if _depth(text) > _DEPTH:
            frame = self._polars(line + b"\n", 1)
            if frame is None or len(self._doubtful(frame, line + b"\n")):
                return f"not JSON, or nested deeper than {_DEPTH}"
            return list(frame.select(self._types).row(0))
        try:
            record = json.loads(text, parse_int=_parse_int, object_pairs_hook=_first_of_each)
        except ValueError:
            return "not JSON"
        if not isinstance(record, dict):
            return "not a JSON object"
        values: Scalars = []
        for (name, kind), convert in zip(self.schema.items(), self._converters, strict=True):
            value = record.get(name)
            try:
                values.append(None if value is None else convert(value))
            except _WrongTypeError:
                return reason_not(name, kind)
            except OverflowError:
                return reason_too_large(name)
            except UnicodeEncodeError:
                return f"{name}: not Unicode text"
        return values


class _Lines:
    """Where the lines of a batch lie. `ends`: of the newlines."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ends = _newlines(data)
        self.starts = np.concatenate([[0], self.ends[:-1] + 1])[: len(self.ends)].astype(np.int64)

    def join(self, rows: Int64s) -> bytes:
        """These lines, ascending, run by run."""
        if len(rows) == len(self.ends):
            return self.data
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        first = rows[np.concatenate([[0], breaks])]
        last = rows[np.concatenate([breaks - 1, [len(rows) - 1]])]
        return b"".join(self.data[a : b + 1] for a, b in zip(self.starts[first].tolist(), self.ends[last].tolist(), strict=True))


class _WrongTypeError(Exception):
    pass


def _newlines(data: bytes) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 10)


def _read_ndjson(blob: bytes, types: dict[str, pl.DataType]) -> pl.DataFrame | None:
    # Bytes that begin like gzip, zlib or zstd, Polars would unpack: whatever a hostile line unpacks to would be read as events.
    if blob[:1] not in (b"{", b" "):
        return None
    try:
        return pl.read_ndjson(blob, schema=types)
    except pl.exceptions.PolarsError:
        return None


def _is_text(kind: ColumnType) -> bool:
    return kind.name == "str" or (kind.name == "timestamp" and kind.unit is None)


def _looks_coerced(name: str) -> pl.Expr:
    """Text that begins as a number, an array or an object does, or is a boolean."""
    column = pl.col(name)
    begins = [column.is_between(pl.lit(a), pl.lit(b), closed="left") for a, b in (("-", "."), ("0", ":"), ("[", "\\"), ("{", "|"))]
    return pl.any_horizontal(*begins, column == "true", column == "false")


def _key(name: str, escaped: bool) -> bytes:
    """A pattern for this key of an object, with its colon; `escaped`: also where characters of it are written as escapes."""
    return b'"' + b"".join(_character(c, escaped) for c in name) + rb'"\s*:\s*'


def _character(character: str, escaped: bool) -> bytes:
    forms = [] if character in '"\\' or character < " " else [re.escape(character.encode())]
    if escaped or not forms:
        units = character.encode("utf-16-be").hex()
        forms.append(b"".join(rb"\\u" + _either_case(units[i : i + 4]) for i in range(0, len(units), 4)))
        short = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}.get(character)
        forms += [re.escape(f"\\{short}".encode())] if short else []
    return b"(?:" + b"|".join(forms) + b")" if len(forms) > 1 else forms[0]


def _either_case(digits: str) -> bytes:
    return "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in digits).encode()


def _depth(text: str) -> int:
    if text.count("[") + text.count("{") <= _DEPTH:
        return 0
    depth = deepest = 0
    for character in _STRINGS.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _parse_int(digits: str) -> int:
    """Python refuses to read integers of thousands of digits; none of them is allowed anyway."""
    return int(digits) if len(digits) <= 40 else (-_LARGE if digits[0] == "-" else _LARGE)


def _first_of_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of keys that repeat, Polars takes the first."""
    return dict(reversed(pairs))


def _converter(kind: ColumnType) -> Callable[[object], Scalar]:
    """A value that is not null, as the column has it. The types are exact: a boolean is no integer."""

    def integer(value: object) -> Scalar:
        if type(value) is not int:
            raise _WrongTypeError
        if not -(2**63) <= value < 2**63:
            raise OverflowError
        return value

    def real(value: object) -> Scalar:
        if type(value) is not float and type(value) is not int:
            raise _WrongTypeError
        return float(value)

    def string(value: object) -> Scalar:
        if type(value) is not str:
            raise _WrongTypeError
        value.encode()
        return value

    def boolean(value: object) -> Scalar:
        if type(value) is not bool:
            raise _WrongTypeError
        return value

    def instant(value: object) -> Scalar:
        return value if type(value) is str and value.isascii() else "?"  # "?" is no time, as what came is none

    def epoch(value: object) -> Scalar:
        if type(value) is not float and type(value) is not int:
            raise _WrongTypeError
        return epoch_micros(value, factor)

    if kind.name == "timestamp" and kind.unit is not None:
        factor = kind.micros_per_unit
        return epoch
    by_name: dict[str, Callable[[object], Scalar]] = {"int": integer, "float": real, "str": string, "bool": boolean, "timestamp": instant}
    return by_name[kind.name]
