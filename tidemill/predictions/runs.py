"""What a run of predictions is, as files: `predictions/<name>/<run>/plan.json`, `part-*.parquet`, `manifest.json`.

Every file is created once, whole, and never changed. The plan fixes the instant, the model's version and the entities, so whoever goes on
with a run that was cut short scores what is left of *it*; a part that is there is kept. The manifest names the parts, and comes last.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import polars as pl

from tidemill.errors import RequestError, StoreError
from tidemill.offline.store import ROW_GROUP_ROWS, OfflineStore
from tidemill.predictions.statistics import Statistics

#: The layout of a run's files.
FORMAT = 1
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]{0,79}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

Positions = dict[str, dict[int, int]]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to score, fixed before it begins.

    `at`: the instant, UTC microseconds. `terms`: a digest of what was asked for; a run id stands for one such. `changed`: whether the
    entities are those with events since the last run; then they are those in the archive's offsets from `since` up to `until`, per source
    and partition, and the next run begins at `upto`. `columns`: keys and request columns. `id`: the column that names a row, where it is
    not the keys. `features_from`: online, history, or auto. `begun`: when it was planned, by the clock of the machine.
    """

    name: str
    run: str
    at: int
    terms: str
    model: str
    version: str
    changed: bool
    columns: tuple[str, ...]
    id: str | None
    features_from: str
    rows: int
    part_rows: int
    begun: int
    since: Positions = field(default_factory=dict)
    until: Positions = field(default_factory=dict)
    upto: Positions = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet file of a run."""

    key: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A run that is scored to its end. `types`: per key, request or id column, its type: str, int, float, bool or timestamp."""

    plan: Plan
    parts: tuple[Part, ...]
    statistics: Statistics
    types: dict[str, str]
    seconds: float


def check_name(name: str) -> str:
    """`name` itself, if predictions can be called that: tables and views have it in their names. Raises `RequestError`."""
    if not _NAME.fullmatch(name):
        raise RequestError(f"{name!r} cannot name predictions: small letters, digits and _, a letter first, at most 40; say another --name")
    return name


def check_run(run: str) -> str:
    """`run` itself, if it can name a run. Raises `RequestError`."""
    if not _RUN.fullmatch(run):
        raise RequestError(f"{run!r} cannot name a run: letters, digits, dots and dashes, at most 80, no dot or dash first")
    return run


class RunFiles:
    """The files of one run. Raises `StoreError`."""

    def __init__(self, store: OfflineStore, name: str, run: str) -> None:
        self._store = store
        self.folder = f"predictions/{check_name(name)}/{check_run(run)}"

    def plan(self) -> Plan | None:
        """The plan, if there is one."""
        return self._decoded("plan.json", Plan)

    def begin(self, plan: Plan) -> Plan:
        """Create the plan; what is returned is the one that stands: of two who plan a run at once, one does."""
        self._store.create(f"{self.folder}/plan.json", msgspec.json.encode(plan))
        return self.plan() or plan

    def manifest(self) -> Manifest | None:
        """The manifest, if the run is scored to its end."""
        return self._decoded("manifest.json", Manifest)

    def finish(self, manifest: Manifest) -> Manifest:
        """Create the manifest; what is returned is the one that stands."""
        self._store.create(f"{self.folder}/manifest.json", msgspec.json.encode(manifest))
        return self.manifest() or manifest

    def part(self, number: int) -> tuple[Part, pl.DataFrame] | None:
        """A part, if it is there."""
        key = f"{self.folder}/part-{number:05d}.parquet"
        data = self._store.read(key)
        if data is None:
            return None
        frame = self._parsed(key, data)
        return Part(key, frame.height, len(data), hashlib.sha256(data).hexdigest()), frame

    def write(self, number: int, frame: pl.DataFrame) -> tuple[Part, pl.DataFrame]:
        """Create a part; what is returned is the one that stands."""
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd", compression_level=1, statistics=True, row_group_size=ROW_GROUP_ROWS)
        data = buffer.getvalue()
        key = f"{self.folder}/part-{number:05d}.parquet"
        if not self._store.create(key, data):
            standing = self.part(number)
            if standing is None:
                raise StoreError(f"{self._store.path(key)} was there, and has gone: leave the files of a run alone; run it again")
            return standing
        return Part(key, frame.height, len(data), hashlib.sha256(data).hexdigest()), frame

    def frames(self, manifest: Manifest) -> Iterator[pl.DataFrame]:
        """The parts' rows, part by part. Raises `StoreError` for one that is not what the manifest says."""
        for part in manifest.parts:
            data = self._store.read(part.key)
            if data is None or hashlib.sha256(data).hexdigest() != part.sha256:
                what = "is not there (any more)" if data is None else "is not what its run's manifest says: it was changed or damaged"
                raise StoreError(f"{self._store.path(part.key)} {what}: restore it, or score the entities in a run with another --run")
            yield self._parsed(part.key, data)

    def _parsed(self, key: str, data: bytes) -> pl.DataFrame:
        with self._store.reading(key):
            return pl.read_parquet(io.BytesIO(data))

    def _decoded(self, file: str, kind: type[_T]) -> _T | None:
        key = f"{self.folder}/{file}"
        data = self._store.read(key)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise StoreError(f"{self._store.path(key)} cannot be understood ({error}): restore it, or say another --run") from None


def behind(positions: Positions, others: Positions) -> bool:
    """Whether some partition stands further in `positions` than in `others`, where a partition that is not named stands at 0.

    >>> behind({"s": {0: 5}}, {"s": {0: 7, 1: 2}}), behind({"s": {0: 5, 1: 3}}, {"s": {0: 7}})
    (False, True)
    """
    return any(offset > others.get(source, {}).get(p, 0) for source, at in positions.items() for p, offset in at.items())


def merged(before: Mapping[str, Mapping[int, int]], after: Mapping[str, Mapping[int, int]]) -> Positions:
    """Positions of both, the later ones where both have a source.

    >>> merged({"a": {0: 1}}, {"b": {0: 2}})
    {'a': {0: 1}, 'b': {0: 2}}
    """
    return {source: dict(at) for source, at in {**before, **after}.items()}
