"""`tidemill serve` as it really runs: processes on a port of the loopback interface, that are stopped, killed and replaced under load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import tidemill as tm
from tests.serving.conftest import Served
from tests.streaming.conftest import is_running, wait_for
from tidemill.errors import ServiceAccessError

ROWS = [{"k": "a"}]
RUN = "from tidemill.cli import main; main()"
KEY = "0123456789abcdef"


class Serving:
    """A running `tidemill serve`."""

    def __init__(self, path: Path, *options: str, **environment: str) -> None:
        self.errors = path / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, "serve", "--project", str(path), "--port", "0", "--json", *options],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **environment},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        self.told = json.loads(line)
        self.url: str = self.told["url"]
        self.pids: list[int] = list(self.told["pids"])
        self._loads: list[Load] = []

    def samples(self, name: str, **headers: str) -> dict[str, float]:
        """A metric's values by their labels, as text."""
        with httpx.Client(transport=Again()) as client:
            lines = client.get(f"{self.url}/metrics", headers=headers).text.splitlines()
        found = [line.rpartition(" ") for line in lines if line.startswith(f"{name}{{")]
        return {labels.removeprefix(name): float(value) for labels, _, value in found}

    def requests(self, **headers: str) -> float:
        """How many requests for features were answered, by what /metrics says."""
        return self.samples("tidemill_http_requests_total", **headers).get('{route="/v1/features",status="200"}', 0.0)

    def workers(self, **headers: str) -> set[int]:
        """The processes of the workers that answer."""
        ready = self.samples("tidemill_serve_worker_ready", **headers)
        return {int(labels.split('pid="')[1].split('"')[0]) for labels, value in ready.items() if value}

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)

    def load(self, ask: Callable[[tm.ScoringClient], object], **options: Any) -> Load:
        """Requests from now on until they are stopped, at the latest when the service is."""
        self._loads.append(Load(ask, self.url, **options))
        return self._loads[-1]

    def close(self) -> None:
        for load in self._loads:
            load.stop()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Again(httpx.HTTPTransport):
    """Asks once more where the connection is cut: by a worker that ends with the request in its hands, or before it has read it."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return super().handle_request(request)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            return super().handle_request(request)


class Load:
    """Threads that ask without a pause, each over a connection of its own; `failed` is what no client's retry mended."""

    def __init__(self, ask: Callable[[tm.ScoringClient], object], url: str, threads: int = 4, **options: Any) -> None:
        self.answers: list[object] = []
        self.failed: list[Exception] = []
        self._stop = threading.Event()
        self._ask = ask
        self._threads = [threading.Thread(target=self._run, args=(url, options)) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, url: str, options: Any) -> None:
        with tm.ScoringClient(url, timeout=20, **options) as client:
            while not self._stop.is_set():
                try:
                    self.answers.append(self._ask(client))
                except Exception as error:  # noqa: BLE001 - it is what the test is about
                    self.failed.append(error)

    def more(self, count: int = 40) -> None:
        """Until so many more were answered."""
        wanted = len(self.answers) + count
        wait_for(lambda: len(self.answers) >= wanted)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def serve(served: Served) -> Iterator[Callable[..., Serving]]:
    running: list[Serving] = []

    def serve(*options: str, **environment: str) -> Serving:
        running.append(Serving(served.path, *options, **environment))
        return running[-1]

    yield serve
    for each in running:
        each.close()
    wait_for(lambda: not any(is_running(pid) for each in running for pid in each.pids))


def count(client: tm.ScoringClient) -> object:
    return client.get_online_features(["v:count_lifetime"], ROWS).columns["v__count_lifetime"]


def test_several_workers_answer_and_any_of_them_counts_for_all(serve: Callable[..., Serving]) -> None:
    running = serve("--workers", "2")
    assert len(set(running.pids)) == 2
    for _ in range(30):  # a connection each, so that both get some
        assert httpx.post(f"{running.url}/v1/features", json={"features": ["v:count_lifetime"], "entity_rows": ROWS}).status_code == 200
    wait_for(lambda: running.requests() == 30)
    assert running.workers() == set(running.pids)
    assert httpx.get(f"{running.url}/readyz").json()["ready"] is True
    assert running.end() == 0
    assert running.errors.read_text().count("stopped") == 2


def test_requests_that_have_begun_are_answered_after_sigterm(serve: Callable[..., Serving]) -> None:
    running = serve("--workers", "2")
    body = json.dumps({"features": ["v:count_lifetime"], "entity_rows": ROWS}).encode()
    half = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield body[:10]
        half.set()
        time.sleep(0.5)  # SIGTERM comes while the body is under way
        yield body[10:]

    answers: list[httpx.Response] = []
    headers = {"content-type": "application/json"}
    sending = threading.Thread(target=lambda: answers.append(httpx.post(f"{running.url}/v1/features", content=slowly(), headers=headers)))
    sending.start()
    assert half.wait(30)
    time.sleep(0.1)  # until the first half has arrived
    assert running.end() == 0
    sending.join(30)
    assert [a.status_code for a in answers] == [200]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/livez")


