"""The consistency audit: values that were served, computed again from the raw events that the answers knew.

An answer says up to which positions of the log it knew the events of each entity (`tidemill.read_log`). So for every logged value there is
a right one. Here it is computed from the archive by the definitions of the registry's version that was in force, and must be equal to
the last bit. What cannot be compared is counted under its reason, and is never called wrong.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tidemill.answers import MISSING, OK, OVERFLOWED, STALE
from tidemill.applied import AppliedView
from tidemill.audit.events import EventReader, TooManyError, columns_of, reach
from tidemill.audit.reads import IMPORTS, Check, Skipped, Versions, checks, instant, on_demand, sampled
from tidemill.audit.recompute import EntityEvents, Right, by_kernel, by_oracle, value_served
from tidemill.definitions import OnDemand
from tidemill.environment import Environment
from tidemill.errors import NotFoundError, RequestError, TidemillError
from tidemill.journals import JournalFile, entries, exact, lost
from tidemill.read_log import READS, log_store
from tidemill.testing import identical
from tidemill.times import from_micros, window_start

#: Differences that are told in full; more are counted.
MOST_SHOWN = 100
#: Events of a window that a difference lists.
_LISTED = 20

#: Why a logged value is not compared.
NOT_YET = "not archived yet, and the log does not have it"
CHANGED = "an on-demand function that has changed since"
#: (what is under way, done, of how many)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that was served and is not the right one.

    `at` is UTC. `status` as it was served; `right_status` what it should have been: ok (or stale), missing, overflow. `events`: of the
    known events in the feature's window the first few, as (partition, offset, event time), and `count`, how many there are.
    """

    request: str
    row: int
    feature: str
    entity: str
    at: dt.datetime
    served: Any
    right: Any
    status: str
    right_status: str
    positions: Mapping[int, int]
    count: int = 0
    events: Sequence[tuple[int, int, dt.datetime]] = ()

    def __str__(self) -> str:
        values = f"served {self.served!r} ({self.status}), right {self.right!r} ({self.right_status})"
        where = f"{self.feature} of {self.entity!r} at {self.at.isoformat()}: {values}; request {self.request}, row {self.row}"
        listed = ", ".join(f"{p}:{o}" if p != IMPORTS else f"imported in cut {o}" for p, o, _ in self.events)
        more = f", ... ({self.count} in all)" if self.count > len(self.events) else ""
        return f"{where}; known: {dict(self.positions)}; events in the window (partition:offset): {listed or 'none'}{more}"


@dataclass
class Report:
    """What an audit found.

    `reads`: requests looked at, `rows` their rows. `compared`: values held against the right one, `equal` how many were the same in every
    bit. `uncompared`: those that could not be, by reason. `differences`: the first of them in full. `lost`: reads that the log dropped.
    `damaged`: files of the read log that could not be read, or not to their end.
    """

    oracle: bool
    reads: int = 0
    rows: int = 0
    compared: int = 0
    equal: int = 0
    uncompared: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    lost: int = 0
    damaged: list[str] = field(default_factory=list)

    @property
    def different(self) -> int:
        """How many values were not equal."""
        return self.compared - self.equal

    def pass_over(self, reason: str, values: int) -> None:
        """Count values that cannot be compared."""
        self.uncompared[reason] = self.uncompared.get(reason, 0) + values

    def differs(self, difference: Difference) -> None:
        """Note a difference, the first ones in full."""
        if len(self.differences) < MOST_SHOWN:
            self.differences.append(difference)


def audit(
    env: Environment,
    *,
    since: int | None = None,
    until: int | None = None,
    share: float = 1.0,
    oracle: bool = False,
    checks_at_once: int = 50_000,
    events_at_once: int = 2_000_000,
    progress: Progress | None = None,
) -> Report:
    """Compute the reads that were logged in [since, until) (UTC microseconds) again, or a share of them, always the same.

    `oracle`: by brute force over the raw events, which takes long, instead of the kernel. Memory is bounded by `checks_at_once` and
    `events_at_once`; an entity with more events than that in its windows still has to fit by itself. Raises `NotFoundError` where no
    read was logged, `StoreError`, `DefinitionError`.
    """
    auditor = _Auditor(env, Report(oracle), events_at_once, progress)
    report, store = auditor.report, log_store(env)

    def damaged(_: JournalFile, reason: str) -> None:
        report.damaged.append(reason)

    held: list[Check] = []
    for entry in entries(store, READS, since, until, damaged=damaged):
        try:
            if not sampled(entry["request"], share):
                continue
            new = auditor.take(entry)
        except (KeyError, TypeError, ValueError, IndexError, RequestError) as error:
            report.damaged.append(f"a logged read is none: {type(error).__name__}: {error}")
            continue
        held += new
        if len(held) >= checks_at_once:
            auditor.compare(held)
            held = []
    auditor.compare(held)
    report.lost = lost(store, READS, since, until).entries
    if not report.reads and not report.damaged:
        raise NotFoundError("no read was logged in that time: say how many to log, such as `reads = 0.01` under [log] in tidemill.toml")
    return report


