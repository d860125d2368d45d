"""A real schema registry, Apicurio's, with Confluent's REST API, on a free port of the loopback interface. What it knows is in its memory.

It takes five seconds to start; `tests.servers.registry` is for what a real one does not do on demand.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.redis import free_port, spawn

ROOT = Path(__file__).resolve().parents[2]
#: In seconds.
_START = 90.0


def distribution() -> Path:
    """Its folder; skips the test where it cannot be had."""
    if shutil.which("java") is None or (shutil.which("mvn") is None and not list(ROOT.glob(".servers/registry-*"))):
        pytest.skip("Apicurio's registry needs java, and mvn to fetch it")
    (ROOT / ".servers").mkdir(exist_ok=True)
    with (ROOT / ".servers" / "registry.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([ROOT / "tools" / "get_registry.sh"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def apicurio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of its API that is Confluent's."""
    (program,) = distribution().glob("*-runner.jar")
    log = tmp_path_factory.mktemp("apicurio") / "log"
    port = free_port()
    options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={port}"]
    process = spawn(["java", *options, "-jar", program], log)
    address = f"http://127.0.0.1:{port}/apis/ccompat/v7"
    try:
        give_up = time.monotonic() + _START
        while not _answers(address):
            if time.monotonic() > give_up or process.poll() is not None:
                raise RuntimeError(f"the registry does not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/subjects", timeout=2) as answer:
            return bool(answer.status == 200)
    except (TimeoutError, OSError):
        return False
