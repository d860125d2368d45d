"""The HTTP service beside Feast's feature server: 25 features of one entity, from one Redis, two worker processes each, on loopback.

The load comes from a process of its own on the same machine: first 500 requests a second that begin at instants drawn beforehand
(`benchmarks.load`), then as many as 16 connections can ask. The latter is wrk (a package of Debian): it takes next to nothing of the two
cores, where one written in Python takes as much as the service. Ours computes features as of the request's instant, and also scores them
with a logistic regression of scikit-learn; Feast looks up as many stored ones. `--seconds 3` for a quick look.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import redis

import tidemill as tm
from benchmarks.peers import python_of
from benchmarks.reads import prepare
from tests.servers.redis import RedisServer, free_port
from tidemill.times import from_micros

_ROOT = Path(__file__).resolve().parents[1]
ENTITIES, WORKERS, RATE = 1000, 2, 500
_FEAST = [f"{view}:{view}_{w}" for view in ("counts", "sums", "means", "largest", "p90s") for w in ("1m", "1h", "1d", "7d", "30d")]


def load(url: str, bodies: Path, rate: float, seconds: float) -> dict[str, float]:
    """The figures of a load."""
    command = [sys.executable, "-m", "benchmarks.load", url, str(bodies), "--rate", str(rate), "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def flood(url: str, bodies: Path, seconds: float) -> dict[str, float]:
    """The figures of as many requests as 16 connections can make."""
    script = str(_ROOT / "benchmarks" / "flood.lua")
    command = ["wrk", "-t1", "-c16", f"-d{max(seconds, 1):.0f}s", "-s", script, url, "--", str(bodies)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def cpu_seconds(root: int) -> float:
    """What a process and all its descendants have used: it says more than times do on a machine that has other work."""
    parents, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(stat.parent.name)
        parents[pid], used[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(used.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


def measure(name: str, server: tuple[str, int], requests: list[dict[str, Any]], folder: Path, seconds: float) -> tuple[float, float]:
    """Print the figures of one server (its address and process); its throughput, and CPU seconds a request."""
    url, pid = server
    bodies = folder / "bodies"
    bodies.write_text("\n".join(json.dumps(request) for request in requests))
    load(url, bodies, 0, min(seconds, 3.0))  # warm
    steady, before = load(url, bodies, RATE, seconds), cpu_seconds(pid)
    most = flood(url, bodies, seconds)
    if most["errors"]:
        raise SystemExit(f"{name}: {most['errors']:.0f} requests failed")
    cpu = (cpu_seconds(pid) - before) / most["requests"]
    throughput = most["requests"] / most["seconds"]
    print(
        f"{name}: at {RATE} requests/s p50 {steady['p50']:.2f} ms, p99 {steady['p99']:.2f} ms ({steady['requests']:.0f} requests, "
        f"{steady['errors']:.0f} errors); at most {throughput:,.0f} requests/s, p50 {most['p50']:.2f} ms, p99 {most['p99']:.2f} ms; "
        f"CPU {1e3 * cpu:.2f} ms a request",
        flush=True,
    )
    return throughput, cpu


@contextmanager
def tidemill_server(project: Path, threads: int) -> Iterator[tuple[str, int]]:
    """The address of `tidemill serve`, and its process."""
    run = "from tidemill.cli import main; main()"
    command = [sys.executable, "-c", run, "serve", "--project", str(project), "--port", "0", "--workers", str(WORKERS), "--json"]
    command += ["--threads", str(threads)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
    try:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["url"], server.pid
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def constant_server(folder: Path) -> Iterator[tuple[str, int]]:
    """The address of a service that does nothing, on the same HTTP server, and its process."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks.constant:app", "--port", str(port), "--workers", str(WORKERS)]
    with (folder / "constant.log").open("wb") as log:
        server = subprocess.Popen([*command, "--no-access-log", "--lifespan", "off"], stdout=log, stderr=log, cwd=_ROOT)
    try:
        _wait_for(f"http://127.0.0.1:{port}/")
        yield f"http://127.0.0.1:{port}/", server.pid
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def feast_server(folder: Path, redis_port: int) -> Iterator[tuple[str, int]]:
    """The address of `feast serve`, and its process."""
    python = python_of("feast")
    script = str(_ROOT / "benchmarks" / "feast_repo.py")
    subprocess.run([python, script, str(folder), str(redis_port), str(ENTITIES)], check=True, capture_output=True)
    port = free_port()
    command = [str(Path(python).with_name("feast")), "--chdir", str(folder), "serve", "--host", "127.0.0.1", "--port", str(port)]
    # Without the last, every worker ends after a thousand requests, and a new one takes seconds to begin.
    command += ["--workers", str(WORKERS), "--no-access-log", "--max-requests", "100000000"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/get-online-features", server.pid
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_for(url: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"nothing answers at {url}")


def train(project: Path) -> None:
    """A champion named `model`: a logistic regression over the 25 features."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(7)
    rows = rng.lognormal(3, 1, (500, len(_FEAST)))
    store = tm.FeatureStore(project)
    fitted = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()).fit(rows, rng.integers(0, 2, 500))
    store.models.promote("model", store.models.register("model", fitted, service="model").version)
    store.close()


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2, help="of `tidemill serve`; 0: reads in the event loop")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("there is no wrk to make the load: `apt-get install wrk`")
    seconds = given.seconds
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as name:
        folder = Path(name)
        server = RedisServer(folder / "redis")
        try:
            rows = [[{"user": f"user-{i}"}] for i in range(ENTITIES)]
            with constant_server(folder) as found:
                measure("an HTTP server with nothing to do", found, [{"user": row[0]["user"]} for row in rows], folder, seconds)
            with feast_server(folder / "feast", server.port) as found:
                asked = [{"features": _FEAST, "entities": {"user": [row[0]["user"]]}} for row in rows]
                theirs = measure("feast serve, 25 stored features", found, asked, folder, seconds)
            with redis.Redis(port=server.port) as client:
                client.flushall()
            at = from_micros(prepare(folder / "project", entities=ENTITIES, online=f"{server.url}?prefix=tm")).isoformat()
            train(folder / "project")
            with tidemill_server(folder / "project", given.threads) as (url, pid):
                asked = [{"features": "model", "entity_rows": row, "at": at} for row in rows]
                ours = measure("tidemill serve, 25 features", (f"{url}/v1/features", pid), asked, folder, seconds)
                asked = [{"model": "model", "entity_rows": row, "at": at} for row in rows]
                scored = measure("tidemill serve, 25 features and a score", (f"{url}/v1/score", pid), asked, folder, seconds)
                text = urllib.request.urlopen(f"{url}/metrics", timeout=5).read().decode()
                failed = re.findall(r'http_requests_total\{route="/v1/\w+",status="[345]\d\d"\} \S+', text)
                if failed:
                    raise SystemExit(f"requests failed: {failed}")
            for what, mine in (("features", ours), ("features and a score", scored)):
                print(
                    f"{what}: {mine[0] / theirs[0]:.1f} times Feast's throughput, with {theirs[1] / mine[1]:.1f} times less CPU a request"
                )
        finally:
            server.stop()


if __name__ == "__main__":
    main()
