"""What tasks do for a training set: deal rows and events out by entity, answer, and put answers into the rows' order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from pyspark import Accumulator

from tidemill.datasets.point_in_time import Knowledge, ViewQuestions
from tidemill.datasets.questions import INSTANT
from tidemill.definitions import FeatureView
from tidemill.entities import key_expr
from tidemill.kernel.memory import keep_freed_memory
from tidemill.kernel.registers import stable_hashes
from tidemill.offline.archive import iter_range
from tidemill.offline.history import Part, iter_parts
from tidemill.offline.store import OfflineStore
from tidemill.times import window_start

from .blobs import batch_of, blobs, frame_of, numbers_of
from .fold import Place
from .ranges import Range
from .session import Batches

ROW = "_row"
DEALT = pa.schema([("view", pa.int32()), ("bucket", pa.int32()), ("kind", pa.int32()), ("frame", pa.binary())])
ANSWERS = pa.schema([("view", pa.int32()), ("chunk", pa.int32()), ("overflows", pa.string()), ("frame", pa.binary())])
WRITTEN = pa.schema([("view", pa.int32()), ("chunk", pa.int32()), ("rows", pa.int64()), ("overflows", pa.string())])
_QUESTIONS, _EVENTS = 0, 1


@dataclass(frozen=True)
class AskedView:
    """What is asked of one view: its spec as JSON, features by their column, what answers know, and the rows' first and last instant."""

    spec: str
    features: Mapping[str, str]
    knowledge: Knowledge
    freshness: int
    first: int
    last: int

    @property
    def view(self) -> FeatureView:
        return FeatureView.from_spec(json.loads(self.spec))

    def questions(self, view: FeatureView, rows: pl.DataFrame | None = None) -> ViewQuestions:
        """Of some rows; of none, what says which columns of the events it reads."""
        none = pl.DataFrame(schema={**{k: kind.polars for k, kind in view.key_types.items()}, INSTANT: pl.Int64})
        features = {column: view.features[name] for column, name in self.features.items()}
        return ViewQuestions(view, features, none if rows is None else rows, self.knowledge, self.freshness)

    def oldest(self, view: FeatureView) -> int:
        """The old edge of the longest window of the first row."""
        return min((window_start(self.first, view.features[name].window) for name in self.features.values()), default=self.first)


@dataclass(frozen=True)
class Work:
    """What one task deals out, for some views: staged rows, staged events, imported parts, or a range of the archive; others are None."""

    views: tuple[int, ...]
    rows: str | None = None
    events: str | None = None
    parts: tuple[Part, ...] | None = None
    archived: Range | None = None


@dataclass(frozen=True)
class Dealing:
    """The numbers of `work` to rows and events, dealt to buckets by their entity."""

    place: Place
    views: tuple[AskedView, ...]
    work: tuple[Work, ...]
    buckets: int
    done: Accumulator[int]

    def __call__(self, numbers: Batches) -> Batches:
        keep_freed_memory()
        store = self.place.open()
        for number in numbers_of(numbers):
            work = self.work[number]
            views = [(i, self.views[i].view) for i in work.views]
            if work.rows is not None:
                for i, view in views:
                    yield from self._dealt(i, view, _QUESTIONS, store.read_frame(work.rows))
                continue
            reads = {i: sorted(self.views[i].questions(view).reads) for i, view in views}
            for events in self._events(store, work, views[0][1], {c for columns in reads.values() for c in columns}):
                self.done.add(len(events))
                for i, view in views:
                    asked = self.views[i]
                    inside = (pl.col("_time") >= asked.oldest(view)) & (pl.col("_time") < asked.last)
                    selected, _ = asked.questions(view).bundle.select(events.filter(inside))
                    yield from self._dealt(i, view, _EVENTS, selected.select(*reads[i], "_time", "_arrival"))

    @staticmethod
    def _events(store: OfflineStore, work: Work, view: FeatureView, columns: set[str]) -> Iterator[pl.DataFrame]:
        if work.events is not None:
            yield store.read_frame(work.events)
            return
        types = {name: kind.polars for name, kind in view.source.schema.items() if name in columns}
        if work.parts is not None:
            for _, events in iter_parts(store, work.parts, types):
                yield events
            return
        assert work.archived is not None
        yield from iter_range(store, view.source.name, *work.archived, types)

    def _dealt(self, i: int, view: FeatureView, kind: int, frame: pl.DataFrame) -> Batches:
        if frame.is_empty():
            return
        keys = list(view.entity.keys)
        hashes = stable_hashes(frame.select(key_expr(keys, view.source.schema)).to_series())
        frame = frame.with_columns(pl.Series("_bucket", (hashes % np.uint64(self.buckets)).astype(np.int64)))
        for (bucket,), part in frame.partition_by("_bucket", as_dict=True, include_key=False).items():
            for blob in blobs(part):
                yield batch_of(DEALT, i, bucket, kind, blob)


