"""Predictions killed at any instant: whatever is visible is a whole run, and the next call puts things right."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.predictions.conftest import BEGIN, SECOND, Project, StandIn, score_of
from tests.servers.postgres import PostgresServer
from tidemill.errors import TidemillError
from tidemill.offline.directory import DirectoryStore
from tidemill.predictions.book import Predictions
from tidemill.predictions.checks import Limits
from tidemill.predictions.postgres import PostgresPredictions
from tidemill.predictions.sqlite import SqlitePredictions

#: Every create is synced to the disk, which these tests do thousands of times, and never pull a plug.
MEMORY = next((place for place in ("/dev/shm",) if Path(place).is_dir()), None)


class Killed(BaseException):
    """What ends a process, and no `except Exception` sees."""


class Fuse:
    """Lets so many steps happen; a step is before, and another one after, everything that reads, writes, scores or commits."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def burning(*arguments: Any, **named: Any) -> Any:
            self.burn()
            result = function(*arguments, **named)
            self.burn()
            return result

        return burning

    def around_transaction(self, transaction: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def burning(table: Any) -> Iterator[None]:
            self.burn()
            with transaction(table):
                yield
                self.burn()  # before the commit
            self.burn()  # after it

        return burning


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Fuse:
    return lit(monkeypatch)


def lit(patch: pytest.MonkeyPatch) -> Fuse:
    fuse = Fuse()
    for owner, names in (
        (DirectoryStore, ("read", "write", "create", "delete")),
        (SqlitePredictions, ("load", "execute")),
        (PostgresPredictions, ("load", "execute")),
        (StandIn, ("score",)),
    ):
        for name in names:
            patch.setattr(owner, name, fuse.around(getattr(owner, name)))
    for table in (SqlitePredictions, PostgresPredictions):
        patch.setattr(table, "transaction", fuse.around_transaction(table.transaction))
    return fuse


def killed(fuse: Fuse, steps: int, action: Callable[[], Any]) -> bool:
    """Whether the action was killed before its end."""
    fuse.left = steps
    try:
        action()
    except Killed:
        return True
    finally:
        fuse.left = None
    return False


def visible_rows(project: Project) -> dict[str, list[tuple[str, float]]]:
    """By run, what the table has; every run that the table says is visible."""
    runs = [r for (r,) in project.query("select run from tidemill_prediction_runs where withdrawn_at is null")]
    rows = project.query("select run, entity, score from p_scores order by run, entity")
    assert {r for r, _, _ in rows} <= set(runs), "rows of a run that is not there"
    return {run: [(e, s) for r, e, s in rows if r == run] for run in runs}


def test_killed_at_every_third_step_and_run_again_the_table_has_each_prediction_once(
    published: Project, fuse: Fuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.happen("a", "b", "b", "c", "d", "e")
    published.run(run="first")
    expected = published.latest()
    step = kills = 0
    count = {k: 1 + (k == "b") for k in "abcde"}
    while True:
        count["b"] += 1
        published.happen("b", "new" + str(step))
        more = {"seconds": 3700 + step, "chunk": 1, "part_rows": 1}
        was_killed = killed(fuse, step, lambda more=more: published.run(**more))
        before = published.latest()
        expected_after = {**expected, "b": score_of(count["b"]), f"new{step}": score_of(1)}
        assert before in (expected, expected_after), "a part of a run is visible"
        published.run(**more)
        assert published.latest() == expected_after
        assert not [n for n in Counter(e for rows in visible_rows(published).values() for e, _ in rows).values() if n > step + 2]
        assert published.run(seconds=3700 + step).outcome == "unchanged"
        expected = expected_after
        if not was_killed:
            break
        kills, step = kills + 1, step + 3
    assert kills > 10


entities = st.sampled_from(["a", "b", "c", "d"])
#: Entity, and how many seconds before (or after) the run it happens.
happening = st.tuples(st.just("event"), entities, st.integers(-20, 5_000))
running = st.tuples(st.just("run"), st.none() | st.integers(0, 90), st.booleans())
rolling = st.tuples(st.just("rollback"), st.none() | st.integers(0, 40), st.booleans())
blocked = st.tuples(st.just("blocked"), st.none() | st.integers(0, 90), st.booleans())
offline = st.tuples(st.just("no table"), st.none() | st.integers(0, 60), st.booleans())


@given(steps=st.lists(happening | happening | running | running | rolling | blocked | offline, min_size=3, max_size=25))
@settings(max_examples=40)
def test_whatever_is_killed_the_latest_scores_are_those_of_the_events(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, pytest.MonkeyPatch.context() as patch:
        check(Project(Path(folder) / "p"), lit(patch), steps, "sqlite:///p.db")


def test_what_comes_late_while_a_run_stands_is_in_the_next_one(tmp_path: Path, fuse: Fuse) -> None:
    project = Project(tmp_path / "p")
    project.happen("a", seconds=10_000)
    project.now = BEGIN + 10_060 * SECOND
    assert killed(fuse, 7, lambda: project.run(chunk=2, part_rows=2))
    project.url = "sqlite:///p.db"
    project.happen("b", seconds=10_059)
    project.now += 60 * SECOND
    resumed = project.run(chunk=2, part_rows=2)
    assert (resumed.resumed, project.latest()) == (True, {"a": score_of(1)})
    project.now += 60 * SECOND
    assert project.run(chunk=2, part_rows=2).outcome == "published"
    assert project.latest() == {"a": score_of(1), "b": score_of(1)}


@given(steps=st.lists(happening | running | rolling | blocked, min_size=5, max_size=20))
@settings(max_examples=6)
def test_so_are_they_in_postgres(postgres: PostgresServer, steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", postgres.PASSWORD)
        check(Project(Path(folder) / "p"), lit(patch), steps, postgres.database())


def check(project: Project, fuse: Fuse, steps: list[tuple[Any, ...]], url: str) -> None:
    """Every entity's latest score is that of its events before the last run; after a roll-back, what it was before that run."""
    project.url = url
    events: list[tuple[str, int]] = []
    book = Predictions(project.env.offline, "p")
    # What every run that became visible showed of all entities, by the journal's own order.
    shown: dict[str, dict[str, float]] = {}
    standing = 0  # the instant of a run that was killed, and is to be gone on with
    for i, (what, *about) in enumerate([*steps, ("run", None, True)]):
        now = 10_000 + 60 * i
        if what == "event":
            entity, ago = about
            # What comes for the time before a run that stands is for the next one, see below.
            time = max(now - ago, standing)
            events.append((entity, time))
            project.happen(entity, seconds=time)
            continue
        limit, again = about
        project.url = None if what == "no table" else url
        project.now = BEGIN + now * SECOND
        limits = Limits(max_score=-1.0) if what == "blocked" else Limits()

        def act(what: str = what, limits: Limits = limits) -> None:
            if what == "rollback":
                try:
                    project.rollback()
                except TidemillError:
                    assert not book.journal.state().visible, "there was one to take back"
            else:
                project.run(chunk=2, part_rows=2, limits=limits)

        was_killed = limit is not None and killed(fuse, limit, act)
        if limit is None or (was_killed and again):
            act()
        standing = now if was_killed and not again else 0
        project.url = url
        state = book.journal.state()
        for published in state.visible:
            if published.run not in shown:
                at = (published.at - BEGIN) // SECOND
                counts = Counter(e for e, t in events if t < at)
                shown[published.run] = {e: score_of(n) for e, n in counts.items()}
        if was_killed and not again:
            continue  # the table follows with the next call
        if what != "no table":
            current = shown[state.visible[-1].run] if state.visible else {}
            assert latest(project, state.n) == current, (i, what)


def latest(project: Project, n: int) -> dict[str, float | None]:
    """The latest scores, of those with an event: an event that lies ahead of its run brings its entity in early, with a count of 0."""
    if not n or not project.query_exists("p_scores"):
        return {}
    rows = visible_rows(project)
    assert all(len(found) == len(dict(found)) for found in rows.values())
    return {entity: score for entity, score in project.latest().items() if score != score_of(0)}


def test_a_roll_back_that_was_cut_short_is_finished_by_the_next_and_takes_back_one_run(published: Project, fuse: Fuse) -> None:
    for step in range(0, 100, 2):
        for i in range(3):
            published.happen("a")
            published.run(seconds=3600 + 10 * step + i)
        before = Predictions(published.env.offline, "p").journal.state().visible
        if not killed(fuse, step, published.rollback):
            break
        state = Predictions(published.env.offline, "p").journal.state()
        finished = published.query("select n from tidemill_prediction_current") == [(state.n,)]
        published.rollback()
        after = Predictions(published.env.offline, "p").journal.state().visible
        assert after == (before[:-2] if state.event == "rollback" and finished else before[:-1])
        assert published.query("select run from tidemill_prediction_current") == [(after[-1].run,)]
    assert step > 10


def test_who_comes_late_changes_nothing(published: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process sleeps before it publishes; another takes over and publishes; the first wakes up."""
    published.happen("a", "b")
    published.run()
    published.happen("a")
    real = Predictions.publish

    def sleeps(book: Any, state: Any, plan: Any, now: int, threshold: float | None) -> Any:
        monkeypatch.setattr(Predictions, "publish", real)
        assert published.run(seconds=3720, features_from="online").outcome == "published"
        return real(book, state, plan, now, threshold)

    monkeypatch.setattr(Predictions, "publish", sleeps)
    with pytest.raises(TidemillError, match="which runs there are has just changed"):
        published.run(seconds=3710)
    assert published.latest() == {"a": score_of(2), "b": score_of(1)}
    assert len(visible_rows(published)) == 2


def test_a_table_does_not_go_back_for_a_process_that_is_late(published: Project) -> None:
    published.happen("a")
    published.run()
    book = Predictions(published.env.offline, "p")
    late = book.journal.state()
    published.happen("a", "b")
    published.run(seconds=3700)
    table = published.table()
    assert table is not None
    assert not table.follow("p", late, lambda run: None)
    table.close()
    assert published.latest() == {"a": score_of(2), "b": score_of(1)}
