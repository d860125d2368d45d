"""How a project is doing: what `tidemill status` shows, as values.

Everything is read from the stores and the logs themselves, so it needs no worker to be alive; nothing is locked or changed. What does
not answer is said to be a `problem`, and the rest is there all the same; but without the offline store nothing is known.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tidemill.applied import Applied, AppliedBundle
from tidemill.blocks import HISTORY, block_start
from tidemill.definitions import Source
from tidemill.environment import Environment
from tidemill.errors import DefinitionError, NotFoundError, StoreError, StoreVersionError, TidemillError
from tidemill.logs.base import Log, RecordBatch
from tidemill.offline.archive import archived_end, partitions
from tidemill.offline.cuts import latest_cut, read_cut
from tidemill.offline.dead import count_dead
from tidemill.offline.partials import Partials
from tidemill.offline.runs import Run, last_run
from tidemill.online.base import Heartbeat, SlotId, SlotState, StoreStats
from tidemill.times import BEGINNING, from_micros

T = TypeVar("T")

#: The log's last record is waited for so long, in seconds: a Kafka reader has none at once.
_PATIENCE = 3.0
_PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One partition of a source. Offsets; times aware UTC; None where it is not known.

    `position`: every serving slot has applied up to here. `lag`: records of the log beyond it. `lag_micros`: by how much the log's last
    record became known (happened, where the log has no arrival times) after what is applied. `through`: the newest arrival (event) time
    applied. `cut`: the end of the last segment. `archived`: everything before is in the archive. `seen`: when a worker last was at the
    log's end.
    """

    partition: int
    log_end: int | None
    position: int | None
    lag: int | None
    lag_micros: int | None
    through: dt.datetime | None
    cut: int
    archived: int
    seen: dt.datetime | None


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A source.

    `watermark`: the largest event time applied. `cut`: the number of its last cut. `batch`: when the last batch run ended, and
    `batch_seconds` how long it took. `dead`: dead letters by reason. `problem`: why its log cannot be read, if so.
    """

    name: str
    watermark: dt.datetime | None
    cut: int
    batch: dt.datetime | None
    batch_seconds: float | None
    partitions: tuple[PartitionStatus, ...]
    dead: Mapping[str, int]
    problem: str | None


@dataclass(frozen=True, slots=True)
class BundleStatus:
    """A bundle of a view.

    `state`: serving; empty (no worker has been there); rebuilding; waiting for batch (its history has to be folded first); unknown
    (the online store does not answer). `folded`, `published`: the numbers of the last version folded, and published to every
    entity; `folded_at`: when, if that was noted. `horizon`: earlier instants can no longer be read. `cells` and `bytes`: what the
    online store holds, if it answers.
    """

    id: str
    view: str
    source: str
    features: int
    state: str
    folded: int
    folded_at: dt.datetime | None
    published: int
    horizon: dt.datetime | None
    cells: int | None
    bytes: int | None


@dataclass(frozen=True, slots=True)
class ProjectStatus:
    """A project.

    `version`: of the registry, 0 before the first `apply`. `pending`: the definitions say something else than is applied (None: they
    cannot be read). `problem`: why the online store cannot be read, if so.
    """

    project: str
    version: int
    pending: bool | None
    problem: str | None
    sources: tuple[SourceStatus, ...]
    bundles: tuple[BundleStatus, ...]


def project_status(env: Environment) -> ProjectStatus:
    """The status of a project. Counts the log's records where nobody has yet, which takes a while for large compressed files.

    Logs are asked all at once: what does not answer keeps one waiting for its time-out, and several for no longer.
    """
    applied = env.applied()
    online = _Online(env, applied)
    sources = [source for _, source in sorted(applied.sources.items())]
    standing = [online.standing(source.name) for source in sources]
    with ThreadPoolExecutor(max(len(sources), 1)) as pool:
        asked = list(pool.map(lambda source, place: _ask(env, source, place), sources, standing))
    return ProjectStatus(
        project=env.project.name,
        version=applied.version,
        pending=_pending(env, applied),
        sources=tuple(_source(env, *each) for each in zip(sources, standing, asked, strict=True)),
        bundles=tuple(_bundle(env, applied, b, online) for b in applied.bundles),
        problem=online.problem,
    )


def _pending(env: Environment, applied: Applied) -> bool | None:
    try:
        return env.planned().spec() != applied.spec()
    except (DefinitionError, NotFoundError):
        return None


# ---- the online store -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Standing:
    """How far the online store is with a source: its serving slots, None where the store does not answer; and its heartbeats."""

    serving: Sequence[SlotState] | None
    beats: Mapping[int, Heartbeat]

    def position(self, partition: int) -> int | None:
        return None if self.serving is None else min((s.positions.get(partition, 0) for s in self.serving), default=0)

    def through(self, partition: int) -> int:
        return min((s.through.get(partition, BEGINNING) for s in self.serving or ()), default=BEGINNING)


class _Online:
    """What the online store says, which is asked no more once it has not answered."""

    def __init__(self, env: Environment, applied: Applied) -> None:
        self._env, self._applied = env, applied
        self.problem: str | None = None
        self._slots = {b.bundle.id: self._of(b) for b in applied.bundles}

    def _of(self, bundle: AppliedBundle) -> list[SlotState] | None:
        return self._ask(lambda: self._env.online.slots([SlotId(bundle.bundle.id, shard) for shard in range(self._applied.shards)]))

    def slots(self, bundle: AppliedBundle) -> list[SlotState] | None:
        return self._slots[bundle.bundle.id]

    def standing(self, source: str) -> _Standing:
        mine = [self._slots[b.bundle.id] for b in self._applied.of_source(source)]
        beats = self._ask(lambda: self._env.online.heartbeats(source)) or {}
        known = [states for states in mine if states is not None]
        if len(known) < len(mine):
            return _Standing(None, beats)
        return _Standing([state for states in known if all(s.serving for s in states) for state in states], beats)

    def stats(self, bundle: AppliedBundle) -> StoreStats | None:
        return self._ask(lambda: self._env.online.stats(bundle.bundle.id, bundle.bundle.table_ids))

    def _ask(self, question: Callable[[], T]) -> T | None:
        if self.problem is not None:
            return None
        try:
            return question()
        except StoreVersionError:
            raise  # it answers, and nothing here understands it
        except StoreError as error:
            self.problem = str(error)
            return None


# ---- sources --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a log says: the end of each partition, where it is known, the time of the last record of those that lag, and what is wrong."""

    ends: Mapping[int, int | None]
    newest: Mapping[int, int | None]
    problem: str | None


