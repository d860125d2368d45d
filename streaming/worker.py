"""One worker process: one Bytewax process with one thread, of a cluster of them. `python -m tidemill.apps.streaming.worker --help`.

It ends with 0 when it was told to stop, or has read everything; `RESTART` (75) when there is something new that a running dataflow cannot
take up; `PEER_LOST` (76) when another process of the cluster is gone; else 1, after one line that says why.

Several Polars threads per worker only disturb each other: set POLARS_MAX_THREADS=1 in the environment, as the supervisor does.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NoReturn

from bytewax._bytewax import cluster_main

from tidemill.environment import Environment
from tidemill.errors import TidemillError
from tidemill.journal import LEVELS, Journal

from . import status
from .dataflow import EPOCH, dataflow
from .reading import Orders
from .shares import WHOLE, Share
from .upkeep import Upkeep, Who

FAILED, PEER_LOST = 1, 76

#: In seconds. Once all of this process's partitions have ended, the others are given so long to end theirs; and they all are given so
#: long to end at all, which they exceed only while the online store does not answer.
_OTHERS, _OWN = 0.4, 5.0
_NOTHING_YET, _MEET = 0.5, 5.0


class Worker:
    """The process. `begun` is in UTC microseconds."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._addresses: list[str] = options.addresses.split(",") if options.addresses else []
        self._out, self._noise = _redirected(options.project)
        journal = Journal(f"worker {options.index}", self._write, options.log_level, options.log_format)
        self.journal = journal
        self.orders = Orders(until_end=options.until_end)
        self._who = Who(options.index, max(len(self._addresses), 1), time.time_ns() // 1000, Share.parse(options.share))
        self._upkeep: Upkeep | None = None
        self._leaving = threading.Lock()

    def run(self) -> NoReturn:
        """Stream until told to stop, or until the end. Ends the process."""
        self._heed_signals()
        if self._options.leash:
            threading.Thread(target=self._hold_on, name="leash", daemon=True).start()
        threading.Thread(target=self._see_to_the_end, name="end", daemon=True).start()
        try:
            self._stream()
        except BaseException as error:  # noqa: BLE001  (the process ends here, whatever it was)
            self.fail(error)
        self.leave(self.orders.exit_code)

    def _stream(self) -> None:
        options = self._options
        status.remove_stale(options.project)
        env = Environment.load(options.project)
        self._upkeep = upkeep = Upkeep(env, self.orders, self.journal, self._who, archive_seconds=options.archive_seconds)
        upkeep.tell(status.STARTING)
        if not upkeep.look() and not options.until_end:
            self._wait_for_data(upkeep)
        if self.orders.stop.is_set():
            return
        self.journal.debug("dataflow", partitions=len(upkeep.parts), addresses=options.addresses)
        flow = dataflow(upkeep, self.fail)
        _await(self._addresses[: options.index], self.orders)
        run: Callable[..., None] = cluster_main  # Bytewax's stubs leave it untyped
        try:
            run(flow, self._addresses if len(self._addresses) > 1 else [], options.index, epoch_interval=EPOCH)
        except BaseException as error:  # noqa: BLE001  (our own mistakes end in `fail`, so this is the cluster, as a Rust panic)
            self._lost(error)

    def _wait_for_data(self, upkeep: Upkeep) -> None:
        why = "nothing to read yet: nothing is applied, or the logs have no partition"
        share = {} if self._who.share == WHOLE else {"share": str(self._who.share)}
        self.journal.info(f"{why} that is in this share" if share else why, version=upkeep.applied.version, **share)
        while not self.orders.stop.wait(_NOTHING_YET) and not upkeep.look():
            upkeep.tell(status.WAITING, "nothing to read yet")

    # ---- the end ----------------------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> NoReturn:
        """End with one line that says why. Nothing is lost: the store holds values and positions together."""
        if isinstance(error, TidemillError):
            why = str(error)
        else:
            frames = traceback.extract_tb(error.__traceback__)
            place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
            why = f"{type(error).__name__}: {error}{place}; --log-level debug shows where it comes from"
        self.journal.error(why, error)
        self.leave(FAILED, why)

    def _lost(self, error: BaseException) -> NoReturn:
        if self.orders.stop.is_set():  # they were told to stop as well, and were faster
            self.leave(self.orders.exit_code)
        self.journal.warning("another worker is gone, or could not be reached", error=" ".join(str(error).split()))
        self.leave(PEER_LOST, "another worker is gone")

    def leave(self, code: int, why: str = "") -> NoReturn:
        """End the process now, whatever other threads do: what is to be kept is in the stores."""
        self._leaving.acquire()
        failed = code in (FAILED, PEER_LOST)
        state = status.FAILED if failed else status.STOPPED
        if self._upkeep is not None:
            self._upkeep.tell(state, why or self._upkeep.reason)
        else:
            status.write_status(self._options.project, self._who.status(state, why))
        if not failed:
            self.journal.info("stopped")
            self._noise.unlink(missing_ok=True)
        os._exit(code)

    def _see_to_the_end(self) -> None:
        """Bytewax ends when all processes have; one that alone was told to stop would wait for the others for ever."""
        self.orders.stop.wait()
        deadline = time.monotonic() + _OWN
        while time.monotonic() < deadline and self._upkeep is not None and not self._upkeep.over:
            time.sleep(0.01)
        if self._upkeep is not None and not self._upkeep.over:
            self.journal.warning("stopping at once: the stores do not answer; what waits for the archive will be read again")
        time.sleep(_OTHERS)
        self.leave(self.orders.exit_code)

    def _heed_signals(self) -> None:
        """SIGTERM and SIGINT set the flag, by way of a pipe and a thread: Python's own handlers wait for the main thread to leave Rust."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

        def heed() -> None:
            while os.read(reader, 1):
                self.orders.stop.set()

        threading.Thread(target=heed, name="signals", daemon=True).start()

    def _hold_on(self) -> None:
        """End as soon as whoever holds the other end of standard input is gone, however it went."""
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os._exit(FAILED)

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._out.write(line + "\n")


def _redirected(project: Path) -> tuple[IO[str], Path]:
    """Standard error, for our own lines alone; what Bytewax and Rust print goes to a file beside the status, kept after a failure."""
    # Line by line and without a buffer of its own, so that a line is written at once or not at all.
    out = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    path = status.noise_path(project, os.getpid())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    except OSError:
        noise = os.open(os.devnull, os.O_WRONLY)
    os.dup2(noise, 1)
    os.dup2(noise, 2)
    os.close(noise)
    faulthandler.enable()
    return out, path


def _await(addresses: Sequence[str], orders: Orders) -> None:
    """Wait for the workers that this one will connect to: one that does not listen yet, Bytewax looks for again only after a second.

    Whether it does is seen by an attempt to bind its port, because a connection would count as a worker's.
    """
    deadline = time.monotonic() + _MEET
    for address in addresses:
        host, _, port = address.rpartition(":")
        while host == "127.0.0.1" and time.monotonic() < deadline and not orders.stop.is_set():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, int(port)))
                except OSError:
                    break
            time.sleep(0.01)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(
        prog="python -m tidemill.apps.streaming.worker",
        description="One stream worker of a project. `tidemill stream` starts several, and looks after them.",
        epilog="Example: python -m tidemill.apps.streaming.worker --project . --index 0 --addresses 127.0.0.1:9101,127.0.0.1:9102",
    )
    parser.add_argument("--project", type=Path, default=Path(), help="the directory with the tidemill.toml")
    parser.add_argument("--index", type=int, default=0, help="which of the workers this is, from 0")
    parser.add_argument("--addresses", default="", help="host:port of all workers, separated by commas; none for a single one")
    parser.add_argument("--share", default="1/1", help="this host's share of all partitions, such as 2/3 (default: 1/1)")
    parser.add_argument("--until-end", action="store_true", help="stop when every log is read to its end, and archived")
    parser.add_argument("--leash", action="store_true", help="end when standard input is closed: when whoever started this worker is gone")
    parser.add_argument("--archive-seconds", type=float, default=10.0, help="archive at least so often (default: 10)")
    parser.add_argument("--log-level", choices=LEVELS, default="info")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    Worker(options()).run()