def test_sigterm_under_load_answers_whole_or_not_at_all(serve: Callable[..., Serving]) -> None:
    running = serve("--workers", "2")
    load = running.load(count, retries=0)
    load.more()
    assert running.end() == 0
    load.stop()
    assert all(answer == [17] for answer in load.answers)
    assert {type(error).__name__ for error in load.failed} <= {"ServiceUnavailableError"}


def test_a_worker_that_is_killed_is_replaced_and_clients_notice_nothing(serve: Callable[..., Serving]) -> None:
    running = serve("--workers", "2")
    load = running.load(count, retries=6)
    load.more()
    before = running.requests()
    os.kill(running.pids[0], signal.SIGKILL)
    wait_for(lambda: len(running.workers()) == 2 and running.pids[0] not in running.workers())
    load.more()
    load.stop()
    assert load.failed == []
    assert all(answer == [17] for answer in load.answers)
    # What the killed one had told is kept; what it had not told, at most half a second, is gone.
    wait_for(lambda: running.requests() >= before)
    running.pids += running.workers()
    assert running.end() == 0
    assert "was killed by SIGKILL; starting another" in running.errors.read_text()


def test_on_sighup_all_workers_are_replaced_one_by_one_and_no_request_is_lost(serve: Callable[..., Serving], served: Served) -> None:
    running = serve("--workers", "2", "--keys-file", str(_keys(served, KEY)))
    load = running.load(count, retries=6, api_key=KEY)
    load.more()
    _keys(served, KEY, "another-key-of-someone")
    running.process.send_signal(signal.SIGHUP)

    def replaced() -> bool:
        now = running.workers(**{"X-API-Key": KEY})
        running.pids += now - set(running.pids)
        return len(now) == 2 and not now & set(running.told["pids"])

    wait_for(replaced)
    load.more()
    load.stop()
    assert load.failed == []
    with tm.ScoringClient(running.url, api_key="another-key-of-someone") as client:
        assert count(client) == [17]
    with tm.ScoringClient(running.url, api_key="no-key-of-anybody") as client, pytest.raises(ServiceAccessError, match="wants an API key"):
        count(client)
    wait_for(lambda: running.requests(**{"X-API-Key": KEY}) == len(load.answers) + 1)  # those of the workers before, too
    assert running.end() == 0


def _keys(served: Served, *found: str) -> Path:
    file = served.path / "keys"
    file.write_text("\n".join(found))
    return file


def test_workers_end_when_the_service_is_killed(serve: Callable[..., Serving]) -> None:
    running = serve("--workers", "2")
    running.end(signal.SIGKILL)
    wait_for(lambda: not any(is_running(pid) for pid in running.pids))


def test_promotions_under_load_fail_no_request_and_mix_no_answer(serve: Callable[..., Serving], served: Served) -> None:
    (served.path / "made.py").write_text(
        "import numpy as np\n\ndef one(x):\n    return np.full(len(x), 0.1)\n\ndef two(x):\n    return np.full(len(x), 0.2)\n"
    )
    store = served.store()
    for name in ("one", "two"):
        store.models.register("m", f"made:{name}", service="plain")
    store.models.promote("m", "1")
    running = serve("--workers", "2", "--model", "m")
    wanted = {"1": 0.1, "2": 0.2}

    def ask(client: tm.ScoringClient) -> object:
        scores = client.score("m", [{"k": "a"}, {"k": "b"}])
        assert scores.score == [wanted[scores.version]] * 2
        return scores.version

    load = running.load(ask)
    try:
        for version in ("2", "1", "2"):
            store.models.promote("m", version)
            wait_for(lambda version=version: load.answers[-20:] == [version] * 20)
        store.models.rollback("m")
        wait_for(lambda: load.answers[-20:] == ["1"] * 20)
    finally:
        load.stop()
        store.close()
    assert load.failed == []
    assert running.end() == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--keys-file", "/no/such/file"), "cannot be read"),
        (("--host", "no.such.host.invalid"), "is no address of this machine"),
        (("--port", "70000"), "--port"),
        (("--workers", "0"), "--workers"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(served: Served, options: tuple[str, ...], says: str) -> None:
    command = [sys.executable, "-c", RUN, "serve", "--project", str(served.path), "--port", "0", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert done.stderr.startswith("tidemill:")
    assert len(done.stderr.splitlines()) == 1


def test_without_anything_applied_it_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "tidemill.toml").write_text('[project]\nname = "p"\n')
    (tmp_path / "features.py").write_text("")
    done = subprocess.run([sys.executable, "-c", RUN, "serve"], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "run `tidemill apply`" in done.stderr


def test_who_listens_for_everybody_without_keys_is_warned(serve: Callable[..., Serving]) -> None:
    running = serve("--host", "0.0.0.0")
    assert "whoever reaches 0.0.0.0 may ask" in running.errors.read_text()
    assert running.end() == 0
    quiet = serve("--host", "0.0.0.0", TIDEMILL_API_KEYS=KEY)
    assert quiet.errors.read_text() == ""
    assert quiet.told["keys"] is True
    assert httpx.get(f"{quiet.url}/v1/models").status_code == 401
    assert quiet.end() == 0
