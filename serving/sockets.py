"""Addresses to listen on."""

from __future__ import annotations

import errno
import socket

from tidemill.errors import TidemillError

_BACKLOG = 2048


def reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps an address for this service, without listening: its workers do. Port 0: any free one.

    Raises `TidemillError` where somebody has the address already (another service of ours too), or it is none of this machine.
    """
    if port:
        _bound(host, port, shared=False).close()  # beside a service that shares its port we could listen, and nobody would notice
    return _bound(host, port, shared=True)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens beside those of other workers."""
    found = _bound(host, port, shared=True)
    found.listen(_BACKLOG)
    found.setblocking(False)
    return found


def address(sock: socket.socket) -> str:
    """As a URL."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise TidemillError(f"cannot serve: {host!r} is no address of this machine ({error.strerror or error})") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(where)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise TidemillError(
                f"cannot serve: port {port} of {host} is taken; stop what listens there, or choose another with --port"
            ) from None
        raise TidemillError(f"cannot serve on {host}, port {port}: {error.strerror or error}") from None
    return found
