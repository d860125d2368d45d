"""The contract of DESIGN sections 2 to 5, on the real code, in any weather.

Random definitions and logs; workers that crash, hang and come back as zombies; slots that rewind to an older copy, or vanish; cuts,
folds, publishes, compactions and rebuilds that are cut short at any call, or have others run in between; late, future, broken
and tied events. Between all that, every read of every feature of every entity equals the oracle over the events that the answer's own
positions say are known: bit for bit.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import tidemill as tm
from tests.seam.world import (
    OFFLINE_STEPS,
    ONLINE_STEPS,
    ONLINE_WRITES,
    Crash,
    Interrupted,
    MemoryLog,
    RewindableMemory,
    RewindableSqlite,
    plain,
)
from tidemill import blocks
from tidemill.applied import NOTHING_APPLIED, Applied, apply_definitions
from tidemill.apps.batch import job
from tidemill.apps.streaming.compactor import Compactor
from tidemill.apps.streaming.ingest import Flush, PartitionIngest
from tidemill.client import FeatureStore
from tidemill.definitions import Definitions
from tidemill.definitions.project import Project
from tidemill.environment import Environment
from tidemill.errors import HorizonError, TidemillError
from tidemill.kernel.table import OVERFLOW
from tidemill.logs.base import RecordBatch
from tidemill.offline.archive import archived_end, compact, partitions
from tidemill.offline.cuts import cuts, imports_of, latest_cut, make_cut
from tidemill.offline.history import Import, Part, create_import, latest_import
from tidemill.offline.store import OfflineStore
from tidemill.online.base import SlotId
from tidemill.testing import brute_force
from tidemill.times import BEGINNING, DAY, HOUR, MINUTE, SECOND
from tidemill.types import Timestamp

#: A file system in memory, where there is one.
_MEMORY = "/dev/shm"
SHARDS, SLACK, MAX_AHEAD = 2, 6 * SECOND, 40 * MINUTE
START = 20_000 * DAY
KEYS = ["a", "", "ü\U0001f600", "b" * 40]
SCHEMA = {"id": int, "k": str, "x": float, "n": int, "s": str, "b": bool, "at": Timestamp("us")}
FILTERS = {
    "x > 0": lambda e: _number(e.get("x")) is not None and e["x"] > 0,
    "n % 2 = 0": lambda e: e.get("n") is not None and e["n"] % 2 == 0,
}
WINDOWS = ["1m", "90s", "1h", "6h", "1d", "30d", "lifetime"]


def _number(x: Any) -> Any:
    return None if x is None or (isinstance(x, float) and math.isnan(x)) else x


@st.composite
def aggregations(draw: Any, name: str) -> Any:
    windows = draw(st.lists(st.sampled_from(WINDOWS), min_size=1, max_size=3, unique=True))
    where = draw(st.sampled_from([None, None, *FILTERS]))
    hop = draw(st.sampled_from([None, None, None, "1s", "1us"]))
    options = {"windows": windows, "where": where, "name": name, "hop": hop}
    make = draw(
        st.sampled_from(
            ["count", "sum", "mean", "min", "max", "variance", "stddev", "first", "last", "last_n", "quantile", "approx_count_distinct"]
        )
    )
    if make == "count":
        return tm.count(**options)
    takes = ["x", "n", "b"] if make in ("sum", "mean", "variance", "stddev", "quantile") else ["x", "n", "b", "s", "at"]
    column = draw(st.sampled_from(takes))
    if make == "last_n":
        return tm.last_n(column, draw(st.integers(1, 3)), **options)
    if make == "quantile":
        return tm.quantile(column, draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])), **options)
    if make in ("variance", "stddev"):
        options["population"] = draw(st.booleans())
    return getattr(tm, make)(column, **options)


VALUES = st.fixed_dictionaries(
    {
        "x": st.one_of(
            st.none(),
            st.floats(-1e6, 1e6),
            st.sampled_from(
                [float("nan"), -0.0, 0.0, 2.0**64 - 2048, -(2.0**64) + 2048, 2.0**64, float("inf"), 2.0**-61, 5e-324, 0.1, 1e8 + 0.1, 3]
            ),
        ),
        "n": st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([2**63 - 1, -(2**63)])),
        "s": st.sampled_from([None, "", "a", "é", "\U0001f600", "\ue000"]),
        "b": st.sampled_from([None, True, False]),
        "k": st.sampled_from([*KEYS, *KEYS, "a", "a", "a", "a", None]),
        "id": st.one_of(st.none(), st.integers(0, 6)),
    }
)
OFFSETS = st.one_of(
    st.sampled_from([0, -1, -SECOND, -MINUTE, -90 * SECOND, -HOUR, -6 * HOUR, -DAY, -30 * DAY, -31 * DAY, MAX_AHEAD, MAX_AHEAD + 1]),
    st.integers(-2 * MINUTE, 10 * SECOND),
    st.integers(-40 * DAY, MAX_AHEAD),
)
#: Put on an edge of a tile, a hop, a day.
FLOORS = st.sampled_from([1, 1, 1, SECOND, MINUTE, HOUR, DAY])
EVENTS = st.lists(st.tuples(VALUES, OFFSETS, FLOORS), min_size=1, max_size=6)
OPERATIONS = [
    *("start", "crash", "poll", "poll", "poll", "apply", "apply", "apply", "again", "archive", "run", "run", "race", "idle"),
    *("tick", "tick", "compact", "compact", "sweep", "cut", "batch", "batch", "batch_crash", "apply_crash"),
    *("between", "between", "between", "restore"),
    *("snapshot", "rollback", "lose", "rebuild_crash", "retention", "compact_archive", "withdraw", "withdraw_crash", "add_feature"),
]
#: An operation, a worker, a partition, and a number that the operation makes its own use of.
OPERATION = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 1), st.integers(0, 2), st.integers(0, 7))
IMPORT = st.tuples(st.just("import"), st.just(0), st.integers(0, 2), EVENTS)
PRODUCE = st.tuples(st.just("produce"), st.just(0), st.integers(0, 2), EVENTS)
#: Events are part of the weather, not a rule of their own: Hypothesis leaves whole rules out of most examples, and then little happens.
WEATHER = st.lists(st.one_of(*[OPERATION] * 6, PRODUCE, PRODUCE, IMPORT), min_size=4, max_size=24)
TICKS = [1, 7, 60, 600, 3600, 86400, 5 * 86400, 20 * 86400]


#: So many flushes no example's log takes.
_MOST = 1_000


class Small:
    """Blocks of two offsets, or as many as an example says, so that small logs have many."""

    def __enter__(self) -> None:
        self._before = blocks._SMALLEST, blocks._LARGEST, blocks._STEPS
        self.of(1)

    @staticmethod
    def of(bits: int) -> None:
        blocks._SMALLEST, blocks._LARGEST, blocks._STEPS = bits, bits, blocks._STEPS[:0]

    def __exit__(self, *_: object) -> None:
        blocks._SMALLEST, blocks._LARGEST, blocks._STEPS = self._before


class Seam(RuleBasedStateMachine):
    """The whole system, and the weather."""

    sqlite = False

    @initialize(
        first=st.data(),
        where=st.sampled_from([None, None, *FILTERS]),
        rows=st.integers(1, 7),
        bits=st.integers(1, 4),
        events=st.lists(EVENTS, min_size=2, max_size=2),
        chance=st.integers(0, 2**31),
    )
    def begin(self, first: Any, where: str | None, rows: int, bits: int, events: Any, chance: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="seam-", dir=_MEMORY if Path(_MEMORY).is_dir() else None))
        self.now, self.rows, self.where = START, rows, where
        Small.of(bits)
        self.log = MemoryLog()
        self.source = tm.Source("log", schema=SCHEMA, timestamp="at", event_id="id", topic="log", max_ahead="40m")
        self.pool = [first.draw(aggregations(f"f{i}")) for i in range(4)]
        self.features = first.draw(st.integers(1, 3))
        self.store = RewindableSqlite(self.folder / "online.db") if self.sqlite else RewindableMemory()
        self.online = Interrupted(self.store, ONLINE_STEPS)
        self.offline = Interrupted(OfflineStore.open(str(self.folder / "offline"), base=self.folder), OFFLINE_STEPS)
        self.applied, self.retired = NOTHING_APPLIED, set()
        self.env = self._environment()
        self.define()
        self.workers: dict[tuple[int, int], PartitionIngest] = {}
        self.flights: dict[tuple[int, int], list[Flush]] = {}
        self.imported: list[list[dict[str, Any]]] = []
        self.snapshots: list[tuple[SlotId, list[int], Any]] = []
        self.last: tuple[tuple[int, int], Flush] | None = None
        self.random = random.Random(chance)
        for partition, some in enumerate(events):
            self.do_produce(0, partition, some)

    def _environment(self) -> Environment:
        project = Project(self.folder, "seam", self.folder / "features.py", "", "", shards=SHARDS, slack=SLACK)
        env = Environment(project)
        env.__dict__.update(online=self.online, offline=self.offline)
        env.applied = lambda: self.applied  # type: ignore[method-assign]
        env.retired = lambda: sorted(self.retired)  # type: ignore[method-assign]
        return env

    def define(self) -> None:
        """Apply the first few features of the pool; bundles come and go with them."""
        view = tm.FeatureView("v", source=self.source, entity=tm.Entity("k"), where=self.where, aggregations=self.pool[: self.features])
        self.definitions = Definitions.collect([view])
        archived = {"log"} if partitions(self.offline, "log") else set()
        applied = apply_definitions(self.definitions, self.applied, SHARDS, archived)
        before = {b.bundle.id for b in self.applied.bundles}
        self.applied = Applied.from_spec(applied.version, json.loads(json.dumps(applied.spec())))
        after = {b.bundle.id for b in self.applied.bundles}
        self.retired = (self.retired | before) - after
        self.env.forget(after - before, SHARDS)
        self.env.__dict__["definitions"] = self.definitions

    @property
    def active(self) -> list[Any]:
        return self.applied.bundles

    # ---- the world ------------------------------------------------------------------------------------------------------------------

    @rule(weather=WEATHER)
    def storm(self, weather: list[Any]) -> None:
        for name, worker, partition, n in weather:
            self.online.calm()
            self.offline.calm()
            try:
                getattr(self, f"do_{name}")(worker, partition, n)
            except Crash:
                self.do_crash(worker, partition, n)
                self.online.calm()
                self.offline.calm()
                self.check(self.now + 1)  # what is read before anyone has cleaned up
            self.online.calm()
            self.offline.calm()

    # ---- what may happen ------------------------------------------------------------------------------------------------------------

    def do_produce(self, i: int, p: int, events: list[Any]) -> None:
        self.newest = events
        records = self.log.records.setdefault(p, [])
        for values, offset, floor in events:
            event = {**values, "at": (self.now + offset) // floor * floor}
            raw = json.dumps({k: v for k, v in event.items() if v is not None or k == "k"}).encode()
            if values["id"] == 6 and values["s"] is None:
                raw = raw[:-1]  # cut short
            records.append((raw, self.now))
            if values["id"] == 5:
                records.append(None)  # an offset without a record

    def do_import(self, i: int, p: int, events: list[Any]) -> None:
        """History from elsewhere: in no log, and in no tail. Now and then it is cut, folded and published at once."""
        made = [{**values, "at": min(self.now + offset, self.now) // floor * floor} for values, offset, floor in events]
        raw = [json.dumps({k: v for k, v in event.items() if v is not None or k == "k"}).encode() for event in made]
        batch = RecordBatch(0, 0, len(raw), np.arange(len(raw)), b"".join(r + b"\n" for r in raw))
        frame = self.env.decoder(self.source).decode(batch).frame
        number = latest_import(self.offline, "log") + 1
        parts = []
        half = len(frame) // 2
        if half:
            parts.append(Part(f"history/log/i{number}/0.parquet", half))
            self.offline.write_frame(parts[-1].key, frame[:half])
        if len(frame):  # the others are rows of a file that was taken as it is
            parts.append(Part(f"history/log/i{number}/1.parquet", len(frame) - half, half, ("at", None)))
            self.offline.write_frame(parts[-1].key, frame.select(*SCHEMA))
        latest = frame["_time"].max() if len(frame) else BEGINNING
        assert isinstance(latest, int)
        made_one = Import(number, f"i{number}", self.now, "none", None, len(frame), 0, 0, 0, latest, BEGINNING, (), tuple(parts))
        assert create_import(self.offline, "log", made_one)
        self.imported.append([e for r in raw if (e := plain(r)) is not None and e["k"] is not None])
        if p == 1:
            self.do_batch(0, 0, 0)

    def do_more(self, i: int, p: int, n: int) -> None:
        """Events like those that came last."""
        self.do_produce(i, p, self.newest)

    def worker(self, i: int, p: int) -> PartitionIngest | None:
        """Worker i's part on partition p, which begins with its first use."""
        if p not in self.log.records:
            return None
        if (i, p) not in self.workers:
            ingest = PartitionIngest(
                self.source,
                p,
                self.log,
                self.env.decoder(self.source),
                self.online,
                self.offline,
                self.active,
                SHARDS,
                SLACK,
                now=lambda: self.now,
                archive_seconds=1e9,
                archive_rows=10**9,
                rows=self.rows,
            )
            ingest.restore()
            self.workers[i, p] = ingest
            self.flights[i, p] = []
        return self.workers[i, p]

    def do_start(self, i: int, p: int, n: int) -> None:
        self.worker(i, p)

    def do_crash(self, i: int, p: int, n: int) -> None:
        for key in [k for k in self.workers if k[0] == i]:
            del self.workers[key], self.flights[key]

    def do_poll(self, i: int, p: int, n: int) -> None:
        worker = self.worker(i, p)
        if worker is not None:
            polled = worker.poll()
            if polled is not None and polled.epoch == worker.epoch:
                self.flights[i, p].append(worker.tile(polled))

    def do_apply(self, i: int, p: int, n: int) -> None:
        worker = self.worker(i, p)
        if worker is not None and self.flights[i, p]:
            flush = self.flights[i, p].pop(0)
            self.last = (i, p), flush
            worker.apply(flush)

    def do_race(self, i: int, p: int, n: int) -> None:
        """Two workers read the same records, and both apply them."""
        self.do_poll(i, p, n)
        self.do_poll(1 - i, p, n)
        self.do_apply(i, p, n)
        self.do_apply(1 - i, p, n)

    def do_again(self, i: int, p: int, n: int) -> None:
        """A flush is applied, but its writer does not learn it, and sends it again; or a zombie sends an old one."""
        if self.last is not None:
            key, flush = self.last
            self.online.apply(flush.advances)
            if key in self.workers:
                self.workers[key].apply(flush)

    def do_archive(self, i: int, p: int, n: int) -> None:
        worker = self.worker(i, p)
        if worker is not None:
            worker.archive()

    def do_idle(self, i: int, p: int, n: int) -> None:
        worker = self.worker(i, p)
        if worker is not None and worker.position >= self.log.end(p):
            worker.idle()

    def do_restore(self, i: int, p: int, n: int) -> None:
        worker = self.worker(i, p)
        if worker is not None:
            worker.restore()

    def do_run(self, i: int, p: int, n: int) -> None:
        """A stretch without trouble, at whose end all slots that take events have all of them."""
        workers = [worker for partition in list(self.log.records) if (worker := self.worker(i, partition)) is not None]
        for worker in workers:
            worker.rows = self.rows * (n + 1)
            if self.flights[i, worker.partition] or self.random.random() < 0.5:
                self.flights[i, worker.partition].clear()
                worker.restore()
            elif worker.stands() and worker.counters.waiting:
                worker.admit()
            assert worker.run(_MOST) < _MOST, "the worker reads the same again and again, and does not get on"
            worker.archive()
            worker.rows = self.rows
        # What one of them found lost and has rebuilt, stands before what another had applied.
        for _ in range(len(workers) + 1):
            if all(worker.stands() for worker in workers):
                break
            for worker in workers:
                worker.run()
        for worker in workers:
            assert worker.position == self.log.end(worker.partition) or worker.counters.waiting
            for applied in worker._live:
                states = self.store.slots([SlotId(applied.bundle.id, shard) for shard in range(SHARDS)])
                assert {state.positions.get(worker.partition, 0) for state in states} == {self.log.end(worker.partition)}

    def do_tick(self, i: int, p: int, n: int) -> None:
        self.now += TICKS[n] * SECOND

    def compactor(self) -> Compactor:
        known = {k: blocks.vector_of(v) for k, v in cuts(self.offline, "log").items()}
        return Compactor(self.online, {b.bundle.id: b.bundle for b in self.active}, {b.bundle.id: known for b in self.active}, SLACK)

    def do_compact(self, i: int, p: int, n: int) -> None:
        compactor = self.compactor()
        for slot, tables in self.slots():
            for table in tables:
                compactor.compact(slot, table, self.online.entities(slot, table))

    def do_sweep(self, i: int, p: int, n: int) -> None:
        compactor = self.compactor()
        for _ in range(n + 1):
            compactor.sweep(SHARDS)

    def do_cut(self, i: int, p: int, n: int) -> None:
        """Batch cuts, and is killed before it folds: compaction may merge what lies in one segment."""
        make_cut(self.offline, "log")

    def do_batch(self, i: int, p: int, n: int) -> None:
        job.run(self.env)

    def do_batch_crash(self, i: int, p: int, n: int) -> None:
        store = self.online if p % 2 else self.offline
        store.crash_at, store.crash_after = n * 3 + i, bool(n % 2)
        job.run(self.env)

    def do_apply_crash(self, i: int, p: int, n: int) -> None:
        self.do_poll(i, p, n)
        self.online.crash_at, self.online.crash_after = n // 2, bool(n % 2)
        self.do_apply(i, p, n)
        self.do_archive(i, p, n)

    def do_between(self, i: int, p: int, n: int) -> None:
        """Others act between two calls of one job: of a publish, a compaction or a rebuild."""

        # Not by `p` and `n`, whose numbers come in no equal shares.
        p = self.random.choice([0, 1, 1, 2])
        names = self.random.choice(
            [
                ("run",),
                ("apply",),
                *2 * [("compact", "more", "run", "more", "run")],
                ("batch", "more", "run"),
                ("rollback", "run"),
                ("lose", "run"),
                ("poll", "apply"),
                ("snapshot", "run", "rollback"),
            ]
        )

        def others() -> None:
            for name in names:
                getattr(self, f"do_{name}")(1 - i, p, n)

        if p == 1:
            for _ in range(2):  # so that there is something to compact
                self.do_more(i, p, n)
                self.do_run(i, p, n)
            self.do_cut(i, p, n)
        self.online.before, most = self.random.choice([(ONLINE_STEPS, 4), (ONLINE_WRITES, 2)])
        self.online.between, self.online.wait = others, self.random.randrange(most)
        {0: self.do_batch, 1: self.do_compact, 2: self.do_restore}[p](i, p, n)

    def slots(self) -> list[tuple[SlotId, list[int]]]:
        return [(SlotId(b.bundle.id, s), b.bundle.table_ids) for b in self.active for s in range(SHARDS)]

    def do_snapshot(self, i: int, p: int, n: int) -> None:
        slots = self.slots()
        slot, tables = slots[n % len(slots)]
        self.snapshots = [*self.snapshots[-3:], (slot, tables, self.store.snapshot(slot, tables))]

    def do_rollback(self, i: int, p: int, n: int) -> None:
        if self.snapshots:
            self.store.put_back(*self.snapshots[n % len(self.snapshots)])

    def do_lose(self, i: int, p: int, n: int) -> None:
        slots = self.slots()
        slot, tables = slots[n % len(slots)]
        empty = ([], [], []) if self.sqlite else (None, None)
        self.store.put_back(slot, tables, empty)
        self.snapshots = [s for s in self.snapshots if s[0] != slot]

    def do_rebuild_crash(self, i: int, p: int, n: int) -> None:
        """A slot vanishes, and the worker that rebuilds it dies on the way."""
        self.do_lose(i, p, n)
        self.online.crash_at, self.online.crash_after = n, bool(i)
        self.do_restore(i, p, n)

    def do_retention(self, i: int, p: int, n: int) -> None:
        if p in self.log.records:
            self.log.first[p] = max(self.log.first.get(p, 0), archived_end(self.offline, "log", p))

    def do_compact_archive(self, i: int, p: int, n: int) -> None:
        compact(self.offline, "log", p, archived_end(self.offline, "log", p))

    def do_withdraw(self, i: int, p: int, n: int) -> None:
        """Batch rolls back to the version before."""
        try:
            job.rollback(self.env, "log")
        except TidemillError:
            return  # nothing was folded yet

    def do_withdraw_crash(self, i: int, p: int, n: int) -> None:
        store = self.online if p % 2 else self.offline
        store.crash_at, store.crash_after = n, bool(i)
        self.do_withdraw(i, p, n)

    def do_add_feature(self, i: int, p: int, n: int) -> None:
        """The definitions change, and running workers pick it up."""
        self.features = 1 + (self.features + n) % len(self.pool)
        self.define()
        for key, worker in list(self.workers.items()):
            worker.bundles = self.active
            self.flights[key].clear()
            worker.restore()

    # ---- the truth ------------------------------------------------------------------------------------------------------------------

    def events(self, positions: dict[int, int], k: int) -> dict[str, list[dict[str, Any]]]:
        """The events of each entity that are known at these positions, and with the imports of segments 1 to k."""
        out: dict[str, list[dict[str, Any]]] = {}
        for imported in self.imported[: imports_of(self.offline, "log", min(k, latest_cut(self.offline, "log")))]:
            for event in imported:
                if self.where is None or FILTERS[self.where](event):
                    out.setdefault(event["k"], []).append({**dict.fromkeys(SCHEMA), **event})
        for partition, records in self.log.records.items():
            for record in records[: positions.get(partition, 0)]:
                event = plain(record[0]) if record is not None else None
                if event is None or record is None or event["k"] is None or event["at"] > record[1] + MAX_AHEAD:
                    continue
                if self.where is None or FILTERS[self.where](event):
                    out.setdefault(event["k"], []).append({**dict.fromkeys(SCHEMA), **event})
        return out

    @invariant()
    def reads_equal_the_oracle(self) -> None:
        if not hasattr(self, "random"):
            return
        horizons = [s.horizon for s in self.online.slots([slot for slot, _ in self.slots()]) if s.horizon > 0]
        past = [self.now - d for d in (SECOND, SLACK, SLACK + 1, 30 * SECOND, 10 * MINUTE, 2 * HOUR)]  # served or refused, never wrong
        elsewhere = [self.now // MINUTE * MINUTE, self.now // DAY * DAY, self.now + HOUR, self.now + DAY]
        for at in {self.now + 1, *horizons, self.random.choice(past), self.random.choice(elsewhere)}:
            self.check(at)

    def check(self, at: int) -> None:
        store = FeatureStore(self.env, clock=lambda: at)
        try:
            answer = store.get_online_features([self.definitions.views["v"]], [{"k": k} for k in KEYS])
        except HorizonError:
            horizons = [s.horizon for s in self.online.slots([slot for slot, _ in self.slots()])]
            assert at < max(horizons), "refused without a reason"
            return
        (read,) = answer.as_of._answers
        view = self.applied.views["v"]
        schema = view.view.source.schema
        for name, feature in view.view.features.items():
            stored = view.stored(name)
            b = read.plan.bundles.index(stored.bundle)
            for row, key in enumerate(KEYS):
                state = read.states[b][read.asked.shards[row]]
                got, status = answer.columns[f"v__{name}"][row], answer.status[f"v__{name}"][row]
                positions = read.positions(row)[b]
                if not state.serving:  # nothing is known is not the same as nothing happened
                    assert (got, status) == (None, "missing")
                    continue
                known = self.events(positions, read.imports(row)[b])
                passes = FILTERS.get(feature.aggregation.where or "")
                want = brute_force(
                    feature.aggregation, feature.window, known.get(key, []), at, schema=schema, timestamp="at", event_id="id", passes=passes
                )
                expected = None if want is OVERFLOW else want
                assert (got, type(got)) == (expected, type(expected)), (
                    f"{name} of {key!r} at {at}: got {got!r}, want {want!r}; {feature}; {state}"
                )
                assert (status == "overflow") == (want is OVERFLOW)

    def teardown(self) -> None:
        if not hasattr(self, "log"):
            return
        try:  # all comes back: everything is counted, archived, and can be batched
            self.online.calm()
            self.offline.calm()
            self.workers.clear()
            self.flights.clear()
            for _ in range(3):
                self.do_run(0, 0, 0)
                self.do_batch(0, 0, 0)
            for slot, _ in self.slots():
                (state,) = self.online.slots([slot])
                assert state.cursor is None
                stands = {p: o for p, o in state.positions.items() if o and p != blocks.HISTORY}
                assert stands == {p: len(r) for p, r in self.log.records.items() if r}, f"{slot} is stuck"
                if self.imported:
                    done = state.positions.get(blocks.HISTORY, 0) // blocks.HISTORY_STEPS
                    assert imports_of(self.offline, "log", done) == len(self.imported), f"{slot} lacks imports"
            for p, records in self.log.records.items():
                assert archived_end(self.offline, "log", p) == len(records), "the archive has a hole"
            for _ in range(2):
                self.reads_equal_the_oracle()
                self.do_compact(0, 0, 0)
                self.do_compact(0, 0, 1)
            self.reads_equal_the_oracle()
        finally:
            self.store.close()
            shutil.rmtree(self.folder, ignore_errors=True)


class SeamOnSqlite(Seam):
    sqlite = True


def run_machine(machine: Any, examples: int, number: int, *, shrink: bool = True) -> None:
    """Run so many examples from a seed; the first failure is raised."""
    with Small():
        run_state_machine_as_test(
            seed(number)(machine),
            settings=settings(
                max_examples=examples,
                stateful_step_count=6,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
                report_multiple_bugs=False,
                print_blob=shrink,
                database=None,
            ),
        )


@pytest.mark.parametrize("number", range(8))
def test_every_read_equals_the_oracle_in_any_weather(number: int) -> None:
    run_machine(Seam, 64, number)


@pytest.mark.parametrize("number", range(4))
def test_every_read_equals_the_oracle_in_any_weather_on_sqlite(number: int) -> None:
    run_machine(SeamOnSqlite, 32, 100 + number)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(1000, 1020))
