"""Training sets that need not fit in memory: a file in, a Parquet file out, part by part.

The rows' keys and instants are checked and written aside once. Then entities are divided into as many parts as memory asks for,
and each part is answered by itself, over events that are read anew. In the end the answers are put beside the rows again, in order.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import polars as pl
import pyarrow.parquet as pq

from tidemill.datasets.events import Extent
from tidemill.datasets.point_in_time import Terms, ViewQuestions, answer, features_of, questions, with_outputs
from tidemill.datasets.questions import TIMESTAMP, check_columns, instants, keys_of
from tidemill.definitions import FeatureSet, FeatureView, resolve_features
from tidemill.definitions.resolve import Requested
from tidemill.environment import Environment
from tidemill.errors import RequestError

Progress = Callable[[str, int, int], object]

_ROW = "_row"
_SUFFIXES = (".parquet", ".csv", ".jsonl")
#: Rows at a time where they pass through.
_CHUNK = 200_000
#: About what an event and a row take while they are worked on, beside 8 bytes for each answer, measured.
_EVENT_BYTES, _ROW_BYTES = 250, 150
MEMORY = 4 << 30
ANY_TERMS = Terms()


@dataclass(frozen=True)
class Dataset:
    """What was made: the file, how many rows, over how many events read, in how many parts; and what `HistoricalFeatures` says of it."""

    path: Path
    rows: int
    events: int
    parts: int
    knowledge: Mapping[str, str]
    freshness: int
    overflows: Mapping[str, int] = field(default_factory=dict)


def build(
    env: Environment,
    rows: Path,
    features: Requested | Sequence[Requested],
    output: Path,
    terms: Terms = ANY_TERMS,
    *,
    memory: int = MEMORY,
    progress: Progress = lambda *_: None,
) -> Dataset:
    """Answer the rows of a .parquet, .csv or .jsonl file into the Parquet file `output`, which appears when it is complete.

    `memory`, bytes: about how much the work may take, beside what Python and its libraries take. `progress` gets (what, done, of how many).
    Raises `RequestError`, and what `get_historical_features` raises.
    """
    wanted = resolve_features(features, env.definitions)
    scan = scan_of(rows, wanted)
    check_columns(scan.collect_schema().names(), wanted)
    check_output(output)
    with tempfile.TemporaryDirectory(prefix=".dataset-", dir=output.absolute().parent) as name:
        folder = Path(name)
        if rows.suffix != ".parquet":  # which can be begun anywhere
            try:
                scan.sink_parquet(folder / "_rows.parquet")
            except pl.exceptions.PolarsError as error:
                raise RequestError(f"{rows} is not {rows.suffix[1:]}: {str(error).splitlines()[0]}") from None
            scan = pl.scan_parquet(folder / "_rows.parquet")
        n = _write_questions(scan, wanted, folder, progress)
        # Each part reads the events anew, and a log may grow meanwhile: all parts know the same.
        known = {view.source.name: Extent.of(env, view.source) for view in wanted.views.values()} if n else {}
        parts = _parts(wanted, n, known, memory)
        answered = _Answered(folder)
        for part in range(parts):
            asked = questions(env, wanted, terms, lambda view, part=part: _rows_of(folder, view, part, parts).drop(_ROW))  # type: ignore[misc]
            what = "reading events" if parts == 1 else f"part {part + 1} of {parts}"
            answered.write(env, wanted, asked, known, part, parts, lambda done, what=what: progress(what, done, done))  # type: ignore[misc]
        temporary = output.with_name(f".{output.name}.{secrets.token_hex(6)}.tmp")
        try:
            _assemble(scan, n, wanted, folder, parts, temporary, progress)
            temporary.replace(output)
        finally:
            temporary.unlink(missing_ok=True)
    knowledge = {view.name: terms.of(env, view.source) for view in wanted.views.values()}
    return Dataset(output, n, answered.events, parts, knowledge, terms.freshness, answered.overflows)


def check_output(output: Path) -> None:
    """Raise `RequestError` unless a training set can be written there."""
    if output.suffix != ".parquet":
        raise RequestError(f"{output}: training sets are written as Parquet: let the name end in .parquet")
    if not output.absolute().parent.is_dir():
        raise RequestError(f"{output.absolute().parent}: there is no such directory")


def scan_of(rows: Path, wanted: FeatureSet) -> pl.LazyFrame:
    """The rows of a file, all columns of all of its rows.

    What types the columns of text have, all rows together say, not the first: a column may begin with a thousand nulls, and whole numbers
    may be followed by others. In CSV, keys and request columns that are text stay text ("0042"). Raises `RequestError`.
    """
    if rows.suffix not in _SUFFIXES:
        raise RequestError(f"{rows}: rows are read from .parquet, .csv or .jsonl")
    if not rows.is_file():
        raise RequestError(f"{rows}: there is no such file")
    try:
        if rows.suffix == ".parquet":
            scan = pl.scan_parquet(rows)
        elif rows.suffix == ".csv":
            names = pl.scan_csv(rows, infer_schema=False).collect_schema().names()
            texts = {name: pl.String for name, kind in {**wanted.keys, **wanted.request}.items() if kind.name == "str" and name in names}
            scan = pl.scan_csv(rows, schema_overrides=texts, infer_schema_length=None)
        else:
            scan = pl.scan_ndjson(rows, infer_schema_length=None)
        scan.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise RequestError(f"{rows} is not {rows.suffix[1:]}: {(str(error).splitlines() or ['empty'])[0]}") from None
    return scan


def chunks(scan: pl.LazyFrame, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """The rows in their order, some at a time."""
    at = 0
    while True:
        wanted = scan if columns is None else scan.select(columns)
        frame = wanted.slice(at, _CHUNK).collect()
        if not frame.is_empty() or at == 0:
            yield frame
        if len(frame) < _CHUNK:
            return
        at += len(frame)


def _write_questions(scan: pl.LazyFrame, wanted: FeatureSet, folder: Path, progress: Progress) -> int:
    """Each view's keys and instants, checked, in a file of its own; how many rows there are."""
    columns = list(dict.fromkeys([TIMESTAMP, *wanted.keys]))
    at = 0
    with ExitStack() as stack:
        writers: dict[str, Writer] = {name: stack.enter_context(Writer(folder / f"{name}.parquet")) for name in wanted.views}
        for chunk in chunks(scan, columns):
            t = instants(chunk[TIMESTAMP], at)
            numbers = pl.Series(_ROW, range(at, at + len(chunk)), dtype=pl.Int64)
            for name, view in wanted.views.items():
                writers[name].write(keys_of(chunk, view.key_types, at).with_columns(t, numbers))
            at += len(chunk)
            progress("checking rows", at, at)
    return at


