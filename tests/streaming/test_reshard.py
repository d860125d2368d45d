"""Another number of shards, while workers run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.streaming import shop
from tests.streaming.conftest import Crew
from tidemill.apps import load
from tidemill.environment import Environment
from tidemill.errors import DefinitionError
from tidemill.online.base import SlotId

job, reshard = load("batch.job"), load("batch.reshard")


def configure(env: Environment, shards: int) -> Environment:
    path = env.project.directory / "tidemill.toml"
    path.write_text(shop.CONFIGURATION.replace("shards = 4", f"shards = {shards}"))
    return Environment.load(env.project.directory)


@pytest.mark.parametrize("shards", [1, 7])
def test_entities_are_spread_anew_while_workers_run_and_one_is_killed(env: Environment, crew: Crew, shards: int) -> None:
    known = {"orders": shop.events("orders", 0, 2600), "visits": shop.events("visits", 0, 1500)}
    directory = env.project.directory
    shop.append(directory, "orders", known["orders"][:1500])
    shop.append(directory, "visits", known["visits"])
    crew.supervise(2, archive_seconds=0.2)
    crew.until(lambda: shop.position(env, "spending") == 1500 and shop.position(env, "interest") == 1500)
    job.run(env)
    old = [b.bundle for b in env.applied().bundles]
    env.online.close()
    env = configure(env, shards)
    done = reshard.reshard(env)
    assert (done.before, done.after, env.applied().shards) == (4, shards, shards)
    shop.append(directory, "orders", known["orders"][1500:2000])
    os.kill(min(crew.pids), signal.SIGKILL)
    crew.until(lambda: shop.position(env, "spending") == 2000 and shop.position(env, "interest") == 1500)
    assert shop.differences(directory, known | {"orders": known["orders"][:2000]}) == []
    shop.append(directory, "orders", known["orders"][2000:])
    crew.until(lambda: shop.position(env, "spending") == 2600)
    job.run(env)
    assert [env.online.stats(b.id, b.table_ids).cells for b in old] == [0, 0]
    assert not any(state.serving for b in old for state in env.online.slots([SlotId(b.id, s) for s in range(4)]))
    assert shop.differences(directory, known) == []
    env.online.close()


def test_there_and_back_again_nothing_old_counts(env: Environment, tmp_path: Path) -> None:
    """The first number's slots are found as they were left, unless they begin anew."""
    known = {"orders": shop.events("orders", 0, 300), "visits": shop.events("visits", 0, 200)}
    supervisor = load("streaming.supervisor").Supervisor

    def stream(env: Environment, count: int) -> None:
        for source, events in known.items():
            folder = env.project.directory / source
            (folder / "a.jsonl").write_text(shop.lines(events[:count]))
        assert supervisor(env.project.directory, 1, once=True, on_line=lambda _: None).run(lambda: False) == 0

    stream(env, 100)
    for shards, count in ((9, 150), (4, 250), (9, 300)):
        env.online.close()
        env = configure(env, shards)
        reshard.reshard(env)
        stream(env, count)
        assert shop.differences(env.project.directory, {s: e[:count] for s, e in known.items()}) == []
    env.online.close()


def test_apply_says_how_and_definitions_are_applied_first(env: Environment) -> None:
    changed = configure(env, 8)
    with pytest.raises(DefinitionError, match="tidemill reshard"):
        changed.apply()
    features = env.project.directory / "features.py"
    features.write_text(features.read_text() + shop.ONE_MORE)
    changed = configure(env, 8)
    with pytest.raises(DefinitionError, match="run `tidemill apply`, then change it to 8"):
        reshard.reshard(changed)
    assert changed.applied().shards == 4


def test_without_a_change_nothing_is_done(env: Environment) -> None:
    before = json.dumps(env.applied().spec())
    assert reshard.reshard(env).bundles == 0
    assert json.dumps(env.applied().spec()) == before
