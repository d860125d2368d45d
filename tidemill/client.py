"""The scoring client."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import polars as pl

from tidemill.answers import MISSING, OK, OVERFLOWED, STALE, Asked, AsOf, OnlineFeatures, ViewAnswer, ViewPlan, through
from tidemill.applied import Applied
from tidemill.definitions import FeatureSet, FeatureView, OnDemand, resolve_features
from tidemill.definitions.resolve import Requested
from tidemill.entities import entity_key
from tidemill.entity_rows import request_columns, rows_of
from tidemill.environment import Environment
from tidemill.errors import HorizonError, NotAppliedError, RequestError, StoreUnavailableError
from tidemill.kernel.bundle import Bundle, Evaluated, evaluate
from tidemill.kernel.memory import keep_freed_memory
from tidemill.kernel.table import OVERFLOW
from tidemill.online.base import Cell, CellId, Heartbeat, SlotId
from tidemill.prediction_log import PredictionLog
from tidemill.read_log import ReadLog
from tidemill.stable import shard_of
from tidemill.times import from_micros, to_micros

if TYPE_CHECKING:  # who only reads features does without
    from tidemill.datasets import HistoricalFeatures
    from tidemill.models.manifest import Fallback
    from tidemill.models.registry import Models
    from tidemill.models.scorer import Scorer
    from tidemill.models.scores import Scores

Features = Requested | Sequence[Requested]

#: For how long a reader may go on with heartbeats it has read; they only ever make an answer look older.
_BEATS_SECONDS = 0.1
#: For how long a reader may go on with definitions before it looks whether newer ones were applied.
_PLAN_SECONDS = 1.0
#: So many are kept: whoever asks for lists of features may ask for ever other ones.
_MAX_PLANS = 1_000
#: The same, after the store of definitions did not answer: it may take its time to say so.
_PLAN_SECONDS_AWAY = 30.0


def now_micros() -> int:
    """The wall clock, UTC microseconds."""
    return time.time_ns() // 1000


@dataclass(frozen=True)
class _Plan:
    """A request compiled against one version of the registry."""

    version: int
    shards: int
    wanted: FeatureSet
    views: tuple[ViewPlan, ...]
    row_columns: tuple[str, ...]
    outputs: tuple[tuple[str, OnDemand | None], ...]
    types: Mapping[str, pl.DataType]


class FeatureStore:
    """A project, seen by those who read features. Thread-safe for reads; opens its stores when it first needs them.

    `path` is a directory with a tidemill.toml, or a project that is open already. `clock` gives wall-clock UTC microseconds. `read_log`
    notes a share of the answers for `tidemill audit`, and `prediction_log` one of the scores for `tidemill learn`; without them, as many as
    `reads` and `predictions` of [log] in tidemill.toml say.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Environment = ".",
        *,
        clock: Callable[[], int] = now_micros,
        read_log: ReadLog | None = None,
        prediction_log: PredictionLog | None = None,
    ) -> None:
        self.env = path if isinstance(path, Environment) else Environment.load(path)
        self.read_log = ReadLog.of(self.env) if read_log is None else read_log
        self.prediction_log = PredictionLog.of(self.env) if prediction_log is None else prediction_log
        self._clock = clock
        self._plans: dict[Any, tuple[float, _Plan]] = {}
        keep_freed_memory()
        self._beats: dict[str, tuple[float, dict[int, Heartbeat]]] = {}

    # ---- definitions ------------------------------------------------------------------------------------------------------------

    def apply(self) -> Applied:
        """Write the project's definitions to its registry: what `tidemill apply` does."""
        return self.env.apply()

    def close(self) -> None:
        """Write what the logs still have, end the threads of scoring, and give back connections."""
        for log in (self.read_log, self.prediction_log):
            if log is not None:
                log.close()
        if "scorer" in self.__dict__:
            self.scorer.close()
            del self.scorer
        self.env.online.close()

    # ---- online -----------------------------------------------------------------------------------------------------------------

    def get_online_features(
        self, features: Features, entity_rows: Sequence[Mapping[str, Any]] | pl.DataFrame, *, at: dt.datetime | int | str | None = None
    ) -> OnlineFeatures:
        """The features of some entities as of now, or as of `at` (UTC; a naive instant is read as UTC).

        `features`: a service (its name, or itself), or a list of `view:feature`, views and on-demand features. `entity_rows`: dicts
        with the key columns of every view read, and the request columns; a frame does too. Row order is kept; rows may repeat.

        Raises `NotFoundError`, `NotAppliedError`, `RequestError` (a key that is missing, null or of another type), `HorizonError` (an
        instant that the store has compacted past), `StoreUnavailableError`.
        """
        plan = self._plan(features)
        rows = entity_rows if isinstance(entity_rows, list) and all(type(r) is dict for r in entity_rows) else rows_of(entity_rows)
        instant = self._clock() if at is None else _instant(at)
        answers = self._read(plan, rows, instant)
        columns: dict[str, list[Any]] = {n: [r.get(n) for r in rows] for n in plan.row_columns}
        stored: dict[str, list[Any]] = {}
        status: dict[str, list[str]] = {}
        for answer in answers:
            if len(answer.asked.names) == len(rows):  # no entity twice, so in the order of the rows
                stored.update(answer.values)
                status.update(answer.status)
            else:
                stored.update((n, [v[i] for i in answer.asked.row]) for n, v in answer.values.items())
                status.update((n, [v[i] for i in answer.asked.row]) for n, v in answer.status.items())
        shown: dict[str, list[str]] = {}
        for column, output in plan.outputs:
            if output is None:
                columns[column] = stored[column]
                shown[column] = status[column]
            else:
                columns[output.column] = _on_demand(output, stored, rows)
                shown[output.column] = (
                    [_worst(s) for s in zip(*(status[r.column] for r in output.refs), strict=True)] if output.refs else [OK] * len(rows)
                )
        online = OnlineFeatures(columns, shown, AsOf(answers, self._heartbeats), from_micros(instant), plan.types)
        if self.read_log is not None:
            self.read_log.offer(online, stored, plan.wanted, plan.version)
        return online

    def warm_up(self, features: Features) -> None:
        """What the first request would else wait for: definitions, connections, and loops that are compiled, on a new machine for seconds.

        Raises what `get_online_features` raises.
        """
        from tidemill.kernel.warm import compile_loops

        compile_loops()
        self.get_online_features(features, [])

    # ---- historical -------------------------------------------------------------------------------------------------------------

    def get_historical_features(
        self,
        entity_df: Any,
        features: Features,
        *,
        knowledge: str | None = None,
        freshness: str | dt.timedelta | None = None,
    ) -> HistoricalFeatures:
        """The features of each row as a live request at its instant would have answered: same windows, same hops, same bits.

        `entity_df`: a pandas, Polars or Arrow frame (or a list of dicts) with the key columns, `event_timestamp` (naive is read as UTC;
        what is finer than a microsecond is floored), and the request columns; other columns, such as a label, are carried along. Row
        order is kept; rows may repeat. `features` as in `get_online_features`.

        `knowledge`: "arrival", what had arrived by then, which is the default where the source has arrival times; or "event_time",
        what had happened, whenever it became known. `freshness`, such as "1h": nothing newer than that is known. An event without an
        arrival time arrived when it happened.

        An entity that no event is known of at its instant is answered as online: counts and sums are 0, everything else is null.
        Raises `RequestError` (no such column; a key or an instant that is null or of another type), `NotFoundError`, `LogError`,
        `StoreError`.
        """
        from tidemill.datasets import Terms, get_historical_features

        return get_historical_features(self.env, entity_df, features, Terms.parse(knowledge, freshness))

    # ---- models -----------------------------------------------------------------------------------------------------------------

    @cached_property
    def models(self) -> Models:
        """The registry of the project's models: `register`, `list`, `promote`, `rollback`."""
        from tidemill.models.registry import Models

        return Models(self.env, self._clock)

    @cached_property
    def scorer(self) -> Scorer:
        """What scores, with the versions that it serves now in `scorer.served`."""
        from tidemill.models.scorer import Scorer

        return Scorer(self, self.models, self._clock)

    def score(
        self,
        model: str,
        entity_rows: Sequence[Mapping[str, Any]] | pl.DataFrame,
        *,
        at: dt.datetime | int | str | None = None,
        fallback: Fallback = None,
        max_missing: int | None = None,
        request_id: str | None = None,
    ) -> Scores:
        """The scores of some entities: features in one read of the online store, on-demand features, and the model.

        `model`: a registered one, by name (its champion), `name@challenger` or `name@3`. `entity_rows` and `at` as in
        `get_online_features`. A feature that is missing, stale or overflown goes to the model as it is (null is NaN, or what the
        version's `fill` says), and the row's status is `degraded`. Where more than `max_missing` of a row's features are so, and where
        the model gives nothing finite, the row gets no score; or the score `fallback`; or with "error" the request fails.
        With a `fallback`, `max_missing` is 0 unless it is given. Both may also be given to a version when it is registered.

        `request_id`, a UUID, becomes the first row's prediction id, from which the others follow: whoever asks again for want of an answer
        gives the same, so that the predictions count once. Without it every call makes new ones.

        Raises what `get_online_features` raises, `NotFoundError`, `ModelRefusedError` for a version that cannot be loaded where no other
        serves already, `ModelError` for one that fails, and `ScoringError`.
        """
        return self.scorer.score(model, entity_rows, at=at, fallback=fallback, max_missing=max_missing, request_id=request_id)

    async def score_async(
        self,
        model: str,
        entity_rows: Sequence[Mapping[str, Any]] | pl.DataFrame,
        *,
        at: dt.datetime | int | str | None = None,
        fallback: Fallback = None,
        max_missing: int | None = None,
        request_id: str | None = None,
    ) -> Scores:
        """`score` in one of a few threads. Raises `OverloadedError` too, where a thousand requests wait for one."""
        return await self.scorer.score_async(model, entity_rows, at=at, fallback=fallback, max_missing=max_missing, request_id=request_id)

    def _instant(self, at: dt.datetime | int | str | None) -> dt.datetime:
        return from_micros(self._clock() if at is None else _instant(at))

    # ---- how a request is answered ----------------------------------------------------------------------------------------------

    def _plan(self, features: Features) -> _Plan:
        key = features if isinstance(features, str) else tuple(features) if isinstance(features, (list, tuple)) else features
        try:
            checked, found = self._plans.get(key, (0.0, None))
        except TypeError:
            raise RequestError(
                f"features is {features!r}: give a service, or a list of views, `view:feature` and on-demand features"
            ) from None
        now = time.monotonic()
        if found is not None and now - checked < _PLAN_SECONDS:
            return found
        try:
            applied = self.env.applied()
        except StoreUnavailableError:
            if found is None:
                raise
            # Requests need the online store alone: what was applied a moment ago is good enough while a bucket is away.
            self._plans[key] = time.monotonic() + _PLAN_SECONDS_AWAY, found
            return found
        if found is not None and found.version == applied.version:
            self._plans[key] = now, found
            return found
        wanted = resolve_features(features, self.env.definitions)
        views = tuple(_view_plan(applied, name, wanted) for name in wanted.views)
        row_columns = (*wanted.keys, *wanted.request)
        outputs = tuple((o.column, o if isinstance(o, OnDemand) else None) for o in wanted.outputs)
        plan = _Plan(applied.version, applied.shards, wanted, views, row_columns, outputs, _types(wanted, views))
        if len(self._plans) >= _MAX_PLANS:
            self._plans = {}  # a new table, because others read this one
        self._plans[key] = now, plan
        return plan

    def _read(self, plan: _Plan, rows: Sequence[Mapping[str, Any]], instant: int) -> list[ViewAnswer]:
        """Everything in one read of the store, and one pass over what it found."""
        cells: list[CellId] = []
        slots: list[SlotId] = []
        asked: dict[tuple[str, ...], Asked] = {}  # views of one entity ask for the same keys
        begun: list[tuple[ViewPlan, Asked]] = []
        by_shard: dict[tuple[str, ...], list[int]] = {}
        for view in plan.views:
            entities = asked.get(view.keys)
            if entities is None:
                index: dict[str, int] = {}
                row = [index.setdefault(entity_key(r, view.keys, view.types), len(index)) for r in rows]
                entities = asked[view.keys] = Asked(row, list(index), [shard_of(n, plan.shards) for n in index])
                by_shard[view.keys] = sorted(set(entities.shards))
            begun.append((view, entities))
            shards = by_shard[view.keys]
            for bundle, tables in zip(view.bundles, view.tables, strict=True):
                for table in tables:
                    table_id = bundle.table_ids[table]
                    cells += [CellId(table_id, s, n) for n, s in zip(entities.names, entities.shards, strict=True)]
                slots += [SlotId(bundle.id, s) for s in shards]
        found, states = self.env.online.read(cells, slots)
        for slot, state in zip(slots, states, strict=True):
            if instant < state.horizon:
                wanted, horizon = from_micros(instant).isoformat(), from_micros(state.horizon).isoformat()
                raise HorizonError(
                    f"{wanted} lies before the horizon of {slot.bundle} ({horizon}): the store no longer has the tiles for it. "
                    f"Read a later instant, or raise online.slack in tidemill.toml before streaming"
                )
        answers, at, state_of = [], 0, iter(states)
        for view, entities in begun:
            shards, n = by_shard[view.keys], len(entities.names)
            columns: list[dict[int, Sequence[Cell | None]]] = []
            for tables in view.tables:
                columns.append({table: found[at + i * n : at + (i + 1) * n] for i, table in enumerate(tables)})
                at += n * len(tables)
            slot_states = [dict(zip(shards, state_of)) for _ in view.bundles]  # noqa: B905  # as many as there are shards, and on
            answers.append(ViewAnswer(view, entities, columns, slot_states))
        evaluated = iter(evaluate(instant, [(b, c) for a in answers for b, c in zip(a.plan.bundles, a.cells, strict=True)]))
        for answer in answers:
            self._fill(answer, list(islice(evaluated, len(answer.cells))), instant)
        return answers

    def _fill(self, answer: ViewAnswer, evaluated: Sequence[Evaluated], instant: int) -> None:
        """A view's values and statuses, from what was evaluated of each of its bundles."""
        view, shards = answer.plan, answer.asked.shards
        late: set[int] = set()
        if view.max_lag is not None:
            beats = self._heartbeats(view.source)
            bound = instant - view.max_lag
            late = {s for by_shard in answer.states for s, state in by_shard.items() if through(state, beats) < bound}
        idle = [{s for s, state in by_shard.items() if not state.serving} for by_shard in answer.states]
        general = [_statuses(e.present, shards, unserved, late) for e, unserved in zip(evaluated, idle, strict=True)]
        for name, b, stored in view.features:
            got, said = stored.read(evaluated[b]), general[b]
            if idle[b]:
                got = [None if s in idle[b] else v for v, s in zip(got, shards, strict=True)]
            if OVERFLOW in got:
                said = [OVERFLOWED if v is OVERFLOW else s for v, s in zip(got, said, strict=True)]
                got = [None if v is OVERFLOW else v for v in got]
            answer.values[name], answer.status[name] = got, said

    def _heartbeats(self, source: str) -> dict[int, Heartbeat]:
        now = time.monotonic()
        kept = self._beats.get(source)
        if kept is None or now - kept[0] > _BEATS_SECONDS:
            kept = self._beats[source] = now, self.env.online.heartbeats(source)
        return kept[1]


