"""`make services`: both servers, until a signal; with what they held when they are started again, on whatever ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.servers.kafka import ROOT, libraries
from tidemill.definitions import Project
from tidemill.logs.kafka import KafkaAdmin

SERVICES = [sys.executable, str(ROOT / "tools" / "services")]


@contextmanager
def running(data: Path) -> Iterator[str]:
    """What it printed until both ran. Ctrl-C at the end."""
    libraries()  # or the test is skipped
    with subprocess.Popen(
        [*SERVICES, "--port", "0", "--data", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        try:
            said = ""
            while "Ctrl-C stops both" not in said:
                line = process.stdout.readline()
                assert line, said + (process.stderr.read() if process.stderr else "")
                said += line
            yield said
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out, err) == (0, "stopping both\n", "")
        finally:
            if process.poll() is None:
                process.kill()  # the servers notice


def test_both_run_until_ctrl_c_and_have_what_they_had_when_they_run_again(tmp_path: Path) -> None:
    for again in (False, True):
        with running(tmp_path / "data") as said:
            settings = "".join(f"{line.strip()}\n" for line in re.findall(r"^    [\[a-z].*$", said, re.MULTILINE) if "export" not in line)
            (tmp_path / "tidemill.toml").write_text(settings)
            project = Project.load(tmp_path)
            admin = KafkaAdmin(project.brokers or "")
            with redis.Redis.from_url(project.online_url) as client:
                if again:
                    assert admin.ends("kept", [0]) == {0: 1}
                    assert client.get("kept") == b"1"
                else:
                    admin.create_topic("kept")
                    admin.produce("kept", [(0, None, b"1")])
                    client.set("kept", "1")
                assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
                address = project.brokers
            admin.close()
        host, _, port = (address or "").partition(":")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((host, int(port)), 1)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([*SERVICES, "--port", str(port)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert f"services: port {port} cannot be had" in done.stderr
    assert "make services PORT=0" in done.stderr
