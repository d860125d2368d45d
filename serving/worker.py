"""One worker process of a service: `python -m tidemill.apps.serving.worker SETTINGS`, started by the supervisor.

It listens on the address beside its siblings (SO_REUSEPORT: the kernel spreads connections over them), and ends when it is told to
(SIGTERM), or when the supervisor is gone: requests that have begun are answered first.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import msgspec
import uvicorn

from tidemill.client import FeatureStore
from tidemill.errors import TidemillError
from tidemill.journal import Journal

from .app import make_app
from .counts import Counts, CountsFile
from .keys import load_keys
from .service import Service
from .settings import Settings
from .sockets import listening

#: After so many new objects the garbage collector looks, and not after 700: requests leave no cycles, and it would look in their midst.
_GC = 50_000
#: In seconds: after so long a thread that computes lets another one on, such as the event loop, and not after five milliseconds.
_TURN = 0.0005


def main() -> int:
    """Serve until told to stop; the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--life", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--carry", default="")
    given = parser.parse_args()
    settings = msgspec.json.decode(given.settings, type=Settings)
    sys.setswitchinterval(_TURN)
    journal = Journal(f"worker {given.index}", _line, log_format=settings.log_format)
    counts = Counts(pid=os.getpid(), index=given.index)
    file = CountsFile(given.folder, given.life, counts, carry=filter(None, given.carry.split(",")))
    logging.getLogger().addHandler(_ToJournal(journal))
    try:
        server = _server(settings, journal, counts, file)
        sock = listening(settings.host, settings.port)
    except TidemillError as error:
        counts.failed = str(error)
        file.write()
        return 1
    # uvicorn stops at these by itself, and raises them again when it has; by then they have done what they are for.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_leash, args=(server,), name="leash", daemon=True).start()
    server.run([sock])
    journal.info("stopped")
    return 0


def _server(settings: Settings, journal: Journal, counts: Counts, file: CountsFile) -> uvicorn.Server:
    store = FeatureStore(settings.directory)
    service = Service(store, settings, load_keys(settings.keys_file, os.environ), journal, counts, file)
    config = uvicorn.Config(
        make_app(service),
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
    )
    return _Server(config, service)


class _Server(uvicorn.Server):
    """Says that it is ready when it really listens."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.warm_up()
        gc.collect()
        gc.freeze()  # what is there now stays
        gc.set_threshold(_GC)
        await super().startup(sockets)
        self._service.counts.ready = True
        assert self._service.file is not None
        self._service.file.write()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.counts.ready = False
        await super().shutdown(sockets)


def _leash(server: uvicorn.Server) -> None:
    """The supervisor holds the other end of our standard input. When it is gone, so are we."""
    while os.read(0, 1):  # not by way of sys.stdin: its lock, held here, would end the interpreter with an abort
        pass
    server.should_exit = True


class _ToJournal(logging.Handler):
    """What uvicorn and asyncio have to say, from warnings up."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self._journal.warning(text) if record.levelno < logging.ERROR else self._journal.error(text)


def _line(text: str) -> None:
    """One write for each line, so that those of several processes do not mix."""
    os.write(2, f"{text}\n".encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    sys.exit(main())