def _ask(env: Environment, source: Source, standing: _Standing) -> _Asked:
    ends: dict[int, int | None] = {}
    newest: dict[int, int | None] = {}
    problem: str | None = None
    log: Log | None = None
    try:
        log = env.log(source)
        for partition in log.partitions():
            ends[partition] = None
            try:
                end = ends[partition] = log.end(partition)
            except TidemillError as error:
                problem = problem or str(error)
                continue
            if end > (standing.position(partition) or 0) and standing.through(partition) > BEGINNING:
                newest[partition] = _last_time(env, source, log, partition, end)
    except TidemillError as error:
        problem = problem or str(error)
    finally:
        if log is not None:
            log.close()
    return _Asked(ends, newest, problem)


def _last_time(env: Environment, source: Source, log: Log, partition: int, end: int) -> int | None:
    """The arrival time (event time, where there is none) of the log's last record; None for one that is no event."""
    try:
        reader = log.open(partition, end - 1)
        try:
            batch: RecordBatch | None = reader.read(1)
            give_up = time.monotonic() + _PATIENCE
            while batch is None and not reader.at_end and time.monotonic() < give_up:
                time.sleep(_PAUSE)
                batch = reader.read(1)
        finally:
            reader.close()
        if batch is None:
            return None
        frame = env.decoder(source).decode(batch).frame
    except TidemillError:
        return None
    if frame.is_empty():
        return None
    arrival, happened = frame["_arrival"][-1], frame["_time"][-1]
    return int(happened if arrival is None else arrival)


def _source(env: Environment, source: Source, standing: _Standing, asked: _Asked) -> SourceStatus:
    name = source.name
    cut = latest_cut(env.offline, name)
    vector = read_cut(env.offline, name, cut)
    run = last_run(env.offline, name)
    numbers = {*asked.ends, *partitions(env.offline, name), *standing.beats, *(p for s in standing.serving or () for p in s.positions)}
    numbers -= {HISTORY}
    return SourceStatus(
        name=name,
        watermark=_time(max((s.latest for s in standing.serving or ()), default=BEGINNING)),
        cut=cut,
        batch=None if run is None else from_micros(run.at),
        batch_seconds=None if run is None else run.seconds,
        partitions=tuple(_partition(env, name, number, standing, asked, vector.get(number, 0)) for number in sorted(numbers)),
        dead=count_dead(env.offline, name),
        problem=asked.problem,
    )


def _partition(env: Environment, source: str, number: int, standing: _Standing, asked: _Asked, cut: int) -> PartitionStatus:
    end, position, through = asked.ends.get(number), standing.position(number), standing.through(number)
    lag = None if end is None or position is None else max(end - position, 0)
    newest, beat = asked.newest.get(number), standing.beats.get(number)
    behind = 0 if lag == 0 else None
    if lag and newest is not None:
        behind = max(newest - through, 0)
    return PartitionStatus(
        partition=number,
        log_end=end,
        position=position,
        lag=lag,
        lag_micros=behind,
        through=_time(through),
        cut=cut,
        archived=archived_end(env.offline, source, number),
        seen=None if beat is None else from_micros(beat.at),
    )


# ---- bundles --------------------------------------------------------------------------------------------------------------------


def _bundle(env: Environment, applied: Applied, bundle: AppliedBundle, online: _Online) -> BundleStatus:
    partials = Partials(env.offline, bundle.bundle)
    folded = partials.latest().k
    run: Run | None = last_run(env.offline, bundle.source)
    folded_at = None if run is None else run.folded_at(bundle.bundle.id, folded)
    view = applied.views[bundle.view]
    slots, stats = online.slots(bundle), online.stats(bundle)
    return BundleStatus(
        id=bundle.bundle.id,
        view=bundle.view,
        source=bundle.source,
        features=sum(view.stored(f).bundle is bundle.bundle for f in view.view.features),
        state="unknown" if slots is None else _state(env, bundle, slots, folded),
        folded=folded,
        folded_at=None if folded_at is None else from_micros(folded_at),
        published=partials.published(),
        horizon=_time(max((s.horizon for s in slots or ()), default=BEGINNING)),
        cells=None if stats is None else stats.cells,
        bytes=None if stats is None else stats.bytes,
    )


def _state(env: Environment, bundle: AppliedBundle, slots: Sequence[SlotState], folded: int) -> str:
    if all(s.serving for s in slots):
        return "serving"
    if any(s.cursor is not None for s in slots):
        return "rebuilding"
    # The rule by which workers wait (`PartitionIngest`): where the whole log is less than a block, batch can fold nothing.
    cuttable = latest_cut(env.offline, bundle.source) or any(
        block_start(archived_end(env.offline, bundle.source, p)) for p in partitions(env.offline, bundle.source)
    )
    return "waiting for batch" if bundle.history and not folded and cuttable else "empty"


def _time(micros: int) -> dt.datetime | None:
    return None if micros <= BEGINNING else from_micros(micros)
