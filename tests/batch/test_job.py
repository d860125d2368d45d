"""The batch job, killed, doubled and taken back."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.project import EVENTS, VIEW, Folder, events, job
from tidemill.apps import load
from tidemill.errors import LeaseError, StoreUnavailableError, TidemillError
from tidemill.offline.cuts import latest_cut, make_cut, read_cut
from tidemill.offline.leases import Lease, this_process
from tidemill.offline.partials import Partials, Progress

fold = load("batch.fold")


class Killed(BaseException):
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """2,500 events streamed; two versions folded and published."""
    folder = Folder(tmp_path / "p")
    for first in (0, 1250):
        folder.log(events(1250, first))
        folder.stream()
        folder.batch()
    return folder


def versions(folder: Folder) -> list[tuple[int, int]]:
    [bundle] = folder.env.applied().bundles
    return Partials(folder.env.offline, bundle.bundle).versions()


@pytest.mark.parametrize("killed_in", ["withdraw", "forget_published", "reset", "delete"])
def test_a_roll_back_that_is_killed_is_finished_by_the_next_and_takes_back_one_version(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    owner: Any = {"reset": type(folder.env.online), "delete": type(folder.env.offline)}.get(killed_in, Partials)

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, killed_in, killed)
        with pytest.raises(Killed):
            job.rollback(folder.env, "events")
    assert job.rollback(folder.env, "events") == {folder.env.applied().bundles[0].bundle.id: 1}
    assert versions(folder) == [(1, 0)]
    folder.stream()
    assert folder.get() == {"v__count_lifetime": 2500}
    folder.batch()
    assert versions(folder) == [(1, 0), (2, 1)]
    assert folder.get() == {"v__count_lifetime": 2500}


def test_a_roll_back_that_is_killed_is_finished_by_the_next_batch_run(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Partials, "forget_published", killed)
        with pytest.raises(Killed):
            job.rollback(folder.env, "events")
    folder.batch()
    assert versions(folder) == [(1, 0), (2, 1)]
    assert folder.get() == {"v__count_lifetime": None}, "emptied: what was published of the version that went must not serve"
    folder.stream()
    assert folder.get() == {"v__count_lifetime": 2500}


def test_a_roll_back_leaves_bundles_alone_that_were_never_folded(folder: Folder) -> None:
    folder.define(EVENTS + VIEW + VIEW.replace("v", "w", 2).replace('"v"', '"w"'))
    taken = job.rollback(folder.env, "events")
    assert sorted(taken.values()) == [0, 1]
    folder.stream()
    assert folder.get() == {"v__count_lifetime": 2500}


def test_before_the_first_fold_there_is_nothing_to_roll_back(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "p")
    with pytest.raises(TidemillError, match="nothing was folded yet"):
        job.rollback(folder.env, "events")


def test_of_two_folds_from_the_same_version_one_commits(folder: Folder) -> None:
    folder.log(events(1250, 2500))
    folder.stream()
    make_cut(folder.env.offline, "events")
    k = latest_cut(folder.env.offline, "events")
    [applied] = folder.env.applied().bundles
    partials = Partials(folder.env.offline, applied.bundle)
    base, generation = partials.standing(k)
    start = Progress(base.vector, 0, base.horizon, base.latest, base.arrived, ())
    late = fold._Fold(applied.bundle, partials, "late", k, start)
    folder.batch()
    vector = read_cut(folder.env.offline, "events", k)
    assert fold._commit(late, base, generation, k, vector, 0, {}, fold.Budget()) == partials.latest()
    assert versions(folder) == [(1, 0), (2, 0), (3, 0)]


def test_a_column_that_no_view_reads_may_change_its_type(folder: Folder) -> None:
    folder.define(EVENTS.replace('"x": int', '"x": str') + VIEW)
    folder.log(events(1250, 2500, x="one"))
    folder.stream()
    folder.batch()
    assert (versions(folder)[-1], folder.get()) == ((3, 0), {"v__count_lifetime": 3750})


def test_one_job_at_a_time(folder: Folder) -> None:
    lease = Lease(folder.env.offline, "batch", seconds=60, owner="elsewhere:1")
    with lease, pytest.raises(LeaseError, match="held by elsewhere:1"), job.alone(folder.env):
        pass
    with job.alone(folder.env) as progress:
        progress("fold", 1, 2)


def test_a_job_that_was_killed_on_this_host_does_not_hold_the_next_one_up(folder: Folder) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = this_process(gone.pid)
    Lease(folder.env.offline, "batch", seconds=60, owner=owner).acquire()
    with pytest.raises(LeaseError, match=f"is held by {socket.gethostname()}:{gone.pid}"), job.alone(folder.env):
        pass
    gone.communicate()
    with job.alone(folder.env):
        pass


@pytest.mark.parametrize("change", [("host", 0), ("0", 2), ("another namespace", 3)])
def test_whoever_may_be_alive_elsewhere_is_waited_for(folder: Folder, change: tuple[str, int]) -> None:
    """Containers share hosts' names, and all have a process 1."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    owner = this_process(gone.pid).split(":")
    gone.wait()
    owner[change[1]] = change[0]
    Lease(folder.env.offline, "batch", seconds=60, owner=":".join(owner)).acquire()
    with pytest.raises(LeaseError, match="is held by"), job.alone(folder.env):
        pass


def test_a_process_that_has_the_number_of_a_dead_one_is_another(folder: Folder) -> None:
    host, pid, birth, namespace = this_process().split(":")
    Lease(folder.env.offline, "batch", seconds=60, owner=f"{host}:{pid}:{int(birth) - 1}:{namespace}").acquire()
    ran = False
    with job.alone(folder.env):  # raises LeaseError where the dead one is taken to be alive
        ran = True
    assert ran


def test_again_and_again_it_outlasts_a_store_that_does_not_answer(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    tried: list[float] = []
    failures: list[float] = []
    reports: list[Any] = []
    real = job.run

    def run(*arguments: Any) -> Any:
        tried.append(now)
        if 4 <= now < 3_000:
            raise StoreUnavailableError("away")
        return real(*arguments)

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(job, "run", run)
    job.run_every(
        folder.env, 600.0, lambda: now > 4_000, sleep, reports.append, lambda error, pause: failures.append(pause), clock=lambda: now
    )
    assert tried[:6] == [0.0, 600.0, 605.0, 615.0, 635.0, 675.0]
    assert failures[:8] == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    assert [round(each, -3) for each in tried[-2:]] == [3_000, 4_000]
    assert len(reports) == len(tried) - len(failures)
    with Lease(folder.env.offline, "batch", seconds=1):
        pass
