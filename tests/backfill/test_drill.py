"""Real processes: a backfill under a live stream, both killed at random instants, ends equal to brute force."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.backfill.world import HOUR, WITH_ID, World, make_events, plain
from tidemill.offline.history import imports
from tidemill.online.base import SlotId

#: Small parts and many notes, so that there is much to be killed in the middle of.
_CHILD = """
import sys
from dataclasses import replace
from tidemill.apps.backfill import job
from tidemill.apps.batch.engine import Budget
from tidemill.environment import Environment
job.LEAST_ROWS = job.MOST_ROWS = 2_000
budget = replace(Budget(), rows=1_500, events=5_000)
Budget.of = lambda memory: budget
job.run(Environment.load(sys.argv[1]), job.Request("events", ("history",)))
"""
_STREAM = "from tidemill.cli import main; main()"


def start(world: World) -> subprocess.Popen[bytes]:
    with (world.path / "stream.txt").open("ab") as out:
        return subprocess.Popen([sys.executable, "-c", _STREAM, "stream"], cwd=world.path, stdout=out, stderr=out, start_new_session=True)


def kill_all(stream: subprocess.Popen[bytes]) -> None:
    """The supervisor and its workers, which are a session of their own."""
    os.killpg(stream.pid, signal.SIGKILL)
    stream.wait()


def wait(run: subprocess.Popen[bytes], path: Path, steps: int) -> int:
    """Until the process wrote so many more objects of its import (and `TimeoutExpired`), or ended (its exit code).

    A number of steps, not of seconds: what is in the middle on one machine is done, or has not begun, on another.
    """
    before = len(list(path.rglob("history/*/*/*")))
    while len(list(path.rglob("history/*/*/*"))) < before + steps:
        if (code := run.poll()) is not None:
            return code
        time.sleep(0.002)
    raise subprocess.TimeoutExpired(run.args, 0)


def test_a_backfill_under_a_live_stream_ends_equal_however_often_both_are_killed(tmp_path: Path) -> None:
    dice = random.Random(5)
    world = World(tmp_path / "p", WITH_ID)
    settings = world.path / "tidemill.toml"
    settings.write_text(settings.read_text().replace("3650d", "10s"))
    world.write(WITH_ID)
    everything = make_events(34_000, every=HOUR // 40)
    for number, first in enumerate(range(0, 31_000, 4_000)):
        world.history(f"{number}.{('jsonl', 'csv', 'parquet', 'jsonl.gz')[number % 4]}", everything[first : min(first + 4_100, 31_000)])
    sent = 30_000  # a thousand of them are in both

    def deliver(count: int) -> None:
        nonlocal sent
        world.log([plain(e) for e in everything[sent : sent + count]])
        sent += count

    deliver(1_500)
    stream, kills = start(world), 0
    try:
        deadline = time.monotonic() + 150
        while True:
            with (world.path / "backfill.txt").open("ab") as out:
                run = subprocess.Popen([sys.executable, "-c", _CHILD, str(world.path)], stdout=out, stderr=out)
            try:
                code = wait(run, world.path, dice.randint(1, 4)) if kills < 6 else run.wait(120)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
                kills, code = kills + 1, -1
            if sent < 33_000:
                deliver(250)
            if dice.random() < 0.4:
                kill_all(stream)
                stream = start(world)
            if code == 0:
                break
            assert code < 0, (world.path / "backfill.txt").read_text()[-2_000:]
            assert time.monotonic() < deadline, "the backfill does not come to its end"
        deliver(34_000 - sent)
        [bundle] = world.env.applied().bundles
        slots = [SlotId(bundle.bundle.id, shard) for shard in range(2)]
        while any(state.positions.get(0, 0) < 4_000 or not state.serving for state in world.env.online.slots(slots)):
            assert time.monotonic() < deadline + 60, "the stream does not come to its end"
            time.sleep(0.1)
    finally:
        kill_all(stream)
    assert kills >= 2
    [made] = imports(world.env.offline, "events")
    assert (made.events, made.left_out, made.repeated) == (30_000, 1_000, 700)
    world.check(everything)
    world.batch()
    world.check(everything)
