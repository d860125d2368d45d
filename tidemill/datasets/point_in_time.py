"""The point-in-time join: for every row, the features as a live request at its instant would have answered."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from tidemill.datasets.events import Extent, known_events
from tidemill.datasets.questions import INSTANT, TIMESTAMP, as_frame, check_columns, instants, keys_of
from tidemill.datasets.result import HistoricalFeatures
from tidemill.definitions import Feature, FeatureSet, FeatureView, OnDemand, Source, resolve_features
from tidemill.definitions.expressions import Filter
from tidemill.definitions.resolve import Requested
from tidemill.environment import Environment
from tidemill.errors import DefinitionError, RequestError
from tidemill.kernel.bundle import Bundle
from tidemill.times import END, MAX_TIME, MIN_TIME, parse_duration, window_start

if TYPE_CHECKING:
    from tidemill.kernel.past import Column, Past, Wanted

Knowledge = Literal["arrival", "event_time"]
ARRIVAL: Knowledge = "arrival"
EVENT_TIME: Knowledge = "event_time"

_ROW, _ENTITY, _VISIBLE = "_row", "_entity_number", "_visible"
#: Rows are answered some at a time by each thread, as many as take this until they are numbers.
_PIECE_BYTES = 64 << 20
_THREADS = os.cpu_count() or 1
#: From the first instant to the last, microseconds: at this age nothing is known, ever.
_ALL_TIME = MAX_TIME - MIN_TIME


@dataclass(frozen=True, slots=True)
class Terms:
    """What an answer may know: see `get_historical_features`. `freshness` in microseconds."""

    knowledge: Knowledge | None = None
    freshness: int = 0

    @classmethod
    def parse(cls, knowledge: str | None, freshness: str | dt.timedelta | None) -> Terms:
        """Raises `RequestError`."""
        if knowledge not in (None, ARRIVAL, EVENT_TIME):
            raise RequestError(f"knowledge is {knowledge!r}: say 'arrival' (what had arrived) or 'event_time' (what had happened)")
        try:
            age = 0 if freshness is None else parse_duration(freshness)
        except DefinitionError as error:
            raise RequestError(f"freshness: {error}") from None
        if age < 0:
            raise RequestError(f"freshness is {freshness!r}: how old the newest event must at least be, such as '1h'; never negative")
        if age >= _ALL_TIME:  # beyond it, arrival and age no longer add up in 64 bits
            raise RequestError(f"freshness is {freshness!r}, which is longer than all time, the years 1 to 9999: say such as '1h'")
        return cls(knowledge, age)

    def of(self, env: Environment, source: Source) -> Knowledge:
        """What the answers know of a source. Raises `RequestError`."""
        arrives = source.arrival is not None or (env.project.brokers is not None and source.topic is not None)
        if self.knowledge == ARRIVAL and not arrives:
            raise RequestError(
                f"source {source.name!r} has no arrival times, so what had arrived is not known: say knowledge='event_time', or name "
                f"their column with Source(arrival=...)"
            )
        return self.knowledge or (ARRIVAL if arrives else EVENT_TIME)


def get_historical_features(
    env: Environment, entity_df: Any, features: Requested | Sequence[Requested], terms: Terms = Terms()
) -> HistoricalFeatures:
    """See `tidemill.FeatureStore.get_historical_features`."""
    wanted = resolve_features(features, env.definitions)
    frame = as_frame(entity_df)
    check_columns(frame.columns, wanted)
    answers = stored_answers(env, frame, wanted, terms)
    knowledge = {name: terms.of(env, view.source) for name, view in wanted.views.items()}
    return HistoricalFeatures(with_outputs(frame, answers.columns, wanted), knowledge, terms.freshness, answers.overflows)


@dataclass(frozen=True, slots=True)
class StoredAnswers:
    """The stored features by their column's name, one value per row, and how many values of each are `overflow`."""

    columns: Mapping[str, pl.Series]
    overflows: Mapping[str, int]


def stored_answers(env: Environment, frame: pl.DataFrame, wanted: FeatureSet, terms: Terms) -> StoredAnswers:
    """The stored features of all rows, in memory."""
    t = instants(frame[TIMESTAMP])
    return answer(env, questions(env, wanted, terms, lambda view: keys_of(frame, view.key_types).with_columns(t)))


def questions(env: Environment, wanted: FeatureSet, terms: Terms, rows_of: Callable[[FeatureView], pl.DataFrame]) -> list[ViewQuestions]:
    """What is asked of each view; `rows_of` gives its keys, typed, and INSTANT."""
    return [
        ViewQuestions(view, features_of(wanted, view), rows_of(view), terms.of(env, view.source), terms.freshness)
        for view in wanted.views.values()
    ]


def features_of(wanted: FeatureSet, view: FeatureView) -> dict[str, Feature]:
    """The features of one view that are to be read, by their output column."""
    return {ref.column: view.features[ref.feature] for ref in wanted.stored if ref.view == view.name}


def answer(
    env: Environment,
    asked: Sequence[ViewQuestions],
    progress: Callable[[int], object] = lambda _: None,
    upto: Mapping[str, Extent] | None = None,
) -> StoredAnswers:
    """The answers to all, each source read once; `progress` gets how many events were read. `upto`, by source: no more than that."""
    by_source: dict[str, list[ViewQuestions]] = {}
    for one in asked:
        if len(one):
            by_source.setdefault(one.view.source.name, []).append(one)
    for group in by_source.values():
        source = group[0].view.source
        read = sorted({c for q in group for c in q.reads}, key=list(source.schema).index)
        for events in known_events(env, source, read, upto=None if upto is None else upto[source.name]):
            for one in group:
                one.add(events)
            progress(len(events))
    columns: dict[str, pl.Series] = {}
    overflows: dict[str, int] = {}
    for one in asked:
        for name, column in one.answers().items():
            columns[name] = column.values.alias(name)
            if column.overflows:
                overflows[name] = column.overflows
    return StoredAnswers(columns, overflows)


