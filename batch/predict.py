"""Batch predictions: score entities as of one instant, check the run, publish it all at once.

A run may be killed at any instant. Its plan, its parts and its manifest are created once, the journal says which runs are visible, and
tables follow the journal; so the next call goes on where this one was cut short, and nothing is ever there twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tidemill.environment import Environment
from tidemill.errors import RequestError, StoreUnavailableError
from tidemill.predictions.book import Predictions
from tidemill.predictions.checks import Finding, Limits, findings
from tidemill.predictions.entities import Entities, changed, from_file
from tidemill.predictions.journal import State
from tidemill.predictions.parts import score_parts
from tidemill.predictions.runs import Manifest, Plan, check_run, merged
from tidemill.predictions.scorer import Scorer
from tidemill.predictions.statistics import Statistics
from tidemill.predictions.table import PredictionTable
from tidemill.times import HOUR, MINUTE, from_micros

from .job import FIRST_PAUSE, LONGEST_PAUSE, Progress

#: A run that was cut short is gone on with if it is no older than this: later, its instant is no longer what anybody waits for.
RESUME = HOUR
#: The share of its interval from which on a run is worth a warning.
NEAR = 0.8

#: A model by its version; None: the one that is in force.
Scorers = Callable[[str | None], Scorer]
Outcome = Literal["published", "blocked", "unchanged", "already published", "dry run"]


@dataclass(frozen=True)
class Request:
    """What is asked for. `entities`: a file, or None: all with events since the last run. `at`: UTC microseconds, or None: now.

    `features_from`: online; history, as they were known at `at`; or auto, online as long as the store answers for `at`. `chunk`: rows
    that are scored at a time; `part_rows`: rows of a file. `threshold`: of the view of high scores; None leaves it as it is.
    """

    name: str
    entities: Path | None = None
    id: str | None = None
    at: int | None = None
    run: str | None = None
    features_from: str = "auto"
    limits: Limits = field(default_factory=Limits)
    threshold: float | None = None
    chunk: int = 1_000
    part_rows: int = 50_000
    dry_run: bool = False


@dataclass(frozen=True)
class Result:
    """What one call did. `resumed`: whether it went on with a run that had been cut short. `seconds`: of this call."""

    name: str
    run: str
    outcome: Outcome
    at: int
    model: str
    version: str
    statistics: Statistics
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    resumed: bool = False


def run(
    env: Environment,
    request: Request,
    scorers: Scorers,
    table: PredictionTable | None = None,
    progress: Progress | None = None,
    now: Callable[[], int] = lambda: time.time_ns() // 1000,
) -> Result:
    """Score and publish once. For one process at a time, see `alone`. Raises `TidemillError`s; run it again, and it goes on."""
    begun = time.monotonic()
    book = Predictions(env.offline, request.name)
    state = book.journal.state()
    if not request.dry_run:
        book.follow(state, table)
    if request.run is not None and any(p.run == check_run(request.run) for p in state.visible):
        return _already(book, request.run, begun)
    if request.run is not None and book.withdrawn(request.run):
        raise RequestError(f"run {request.run} was rolled back: score in a run with another --run")
    terms = _terms(request, scorers(None).model)
    plan = _standing(book, state, request, terms, now())
    resumed = plan is not None
    scorer = scorers(None if plan is None else plan.version)
    entities = None
    if plan is None:
        plan, entities = _planned(env, book, state, request, scorer, terms, now())
    if request.dry_run:
        dry = _dry(scorer, plan, entities or _entities(env, request, scorer, plan), request, progress)
        return _result("dry run", dry, _checked(book, state, dry, request, scorer), begun, resumed=False)
    if plan.changed and not plan.rows:
        return Result(request.name, plan.run, "unchanged", plan.at, plan.model, plan.version, Statistics(), (), time.monotonic() - begun)
    files = book.files(plan.run)
    manifest = files.manifest()
    if manifest is None:
        book.check_order(state, plan)
        standing = _same(files.begin(plan), terms)
        if standing != plan:  # another process was faster with the same --run
            plan, scorer, entities = standing, scorers(standing.version), None
        entities = entities or _entities(env, request, scorer, plan)
        state = book.begin(state, plan.run, now())
        parts, statistics = score_parts(files, scorer, plan, entities, request.chunk, progress)
        manifest = files.finish(Manifest(plan, parts, statistics, dict(entities.types), time.monotonic() - begun))
    found = _checked(book, state, manifest, request, scorer)
    blocking = [f.text for f in found if f.blocks]
    if progress is not None:
        progress("publish", 0, 1)
    if blocking:
        book.follow(book.block(state, plan.run, now(), "; ".join(blocking)), table)
        return _result("blocked", manifest, found, begun, resumed=resumed)
    if table is not None:
        table.check(request.name, manifest.types)  # better before than after it is published
    book.follow(book.publish(state, plan, now(), request.threshold), table)
    return _result("published", manifest, found, begun, resumed=resumed)


def rollback(env: Environment, name: str, table: PredictionTable | None, now: Callable[[], int]) -> State:
    """Take the current run of these predictions back, in the offline store and in the table; what holds then.

    May be killed at any instant: the next call finishes what this one began, and then takes back nothing more.
    """
    book = Predictions(env.offline, name)
    state = book.journal.state()
    # Not before another roll-back: a table that cannot take the current run is helped by taking that back.
    if not (state.event == "rollback" and book.follow(state, table)):
        state = book.roll_back(state, now())
        book.follow(state, table)
    return state


def run_every(
    once: Callable[[], Result],
    seconds: float,
    stop: Callable[[], bool],
    sleep: Callable[[float], None],
    report: Callable[[Result, str | None], None],
    failed: Callable[[StoreUnavailableError, float], None],
    alive: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run now and then every `seconds`, until `stop()`. `report` hears of every run, and a warning where it took most of its interval.

    `alive` is called about once a second between runs. While a store does not answer, `failed` hears why, and in how many seconds the run
    is tried again.
    """
    due, pause = clock(), FIRST_PAUSE
    while not stop():
        alive()
        try:
            if clock() >= due:
                begun = clock()
                result = once()
                took = clock() - begun
                due, pause = max(begun + seconds, clock()), FIRST_PAUSE
                report(result, near(took, seconds))
        except StoreUnavailableError as error:
            due = clock() + min(pause, seconds)
            failed(error, min(pause, seconds))
            pause = min(2 * pause, LONGEST_PAUSE)
        sleep(min(1.0, seconds))


