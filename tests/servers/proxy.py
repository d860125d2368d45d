"""A TCP proxy that misbehaves on request: between a client and a server, as a network or a failover does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Proxy:
    """Listens on a free port of loopback, and forwards to `target`, a port of loopback, until `close`."""

    def __init__(self, target: int) -> None:
        self.target = target
        #: Replies that were swallowed, each with its connection.
        self.cuts = 0
        self._to_cut = 0
        self._unreachable = False
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut_replies(self, count: int) -> None:
        """The next replies do not arrive: what was asked has been done, and the connection is gone."""
        with self._lock:
            self._to_cut += count

    def retarget(self, port: int) -> None:
        """From now on forward to another server, as a name that points elsewhere does. Open connections are cut."""
        self.target = port
        self.cut_all()

    def cut_all(self) -> None:
        """Cut every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            _shut(*pair)

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[None]:
        """Nobody gets through, inside `with`."""
        self._unreachable = True
        self.cut_all()
        try:
            yield
        finally:
            self._unreachable = False

    def close(self) -> None:
        """Listen no more, and cut every connection."""
        _shut(self._server)
        self.cut_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                if self._unreachable:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                _shut(client)
                continue
            server.settimeout(None)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = client, server
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._forward, args=(client, server, pair, False), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, pair, True), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, pair: tuple[socket.socket, socket.socket], replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if replies and self._swallow():
                    break
                target.sendall(data)
        with self._lock:
            self._pairs.discard(pair)
        _shut(*pair)

    def _swallow(self) -> bool:
        with self._lock:
            if not self._to_cut:
                return False
            self._to_cut -= 1
            self.cuts += 1
            return True


def _shut(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            each.close()