class ViewQuestions:
    """One view's rows, and the events that any of them may see, as they are read.

    `features`: those wanted, by the name of their column. `rows`: the view's key columns, typed, and INSTANT. `freshness` in microseconds.
    """

    def __init__(
        self, view: FeatureView, features: Mapping[str, Feature], rows: pl.DataFrame, knowledge: Knowledge, freshness: int
    ) -> None:
        self.view, self._knowledge, self._freshness = view, knowledge, freshness
        self._wanted: dict[str, Wanted] = {name: (f.aggregation, f.window) for name, f in features.items()}
        keys, source = list(view.entity.keys), view.source
        aggregations = list(dict.fromkeys(f.aggregation for f in features.values()))
        self.bundle = Bundle(
            view.name, schema=source.schema, event_id=source.event_id, keys=keys, where=view.where, aggregations=aggregations
        )
        ids = [source.event_id] if source.event_id else []
        self.reads = {*self.bundle.reads, *ids}
        filtered = (c for a in aggregations if a.where for c in Filter(a.where).columns(source.schema))
        #: What is left to look at once an event is known to be of the view, and of which entity.
        self._kept = list(dict.fromkeys([*ids, *(a.column for a in aggregations if a.column), *filtered]))
        self._entities = rows.select(keys).unique(maintain_order=True).with_row_index(_ENTITY).cast({_ENTITY: pl.Int64})
        numbered = rows.join(self._entities, on=keys, how="left", maintain_order="left").select(_ENTITY, INSTANT)
        self._rows = numbered.with_row_index(_ROW)
        t = rows[INSTANT]
        self._last = END if t.is_empty() else int(t.max())  # type: ignore[arg-type]  # Int64
        first = END if t.is_empty() else int(t.min())  # type: ignore[arg-type]
        self._oldest = min((window_start(first, f.window) for f in features.values()), default=first)
        self._events: list[pl.DataFrame] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, events: pl.DataFrame) -> None:
        """Keep those of the events that any row may see."""
        known = pl.col("_time") if self._knowledge == EVENT_TIME else pl.coalesce("_arrival", "_time")
        visible = pl.max_horizontal(pl.col("_time") + 1, known + self._freshness)
        events = events.with_columns(visible.alias(_VISIBLE)).filter((pl.col("_time") >= self._oldest) & (pl.col(_VISIBLE) <= self._last))
        selected, _ = self.bundle.select(events)  # what it rejects was counted when it was streamed
        mine = selected.join(self._entities, on=list(self.view.entity.keys), how="inner")
        self._events.append(mine.select(*self._kept, "_time", _ENTITY, _VISIBLE))

    def answers(self) -> dict[str, Column]:
        """A column per feature, in the order of the rows as they were given. The events are given back."""
        past = self._past()
        self._rows = _grouped(self._rows, INSTANT, len(self._entities))
        rows = _pieces(self._rows, max(1, _PIECE_BYTES // past.row_bytes))
        with ThreadPoolExecutor(_THREADS) as pool:
            pieces = list(pool.map(past.ask, rows))
        order = self._rows[_ROW].to_numpy()
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        return {name: _joined([piece[i] for piece in pieces], back) for i, name in enumerate(self._wanted)}

    def _past(self) -> Past:
        from tidemill.kernel.past import Past  # Numba takes a third of a second to import

        columns = {c: self.view.source.schema[c].polars for c in self._kept}
        empty = pl.DataFrame(schema={**columns, "_time": pl.Int64, _ENTITY: pl.Int64, _VISIBLE: pl.Int64})
        events = _grouped(pl.concat(self._events or [empty]), "_time", len(self._entities))
        self._events = []
        return Past(self.bundle, events, list(self._wanted.values()))


def _grouped(frame: pl.DataFrame, at: str, entities: int) -> pl.DataFrame:
    """Sorted by entity and the column `at`."""
    from tidemill.kernel.moving import grouped

    return frame[grouped(frame[_ENTITY].to_numpy(), frame[at].to_numpy(), entities)]


def _pieces(rows: pl.DataFrame, step: int) -> Iterator[Any]:
    from tidemill.kernel.past import Rows

    every = Rows(rows[_ENTITY].to_numpy(), rows[INSTANT].to_numpy())
    for a in range(0, max(len(every), 1), step):
        yield every.part(a, min(a + step, len(every)))


def _joined(pieces: Sequence[Column], back: Any) -> Column:
    from tidemill.kernel.past import Column

    values = pl.concat([p.values for p in pieces], rechunk=True)
    return Column(values.gather(pl.Series(back)), sum(p.overflows for p in pieces))


def with_outputs(frame: pl.DataFrame, stored: Mapping[str, pl.Series], wanted: FeatureSet) -> pl.DataFrame:
    """The frame with the features asked for beside it, on-demand ones computed. Raises `RequestError`."""
    out = []
    for output in wanted.outputs:
        if isinstance(output, OnDemand):
            inputs = {r.column: stored[r.column] for r in output.refs} | {name: frame[name] for name in output.request}
            out.append(output.evaluate_series(inputs).alias(output.column))
        else:
            out.append(stored[output.column])
    return frame.hstack(out)