def near(took: float, interval: float) -> str | None:
    """A warning where a run took more than most of its interval, in seconds.

    >>> near(200, 300) is None, near(250, 300)
    (True, 'the run took 83% of its interval: give it a longer one, fewer entities, or a faster machine')
    """
    if took <= NEAR * interval:
        return None
    more = "" if took <= interval else ", so the next one began late"
    return f"the run took {took / interval:.0%} of its interval{more}: give it a longer one, fewer entities, or a faster machine"


# ---- the steps ------------------------------------------------------------------------------------------------------------------


def _terms(request: Request, model: str) -> str:
    """A digest of what is asked for, so that a run id never stands for two things."""
    given = None
    if request.entities is not None:
        try:
            with request.entities.open("rb") as file:
                given = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RequestError(f"{request.entities} cannot be read: {error.strerror or error}") from None
    asked = [given, request.id, request.at, model, request.features_from]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _same(plan: Plan, terms: str) -> Plan:
    if plan.terms != terms:
        raise RequestError(f"run {plan.run} was begun for something else (other entities, model or instant): say another --run")
    return plan


def _standing(book: Predictions, state: State, request: Request, terms: str, now: int) -> Plan | None:
    """The plan of a run that is to be gone on with: the one that is named, or the one that was cut short, if it is what is asked for."""
    if request.run is not None:
        plan = book.files(request.run).plan()
        return None if plan is None else _same(plan, terms)
    if state.pending is None or request.dry_run:
        return None
    plan = book.files(state.pending).plan()
    if plan is not None and plan.terms == terms and now - plan.begun <= RESUME:
        return plan
    return None


def _planned(
    env: Environment, book: Predictions, state: State, request: Request, scorer: Scorer, terms: str, now: int
) -> tuple[Plan, Entities]:
    at = now if request.at is None else request.at
    if request.at is None and state.current is not None and 0 < state.current.at - at < MINUTE:
        at = state.current.at  # a clock that was set back a little
    since = book.positions(state)
    if request.entities is not None:
        entities = from_file(request.entities, scorer.wanted, request.id)
    else:
        entities = changed(env, scorer.wanted, since, at, past=request.features_from == "history")
    run = request.run or f"{from_micros(at).strftime('%Y%m%dT%H%M%S.%f')}Z-{state.n + 1}"
    plan = Plan(
        request.name,
        run,
        at,
        terms,
        scorer.model,
        scorer.version,
        request.entities is None,
        (*scorer.wanted.keys, *(name for name in scorer.wanted.request if name not in scorer.wanted.keys)),
        request.id,
        request.features_from,
        entities.rows.height,
        request.part_rows,
        now,
        since,
        entities.until or {},
        merged(since, entities.upto or {}),
    )
    return plan, entities


def _entities(env: Environment, request: Request, scorer: Scorer, plan: Plan) -> Entities:
    """The entities of a plan, once more, and the same."""
    if request.entities is not None:
        return from_file(request.entities, scorer.wanted, request.id)
    return changed(env, scorer.wanted, plan.since, plan.at, past=plan.features_from == "history", until=plan.until)


def _dry(scorer: Scorer, plan: Plan, entities: Entities, request: Request, progress: Progress | None) -> Manifest:
    parts, statistics = score_parts(None, scorer, plan, entities, request.chunk, progress)
    return Manifest(plan, parts, statistics, dict(entities.types), 0.0)


def _checked(book: Predictions, state: State, manifest: Manifest, request: Request, scorer: Scorer) -> tuple[Finding, ...]:
    last = book.last_like(state, manifest.plan)
    frame = not manifest.plan.changed
    return tuple(findings(manifest.statistics, None if last is None else last.statistics, request.limits, frame=frame, range=scorer.range))


def _already(book: Predictions, run: str, begun: float) -> Result:
    manifest = book.files(run).manifest()
    if manifest is None:
        raise RequestError(f"run {run} is published, and its manifest is not there any more: say another --run")
    return _result("already published", manifest, (), begun, resumed=False)


def _result(outcome: Outcome, manifest: Manifest, found: tuple[Finding, ...], begun: float, *, resumed: bool) -> Result:
    plan = manifest.plan
    took = time.monotonic() - begun
    return Result(plan.name, plan.run, outcome, plan.at, plan.model, plan.version, manifest.statistics, found, took, resumed)
