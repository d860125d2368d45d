"""Stream workers as real processes: whatever is killed, and whenever, every number is right afterwards."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time

from tests.streaming import shop
from tests.streaming.conftest import Crew, is_running, wait_for
from tidemill.environment import Environment

MANY = 4_000


def test_two_workers_read_two_sources_to_their_end(env: Environment, crew: Crew) -> None:
    known = {source: shop.events(source, 0, MANY) for source in ("orders", "visits")}
    for source, events in known.items():
        shop.append(env.project.directory, source, events)
    supervisor = crew.supervise(workers=2, once=True)
    crew.until(lambda: any(e.kind == "finished" for e in crew.events))
    statuses = supervisor.statuses()
    assert sorted(p.source for s in statuses for p in s.partitions) == ["orders", "visits"]
    assert [(p.position, p.lag, p.archived) for s in statuses for p in s.partitions] == [(MANY, 0, MANY)] * 2
    assert [s.state for s in statuses] == ["stopped"] * 2
    assert supervisor.stop()
    assert shop.differences(env.project.directory, known) == []


def test_workers_killed_at_random_instants_lose_nothing_and_count_nothing_twice(env: Environment, crew: Crew) -> None:
    rng = random.Random(7)
    known: dict[str, list[shop.Event]] = {"orders": [], "visits": []}
    supervisor = crew.supervise(workers=2, archive_seconds=0.2)

    def deliver(times: int) -> None:
        for _ in range(times):
            for source, old in known.items():
                more = shop.events(source, len(old), 100)
                shop.append(env.project.directory, source, more)
                old.extend(more)
            crew.watch()

    for _ in range(3):
        before = shop.position(env, "spending")
        deliver(3)
        crew.until(lambda before=before: shop.position(env, "spending") > before)
        deliver(rng.randrange(20))
        os.kill(rng.choice(supervisor.pids), signal.SIGKILL)
        crew.until(lambda: [e.kind for e in crew.events] == ["died", "started"])
        assert "was killed by SIGKILL" in crew.events[0].reason
        crew.events.clear()
    deliver(1)
    crew.until(lambda: all(shop.position(env, v) == len(known[s]) for v, s in (("spending", "orders"), ("interest", "visits"))))
    assert supervisor.stop()
    assert shop.differences(env.project.directory, known) == []


def test_sigterm_stops_cleanly_and_a_restart_goes_on_with_a_growing_file(env: Environment, crew: Crew) -> None:
    known = {"orders": shop.events("orders", 0, 2 * MANY), "visits": shop.events("visits", 0, 100)}
    shop.append(env.project.directory, "visits", known["visits"])
    shop.append(env.project.directory, "orders", known["orders"][:MANY])
    first = crew.supervise(workers=2)
    crew.until(lambda: shop.position(env, "spending") == MANY and shop.position(env, "interest") == 100)
    begun = time.monotonic()
    assert first.stop()
    assert time.monotonic() - begun < 3.0  # a tenth of it, where the machine has nothing else to do
    assert not any(map(is_running, crew.pids))

    crew.supervise(workers=2)
    line = shop.lines([known["orders"][MANY]])
    with (env.project.directory / "orders" / "a.jsonl").open("a") as log:
        log.write(line[:20])  # a line cut in the middle waits for its end
        log.flush()
        crew.until(lambda: any(f"orders:0 from offset {MANY}" in line for line in crew.lines))
        log.write(line[20:])
    crew.until(lambda: shop.position(env, "spending") == MANY + 1)
    shop.append(env.project.directory, "orders", known["orders"][MANY + 1 :])
    crew.until(lambda: shop.position(env, "spending") == 2 * MANY)
    assert shop.differences(env.project.directory, known) == []


def test_a_worker_that_alone_is_told_to_stop_ends_with_0_and_all_start_again(env: Environment, crew: Crew) -> None:
    shop.append(env.project.directory, "orders", shop.events("orders", 0, 50))
    shop.append(env.project.directory, "visits", shop.events("visits", 0, 50))
    supervisor = crew.supervise(workers=2)
    crew.until(lambda: shop.position(env, "spending") == 50)
    os.kill(supervisor.pids[0], signal.SIGTERM)
    crew.until(lambda: crew.events)
    assert crew.events[0].kind == "died"
    assert "told to stop, but not by this supervisor" in crew.events[0].reason


def test_definitions_that_change_are_taken_up_without_a_restart(env: Environment, crew: Crew) -> None:
    known = {"orders": shop.events("orders", 0, 900), "visits": shop.events("visits", 0, 100)}
    shop.append(env.project.directory, "visits", known["visits"])
    shop.append(env.project.directory, "orders", known["orders"][:500])
    supervisor = crew.supervise(workers=1)
    crew.until(lambda: shop.position(env, "spending") == 500)
    pids = list(supervisor.pids)
    with (env.project.directory / "features.py").open("a") as definitions:
        definitions.write(shop.ONE_MORE)
    Environment.load(env.project.directory).apply()
    shop.append(env.project.directory, "orders", known["orders"][500:])
    crew.until(lambda: shop.position(env, "spending") == shop.position(env, "more") == 900)
    assert supervisor.pids == pids
    assert not crew.events
    assert shop.differences(env.project.directory, known) == []


def test_a_new_partition_is_read_after_a_restart_of_all_that_says_why(env: Environment, crew: Crew) -> None:
    orders = shop.events("orders", 0, 600)
    shop.append(env.project.directory, "orders", orders[:300])
    shop.append(env.project.directory, "visits", shop.events("visits", 0, 10))
    crew.supervise(workers=2)
    crew.until(lambda: shop.position(env, "spending") == 300)
    shop.append(env.project.directory, "orders", orders[300:], file="partition=3/a.jsonl")
    crew.until(lambda: shop.position(env, "spending", partition=3) == 300)
    assert (crew.events[0].kind, crew.events[0].reason) == ("died", "there are new partitions (orders:3)")
    assert shop.differences(env.project.directory, {"orders": orders, "visits": shop.events("visits", 0, 10)}) == []


def test_two_streams_of_one_project_by_mistake_cost_time_and_never_a_count(env: Environment, crew: Crew) -> None:
    known = {"orders": shop.events("orders", 0, MANY), "visits": shop.events("visits", 0, MANY)}
    both = [crew.supervise(workers=1, archive_seconds=0.3), crew.supervise(workers=1, archive_seconds=0.3)]
    for at in range(0, MANY, 100):
        for source, events in known.items():
            shop.append(env.project.directory, source, events[at : at + 100])
        crew.until(lambda at=at: shop.position(env, "spending") >= at)
    crew.until(lambda: shop.position(env, "spending") == shop.position(env, "interest") == MANY)
    assert all([s.stop() for s in both])  # noqa: C419  (stop both, whatever the first says)
    assert shop.differences(env.project.directory, known) == []


def test_a_store_that_is_locked_for_a_while_only_delays(env: Environment, crew: Crew) -> None:
    known = {"orders": shop.events("orders", 0, 800), "visits": shop.events("visits", 0, 10)}
    shop.append(env.project.directory, "visits", known["visits"])
    shop.append(env.project.directory, "orders", known["orders"][:400])
    crew.supervise(workers=2)
    crew.until(lambda: shop.position(env, "spending") == 400)
    with shop.locked(env):
        shop.append(env.project.directory, "orders", known["orders"][400:])
        deadline = time.monotonic() + 0.5
        crew.until(lambda: time.monotonic() > deadline)
        assert shop.position(env, "spending") == 400
    crew.until(lambda: shop.position(env, "spending") == 800)
    assert not crew.events
    assert shop.differences(env.project.directory, known) == []


def test_what_cannot_be_read_ends_a_reading_to_the_end_with_one_clear_sentence(env: Environment, crew: Crew) -> None:
    (env.project.directory / "visits").rmdir()
    supervisor = crew.supervise(workers=1, once=True)
    crew.until(lambda: any(e.kind == "failed" for e in crew.events))
    assert "there is no such directory" in crew.events[-1].reason
    assert sum("there is no such directory" in line and " error " in line for line in crew.lines) == 3  # each try, and the end
    assert not any("Traceback" in line for line in crew.lines)
    assert not supervisor.pids


def test_a_project_that_cannot_be_opened_is_told_as_it_is_in_any_log_format(env: Environment, crew: Crew) -> None:
    with (env.project.directory / "tidemill.toml").open("a") as settings:
        settings.write("[nonsense]\n")
    crew.supervise(workers=1, log_format="json")
    crew.until(lambda: crew.events)
    pid = re.escape(str(min(crew.pids)))
    assert re.match(rf"worker 0 \(pid {pid}\) ended with exit code 1: /.*unknown section \[nonsense\]", crew.events[0].reason)


def test_no_worker_outlives_its_supervisor_however_that_ends(env: Environment, crew: Crew) -> None:
    program = (
        "import sys, time, pathlib; from tidemill.apps.streaming.supervisor import Supervisor\n"
        "supervisor = Supervisor(pathlib.Path(sys.argv[1]), 2); supervisor.start()\n"
        "print(*supervisor.pids, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(env.project.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            workers = [int(pid) for pid in process.stdout.readline().split()]
            crew.pids.update(workers)
            assert all(map(is_running, workers))
        finally:
            process.kill()
    assert len(workers) == 2
    wait_for(lambda: not any(map(is_running, workers)))
