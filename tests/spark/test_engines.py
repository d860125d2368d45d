"""Which engine runs, and what is said where it cannot; and the command, as people run it."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.project import EVENTS, Folder, events
from tidemill.apps import load
from tidemill.environment import Environment
from tidemill.errors import StoreError, TidemillError

engines = load("batch.engines")
job = load("batch.job")
session = load("batch.spark.session")

#: A longer window with a finer hop: tiles may then be of other widths, according to the batches, and the answers may not.
VIEW = """
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=["1h"]), tm.sum("x", windows=["1d"], hop="1s"), tm.last_n("x", 3, windows=["lifetime"])])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "a b", EVENTS + VIEW)
    folder.log(events(3000))
    folder.stream()
    return folder


def settings(folder: Folder, text: str) -> Environment:
    with (folder.path / "tidemill.toml").open("a") as file:
        file.write(text)
    return Environment.load(folder.path)


def test_the_engine_is_what_is_asked_for_else_what_the_project_says_else_this_machine(folder: Folder) -> None:
    assert engines.engine_of(folder.env) is None
    env = settings(folder, '[batch]\nengine = "spark"\n[spark]\nmaster = "local[3]"\n"spark.executor.memory" = "2g"\n')
    chosen = engines.engine_of(env)
    assert chosen._cluster == session.Cluster("local[3]", {"spark.executor.memory": "2g"})
    assert engines.engine_of(env, None, "yarn")._cluster.master == "yarn"
    assert engines.engine_of(env, "local") is None


@pytest.mark.parametrize(
    ("asked", "said"), [(("flink", None), "no engine 'flink': say local or spark"), ((None, "yarn"), "say --engine spark")]
)
def test_what_is_no_engine_is_refused(folder: Folder, asked: Any, said: str) -> None:
    with pytest.raises(TidemillError, match=said):
        engines.engine_of(folder.env, *asked)


def test_without_pyspark_it_says_what_to_install(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "spark.fold":
            raise ModuleNotFoundError("No module named 'pyspark'", name="pyspark")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TidemillError, match=r"pip install 'tidemill\[spark\]'"):
        engines.engine_of(folder.env, "spark")


def test_credentials_of_settings_are_not_shown() -> None:
    assert "secret" not in repr(session.Cluster("local", {"spark.hadoop.fs.s3a.secret.key": "secret"}))


def test_a_tasks_own_error_is_told_as_if_it_had_been_raised_here() -> None:
    text = (
        "Job aborted\nTraceback (most recent call last):\n  File x\ntidemill.errors.StoreError: a file is missing; restore it\n\n\tat org.x"
    )
    found = session._explained(session.PySparkException(text))
    assert (type(found), str(found)) == (StoreError, "a file is missing; restore it")
    lost = session._explained(session.PySparkException("x\nModuleNotFoundError: No module named 'tidemill.apps'\n"))
    assert "Spark's executors have no tidemill" in str(lost)
    other = session._explained(session.PySparkException("An exception was thrown\nTraceback\nValueError: boo\n\n\tat org.x"))
    assert str(other) == "Spark gave up: ValueError: boo; its log has more"


def test_the_command_folds_and_publishes_what_the_local_one_does(folder: Folder, tmp_path: Path) -> None:
    other = Folder(tmp_path / "local", EVENTS + VIEW)
    other.log(events(3000))
    other.stream()
    other.batch()
    env = settings(folder, '[spark]\n"spark.sql.shuffle.partitions" = 2\n"spark.driver.memory" = "1g"\n')
    command = [
        sys.executable,
        "-c",
        "from tidemill.cli import main; main()",
        "batch",
        "--engine",
        "spark",
        "--master",
        "local[2]",
        "--json",
        "--project",
        str(folder.path),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    [told] = json.loads(ran.stdout)["sources"]
    assert (told["k"], list(told["published"].values())) == (1, [1])
    assert ran.stderr.splitlines() == ["WARNING: Using incubator modules: jdk.incubator.vector"], "Java's own, and nothing else"
    features = ["v:count_1h", "v:x_sum_1d", "v:x_last3_lifetime"]
    assert folder.get(*features) == other.get(*features)
    assert folder.get(*features)["v__x_last3_lifetime"] == [1, 1, 1]
    assert env.offline.folders("partials") == other.env.offline.folders("partials")