def _statuses(present: Sequence[bool], shards: Sequence[int], unserved: set[int], late: set[int]) -> list[str]:
    """What can be said of every feature of a bundle alike, per entity."""
    if not unserved and not late:
        return [OK if there else MISSING for there in present]
    known = zip(present, shards, strict=True)
    return [MISSING if not there or s in unserved else STALE if s in late else OK for there, s in known]


def _view_plan(applied: Applied, name: str, wanted: FeatureSet) -> ViewPlan:
    view, defined = applied.view(name), wanted.views[name]
    bundles: list[Bundle] = []
    tables: list[set[int]] = []
    features = []
    for ref in wanted.stored:
        if ref.view != name:
            continue
        stored = view.stored(ref.feature)
        if defined.basis != view.view.basis or not _same(defined, view.view, ref.feature):
            raise NotAppliedError(f"{ref} is defined differently from what is applied: run `tidemill apply`, or undo the change")
        if stored.bundle not in bundles:
            bundles.append(stored.bundle)
            tables.append({0})
        b = bundles.index(stored.bundle)
        tables[b].add(stored.bundle.table_of(stored.feature.aggregation))
        features.append((ref.column, b, stored))
    definition = view.view
    return ViewPlan(
        name,
        tuple(definition.entity.keys),
        definition.key_types,
        definition.source.name,
        definition.max_lag,
        tuple(bundles),
        tuple(tuple(sorted(t)) for t in tables),
        tuple(features),
    )


