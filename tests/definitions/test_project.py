"""tidemill.toml: what it says, and how it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.definitions import Project
from tidemill.environment import Environment
from tidemill.errors import DefinitionError, NotFoundError

FULL = """
[project]
name = "flights"
definitions = "definitions/features.py"

[online]
url = "redis://:${REDIS_PASSWORD}@host:6379/0"
shards = 64
slack = "1m"

[offline]
url = "s3://bucket/prefix"

[stream]
brokers = "localhost:9092"
workers = 4
linger = "200ms"

[batch]
every = "1d"
"""


def written(directory: Path, text: str) -> Path:
    (directory / "tidemill.toml").write_text(text, encoding="utf-8")
    return directory


def test_a_project_says_where_everything_is(tmp_path: Path) -> None:
    project = Project.load(written(tmp_path, FULL), environment={"REDIS_PASSWORD": "hunter2"})
    assert (project.name, project.definitions) == ("flights", tmp_path / "definitions/features.py")
    assert (project.online_url, project.offline_url) == ("redis://:hunter2@host:6379/0", "s3://bucket/prefix")
    assert (project.brokers, project.shards, project.slack) == ("localhost:9092", 64, 60_000_000)
    assert project.linger == 200_000
    assert project.settings == {"stream": {"workers": 4}, "batch": {"every": "1d"}}


def test_an_empty_file_is_a_project_of_this_directory(tmp_path: Path) -> None:
    project = Project.load(written(tmp_path, ""))
    assert (project.name, project.definitions) == (tmp_path.name, tmp_path / "features.py")
    assert project.online_url == f"sqlite:///{tmp_path}/.tidemill/online.db"
    assert project.offline_url == f"{tmp_path}/.tidemill/offline"
    assert (project.brokers, project.shards, project.slack, project.settings) == (None, 16, 10_000_000, {})


def test_relative_paths_are_the_projects_and_absolute_ones_stay(tmp_path: Path) -> None:
    project = Project.load(written(tmp_path, '[online]\nurl = "sqlite:////var/online.db"\n[offline]\nurl = "/var/offline"'))
    assert (project.online_url, project.offline_url) == ("sqlite:////var/online.db", "/var/offline")
    assert project.resolve("data/*.csv") == f"{tmp_path}/data/*.csv"
    assert project.resolve("/data/*.csv") == "/data/*.csv"
    assert project.resolve("s3://bucket/*.csv") == "s3://bucket/*.csv"


def test_credentials_are_not_shown(tmp_path: Path) -> None:
    project = Project.load(written(tmp_path, FULL), environment={"REDIS_PASSWORD": "hunter2"})
    assert "hunter2" not in repr(project)


def test_what_a_schema_registry_lets_in_by_comes_from_the_environment_and_is_not_shown(tmp_path: Path) -> None:
    text = '[kafka]\n"schema.registry.url" = "http://localhost:8081"\n"schema.registry.basic.auth.user.info" = "miller:%s"'
    project = Project.load(written(tmp_path, text % "${PASSWORD}"), environment={"PASSWORD": "hunter2"})
    assert project.settings["kafka"]["schema.registry.basic.auth.user.info"] == "miller:hunter2"
    assert "hunter2" not in repr(project)
    assert "hunter2" not in repr(Environment(project))
    with pytest.raises(DefinitionError, match=r'basic\.auth\.user\.info does not belong into a file: write "\$\{VARIABLE\}"') as caught:
        Project.load(written(tmp_path, text % "hunter2"), environment={})
    assert "hunter2" not in str(caught.value)


def test_a_name_with_dots_wants_quotes(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"kafka\.schema has dots in its name, so write the name in quotes"):
        Project.load(written(tmp_path, '[kafka]\nschema.registry.url = "http://localhost:8081"'))


def test_a_variable_that_is_not_set_is_named_and_no_other_value_is_shown(tmp_path: Path) -> None:
    written(tmp_path, '[online]\nurl = "redis://${REDIS_USER}:${REDIS_PASSWORD}@host"')
    with pytest.raises(
        DefinitionError, match=r"tidemill.toml: online.url uses \$\{REDIS_PASSWORD\}, which is not in the environment"
    ) as caught:
        Project.load(tmp_path, environment={"REDIS_USER": "secret-name"})
    assert "secret-name" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[project]\nname = ?", r"tidemill.toml is not valid TOML: .*line 2"),
        ("[projekt]\nname = 'x'", r"unknown section \[projekt\]; did you mean 'project'"),
        ("[online]\nulr = 'x'", "unknown key online.ulr; did you mean 'url'"),
        ("[offline]\nshards = 3", "unknown key offline.shards; there are url"),
        ("name = 'x'", r"unknown section \[name\]"),
        ("project = 'x'", r"project is a section: write \[project\]"),
        ("[project]\nname = 3", "project.name must be text; got int"),
        ("[project]\nname = ''", "project.name is empty"),
        ("[online]\nshards = true", "online.shards must be a whole number; got bool"),
        ("[online]\nshards = 0", "online.shards is from 1 to 4096; got 0"),
        ("[online]\nslack = 'soon'", "online.slack: 'soon' is not a duration"),
        ("[stream]\nworkers = 0", "stream.workers is at least 1; got 0"),
        ("[stream]\nmetrics = 65536", "stream.metrics is a port, from 1 to 65535, or 0 for a free one; got 65536"),
        ("[batch]\nmetrics = '9464'", "batch.metrics must be a whole number; got str"),
        ("[stream]\nlinger = '1m'", "stream.linger is at most 10s; got 1m"),
        ("[batch]\nevery = 'day'", "batch.every: 'day' is not a duration"),
    ],
)
def test_a_wrong_file_is_refused_with_its_path_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    written(tmp_path, text)
    with pytest.raises(DefinitionError, match=message) as caught:
        Project.load(tmp_path)
    assert str(tmp_path / "tidemill.toml") in str(caught.value)


def test_a_directory_without_the_file_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no project here: .*tidemill.toml does not exist; run `tidemill init`"):
        Project.load(tmp_path)
    with pytest.raises(NotFoundError, match="no project here"):
        Project.load(tmp_path / "nowhere")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tidemill.toml").write_bytes(b"[project]\nname = '\xff'")
    with pytest.raises(DefinitionError, match=r"tidemill.toml is not UTF-8 text \(byte 18\)"):
        Project.load(tmp_path)
    (tmp_path / "tidemill.toml").unlink()
    (tmp_path / "tidemill.toml").mkdir()
    with pytest.raises(DefinitionError, match=r"tidemill.toml cannot be read"):
        Project.load(tmp_path)


def test_spark_takes_a_master_and_its_own_settings(tmp_path: Path) -> None:
    text = """
[batch]
engine = "spark"

[spark]
master = "spark://${HOST}:7077"
"spark.executor.memory" = "8g"
"spark.task.maxFailures" = 2
"spark.speculation" = true
"""
    project = Project.load(written(tmp_path, text), environment={"HOST": "h"})
    assert project.settings == {
        "batch": {"engine": "spark"},
        "spark": {
            "master": "spark://h:7077",
            "spark.executor.memory": "8g",
            "spark.task.maxFailures": "2",
            "spark.speculation": "true",
        },
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[batch]\nengine = "flink"', "batch.engine is local or spark; got 'flink'"),
        ('[spark]\nspark.executor.memory = "8g"', "write the name in quotes"),
        ('[spark]\n"executor.memory" = "8g"', "unknown key spark.executor.memory; write master, or a setting of Spark such as"),
        ("[spark]\nmaster = 7077", "spark.master must be text"),
        ('[spark]\n"spark.jars" = ["a"]', "spark.spark.jars must be one value; got list"),
    ],
)
def test_what_is_wrong_about_spark_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        Project.load(written(tmp_path, text))
