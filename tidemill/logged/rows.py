"""One row a prediction, of the entries of the log of predictions.

The columns of `FIXED` are there always; after `logged` come the keys and request columns of the model's service, by their own names
(one that is named as one of `FIXED`, or "day" as the files' folders, gets "_" at its end).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from tidemill.answers import OK
from tidemill.errors import TidemillError
from tidemill.journals import exact, plain
from tidemill.prediction_log import Types
from tidemill.times import from_micros
from tidemill.types import ColumnType

#: It becomes part of a path.
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_TIME = pl.Datetime("us", "UTC")
#: `x`: the features as the model was given them, before nulls were filled in; `feature_status`: of each; both in the order of `features`.
#: `source`, `position`, `line` and `row`: where it lies in the log: files of one writer, their number, the entry there; or a topic's
#: partition, the offset, 0; and the row of the entry.
FIXED: Mapping[str, pl.DataType] = {
    **dict.fromkeys(("prediction_id", "model", "version", "sha256", "service", "definition"), pl.String()),
    **dict.fromkeys(("at", "logged"), _TIME),
    "features": pl.List(pl.String()),
    "x": pl.List(pl.Float64()),
    "feature_status": pl.List(pl.String()),
    "score": pl.Float64(),
    "outcome": pl.String(),
    "reason": pl.String(),
    "source": pl.String(),
    **dict.fromkeys(("position", "line", "row"), pl.Int64()),
}
#: The folders' name for the day: readers make a column of it, some in place of one in the files.
_FOLDER = "day"
#: What `Portion.add` raises for what is no entry.
DAMAGED = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError)


class Place(NamedTuple):
    """Where an entry lies in the log."""

    source: str
    position: int
    line: int


class Portion:
    """Rows that are gathered, by model and day of their instant."""

    def __init__(self, types: Types) -> None:
        self.rows = 0
        self._types = types
        self._groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._columns: dict[tuple[str, str], dict[str, ColumnType | None]] = {}

    def add(self, place: Place, text: bytes) -> None:
        """An entry's rows, all of them or none. Raises one of `DAMAGED` for what is no entry."""
        entry = json.loads(text)
        rows = _rows(place, entry)
        if not rows:
            return
        types = self._types(entry["service"])
        if not _MODEL.fullmatch(entry["model"]):
            raise ValueError("no model has such a name")
        group = (entry["model"], f"{rows[0]['at']:%Y-%m-%d}")
        columns = self._columns.setdefault(group, {})
        for name in entry["columns"]:
            columns[_named(name)] = types.get(name)
        self._groups.setdefault(group, []).extend(rows)
        self.rows += len(rows)

    def frames(self) -> dict[tuple[str, str], pl.DataFrame]:
        """The rows by model and day, each in the order in which they were added."""
        return {group: self._frame(self._groups[group], self._columns[group]) for group in sorted(self._groups)}

    def _frame(self, rows: list[dict[str, Any]], columns: Mapping[str, ColumnType | None]) -> pl.DataFrame:
        own = [_column(name, [row.get(name) for row in rows], columns[name]) for name in sorted(columns)]
        made = [pl.Series(name, [row[name] for row in rows], dtype) for name, dtype in FIXED.items()]
        split = list(FIXED).index("features")
        return pl.DataFrame([*made[:split], *own, *made[split:]])


def _rows(place: Place, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    features = [_text(name) for name in entry["features"]]
    at, logged = from_micros(entry["at"]["$time"]), from_micros(entry["logged"])
    same = {name: _text(entry[name]) for name in ("model", "version", "sha256", "service", "definition")}
    ids, columns = entry["ids"], {_named(name): values for name, values in entry["columns"].items()}
    if any(len(values) != len(ids) for values in columns.values()):
        raise ValueError("columns of other lengths")
    found = []
    rows = zip(ids, entry["x"], entry["status"], entry["score"], entry["outcome"], entry["reason"], strict=True)
    for i, (id, x, status, score, outcome, reason) in enumerate(rows):
        if len(x) != len(features):
            raise ValueError("another number of features")
        found.append(
            {
                **{name: exact(values[i]) for name, values in columns.items()},
                "prediction_id": _text(id),
                **same,
                "at": at,
                "logged": logged,
                "features": features,
                "x": [_number(v) for v in x],
                "feature_status": [_text(status.get(str(n), OK)) for n in range(len(features))],
                "score": _number(score),
                "outcome": _text(outcome),
                "reason": _text(reason),
                "source": place.source,
                "position": place.position,
                "line": place.line,
                "row": i,
            }
        )
    return found


def _named(name: str) -> str:
    return f"{name}_" if name in FIXED or name == _FOLDER else name


def _number(value: Any) -> float | None:
    """What a model is given is numbers. Raises `TypeError`."""
    value = exact(value)
    return None if value is None else float(value)


def _text(value: Any) -> str | None:
    """Text that Parquet can hold: half of a surrogate pair, which JSON can hold, becomes a question mark."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _column(name: str, values: Sequence[Any], kind: ColumnType | None) -> pl.Series:
    """A key or request column: of its declared type; where that is unknown, or does not fit, of the one that all values have; else JSON."""
    if kind is not None:
        try:
            return pl.Series(name, [None if v is None else _typed(v, kind) for v in values], kind.polars, strict=True)
        except (TidemillError, ValueError, TypeError, OverflowError):
            pass
    kinds = {type(v) for v in values if v is not None}
    if len(kinds) == 1:
        (only,) = kinds
        dtype = {bool: pl.Boolean(), int: pl.Int64(), float: pl.Float64()}.get(only)
        if dtype is not None and (only is not int or all(v is None or -(2**63) <= v < 2**63 for v in values)):
            return pl.Series(name, values, dtype)
        if only is str:
            return pl.Series(name, [_text(v) for v in values], pl.String())
    return pl.Series(name, [None if v is None else json.dumps(plain(v)) for v in values], pl.String())


def _typed(value: Any, kind: ColumnType) -> Any:
    """A value as people write it in a request, of a declared type. Raises what is of another kind.

    A number that the type cannot hold is null: else all of the column would have another type in this file than in others.
    """
    if kind.name == "str":
        return _text(value)
    if type(value) is float and value != value and kind.name != "float":  # noqa: PLR0124 - NaN
        return None
    if kind.name == "timestamp":
        return from_micros(kind.instant(value))
    if not isinstance(value, (bool, int, float)):
        raise TypeError(f"{value!r} is no {kind}")
    try:
        if kind.name == "float":
            return float(value)
        made = int(value)
    except OverflowError:  # infinity; and an int that no float holds
        return None
    if made != value or not -(2**63) <= made < 2**63:
        return None
    return made if kind.name == "int" else {0: False, 1: True}.get(made)