def _parts(wanted: FeatureSet, rows: int, known: Mapping[str, Extent], memory: int) -> int:
    """How many parts there must be for each to fit."""
    events = sum(known[view.source.name].events for view in wanted.views.values() if known)
    needed = rows * (_ROW_BYTES * len(wanted.views) + 8 * len(wanted.stored)) + events * _EVENT_BYTES
    return max(1, -(-needed // memory))


def _rows_of(folder: Path, view: FeatureView, part: int, parts: int) -> pl.DataFrame:
    scan = pl.scan_parquet(folder / f"{view.name}.parquet")
    if parts > 1:
        scan = scan.filter(pl.struct(list(view.entity.keys)).hash(0) % parts == part)
    return scan.collect()


class _Answered:
    """The answers of each view and part, in files, and what was counted on the way."""

    def __init__(self, folder: Path) -> None:
        self.events = 0
        self.overflows: dict[str, int] = {}
        self._folder = folder

    def write(
        self,
        env: Environment,
        wanted: FeatureSet,
        asked: Sequence[ViewQuestions],
        known: Mapping[str, Extent],
        part: int,
        parts: int,
        progress: Callable[[int], object],
    ) -> None:
        """Answer one part."""
        read = 0

        def count(events: int) -> None:
            nonlocal read
            read += events
            progress(read)

        found = answer(env, asked, count, known)
        self.events += read
        for name, n in found.overflows.items():
            self.overflows[name] = self.overflows.get(name, 0) + n
        for one in asked:
            view = one.view
            columns = [found.columns[name] for name in features_of(wanted, view)]
            numbers = _rows_of(self._folder, view, part, parts)[_ROW]
            pl.DataFrame([numbers, *columns]).write_parquet(self._folder / f"{view.name}-{part}.parquet", row_group_size=_CHUNK)


def _assemble(scan: pl.LazyFrame, n: int, wanted: FeatureSet, folder: Path, parts: int, output: Path, progress: Progress) -> None:
    at = 0
    with Writer(output) as writer:
        for chunk in chunks(scan):
            stored: dict[str, pl.Series] = {}
            inside = (pl.col(_ROW) >= at) & (pl.col(_ROW) < at + len(chunk))
            for view in wanted.views:
                files = [pl.scan_parquet(folder / f"{view}-{part}.parquet").filter(inside) for part in range(parts)]
                found = pl.concat(files).sort(_ROW).collect()
                stored |= {name: found[name] for name in found.columns if name != _ROW}
            writer.write(with_outputs(chunk, stored, wanted))
            at += len(chunk)
            progress("writing", at, n)


class Writer:
    """A Parquet file, frame by frame."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, frame: pl.DataFrame) -> None:
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table.cast(self._writer.schema))
