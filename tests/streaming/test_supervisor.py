"""When workers are started again, and what is said of it; with tiny processes in the place of workers, in simulated time."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.streaming.conftest import wait_for
from tidemill.apps import load

supervisor = load("streaming.supervisor")
RESTART = load("streaming.upkeep").RESTART


class Tiny(supervisor.Supervisor):  # type: ignore[misc, name-defined]
    """Its workers run one line of Python each."""

    programs: list[str]

    def _command(self, index: int, addresses: str) -> list[str]:
        return [sys.executable, "-S", "-E", "-c", self.programs[index]]


WAIT = "import sys; sys.stdin.read()"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Any]:
    class Desk:
        now = 1000.0
        lines: list[str] = []  # noqa: RUF012  (one desk a test)

        def supervise(self, *programs: str, **options: Any) -> Any:
            self.tiny = Tiny(tmp_path, len(programs), on_line=self.lines.append, clock=lambda: self.now, **options)
            self.tiny.programs = list(programs)
            self.tiny.start()
            return self.tiny

        def event(self) -> Any:
            return wait_for(self.tiny.poll)

    made = Desk()
    made.lines = []
    yield made
    made.tiny.stop(timeout=0.0)


def test_while_all_is_well_nothing_happens(desk: Any) -> None:
    tiny = desk.supervise(WAIT, WAIT)
    assert len(tiny.pids) == 2
    assert tiny.poll() is None


def test_when_one_dies_all_start_again_and_the_reason_is_told(desk: Any) -> None:
    tiny = desk.supervise(WAIT, WAIT)
    before = tiny.pids
    os.kill(before[1], signal.SIGKILL)
    event = desk.event()
    assert (event.kind, event.reason, event.seconds) == ("died", f"worker 1 (pid {before[1]}) was killed by SIGKILL", 0.2)
    assert tiny.poll() is None  # not yet
    desk.now += 0.2
    assert tiny.poll().kind == "started"
    assert len(set(tiny.pids) | set(before)) == 4


def test_the_pause_doubles_up_to_half_a_minute_and_is_short_again_after_a_healthy_minute(desk: Any) -> None:
    tiny = desk.supervise("raise SystemExit(3)")
    pauses = []
    for _ in range(10):
        event = desk.event()
        pauses.append(event.seconds)
        desk.now += event.seconds
        assert tiny.poll().kind == "started"
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    desk.now += 60
    assert desk.event().seconds == 0.2


def test_a_worker_that_asks_for_a_restart_gets_it_at_once(desk: Any) -> None:
    tiny = desk.supervise(f"raise SystemExit({RESTART})")
    event = desk.event()
    assert (event.kind, event.seconds) == ("died", 0.0)
    assert tiny.poll().kind == "started"


def test_the_last_line_of_a_worker_that_failed_is_the_reason(desk: Any) -> None:
    desk.supervise("import sys; print('one', file=sys.stderr); print('the disk is full', file=sys.stderr); sys.exit(1)")
    assert desk.event().reason.endswith("ended with exit code 1: the disk is full")
    assert [line for line in desk.lines if "supervisor" not in line] == ["one", "the disk is full"]  # "started" may come before or after


def test_a_log_in_json_has_no_other_line_whatever_a_worker_prints(desk: Any) -> None:
    ours = '{"time": "now", "level": "info", "who": "worker 0", "message": "mine"}'
    raw = f"import sys; print({ours!r}, file=sys.stderr); sys.stderr.write('Trace\\tback\\n[1]\\n'); sys.exit(1)"
    desk.supervise(raw, log_format="json")
    assert desk.event().kind == "died"
    found = [json.loads(line) for line in desk.lines]
    assert all({"time", "level", "who", "message"} <= line.keys() for line in found)
    said = [(line["level"], line["message"]) for line in found if line["who"] == "worker 0"]
    assert said == [("info", "mine"), ("error", "Trace\tback"), ("error", "[1]")]


def test_restarts_are_counted_by_their_cause_and_what_workers_last_said_is_heard(desk: Any, tmp_path: Path) -> None:
    status = load("streaming.status")
    heard: list[Any] = []
    tiny = desk.supervise(WAIT, on_end=heard.append)
    [pid] = tiny.pids
    status.write_status(tmp_path, status.WorkerStatus(0, 1, pid, 0, status.this_host(), 0, 0, "reading", 1))
    tiny.programs = [f"raise SystemExit({RESTART})"]
    os.kill(pid, signal.SIGKILL)
    assert desk.event().kind == "died"
    assert [[s.pid for s in statuses] for statuses in heard] == [[pid]]
    assert tiny.restarts == {"died": 1, "asked": 0}
    desk.now += 1
    assert tiny.poll().kind == "started"
    assert desk.event().kind == "died"
    assert tiny.restarts == {"died": 1, "asked": 1}


def test_the_worker_that_is_named_is_the_one_that_took_the_others_along(desk: Any) -> None:
    tiny = desk.supervise("raise SystemExit(76)", "import os; os.kill(os.getpid(), 9)")
    wait_for(lambda: all(child.process.poll() is not None for child in tiny._children))
    assert desk.event().reason.startswith("worker 1 ")


def test_once_ends_when_all_have_ended_well(desk: Any) -> None:
    tiny = desk.supervise("", "import time; time.sleep(0.2)", once=True)
    assert desk.event().kind == "finished"
    assert tiny.stop()


def test_once_gives_up_where_it_is_no_use(desk: Any) -> None:
    desk.supervise("import sys; sys.exit('the log is gone')", once=True)
    assert desk.event().kind == "died"
    desk.now += 1
    assert desk.event().kind == "started"
    event = desk.event()
    assert (event.kind, event.reason.rpartition(": ")[2]) == ("failed", "the log is gone")


def test_stop_ends_all_and_says_whether_they_did_so_themselves(desk: Any) -> None:
    heeds = "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print('ready', file=sys.stderr, flush=True); signal.pause()"
    ignores = "import signal, sys; signal.signal(15, signal.SIG_IGN); print('ready', file=sys.stderr, flush=True); signal.pause()"
    for programs, clean in (((heeds, heeds), True), ((heeds, ignores), False)):
        desk.lines.clear()
        tiny = desk.supervise(*programs)
        wait_for(lambda: desk.lines.count("ready") == 2)
        begun = time.monotonic()
        assert tiny.stop(timeout=0.5) == clean
        assert time.monotonic() - begun < 5
        assert tiny.pids == []


def test_run_ends_when_told_and_leaves_nobody(desk: Any) -> None:
    tiny = Tiny(Path(), 1, on_line=desk.lines.append)
    tiny.programs, desk.tiny = [WAIT], tiny
    seen: list[int] = []
    assert tiny.run(lambda: len(seen) > 2, lambda: seen.extend(tiny.pids)) == 0
    assert tiny.pids == []


def test_the_environment_of_workers_has_one_polars_thread_unless_told_otherwise(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLARS_MAX_THREADS")
    show = "import os, sys; print(os.environ['POLARS_MAX_THREADS'], file=sys.stderr); sys.stdin.read()"
    for overrides, expected in (({}, "1"), ({"POLARS_MAX_THREADS": "4"}, "4")):
        desk.lines.clear()
        desk.supervise(show, env_overrides=overrides)
        wait_for(lambda expected=expected: expected in desk.lines)
        desk.tiny.stop(0.0)
