"""Real Redis servers on free ports of the loopback interface, for tests and for `make services`.

The kernel ends them with the process that started them.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import redis

_PATIENCE = 20.0


@cache
def binary() -> str:
    """redis-server, from PATH or from Debian's package."""
    tool = Path(__file__).parents[2] / "tools" / "get_redis.sh"
    return subprocess.run([tool], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def free_port(*, bus: bool = False) -> int:
    """A port of loopback that nobody listens on (with `bus`: one whose cluster port, 10,000 higher, is free too)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if not bus:
            return port
        if port + 10_000 < 65_536:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port + 10_000)):
                    return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# A process is "parent" to the kernel by the thread that made it, so that must be one that lasts as long as this process.
_spawner = ThreadPoolExecutor(1, "redis-spawner")


def spawn(command: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
    def spawn() -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, preexec_fn=_die_with_parent)  # noqa: PLW1509 - one system call

    return _spawner.submit(spawn).result()


class RedisServer:
    """One server with its own folder. It can be killed and started again, with what its append-only file has.

    `port`: a free one unless given.
    """

    def __init__(
        self, folder: Path, *options: str, cluster: bool = False, tls: tuple[Path, Path, Path] | None = None, port: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, port or free_port(bus=cluster)
        self.tls_port = 0
        if tls is not None:  # the authority's certificate, the server's, and its key
            self.tls_port = free_port()
            ca, certificate, key = map(str, tls)
            options += ("--tls-port", str(self.tls_port), "--tls-ca-cert-file", ca, "--tls-cert-file", certificate)
            options += ("--tls-key-file", key, "--tls-auth-clients", "no")
        self._options = (*(("--cluster-enabled", "yes", "--cluster-node-timeout", "2000") if cluster else ()), *options)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "", "--daemonize", "no"]
        command += ["--appendonly", "yes", "--appendfsync", "everysec", "--enable-debug-command", "yes", *self._options]
        self._process = spawn(command, self.folder / "log")
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(64)[:1] in (b"+", b"-") and not (self._loading()):
                        return
            except OSError:
                pass
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"redis-server did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def _loading(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"GET x\r\n")
            return connection.recv(64).startswith(b"-LOADING")

    @property
    def running(self) -> bool:
        """Whether it was started, and has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def kill(self, how: int = signal.SIGKILL) -> None:
        """End it, by default the hard way."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=_PATIENCE)
            self._process = None

    def stop(self) -> None:
        """End it for good."""
        self.kill(signal.SIGKILL)

    def empty(self) -> None:
        """Lose all data, while it does not run."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def wait_for(self, primary: RedisServer) -> None:
        """Wait until this replica has all that its primary has."""
        mine, theirs = redis.Redis(port=self.port), redis.Redis(port=primary.port)
        deadline = time.monotonic() + _PATIENCE
        try:
            while mine.info("replication")["slave_repl_offset"] < theirs.info("replication")["master_repl_offset"]:
                assert time.monotonic() < deadline, "the replica does not catch up"
                time.sleep(0.02)
        finally:
            mine.close()
            theirs.close()

    def replicate(self, port: int | None) -> None:
        """Follow the server on that port, until in sync with it; or, given None, follow nobody any more."""
        client = redis.Redis(port=self.port)
        try:
            if port is None:
                client.replicaof("NO", "ONE")
                return
            client.replicaof("127.0.0.1", port)
            deadline = time.monotonic() + _PATIENCE
            while client.info("replication").get("master_link_status") != "up":
                assert time.monotonic() < deadline, "the replica did not follow"
                time.sleep(0.02)
        finally:
            client.close()


class RedisSentinels:
    """A primary and its replica, and two Sentinels that agree within a second or two who is the primary."""

    NAME = "mill"

    def __init__(self, folder: Path) -> None:
        self.nodes = [RedisServer(folder / str(i)) for i in range(2)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self.ports = [free_port(), free_port()]
        try:
            self.nodes[1].replicate(self.nodes[0].port)
            for port in self.ports:
                self._start(folder / f"sentinel-{port}", port)
        except BaseException:
            self.stop()
            raise

    def _start(self, folder: Path, port: int) -> None:
        folder.mkdir()
        (folder / "sentinel.conf").write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor {self.NAME} 127.0.0.1 {self.nodes[0].port} 1\n"
            f"sentinel down-after-milliseconds {self.NAME} 500\nsentinel failover-timeout {self.NAME} 3000\n"
        )
        self._processes.append(spawn([binary(), str(folder / "sentinel.conf"), "--sentinel"], folder / "log"))
        client = redis.Redis(port=port)
        deadline = time.monotonic() + _PATIENCE
        try:
            while True:
                try:
                    if client.execute_command("SENTINEL", "REPLICAS", self.NAME):
                        return
                except redis.exceptions.ConnectionError:
                    pass
                assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                time.sleep(0.05)
        finally:
            client.close()

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://{hosts}/{self.NAME}/0"

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(timeout=_PATIENCE)
        for node in self.nodes:
            node.stop()


class RedisClusterServers:
    """Three primaries that share the slots; and, `spare`, a replica of the first of them."""

    def __init__(self, folder: Path, *, spare: bool = False) -> None:
        self.nodes = [RedisServer(folder / str(i), cluster=True) for i in range(3 + spare)]
        try:
            self._form()
        except BaseException:
            self.stop()
            raise

    def _form(self) -> None:
        clients = [redis.Redis(port=node.port) for node in self.nodes]
        try:
            for i, client in enumerate(clients[:3]):
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", i * 5461, 16383 if i == 2 else (i + 1) * 5461 - 1)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            for client in clients[1:]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
            deadline = time.monotonic() + _PATIENCE
            while not all(map(self._is_formed, clients)):
                assert time.monotonic() < deadline, "the cluster did not form"
                time.sleep(0.05)
            for client in clients[3:]:
                client.execute_command("CLUSTER", "REPLICATE", clients[0].execute_command("CLUSTER", "MYID"))
                while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok" or not _follows(client):
                    assert time.monotonic() < deadline, "the replica did not follow"
                    time.sleep(0.05)
        finally:
            for client in clients:
                client.close()

    @staticmethod
    def _is_formed(client: redis.Redis) -> bool:
        known = client.execute_command("CLUSTER SLOTS")
        return len(known) == 3 and client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis://{hosts}/0?cluster=true"

    def heal(self) -> None:
        """Wait until every node that ran before runs, knows that the others do, and every replica is in sync."""
        clients = [redis.Redis(port=node.port) for node in self.nodes]
        deadline = time.monotonic() + 60.0
        try:
            while not all(c.execute_command("CLUSTER INFO")["cluster_state"] == "ok" and _in_order(c) for c in clients):
                assert time.monotonic() < deadline, f"the cluster did not heal: {clients[0].execute_command('CLUSTER NODES')}"
                time.sleep(0.1)
        finally:
            for client in clients:
                client.close()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


def _in_order(client: redis.Redis) -> bool:
    role = client.info("replication")
    return role["role"] == "master" or role.get("master_link_status") == "up"


def _follows(client: redis.Redis) -> bool:
    return client.info("replication").get("master_link_status") == "up"
