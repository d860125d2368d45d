"""An HTTP service that answers every request at once with the same bytes: the floor under `benchmarks.serve`."""

from __future__ import annotations

from typing import Any

_BODY = b"x" * 2_700
_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(_BODY)).encode())]}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The body of the request is read, and that is all."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body", False):
        pass
    await send(_START)
    await send({"type": "http.response.body", "body": _BODY})
