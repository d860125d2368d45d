"""A newcomer's first hour, through the real entry point."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill.times import to_micros


def test_the_project_that_init_makes_runs_as_it_stands(folder: Any) -> None:
    made = folder.process("init shop")
    assert made.code == 0, made.err
    commands = [line.strip() for line in made.out.splitlines() if line.startswith("  ")]
    assert commands[0] == "cd shop"
    shop = type(folder)(folder.root / "shop", folder._chdir)
    outputs = []
    for command in commands[1:]:
        name, _, rest = command.partition(" ")
        assert name == "tidemill"
        ran = shop.process(rest)
        assert ran.code == 0, ran.err
        outputs.append(ran.out)
    assert "applied version 1: 1 view, 10 features" in outputs[0]
    assert re.search(r"count_7d +\d\d+ +ok", outputs[2]), outputs[2]
    assert "missing" not in outputs[2]


def test_the_whole_story(project: Any, event: Callable[..., str]) -> None:
    bad = event(1500, "a").replace("}", ', "note": "gift"}')
    project.write("features.py", (project.root / "features.py").read_text().replace('"card": str,', '"card": str, "note": int,'))
    assert "+ view card" in project.run("plan").out
    assert project.run("apply").out == "applied version 1: 1 view, 3 features\n"
    assert "nothing to apply: version 1" in project.run("plan").out
    assert "nothing to apply: version 1" in project.run("apply").out
    with (project.root / "data/1.jsonl").open("a") as log:
        log.write(bad)
        log.write("no json\n")
        log.write(event(1502, None))
    assert project.run("stream --once").code == 0

    ran = project.run("get s card=a amount=75 --at 2026-01-05T00:30:00")
    assert ran.code == 0, ran.err
    rows = dict(re.findall(r"^(\w+) +(\S+) +ok", ran.out, re.MULTILINE))
    assert rows == {"count_1h": "750", "count_1d": "750", "amount_sum_1d": "375", "share": "0.2"}

    ran = project.run("batch")
    assert ran.code == 0, ran.err
    assert "folded 1 source and published 2 entities" in ran.out
    assert "nothing new" in project.run("batch").out
    assert "375" in project.run("get s card=a amount=75 --at 2026-01-05T00:30:00").out

    status = project.run("status --json").json
    (partition,) = status["sources"][0]["partitions"]
    assert (partition["log_end"], partition["position"], partition["lag"], partition["cut"]) == (1503, 1503, 0, 1024)
    assert [(b["state"], b["folded"], b["published"]) for b in status["bundles"]] == [("serving", 1, 1)]
    assert status["sources"][0]["dead"] == {"note: not an int": 1, "not JSON": 1, "null key card": 1}
    assert "up to date" in project.run("status").out

    letters = project.run("dead-letters list --json").json["letters"]
    assert [(x["offset"], x["view"], x["reason"]) for x in letters] == [
        (1500, None, "note: not an int"),
        (1501, None, "not JSON"),
        (1502, "card", "null key card"),
    ]
    assert "3 dead letters" in project.run("dead-letters").out

    # The schema learns to read what it could not, and the letter is an event.
    features = (project.root / "features.py").read_text().replace('"note": int', '"note": str')
    project.write("features.py", features.replace(', tm.sum("amount", windows=["1d"])', "").replace("amount_sum_1d", "count_1d"))
    assert "this removes card:amount_sum_1d" in project.refused("apply")
    assert project.run("apply --yes").code == 0
    ran = project.run("dead-letters replay tx --reason note --to data/2.jsonl")
    assert ran.out == "wrote 1 event to data/2.jsonl\n"
    assert (project.root / "data/2.jsonl").read_text() == bad
    assert project.run("stream --once").code == 0
    assert "751" in project.run("get s card=a amount=75 --at 2026-01-05T00:30:00").out


def test_ctrl_c_ends_a_command_with_130_and_no_traceback(project: Any) -> None:
    project.run("apply")
    with subprocess.Popen(
        project.command("batch --every 1h"), cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "folded" in process.stdout.readline()
        assert "again every 1h" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


def test_sigterm_stops_a_batch_that_runs_again_and_again_and_gives_its_lease_back(project: Any) -> None:
    project.run("apply")
    with subprocess.Popen(
        project.command("batch --every 1h"), cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "folded" in process.stdout.readline()
        assert "again every 1h" in process.stdout.readline()
        assert "the lease 'batch' is held by" in project.refused("batch --every 1h")
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "stopped\n", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stream_that_is_stopped_says_what_it_did(project: Any, number: int, code: int) -> None:
    project.run("apply")
    command = project.command("stream --log-format json")
    with subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while json.loads(process.stderr.readline())["message"] != "tx:0 from offset 0":
            pass
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out.startswith("stopped: ")
    assert "Traceback" not in err


def test_a_reader_that_stops_reading_is_no_error(project: Any) -> None:
    project.run("apply")
    command = shlex.join(project.command("plan")) + " | true"
    done = subprocess.run(["/bin/sh", "-c", command], cwd=project.root, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_help_needs_nothing_heavy(tmp_path: Path) -> None:
    """The package's own __init__ aside, which is not the command line's: what the commands' modules import."""
    script = """
import json, sys, types
package = types.ModuleType("tidemill")
package.__path__ = [sys.argv.pop(1)]
sys.modules["tidemill"] = package
from tidemill.cli.app import build
build()
print(json.dumps(sorted(sys.modules)))
"""
    import tidemill

    where = str(Path(tidemill.__file__).parent)
    done = subprocess.run([sys.executable, "-c", script, where], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"polars", "numpy", "pyarrow", "pandas", "bytewax", "sqlite3"}


