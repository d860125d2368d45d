"""What the tests of both formats in Confluent's wire format share."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from hypothesis import strategies as st

from tidemill.logs.base import RecordBatch
from tidemill.logs.decode import Decoder
from tidemill.logs.registered.written import WrittenSchema
from tidemill.times import to_micros
from tidemill.types import ColumnType

NOW = to_micros("2024-01-01")
SCHEMA = {
    "i": ColumnType("int"),
    "f": ColumnType("float"),
    "s": ColumnType("str"),
    "b": ColumnType("bool"),
    "at": ColumnType("timestamp"),
    "known": ColumnType("timestamp", "ms"),
}

whole = st.integers(-(2**63), 2**63 - 1)
short = st.integers(-(2**31), 2**31 - 1)
texts = st.one_of(st.text(max_size=6), st.sampled_from(["5", "true", "2024-01-01T00:00:00Z", "a\nb", "\x00", "é"]))
moments = st.one_of(st.datetimes().map(lambda t: t.isoformat() + "Z"), st.sampled_from(["soon", "2024-02-30", "2024-02-29"]))


class Known:
    """A registry that has all schemas by their place in a list, or the reason why one cannot be used."""

    def __init__(self, *schemas: WrittenSchema | str) -> None:
        self._schemas = schemas

    def schemas(self, ids: Collection[int]) -> Mapping[int, WrittenSchema | str]:
        return {n: self._schemas[n] if n < len(self._schemas) else f"schema id {n} is not in the schema registry" for n in ids}


def batch(values: Sequence[bytes], first: int = 0) -> RecordBatch:
    """Values of a topic, at these offsets."""
    offsets = np.arange(first, first + len(values), dtype=np.int64)
    return RecordBatch(0, first, first + len(values), offsets, list(values), arrival=np.full(len(values), NOW))


def alone(row: Mapping[str, object]) -> set[str]:
    """The reasons that each of its columns would be by itself: of a record with several, one counts, and JSON may find another first."""
    lines = [json.dumps({"at": "2024-01-01", name: row.get(name)}) + "\n" for name in SCHEMA]
    found = Decoder(SCHEMA, timestamp="at").decode(RecordBatch(0, 0, len(lines), np.arange(len(lines)), "".join(lines).encode()))
    return set(found.dead["reason"])