def _same(defined: FeatureView, applied: FeatureView, feature: str) -> bool:
    """Whether a feature still means what it meant when it was applied. Names and the order of windows mean nothing."""
    mine, theirs = defined.features[feature], applied.features[feature]
    if mine == theirs and defined.source == applied.source:
        return True
    narrowed = [v.aggregation_digest(f.aggregation.with_windows([f.window])) for v, f in ((defined, mine), (applied, theirs))]
    return narrowed[0] == narrowed[1]


def _instant(at: dt.datetime | int | str) -> int:
    """The instant that a request names, UTC microseconds."""
    try:
        instant = to_micros(at)
        from_micros(instant)
    except (ValueError, TypeError, OverflowError, AttributeError):
        raise RequestError(f"at is {at!r}: give a datetime, an ISO 8601 text such as '2024-03-01T12:00:00Z', or UTC microseconds") from None
    return instant


def _on_demand(output: OnDemand, stored: Mapping[str, list[Any]], rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    return output.evaluate({r.column: stored[r.column] for r in output.refs} | request_columns(output, rows))


def _worst(statuses: Sequence[str]) -> str:
    return max(statuses, key=(OK, STALE, MISSING, OVERFLOWED).index)


def _types(wanted: FeatureSet, views: Sequence[ViewPlan]) -> dict[str, pl.DataType]:
    """The type of every output column."""
    out: dict[str, pl.DataType] = {n: k.polars for n, k in (*wanted.keys.items(), *wanted.request.items())}
    for view in views:
        for name, _, stored in view.features:
            kind = stored.feature.type.polars
            listed = stored.feature.aggregation.compile(stored.bundle.schema, stored.bundle.event_id).listed
            out[name] = pl.List(kind) if listed else kind
    out.update((o.column, o.output.polars) for o in wanted.on_demands)
    return out
