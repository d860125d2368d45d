"""A schema registry for tests: the part of Confluent's REST API that clients use, over HTTP on a free port of loopback.

It has what a registry promises: ids are given in order and never again, the same schema gets the same id, and what it does not know it
says in the registry's own error codes.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

_TYPE = "application/vnd.schemaregistry.v1+json"


class Registry:
    """A registry that can be stopped and started on the same port. `password`: `user:password` that it wants, if any. `certificate`:
    the files of its certificate and key, for TLS.

    `asked`: the paths of all requests. `broken`: what it answers instead, as status and body.
    """

    def __init__(self, password: str | None = None, certificate: Sequence[Path] = ()) -> None:
        self.asked: list[str] = []
        self.broken: tuple[int, bytes] | None = None
        self.authorization = None if password is None else "Basic " + base64.b64encode(password.encode()).decode()
        self._schemas: list[dict[str, Any]] = []
        self._versions: dict[str, list[int]] = {}
        self._lock = threading.Lock()
        self._certificate = certificate
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Answer."""
        registry = self

        class Handler(_Handler):
            def answer(self, method: str) -> tuple[int, Any]:
                return registry._answer(method, self)

        server = self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = server.server_address[1]
        if self._certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Be gone: connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def register(self, subject: str, schema: object, kind: str = "AVRO", references: list[dict[str, Any]] | None = None) -> int:
        """The id of a schema, which is given or JSON text."""
        entry = {"schema": schema if isinstance(schema, str) else json.dumps(schema), "schemaType": kind, "references": references or []}
        with self._lock:
            if entry not in self._schemas:
                self._schemas.append(entry)
            number = self._schemas.index(entry) + 1
            if number not in self._versions.setdefault(subject, []):
                self._versions[subject].append(number)
            return number

    def _answer(self, method: str, request: _Handler) -> tuple[int, Any]:
        path = urlsplit(request.path).path
        self.asked.append(path)
        if self.broken is not None:
            return self.broken
        if self.authorization is not None and request.headers.get("Authorization") != self.authorization:
            return 401, {"error_code": 401, "message": "Unauthorized"}
        if method == "POST":
            body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
            if found := re.fullmatch(r"/subjects/([^/]+)(/versions)?", path):
                subject = unquote(found[1])
                number = self.register(subject, body["schema"], body.get("schemaType", "AVRO"), body.get("references"))
                return 200, {"id": number, "subject": subject, "version": self._versions[subject].index(number) + 1, **self._said(number)}
        elif found := re.fullmatch(r"/schemas/ids/(\d+)", path):
            if not 1 <= int(found[1]) <= len(self._schemas):
                return 404, {"error_code": 40403, "message": f"Schema {found[1]} not found"}
            return 200, self._said(int(found[1]))
        elif found := re.fullmatch(r"/subjects/([^/]+)/versions/(\d+)", path):
            numbers = self._versions.get(unquote(found[1]))
            if numbers is None:
                return 404, {"error_code": 40401, "message": "Subject not found."}
            if not 1 <= int(found[2]) <= len(numbers):
                return 404, {"error_code": 40402, "message": "Version not found."}
            number = numbers[int(found[2]) - 1]
            return 200, {"id": number, "subject": unquote(found[1]), "version": int(found[2]), **self._said(number)}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _said(self, number: int) -> dict[str, Any]:
        """A schema as the registry says it: Avro's type goes without saying."""
        entry = self._schemas[number - 1]
        return {key: value for key, value in entry.items() if value and not (key == "schemaType" and value == "AVRO")}


class _Handler(BaseHTTPRequestHandler):
    def answer(self, method: str) -> tuple[int, Any]:
        raise NotImplementedError

    def do_GET(self) -> None:
        self._respond("GET")

    def do_POST(self) -> None:
        self._respond("POST")

    def _respond(self, method: str) -> None:
        status, document = self.answer(method)
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry of the test's own."""
    server = Registry()
    yield server
    server.stop()