HELPFUL = ["init", "plan", "apply", "stream", "batch", "dataset", "get", "status", "dead-letters"]
LETTERS = [f"dead-letters {command}" for command in ("count", "list", "show", "replay")]


@pytest.mark.parametrize("command", ["", *HELPFUL, *LETTERS])
def test_every_command_has_help_with_an_example(folder: Any, command: str) -> None:
    ran = folder.run(f"{command} --help")
    assert ran.code == 0
    assert f"tidemill {command}".strip() in ran.out.partition("Example")[2] or not command


def test_the_version_is_told(folder: Any) -> None:
    from tidemill import __version__

    assert folder.run("--version").out == f"tidemill {__version__}\n"


def scraped(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read(), "utf-8")


def test_a_stream_logs_lines_of_json_alone_and_serves_metrics_where_tidemill_toml_says(project: Any) -> None:
    project.write("tidemill.toml", '[project]\nname = "p"\n[online]\nshards = 4\n[stream]\nmetrics = 0\n')
    project.run("apply")
    lines, events = [], ""
    with subprocess.Popen(
        project.command("stream --log-format json --json"), cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines.append(json.loads(process.stderr.readline()))
        assert lines[0]["message"] == "metrics"
        give_up = time.monotonic() + 60
        while 'tidemill_events_total{partition="0",source="tx",worker="0"} 1500.0' not in events:
            assert time.monotonic() < give_up, events
            events = scraped(lines[0]["at"])
            time.sleep(0.1)
        process.terminate()
        out, err = process.communicate(timeout=30)
    lines += [json.loads(line) for line in err.splitlines()]
    assert {"supervisor", "worker 0"} == {line["who"] for line in lines}
    assert all(line["level"] == "info" and line["message"] and line["time"].endswith("Z") for line in lines), lines
    assert (process.returncode, json.loads(out)["events"]) == (0, 1500)


def test_a_stream_that_cannot_says_so_in_json_where_its_log_is(project: Any) -> None:
    ran = project.run("stream --log-format json")
    line = json.loads(ran.err)
    assert (ran.code, ran.out, line["level"], line["who"]) == (1, "", "error", "tidemill")
    assert "run `tidemill apply`" in line["message"]


def test_metrics_on_a_port_that_is_taken_start_no_worker(project: Any) -> None:
    project.run("apply")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for command in ("stream", "batch --every 1d"):
            assert f"port {port} of 127.0.0.1 is taken" in project.refused(f"{command} --metrics-port {port}")
    assert not (project.root / ".tidemill/run").exists()


def test_batch_that_runs_again_and_again_serves_what_it_did(project: Any) -> None:
    project.run("apply")
    project.stream()
    project.run("batch")
    command = project.command("batch --every 1h --metrics-port 0")
    with subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("metrics at ").strip()
        assert "folded" in process.stdout.readline()
        found = scraped(url)
        process.terminate()
        process.communicate(timeout=30)
    [bundle] = project.environment().applied().bundles
    place = f'{{bundle="{bundle.bundle.id}",source="tx"}}'
    for line in ("tidemill_batch_runs_total 1.0", 'tidemill_batch_cut{source="tx"} 1.0', f"tidemill_batch_version{place} 1.0"):
        assert line in found.splitlines()
    assert f"tidemill_batch_published_entities_total{place} 0.0" in found.splitlines()  # the run before did
    status = project.run("status --json").json
    folded = to_micros(status["bundles"][0]["folded_at"]) / 1e6
    ended = to_micros(status["sources"][0]["batch"]) / 1e6
    assert float(re.findall(r"\ntidemill_batch_version_timestamp_seconds.* (\S+)", found)[0]) == pytest.approx(folded, abs=1e-3)
    assert float(re.findall(r"\ntidemill_batch_last_run_timestamp_seconds.* (\S+)", found)[0]) == pytest.approx(ended, abs=1e-3)
    assert folded < ended