def test_every_read_equals_the_oracle_in_any_weather_for_an_hour(number: int) -> None:
    run_machine(Seam if number % 4 else SeamOnSqlite, 1000, number)


def test_a_log_that_drops_what_a_reader_still_needs_is_read_from_the_archive(tmp_path: Path) -> None:
    with Small():
        world = Seam()
        world.folder, world.now, world.rows, world.where = tmp_path, START, 1, None
        world.log, world.random = MemoryLog(), random.Random(0)
        world.source = tm.Source("log", schema=SCHEMA, timestamp="at", event_id="id", topic="log", max_ahead="40m")
        world.pool, world.features, world.store = [tm.count(windows=["1h"])], 1, RewindableMemory()
        world.online, world.offline = world.store, OfflineStore.open(str(tmp_path / "offline"), base=tmp_path)
        world.applied, world.retired = NOTHING_APPLIED, set()
        world.env = world._environment()
        world.define()
        world.workers, world.flights, world.imported = {}, {}, []
        slow = world.worker(0, 0)
        world.log.records[0] += [(json.dumps({"k": "a", "at": START}).encode(), START)] * 3
        world.do_run(1, 0, 0)
        world.do_retention(0, 0, 0)
        assert slow is not None
        assert world.log.first[0] == 3
        slow.run()
        assert slow.poll() is None
        assert slow.position == 3
        world.check(START + 1)
