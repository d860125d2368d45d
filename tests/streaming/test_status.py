"""Status files: whole or not at all, and never taken for a living worker's when it is dead."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tidemill.apps import load

status = load("streaming.status")


def partition(**changes: Any) -> Any:
    some = status.PartitionStatus("orders", 0, 900, 1000, 100, 900, 899, 1, 500, 0, 1234.5, None, None)
    return replace(some, **changes)


def worker(pid: int | None = None, **changes: Any) -> Any:
    pid = os.getpid() if pid is None else pid
    now = time.time_ns() // 1000
    some = status.WorkerStatus(0, 2, pid, status.birth_of(pid), status.this_host(), now, now, "reading", 1, partitions=(partition(),))
    return replace(some, **changes)


def test_what_a_worker_writes_others_read(tmp_path: Path) -> None:
    written = worker()
    status.write_status(tmp_path, written)
    assert status.read_status(tmp_path) == [replace(written, alive=True)]
    assert [p.name for p in status.run_directory(tmp_path).iterdir()] == [f"worker-{os.getpid()}.json"]


def test_a_project_that_never_had_a_worker_has_no_status(tmp_path: Path) -> None:
    assert status.read_status(tmp_path) == []


def test_the_file_of_a_dead_process_is_recognised_and_removed_by_the_next_worker(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        status.write_status(tmp_path, worker(process.pid, index=1))
        assert [s.alive for s in status.read_status(tmp_path)] == [True]
        process.kill()
    status.write_status(tmp_path, worker())
    assert [(s.index, s.alive) for s in status.read_status(tmp_path)] == [(0, True), (1, False)]
    status.remove_stale(tmp_path)
    assert [(s.index, s.alive) for s in status.read_status(tmp_path)] == [(0, True)]


def test_of_what_failed_workers_printed_only_the_last_is_kept(tmp_path: Path) -> None:
    folder = status.run_directory(tmp_path)
    folder.mkdir(parents=True)
    dead = [2**22 + i for i in range(9)]  # above the largest number of a process
    for age, pid in enumerate(dead):
        path = status.noise_path(tmp_path, pid)
        path.write_text("panic" if age != 7 else "")
        os.utime(path, (age, age))
    mine = status.noise_path(tmp_path, os.getpid())
    mine.write_text("")
    status.remove_stale(tmp_path)
    assert set(folder.iterdir()) == {mine, *(status.noise_path(tmp_path, pid) for pid in [*dead[3:7], dead[8]])}


def test_another_process_with_the_same_number_is_not_the_worker(tmp_path: Path) -> None:
    status.write_status(tmp_path, worker(birth=1))
    assert [s.alive for s in status.read_status(tmp_path)] == [False]


def test_a_worker_that_said_that_it_stopped_is_not_alive(tmp_path: Path) -> None:
    for state in ("stopped", "failed"):
        status.write_status(tmp_path, worker(state=state))
        assert [s.alive for s in status.read_status(tmp_path)] == [False]


def test_a_worker_on_another_machine_is_alive_while_its_file_is_fresh(tmp_path: Path) -> None:
    now = time.time_ns() // 1000
    for age, alive in ((1, True), (60, False)):
        status.write_status(tmp_path, worker(pid=1, host="elsewhere", time=now - age * 1_000_000))
        assert [s.alive for s in status.read_status(tmp_path)] == [alive]


def test_a_damaged_file_is_left_out(tmp_path: Path) -> None:
    status.write_status(tmp_path, worker())
    (status.run_directory(tmp_path) / "worker-1.json").write_text('{"index": 0')
    assert len(status.read_status(tmp_path)) == 1


def test_a_status_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / ".tidemill").write_text("a file, where a folder should be")
    status.write_status(tmp_path, worker())


def test_totals_add_all_partitions_and_know_no_lag_while_one_is_unknown() -> None:
    two = [worker(partitions=(partition(), partition(partition=1, waiting=("b-1",)))), worker(partitions=(partition(lag=None),))]
    sums = status.totals(two)
    assert (sums.partitions, sums.events, sums.dead, sums.lag, sums.waiting) == (3, 2697, 3, None, ("b-1",))
    assert status.totals(two[:1]).lag == 200


def test_the_status_line_says_how_it_goes_and_what_is_not_as_usual() -> None:
    assert status.status_line([]) == "no workers"
    assert status.status_line([worker()]) == "1 worker · 899 events · 1,234 events/s · lag 100 · dead letters 1"
    assert (
        status.status_line([worker(state="waiting"), worker(partitions=(partition(lag=None, waiting=("card-1f",)),))])
        == "2 workers · waiting · 1,798 events · 2,469 events/s · lag ? · dead letters 2 · waiting for batch: card-1f"
    )
