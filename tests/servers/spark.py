"""A real Spark cluster on loopback: a standalone master, and workers that start executors, each a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.redis import spawn

_PATIENCE = 60.0


@dataclass(frozen=True)
class SparkCluster:
    """`url`: the master's. `folder`: its logs, and below `work-0`, `work-1` what the executors of each worker wrote."""

    url: str
    folder: Path
    workers: tuple[subprocess.Popen[bytes], ...]

    def executors(self, worker: int) -> list[Path]:
        """The folders of the executors that a worker has started."""
        return sorted((self.folder / f"work-{worker}").glob("app-*/*"))


@contextmanager
def spark_cluster(folder: Path, workers: int = 2) -> Iterator[SparkCluster]:
    """A master and workers of one core each; gone at the end, with all that they started."""
    import pyspark

    command = Path(pyspark.__file__).parent / "bin" / "spark-class"
    environment = {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable, "SPARK_NO_DAEMONIZE": "1"}
    here = ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, arguments: list[str], said: str) -> str:
        log = folder / f"{name}.log"
        variables = [f"{key}={value}" for key, value in environment.items()]
        started.append(spawn(["env", *variables, str(command), *arguments], log))
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and started[-1].poll() is None:
            if found := re.search(said, log.read_text()):
                return found[0]
            time.sleep(0.1)
        raise RuntimeError(f"{name} of Spark does not start: {log.read_text()[-2000:]}")

    try:
        url = start("master", ["org.apache.spark.deploy.master.Master", *here], r"spark://127\.0\.0\.1:[1-9]\d+")
        for number in range(workers):
            work = ["--cores", "1", "--memory", "1g", "--work-dir", str(folder / f"work-{number}")]
            arguments = ["org.apache.spark.deploy.worker.Worker", *here, *work, url]
            start(f"worker-{number}", arguments, "Successfully registered with master")
        yield SparkCluster(url, folder, tuple(started[1:]))
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


__all__ = ["SparkCluster", "spark_cluster"]
