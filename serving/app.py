"""The service as an ASGI application: routes, and what goes in and out of them."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from time import perf_counter

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidemill.metrics import TEXT_TYPE, text_of
from tidemill.remote.wire import ReadyAnswer

from .faults import LOGGED, Fault, fault_of
from .keys import Keys
from .metrics import collect
from .openapi import document
from .service import Done, Service

JSON = "application/json"
#: Asked by those who look after processes, and told nothing that is worth a key.
OPEN = ("/livez", "/readyz")
_JSON_HEADERS = [(b"content-type", JSON.encode())]
_TELL_EVERY = 0.5


def make_app(service: Service) -> Starlette:
    """The application around a service; it closes the service at its end."""
    told = document(service.settings.max_rows)

    async def livez(_: Request) -> Response:
        return Response('{"live":true}', media_type=JSON)

    async def readyz(_: Request) -> Response:
        checks = await service.ready()
        ready = all(found == "ok" for found in checks.values())
        body = msgspec.json.encode(ReadyAnswer(ready, checks))
        return Response(body, 200 if ready else 503, media_type=JSON, headers={} if ready else {"Retry-After": "1"})

    async def metrics(_: Request) -> Response:
        figures = collect(service.all_counts(), service.store.env.project.name)
        return Response(text_of(figures), media_type=TEXT_TYPE)

    async def models(_: Request) -> Response:
        return Response(await service.computed(service.models, None), media_type=JSON)

    async def openapi(_: Request) -> Response:
        return Response(told, media_type=JSON)

    posts = {"/v1/features": Post(service, service.features), "/v1/score": Post(service, service.score)}
    routes = [
        *(Route(path, post, methods=["POST"]) for path, post in posts.items()),
        Route("/v1/models", models),
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        telling = asyncio.create_task(_tell(service))
        try:
            yield
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling
            if service.file is not None:
                service.file.write()
            service.close()
            if service.file is not None:
                service.note()  # what its logs could not write in time
                service.file.write()

    app = Starlette(
        routes=routes,
        middleware=[Middleware(Gate, service=service, routes=[route.path for route in routes], posts=posts)],
        exception_handlers={HTTPException: _refused},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


async def _tell(service: Service) -> None:
    while service.file is not None:
        service.note()
        service.file.write()
        await asyncio.sleep(_TELL_EVERY)


class Gate:
    """Around everything: who may come in, what is counted, and what becomes of errors.

    `posts` are asked at once, past Starlette's routing, which takes as long as a tenth of an answer.
    """

    def __init__(self, app: ASGIApp, service: Service, routes: list[str], posts: Mapping[str, ASGIApp]) -> None:
        self._app, self._service, self._routes, self._posts = app, service, frozenset(routes), posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, service = perf_counter(), self._service
        path = scope["path"]
        route = path if path in self._routes else "other"
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if service.keys and path not in OPEN:
                _check_key(service.keys, scope["headers"])
            post = self._posts.get(path) if scope["method"] == "POST" else None
            await (post or self._app)(scope, receive, sending)
        except Exception as error:
            fault, request = self._explained(error, route)
            if status:
                raise  # half an answer is out: the connection ends
            service.counts.faults[fault.type] = service.counts.faults.get(fault.type, 0) + 1
            await _respond(sending, fault.status, fault.body(request), fault.headers)
        finally:
            service.counts.answered(route, status, perf_counter() - begun)

    def _explained(self, error: Exception, route: str) -> tuple[Fault, str | None]:
        """The answer to an error; and, where the reason is for the log alone, the id under which it stands there."""
        fault = fault_of(error)
        if fault is not None and fault.type not in LOGGED:
            return fault, None
        request = uuid.uuid4().hex[:12]
        if fault is not None:
            self._service.journal.warning("no answer", route=route, request=request, reason=str(error))
            return fault, request
        self._service.journal.error(
            "failed", route=route, request=request, reason=f"{type(error).__name__}: {error}", of="".join(traceback.format_exception(error))
        )
        return Fault("internal", "something went wrong in the service: its log has more under the id of this request"), request


class Post:
    """A route that reads a body of JSON, and lets `work` make an answer of it in a thread."""

    def __init__(self, service: Service, work: Callable[[bytes], Done]) -> None:
        self._service, self._work = service, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        _check_headers(scope["headers"], service.settings.max_body)
        done = await service.computed(self._work, await _body(receive, service.settings.max_body, service.settings.patience))
        counts, path = service.counts, scope["path"]
        counts.rows[path] = counts.rows.get(path, 0) + done.rows
        if done.scored is not None:
            counts.scored_rows(*done.scored)
        headers = [*_JSON_HEADERS, (b"content-length", str(len(done.body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": done.body})


def _check_key(keys: Keys, headers: list[tuple[bytes, bytes]]) -> None:
    if not keys.allow(headers):
        text = "this service wants an API key: send `Authorization: Bearer KEY`, or `X-API-Key: KEY`"
        raise Fault("unauthorized", text, headers={"WWW-Authenticate": "Bearer"})


def _check_headers(headers: list[tuple[bytes, bytes]], max_body: int) -> None:
    """Refuse what need not be read: another type of body, or one that says that it is too large."""
    kind = b""
    for name, value in headers:
        if name == b"content-type":
            kind = value
        elif name == b"content-length" and value.isdigit() and (len(value) > 18 or int(value) > max_body):
            raise _too_large(max_body)
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise Fault("unsupported_media_type", f"the body is encoded as {value.decode('latin-1')!r}: send it as it is")
    if kind != b"application/json":
        what, _, parameters = kind.decode("latin-1").lower().partition(";")
        charset = parameters.replace(" ", "").replace('"', "")
        if what.strip() != JSON or charset not in ("", "charset=utf-8", "charset=utf8"):
            raise Fault("unsupported_media_type", "the body must be JSON in UTF-8: send `Content-Type: application/json`")


async def _body(receive: Receive, max_body: int, patience: float) -> bytes:
    """The whole body. Raises `Fault` where it is too large, or has not come within `patience` seconds, however steadily it trickles in."""
    try:
        async with asyncio.timeout(patience):
            return await _whole(receive, max_body)
    except TimeoutError:
        raise Fault("timeout", f"the body did not come within {patience:g} s", headers={"Connection": "close"}) from None


async def _whole(receive: Receive, max_body: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        parts, size = [body], len(body)
        while message.get("more_body", False):
            if size > max_body:
                raise _too_large(max_body)
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _gone()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        body = b"".join(parts)
    elif message["type"] == "http.disconnect":
        raise _gone()
    if len(body) > max_body:
        raise _too_large(max_body)
    return body


def _too_large(max_body: int) -> Fault:
    message = f"the body is larger than {max_body:,} bytes: send fewer rows at once, or start the service with a larger --max-body"
    return Fault("too_large", message, limit=max_body, headers={"Connection": "close"})


def _gone() -> Fault:
    return Fault("malformed", "the connection was closed before the body was complete")


async def _respond(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    more = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    lines = [*_JSON_HEADERS, (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def _refused(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: a path or a method that there is not. The gate answers it."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        raise Fault("method_not_allowed", f"{request.method} is not for {request.url.path}", headers=error.headers)
    raise Fault("not_found", f"there is nothing at {request.url.path}: /openapi.json lists what there is")
