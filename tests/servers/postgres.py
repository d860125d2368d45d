"""A real PostgreSQL server on a free port of the loopback interface, for tests.

The kernel ends it with the process that started it. PostgreSQL refuses to run as root; then it runs as `nobody`, in a folder of its own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from tests.servers.redis import free_port

_PATIENCE = 60.0
#: Ends its command with the process that starts it: `parent death signal`. Set after the change of user, which would clear it.
_GUARD = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 3); os.getppid() == int(sys.argv[1]) or sys.exit('the parent has gone'); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


@cache
def programs() -> Path:
    """The folder with initdb and postgres, of this machine or from Debian's package."""
    tool = Path(__file__).parents[2] / "tools" / "get_postgres.sh"
    return Path(subprocess.run([tool], check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


class PostgresServer:
    """One server with its own folder and a database per `database()`. It can be killed and started again with what it holds."""

    USER, PASSWORD = "scorer", "not-for-anyone-s-eyes"

    def __init__(self) -> None:
        # Not below pytest's own folder, which other users may not enter.
        self.folder = Path(tempfile.mkdtemp(prefix="tidemill-postgres-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.stop()
            raise

    def _initialise(self) -> None:
        password = self.folder / "password"
        password.write_text(self.PASSWORD)
        password.chmod(0o644)
        command = [programs() / "initdb", "-D", self.folder / "data", "-U", self.USER, "--pwfile", password, "-A", "scram-sha-256"]
        options = ["-E", "UTF8", "--no-locale", "--no-sync"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, cwd="/", check=False, **self._user)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = ["-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
        # A crash of the server is tried, one of the machine is not: fsync=off.
        settings = ["-c", "fsync=off", "-c", "max_connections=20", "-c", "shared_buffers=16MB"]
        command = ["/usr/bin/env", "python3", "-c", _GUARD, str(os.getpid()), str(programs() / "postgres"), *options, *settings]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self._user)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                psycopg.connect(self.admin, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                pass
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"postgres did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    @property
    def admin(self) -> str:
        return f"postgresql://{self.USER}:{self.PASSWORD}@127.0.0.1:{self.port}/postgres"

    def database(self) -> str:
        """The URL of a new, empty database, without the password: that is in `PASSWORD`."""
        self._databases += 1
        name = f"d{self._databases}"
        with psycopg.connect(self.admin, autocommit=True) as connection:
            connection.execute(f"create database {name}")
        return f"postgresql://{self.USER}@127.0.0.1:{self.port}/{name}"

    def kill(self) -> None:
        """End it the hard way (SIGQUIT: no checkpoint, no goodbye; a SIGKILL would leave shared memory behind on the machine)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=_PATIENCE)
            self._process = None

    def stop(self) -> None:
        """End it for good."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
