"""A real Apache Kafka broker for tests, and for `make services`: one node in KRaft mode, on free ports of the loopback interface.

The processes of a pytest-xdist run share one. A guard process ends it as soon as the pytest process that all of them belong to is
gone, however that went.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import logging
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.servers import certificates

# kafka-python logs what is refused with its traceback, and pytest keeps log records, and so the sockets in them, until all tests are over.
logging.getLogger("kafka").propagate = False


def _apart() -> None:
    """Give kafka-python a generator of its own.

    Its threads, also those of a client that waits to be collected, draw their pauses from the one that all of Python shares; and where
    that changes while Hypothesis draws, it sees a fault in the strategy.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("kafka")
    own = random.Random()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "kafka" and getattr(module, "random", None) is random:
            vars(module)["random"] = own


_apart()

ROOT = Path(__file__).resolve().parents[2]
USER, PASSWORD = "miller", "very secret"
#: In seconds. A start takes about three; on a busy machine more.
_START = 90.0
#: In seconds, how long a gentle end may take.
_GENTLY = 20
_JAVA = ("-Xms64m", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")


class Broker:
    """One broker with its data below `directory`. `owner`: the process after whose end it is ended. `compiler`: "quick" starts sooner.

    Everybody may do everything at `address`; at `guarded` only USER with PASSWORD; at `encrypted` whoever trusts `authority`, by TLS.
    `ports`: of these three and of the controller; free ones unless given. What an earlier broker left in the directory is there again.
    """

    def __init__(
        self, directory: Path, libs: Path, owner: int, *, heap: str = "384m", compiler: str = "quick", ports: Sequence[int] = ()
    ) -> None:
        self._options = [f"-Xmx{heap}", *(["-XX:TieredStopAtLevel=1"] if compiler == "quick" else [])]
        self._directory = directory
        self._classes = f"{libs}/*"
        self._owner = owner
        self._guard: int | None = None
        directory.mkdir(parents=True, exist_ok=True)
        port, guarded, encrypted, controller = ports or _free_ports(4)
        self.address, self.guarded, self.encrypted = (f"127.0.0.1:{number}" for number in (port, guarded, encrypted))
        self.authority, certificate, key = certificates.make(directory / "tls")
        keystore = directory / "tls" / "keystore.pem"
        keystore.write_bytes(key.read_bytes() + certificate.read_bytes())
        self._settings = directory / "server.properties"
        self._settings.write_text(
            _PROPERTIES.format(
                port=port,
                guarded=guarded,
                encrypted=encrypted,
                keystore=keystore,
                user=USER,
                password=PASSWORD,
                controller=controller,
                data=directory / "data",
            )
        )
        if not (directory / "data" / "meta.properties").exists():
            self._run("kafka.tools.StorageTool", "format", "--standalone", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", str(self._settings))

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, __file__, str(self._owner), *self._java("kafka.Kafka"), str(self._settings)]
        log = str(self._directory / "broker.log")
        to_log = (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        # Not a Popen, which warns when it is forgotten: the guard may outlive this process.
        self._guard = os.posix_spawn(sys.executable, command, os.environ, file_actions=[to_log, (os.POSIX_SPAWN_DUP2, 1, 2)])
        give_up = time.monotonic() + _START
        while not _answers(self.address):
            if time.monotonic() > give_up or os.waitid(os.P_PID, self._guard, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                self.stop()
                text = (self._directory / "broker.log").read_text(errors="replace")
                raise RuntimeError(f"the broker does not start:\n{text[-4000:]}")
            time.sleep(0.05)

    def stop(self, *, gently: bool = False) -> None:
        """End it as a machine that fails does: at once. What was acknowledged is in its files, or in the system's cache of them.

        `gently`: let it put its files in order first.
        """
        if self._guard is not None:
            os.kill(self._guard, signal.SIGUSR1 if gently else signal.SIGTERM)
            os.waitpid(self._guard, 0)
            self._guard = None

    @property
    def running(self) -> bool:
        """Whether it was started, and has not ended by itself."""
        return self._guard is not None and os.waitid(os.P_PID, self._guard, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    @property
    def pid(self) -> int:
        """The process id of the broker itself."""
        return int(Path(f"/proc/{self._guard}/task/{self._guard}/children").read_text().split()[0])

    def _java(self, main: str) -> list[str]:
        return ["java", *_JAVA, *self._options, "-cp", self._classes, main]

    def _run(self, main: str, *arguments: str) -> None:
        done = subprocess.run([*self._java(main), *arguments], capture_output=True, text=True, timeout=_START, check=False)
        if done.returncode:
            raise RuntimeError(f"{main} failed:\n{done.stdout}\n{done.stderr}")


def owner() -> int:
    """The pytest process that this one belongs to: itself, or the one that started it for pytest-xdist."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def libraries() -> Path:
    """The folder of Kafka's jars; skips the test where they cannot be had."""
    fetched = (ROOT / ".servers" / "kafka" / "libs").is_dir()
    if shutil.which("java") is None or (shutil.which("mvn") is None and not fetched):
        pytest.skip("a Kafka broker needs java, and mvn to fetch it")
    (ROOT / ".servers").mkdir(exist_ok=True)
    with _locked(ROOT / ".servers" / "kafka.lock"):
        done = subprocess.run([ROOT / "tools" / "get_kafka.sh"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that all tests share. No test stops it; topics are fresh ones, under names of their own."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    address = shared / "kafka.address"
    broker = None
    libs = libraries()
    with _locked(shared / "kafka.lock"):
        if not address.exists():
            broker = Broker(shared / "kafka", libs, owner())
            broker.start()
            address.write_text(broker.address)
    yield address.read_text()
    if broker is not None and owner() == os.getpid():
        broker.stop()
    # Else others may still use it: the guard ends it after the last of them.


@pytest.fixture(scope="module")
def broker_to_stop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that a test may stop and start."""
    broker = Broker(tmp_path_factory.mktemp("kafka"), libraries(), owner())
    broker.start()
    yield broker
    broker.stop()


class _locked:  # noqa: N801
    """A lock that all processes respect, held inside `with`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _answers(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def _guard(owner_pid: int, command: list[str]) -> int:
    """Run a command until it ends, this process is told to end, or the owner has ended."""
    try:
        watched = os.pidfd_open(owner_pid)
    except ProcessLookupError:
        return 1
    process = subprocess.Popen(command)
    told, tell = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(tell, b"x"))
    signal.signal(signal.SIGUSR1, lambda *_: (process.terminate(), signal.alarm(_GENTLY)))
    signal.signal(signal.SIGALRM, lambda *_: os.write(tell, b"x"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal's processes, and pytest has tests to finish
    ended = os.pidfd_open(process.pid)
    select.select([watched, told, ended], [], [])
    process.kill()
    return process.wait()


_PROPERTIES = """
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{guarded},SSL://127.0.0.1:{encrypted},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{guarded},SSL://127.0.0.1:{encrypted}
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=\\
    org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,CONTROLLER:PLAINTEXT
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
log.dirs={data}
num.partitions=1
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
# On, to find out whether a reader that only looks creates a topic.
auto.create.topics.enable=true
message.max.bytes=16777216
# Tests write records of the past, which any retention would delete before they are read.
log.retention.ms=-1
# A broker that was killed is let in again when its session is over.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
log.cleaner.backoff.ms=200
log.cleaner.dedupe.buffer.size=4194304
log.initial.task.delay.ms=500
file.delete.delay.ms=1000
"""

if __name__ == "__main__":
    sys.exit(_guard(int(sys.argv[1]), sys.argv[2:]))