@dataclass(frozen=True)
class Answering:
    """Rows, then events, of one view and bucket after the other, to answers. `starts`: of the chunks, the numbers of their first rows."""

    views: tuple[AskedView, ...]
    starts: tuple[int, ...]

    def __call__(self, dealt: Batches) -> Batches:
        keep_freed_memory()
        at: tuple[int, int] | None = None
        rows: list[pl.DataFrame] = []
        asked: ViewQuestions | None = None
        for batch in dealt:
            for row in batch.to_pylist():
                if (row["view"], row["bucket"]) != at:
                    yield from self._answered(at, rows, asked)
                    at, rows, asked = (row["view"], row["bucket"]), [], None
                frame = frame_of(row["frame"])
                if row["kind"] == _QUESTIONS:
                    rows.append(frame)
                elif rows:  # of a bucket that nobody asks about, the events are passed over
                    asked = asked or self._questions(row["view"], rows)
                    asked.add(frame)
        yield from self._answered(at, rows, asked)

    def _questions(self, view: int, rows: Sequence[pl.DataFrame]) -> ViewQuestions:
        return self.views[view].questions(self.views[view].view, pl.concat(rows).drop(ROW))

    def _answered(self, at: tuple[int, int] | None, rows: Sequence[pl.DataFrame], asked: ViewQuestions | None) -> Batches:
        if at is None or not rows:
            return
        found = (asked or self._questions(at[0], rows)).answers()
        numbers = pl.concat(rows)[ROW]
        chunk = np.searchsorted(np.array(self.starts), numbers.to_numpy(), side="right") - 1
        frame = pl.DataFrame([numbers, *(column.values.alias(name) for name, column in found.items()), pl.Series("_chunk", chunk)])
        told = json.dumps({name: column.overflows for name, column in found.items() if column.overflows})
        for (number,), part in frame.partition_by("_chunk", as_dict=True, include_key=False).items():
            for blob in blobs(part):
                yield batch_of(ANSWERS, at[0], number, told, blob)
                told = "{}"  # once for the bucket


@dataclass(frozen=True)
class Writing:
    """Answers, those to one view's chunk of rows one after the other, to a file of them in the rows' order."""

    place: Place
    folder: str

    def __call__(self, answers: Batches) -> Batches:
        store = self.place.open()
        at: tuple[int, int] | None = None
        frames: list[pl.DataFrame] = []
        overflows: dict[str, int] = {}
        for batch in answers:
            for row in batch.to_pylist():
                if (row["view"], row["chunk"]) != at:
                    yield from self._written(store, at, frames, overflows)
                    at, frames, overflows = (row["view"], row["chunk"]), [], {}
                frames.append(frame_of(row["frame"]))
                add_up(overflows, row["overflows"])
        yield from self._written(store, at, frames, overflows)

    def _written(
        self, store: OfflineStore, at: tuple[int, int] | None, frames: Sequence[pl.DataFrame], overflows: Mapping[str, int]
    ) -> Batches:
        if at is None:
            return
        frame = pl.concat(frames).sort(ROW)
        store.write_frame(f"{self.folder}/answers/{at[0]}-{at[1]}.parquet", frame)
        yield batch_of(WRITTEN, *at, len(frame), json.dumps(overflows))


def add_up(overflows: dict[str, int], more: str) -> None:
    """Add what one task has told of overflows."""
    for column, n in json.loads(more).items():
        overflows[column] = overflows.get(column, 0) + n
