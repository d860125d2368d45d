"""How a project is doing: what `tidemill status` shows, as values.

Everything is read from the stores and the logs themselves, so it needs no worker to be alive; nothing is locked or changed.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tidemill.applied import Applied, AppliedBundle
from tidemill.blocks import block_start
from tidemill.definitions import Source
from tidemill.environment import Environment
from tidemill.errors import DefinitionError, NotFoundError, TidemillError
from tidemill.logs.base import Log, RecordBatch
from tidemill.offline.archive import archived_end, partitions
from tidemill.offline.cuts import latest_cut, read_cut
from tidemill.offline.dead import count_dead
from tidemill.offline.partials import Partials
from tidemill.online.base import Heartbeat, SlotId, SlotState
from tidemill.times import BEGINNING, from_micros

#: In seconds, of each source: how long the last records of its partitions are waited for, where a log fetches them from elsewhere.
_PATIENCE = 1.0


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
    position: int
    lag: int | None
    lag_micros: int | None
    through: dt.datetime | None
    cut: int
    archived: int
    seen: dt.datetime | None


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A source. `cut`: the number of its last cut. `dead`: dead letters by reason. `problem`: why its log cannot be read, if so."""

    name: str
    cut: int
    partitions: tuple[PartitionStatus, ...]
    dead: Mapping[str, int]
    problem: str | None


@dataclass(frozen=True, slots=True)
class BundleStatus:
    """A bundle of a view.

    `state`: serving; empty (no worker has been there); rebuilding; waiting for batch (its history has to be folded first). `folded`,
    `published`: the numbers of the last version folded, and published to every entity. `horizon`: earlier instants can no longer
    be read. `cells` and `bytes`: what the online store holds.
    """

    id: str
    view: str
    source: str
    features: int
    state: str
    folded: int
    published: int
    horizon: dt.datetime | None
    cells: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ProjectStatus:
    """A project.

    `version`: of the registry, 0 before the first `apply`. `pending`: the definitions say something else than is applied (None: they
    cannot be read).
    """

    project: str
    version: int
    pending: bool | None
    sources: tuple[SourceStatus, ...]
    bundles: tuple[BundleStatus, ...]


def project_status(env: Environment) -> ProjectStatus:
    """The status of a project. Counts the log's records where nobody has yet, which takes a while for large compressed files."""
    applied = env.applied()
    slots = {b.bundle.id: _slots(env, applied, b) for b in applied.bundles}
    return ProjectStatus(
        project=env.project.name,
        version=applied.version,
        pending=_pending(env, applied),
        sources=tuple(_source(env, applied, s, slots) for _, s in sorted(applied.sources.items())),
        bundles=tuple(_bundle(env, applied, b, slots[b.bundle.id]) for b in applied.bundles),
    )


def _pending(env: Environment, applied: Applied) -> bool | None:
    try:
        return env.planned().spec() != applied.spec()
    except (DefinitionError, NotFoundError):
        return None


def _slots(env: Environment, applied: Applied, bundle: AppliedBundle) -> list[SlotState]:
    return env.online.slots([SlotId(bundle.bundle.id, shard) for shard in range(applied.shards)])


# ---- sources --------------------------------------------------------------------------------------------------------------------


def _source(env: Environment, applied: Applied, source: Source, slots: Mapping[str, Sequence[SlotState]]) -> SourceStatus:
    name = source.name
    mine = [slots[b.bundle.id] for b in applied.of_source(name)]
    serving = [state for states in mine if all(s.serving for s in states) for state in states]
    cut = latest_cut(env.offline, name)
    vector = read_cut(env.offline, name, cut)
    beats = env.online.heartbeats(name)
    log: Log | None = None
    there: set[int] = set()
    problem = None
    try:
        log = env.log(source)
        there = set(log.partitions())
    except TidemillError as error:
        problem = str(error)
    numbers = there | set(partitions(env.offline, name)) | set(beats) | {p for s in serving for p in s.positions}
    found = []
    give_up = time.monotonic() + _PATIENCE
    try:
        for number in sorted(numbers):
            end: int | None = None
            if log is not None and number in there:
                try:
                    end = log.end(number)
                except TidemillError as error:
                    problem = problem or str(error)
            found.append(_partition(env, source, number, (log, end, give_up), serving, vector.get(number, 0), beats.get(number)))
    finally:
        close = getattr(log, "close", None)  # files hold nothing open
        if close is not None:
            close()
    return SourceStatus(name, cut, tuple(found), count_dead(env.offline, name), problem)


def _partition(
    env: Environment,
    source: Source,
    number: int,
    place: tuple[Log | None, int | None, float],
    serving: Sequence[SlotState],
    cut: int,
    beat: Heartbeat | None,
) -> PartitionStatus:
    log, end, give_up = place
    position = min((s.positions.get(number, 0) for s in serving), default=0)
    through = min((s.through.get(number, BEGINNING) for s in serving), default=BEGINNING)
    lag = None if end is None else max(end - position, 0)
    behind = None
    if lag == 0:
        behind = 0
    elif log is not None and end and through > BEGINNING:
        newest = _last_time(env, source, log, number, end, give_up)
        behind = None if newest is None else max(newest - through, 0)
    return PartitionStatus(
        partition=number,
        log_end=end,
        position=position,
        lag=lag,
        lag_micros=behind,
        through=_time(through),
        cut=cut,
        archived=archived_end(env.offline, source.name, number),
        seen=None if beat is None else from_micros(beat.at),
    )


def _last_time(env: Environment, source: Source, log: Log, partition: int, end: int, give_up: float) -> int | None:
    """The arrival time (event time, where there is none) of the log's last record; None for one that is no event, or does not come."""
    try:
        reader = log.open(partition, end - 1)
        try:
            batch: RecordBatch | None = reader.read(1)
            while batch is None and not reader.at_end and time.monotonic() < give_up:
                time.sleep(0.005)
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


# ---- bundles --------------------------------------------------------------------------------------------------------------------


def _bundle(env: Environment, applied: Applied, bundle: AppliedBundle, slots: Sequence[SlotState]) -> BundleStatus:
    partials = Partials(env.offline, bundle.bundle)
    folded = partials.latest().k
    view = applied.views[bundle.view]
    stats = env.online.stats(bundle.bundle.id, bundle.bundle.table_ids)
    return BundleStatus(
        id=bundle.bundle.id,
        view=bundle.view,
        source=bundle.source,
        features=sum(view.stored(f).bundle is bundle.bundle for f in view.view.features),
        state=_state(env, bundle, slots, folded),
        folded=folded,
        published=partials.published(),
        horizon=_time(max((s.horizon for s in slots), default=BEGINNING)),
        cells=stats.cells,
        bytes=stats.bytes,
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
