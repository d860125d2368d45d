"""A real S3 server on a free port of the loopback interface: moto behind HTTP, with faults on demand.

It takes one request at a time: moto looks whether an object is there and then puts it, where S3 does both in one step.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import boto3
import pytest
from botocore.config import Config
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

BUCKET = "offline"
_PATIENCE = 20.0


class Request(NamedTuple):
    """What was asked for. `condition` is the header If-None-Match."""

    method: str
    path: str
    query: str
    condition: str | None


class Fault(NamedTuple):
    """What happens to a request.

    `status`: it is answered so, and not applied. `lost`: it is applied, and the connection ends without an answer. `broken`: the same,
    in the middle of the answer. `silent`: it is kept waiting until the fault is over. `unconditional`: it is applied without its condition.
    """

    status: int | None = None
    lost: bool = False
    silent: bool = False
    unconditional: bool = False
    broken: bool = False


class _Handler(MotoRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, as S3's do

    def send_response(self, code: int, message: str | None = None) -> None:
        self.send_response_only(code, message)  # moto has given the headers Server and Date already

    def log(self, *_: object) -> None:
        pass


class S3Server:
    """The server. What it holds outlasts `stop` and `start`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.fault: Callable[[Request], Fault | None] = lambda _: None
        self._moto: Any = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()
        self._over = threading.Event()
        self._server: BaseWSGIServer | None = None
        self._connections: set[socket.socket] = set()
        self.port = _port()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find this server, and nobody's own credentials."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
        }

    def client(self) -> Any:
        """boto3's client, for what the store cannot do."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing-secret",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def start(self) -> None:
        """Listen, on the same port as before."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        with _listening(self.port) as listening:
            self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True, request_handler=_Handler, fd=listening.fileno())
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="s3", daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and end those that are open."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            for connection in list(self._connections):
                _end(connection)

    def heal(self) -> None:
        """No more faults; what was kept waiting goes on."""
        self.fault = lambda _: None
        self._over.set()
        self._over = threading.Event()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        connection: socket.socket = environ["werkzeug.socket"]
        self._connections.add(connection)
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], environ.get("HTTP_IF_NONE_MATCH"))
        self.requests.append(request)
        fault = self.fault(request) or Fault()
        if fault.silent:
            self._over.wait()
        if fault.status is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{fault.status} Fault", [("Content-Length", "0")])
            return [b""]
        if fault.unconditional:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with self._one_at_a_time:
            body = b"".join(self._moto(environ, start_response))
        if fault.lost:
            _end(connection)
        return [body] if not fault.broken else _half(body, connection)


def _half(body: bytes, connection: socket.socket) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    _end(connection)


def _port() -> int:
    """A free port below those that the kernel gives to anyone who asks: nobody takes it between `stop` and `start`."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.randrange(20_000, 32_000)))
            except OSError:
                continue
            return port


def _listening(port: int) -> socket.socket:
    """A socket that listens, as soon as the last connections of the one before are gone."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return socket.create_server(("127.0.0.1", port), backlog=128)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def s3_of_session() -> Iterator[S3Server]:
    server = S3Server()
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    client.close()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_of_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, with a bucket BUCKET that tests share, each under a prefix of its own; the environment points to it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_of_session.environment.items():
        monkeypatch.setenv(name, value)
    s3_of_session.requests.clear()
    yield s3_of_session
    s3_of_session.heal()
