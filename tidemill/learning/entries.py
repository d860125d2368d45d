"""What a learner takes from an entry of the log of predictions, in files or a topic."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tidemill.entities import is_text
from tidemill.journals import DamagedFileError, exact, plain
from tidemill.learning.join import Prediction
from tidemill.learning.settings import PREDICTION_ID, LearnerSettings
from tidemill.prediction_log import Types
from tidemill.times import from_micros
from tidemill.types import ColumnType

#: What reading an entry raises that is none.
DAMAGED = (DamagedFileError, msgspec.MsgspecError, ValueError, TypeError, KeyError)


def key_text(values: Sequence[Any]) -> str:
    """The key by which labels find predictions, of the values of the columns that they are joined by."""
    return values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps([plain(v) for v in values])


def as_labelled(value: Any, kind: ColumnType, given: ColumnType) -> Any:
    """A value as a request brought it (of the type `given`), as labels of this type have it. Null where NaN.

    So an instant that was text or a number, and a float that was an int, find theirs. What cannot be one stays as it is, and finds nothing;
    a half of a surrogate pair is null, because no label has one, nor can a checkpoint.

    >>> as_labelled("1970-01-01T00:00:01Z", ColumnType("timestamp"), ColumnType("timestamp")) == from_micros(1_000_000)
    True
    >>> as_labelled(3, ColumnType("float"), ColumnType("int"))
    3.0
    """
    if value is None or (isinstance(value, float) and value != value):  # noqa: PLR0124 - NaN
        return None
    if isinstance(value, str) and not is_text(value):
        return None
    try:
        if kind.name == "timestamp":
            return from_micros(given.instant(value))
        if kind.numeric and isinstance(value, (bool, int, float)):
            made = {"int": int, "float": float, "bool": bool}[kind.name](value)
            return made + 0.0 if kind.name == "float" else made if made == value else value
    except (TypeError, ValueError, OverflowError):
        pass
    return value


class _Entry(msgspec.Struct):
    """Of an entry what a learner needs; columns and features are left as they are until somebody wants them."""

    model: str
    version: str
    service: str | None
    definition: str
    at: dict[str, int]
    columns: msgspec.Raw
    ids: list[str]
    x: list[msgspec.Raw]
    score: list[float | None]
    outcome: list[str]


_entries = msgspec.json.Decoder(_Entry)


def _decoded(line: bytes) -> _Entry:
    """Raises `ValueError` for a line that is no prediction."""
    try:
        return _entries.decode(line)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:  # halves of surrogate pairs, which Python writes and reads
        found = json.loads(line)
        for name in ("columns", "x"):
            part = found[name]
            found[name] = [json.dumps(v) for v in part] if name == "x" else json.dumps(part)
        columns, x = msgspec.Raw(found.pop("columns").encode()), [msgspec.Raw(v.encode()) for v in found.pop("x")]
        kept = {f: found[f] for f in _Entry.__struct_fields__ if f in found}
        json.dumps(kept, ensure_ascii=False).encode()  # raises where there are some in ids and the like, which we never wrote
        return _Entry(columns=columns, x=x, **kept)


class Entries:
    """Makes predictions of entries: of those of the learner's model.

    `meanings`: the digests of what features meant, of all predictions so far; a prediction names its own by its place here. `damaged`:
    so many files, or messages of a topic, were not what they should be.
    """

    def __init__(self, settings: LearnerSettings, types: Types) -> None:
        self._settings, self._types = settings, types
        self._joins = {c: settings.source.schema[c] for c in settings.join}
        self.meanings: list[str] = []
        self.damaged = 0

    def meaning(self, definition: str) -> int:
        """The place of a digest among `meanings`."""
        if definition not in self.meanings:
            self.meanings.append(definition)
        return self.meanings.index(definition)

    def predictions(self, line: bytes) -> list[Prediction]:
        """An entry's predictions; none where it is of another model. Raises one of `DAMAGED`."""
        entry = _decoded(line)
        return list(self._predictions(entry)) if entry.model == self._settings.model else []

    def _predictions(self, entry: _Entry) -> Iterator[Prediction]:
        at, ids, meaning = entry.at["$time"], entry.ids, self.meaning(entry.definition)
        if self._settings.by_id:
            keys = ids
        else:
            columns: dict[str, list[Any]] = {**json.loads(bytes(entry.columns)), PREDICTION_ID: ids}
            types = self._types(entry.service)
            joined = [(columns[c], kind, types.get(c, kind)) for c, kind in self._joins.items()]
            # A null is no key: labels with a null there would be those of every such prediction.
            rows = ([as_labelled(exact(column[row]), kind, given) for column, kind, given in joined] for row in range(len(ids)))
            keys = [f"null in {id}" if None in row else key_text(row) for id, row in zip(ids, rows, strict=True)]
        for id, key, x, score, outcome in zip(ids, keys, entry.x, entry.score, entry.outcome, strict=True):
            yield Prediction(at, id, key, bytes(x).decode(), score, outcome, entry.version, meaning)