class _Auditor:
    def __init__(self, env: Environment, report: Report, most: int, progress: Progress | None) -> None:
        self.env, self.report = env, report
        self._most, self._progress = most, progress
        self._versions, self._events = Versions(env), EventReader(env)
        self._done = self._total = 0

    @cached_property
    def _functions(self) -> Mapping[str, OnDemand]:
        """The on-demand features as they are defined now, by column; none where the definitions cannot be read."""
        try:
            return {o.column: o for o in self.env.definitions.on_demands.values()}
        except TidemillError:
            return {}

    def take(self, entry: Mapping[str, Any]) -> list[Check]:
        """What there is to check in an entry. Its on-demand features, which need no events, are compared at once."""
        found = list(checks(entry, self._versions))
        self.report.reads += 1
        self.report.rows += max(map(len, entry["columns"].values()), default=0)
        for skipped in found:
            if isinstance(skipped, Skipped):
                self.report.pass_over(*skipped)
        for column, source_hash in entry["on_demand"].items():
            function = self._functions.get(column)
            if function is None or function.source_hash != source_hash:
                self.report.pass_over(CHANGED, len(entry["values"][column]))
            else:
                self._compare_on_demand(entry, function)
        return [check for check in found if isinstance(check, Check)]

    def _compare_on_demand(self, entry: Mapping[str, Any], function: OnDemand) -> None:
        """The function once more, over the stored values that were served: those are compared by themselves."""
        try:
            served, right = on_demand(entry, function)
        except RequestError as error:
            self.report.pass_over(
                f"on-demand feature {function.name!r} cannot be evaluated: {error}", len(entry["values"][function.column])
            )
            return
        for row, (value, want) in enumerate(zip(served, right, strict=True)):
            self.report.compared += 1
            if identical(value, want):
                self.report.equal += 1
                continue
            keys = ", ".join(f"{n}={exact(column[row])!r}" for n, column in entry["columns"].items())
            at = from_micros(instant(entry))
            self.report.differs(Difference(entry["request"], row, function.column, keys, at, value, want, "computed", "computed", {}))

    def compare(self, held: Sequence[Check]) -> None:
        """Checks against what is right, view by view, so that each view's log is read once for all of them."""
        groups: dict[tuple[int, str], list[Check]] = {}
        for check in held:
            groups.setdefault((check.version, check.view), []).append(check)
        for (version, name), mine in groups.items():
            view = self._versions.view(version, name)
            assert not isinstance(view, str)
            ready = self._ready(view, mine)
            self._total += len(ready)
            self._compare_view(view, ready)

    def _ready(self, view: AppliedView, mine: Sequence[Check]) -> list[Check]:
        """The checks of which everything that they knew can be read."""
        wanted: dict[int, int] = {}
        for check in mine:
            for partition, end in check.known.items():
                wanted[partition] = max(wanted.get(partition, 0), end)
        have = self._events.available(view, wanted)
        ready = [c for c in mine if all(end <= have[p] for p, end in c.known.items())]
        late = sum(len(c.served) for c in mine) - sum(len(c.served) for c in ready)
        if late:
            self.report.pass_over(NOT_YET, late)
        return ready

    def _compare_view(self, view: AppliedView, mine: Sequence[Check]) -> None:
        if not mine:
            return
        asked = {c.bundle for c in mine}
        bundles = [b.bundle for b in view.bundles if b.bundle.id in asked]
        known: dict[int, int] = {}
        for check in mine:
            for partition, end in check.known.items():
                known[partition] = max(known.get(partition, 0), end)
        entities = {c.entity for c in mine}
        first, end = reach(bundles, mine)
        most = self._most if len(entities) > 1 else None
        try:
            frame = self._events.events(view, columns_of(view, bundles), entities, known, first, end, most)
        except TooManyError:  # in halves, each of which reads the log by itself
            middle = sorted(entities)[len(entities) // 2]
            self._compare_view(view, [c for c in mine if c.entity < middle])
            self._compare_view(view, [c for c in mine if c.entity >= middle])
            return
        events = EntityEvents(frame)
        for bundle in bundles:
            of_bundle = [c for c in mine if c.bundle == bundle.id]
            for check, right in (by_oracle if self.report.oracle else by_kernel)(bundle, view, of_bundle, events):
                self._compare_check(view, check, right, events)
                self._done += 1
                if self._progress is not None:
                    self._progress("computing reads again", self._done, self._total)

    def _compare_check(self, view: AppliedView, check: Check, right: Right, events: EntityEvents) -> None:
        for name, (served, status) in check.served.items():
            want, overflow = value_served(right.values[name])
            said = OVERFLOWED if overflow else OK if right.present else MISSING
            self.report.compared += 1
            # Whether the stream was behind is a matter of the moment: stale is as good as ok.
            if identical(served, want) and (OK if status == STALE else status) == said:
                self.report.equal += 1
                continue
            window = view.view.features[name].window
            rows = events.inside(check, window_start(check.at, window))
            listed = [(int(events.partition[r]), int(events.offset[r]), from_micros(int(events.time[r]))) for r in rows[:_LISTED].tolist()]
            column, at = f"{check.view}__{name}", from_micros(check.at)
            self.report.differs(
                Difference(check.request, check.row, column, check.entity, at, served, want, status, said, check.known, len(rows), listed)
            )
