"""The archive of logged predictions: `logged/predictions/<model>/day=<day>/<n>.parquet`, by the day of the instant `at`, UTC.

It is written in portions. `logged/plans/<n>.json`, created once, says what portion n is made of and which files it fills, with how many
rows; then the files are written, and `logged/done.json` names it. A run that was killed in between leaves a plan, and the next run writes
what is missing, from the same places of the log, to the same names. So a row is never there twice, and what was there is never touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import polars as pl

from tidemill.environment import Environment
from tidemill.errors import LogError, StoreError
from tidemill.logged.portions import Sources, Taken
from tidemill.logged.rows import Portion
from tidemill.offline.leases import Lease
from tidemill.offline.store import OfflineStore, read_json
from tidemill.prediction_log import column_types

FORMAT = 1
#: About so many rows are taken at a time.
ROWS = 50_000
LEASE_SECONDS = 300.0
_PLANS, _DONE = "logged/plans", "logged/done.json"
_PLAN = re.compile(r"(\d{8,})\.json")


@dataclass(frozen=True, slots=True)
class Plan:
    """A portion. `read` and `positions`: how far the log was taken with it, of files by writer, and by topic and partition.

    `topic`: the one that its `offsets` are of. `rows`: by key of the file. The rest: see `Taken`.
    """

    n: int
    read: dict[str, int]
    positions: dict[str, dict[int, int]]
    files: list[str]
    topic: str | None
    offsets: dict[int, tuple[int, int]]
    rows: dict[str, int]
    damaged: int
    lost: int
    format: int = FORMAT


@dataclass(slots=True)
class Report:
    """What a run did: rows and files written, and of the log: entries that were none, and offsets that were gone before they were read."""

    rows: int = 0
    files: int = 0
    damaged: int = 0
    lost: int = 0
    models: list[str] = field(default_factory=list)


def archive(env: Environment, *, rows: int = ROWS, report: Callable[[int], object] = lambda _: None) -> Report:
    """Write what is in the log of predictions and not in the archive yet. May be killed at any instant, and run again.

    `report` hears how many rows were written so far. Raises `LeaseError` where another process is at it, `LogError` and `StoreError`.
    """
    store, done = env.offline, Report()
    with Lease(store, "logged-predictions", seconds=LEASE_SECONDS) as lease:
        sources = Sources(env, column_types(env))
        try:
            plan = _newest(store)
            if plan is not None and _done(store) < plan.n:
                _finish(store, sources, plan, done)
            while (plan := _next(store, sources, plan, rows, done)) is not None:
                report(done.rows)
                lease.renew()
        finally:
            sources.close()
    return done


def _next(store: OfflineStore, sources: Sources, before: Plan | None, most: int, done: Report) -> Plan | None:
    """The next portion, written; None where there is nothing new."""
    read = dict(before.read) if before else {}
    positions = {topic: dict(known) for topic, known in before.positions.items()} if before else {}
    own = positions.setdefault(sources.topic, {}) if sources.topic is not None else {}
    portion, taken = sources.next(read, own, most)
    if not taken.files and not taken.offsets and not taken.lost:
        return None
    n = before.n + 1 if before else 1
    frames = _files(n, portion)
    heights = {key: frame.height for key, frame in frames.items()}
    plan = Plan(n, read, positions, taken.files, sources.topic, taken.offsets, heights, taken.damaged, taken.lost)
    if not store.create(_plan_key(n), msgspec.json.encode(plan)):
        raise StoreError(f"{store.path(_plan_key(n))} is there already: another process has archived meanwhile; run this again")
    _write(store, plan, frames, done)
    return plan


def _finish(store: OfflineStore, sources: Sources, plan: Plan, done: Report) -> None:
    """Write what a run that was killed has left of its portion."""
    missing = [key for key in plan.rows if not store.exists(key)]
    frames: dict[str, pl.DataFrame] = {}
    if missing:
        try:
            frames = _again(sources, plan)
        except (LogError, StoreError) as error:
            raise StoreError(
                f"a run was killed while it archived predictions, and what it was at cannot be read again ({error}): delete "
                f"{store.path(_plan_key(plan.n))} to archive what is still there"
            ) from error
    _write(store, plan, {key: frames[key] for key in missing}, done)


def _again(sources: Sources, plan: Plan) -> dict[str, pl.DataFrame]:
    if plan.offsets and plan.topic != sources.topic:
        raise StoreError(f"it was of topic {plan.topic}, and there is {sources.topic or 'none'} now")
    frames = _files(plan.n, sources.again(Taken(plan.files, plan.offsets)))
    if {key: frame.height for key, frame in frames.items()} != plan.rows:
        raise StoreError("not all of its entries are there any more")
    return frames


def _write(store: OfflineStore, plan: Plan, frames: Mapping[str, pl.DataFrame], done: Report) -> None:
    for key, frame in frames.items():
        store.write_frame(key, frame)
        done.rows, done.files = done.rows + frame.height, done.files + 1
        model = key.split("/")[2]
        if model not in done.models:
            done.models.append(model)
    store.write(_DONE, json.dumps({"n": plan.n}).encode())
    done.damaged, done.lost = done.damaged + plan.damaged, done.lost + plan.lost


def _files(n: int, portion: Portion) -> dict[str, pl.DataFrame]:
    return {f"logged/predictions/{model}/day={day}/{n:08d}.parquet": frame for (model, day), frame in portion.frames().items()}


def _newest(store: OfflineStore) -> Plan | None:
    numbers = [int(m[1]) for key in store.list(_PLANS) if (m := _PLAN.fullmatch(key.rpartition("/")[2]))]
    if not numbers:
        return None
    key = _plan_key(max(numbers))
    data = store.read(key)
    try:
        plan = msgspec.json.decode(data or b"", type=Plan)
    except msgspec.DecodeError as error:
        raise StoreError(f"{store.path(key)} is no plan of the archive of predictions ({error}): restore it from a copy") from None
    if plan.format != FORMAT:
        raise StoreError(f"{store.path(key)} has format {plan.format}, and this tidemill reads {FORMAT}: use the version that wrote it")
    return plan


def _done(store: OfflineStore) -> int:
    data = store.read(_DONE)
    found = 0 if data is None else read_json(store, _DONE, data).get("n")
    return found if isinstance(found, int) else 0


def _plan_key(n: int) -> str:
    return f"{_PLANS}/{n:08d}.json"
