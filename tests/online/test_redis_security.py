"""Redis behind TLS, with users of few rights; and no password in anything that is said."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.online.contract import OnlineStoreContract
from tests.online.processes import Connect
from tests.servers import certificates
from tests.servers.redis import RedisServer
from tidemill.errors import StoreError, StoreUnavailableError
from tidemill.online.base import SlotId, SlotState
from tidemill.online.redis import RedisStore

SLOT = SlotId("b", 0)
PASSWORD = "very-secret-7"
#: As docs/operations/redis has it: what a worker, batch and a client need, under the prefix `tm`.
RIGHTS = (
    *("~tm.*", "~{tm.*", "+get", "+set", "+mget", "+strlen", "+getrange", "+append", "+del", "+unlink", "+exists"),
    *("+hget", "+hset", "+hgetall", "+sadd", "+smembers", "+zadd", "+zrem", "+zrange", "+zrangebylex"),
    *("+eval", "+evalsha", "+info"),
)
_numbers = itertools.count()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, files: tuple[Path, Path, Path]) -> Iterator[RedisServer]:
    """A server that speaks plainly on `port`, TLS on `tls_port`, and knows the user `worker` with RIGHTS and nobody else from afar."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), tls=files)
    client = redis.Redis(port=server.port)
    client.execute_command("ACL", "SETUSER", "worker", "on", f">{PASSWORD}", *RIGHTS)
    client.execute_command("ACL", "SETUSER", "reader", "on", f">{PASSWORD}", "~tm.*", "~{tm.*", "+get", "+mget")
    client.close()
    yield server
    server.stop()


def url(server: RedisServer, ca: Path, user: str = f"worker:{PASSWORD}@") -> str:
    return f"rediss://{user}127.0.0.1:{server.tls_port}/0?ca={ca}"


class TestRedisWithTlsAndFewRights(OnlineStoreContract):
    @pytest.fixture
    def connect(self, guarded: RedisServer, files: tuple[Path, Path, Path]) -> Connect:
        prefix = f"tm.x{next(_numbers)}".replace(".", "-")
        client = redis.Redis(port=guarded.port)
        client.execute_command("ACL", "SETUSER", "worker", f"~{prefix}.*", f"~{{{prefix}.*")
        client.close()
        return partial(RedisStore, f"{url(guarded, files[0])}&prefix={prefix}&timeout=30")


def said(store: RedisStore) -> str:
    try:
        with pytest.raises(StoreError) as refusal:
            store.slots([SLOT])
        return f"{type(refusal.value).__name__}: {refusal.value}"
    finally:
        store.close()


def test_user_and_password_come_from_the_environment_too(
    guarded: RedisServer, files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_REDIS_USERNAME", "worker")
    monkeypatch.setenv("TIDEMILL_REDIS_PASSWORD", PASSWORD)
    store = RedisStore(url(guarded, files[0], user=""))
    assert store.slots([SLOT]) == [SlotState()]
    store.close()


def test_a_server_whose_certificate_another_authority_signed_is_not_talked_to(guarded: RedisServer, tmp_path: Path) -> None:
    other, _, _ = certificates.make(tmp_path, "stranger")
    message = said(RedisStore(url(guarded, other)))
    assert message.startswith("StoreUnavailableError")
    assert "certificate verify failed" in message
    assert PASSWORD not in message


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("worker:wrong-9@", "check the user and password"),
        ("nobody:wrong-9@", "check the user and password"),
        ("reader:very-secret-7@", "their rights"),
    ],
)
def test_a_wrong_password_or_a_user_without_the_rights_is_told_so_without_the_password(
    guarded: RedisServer, files: tuple[Path, Path, Path], user: str, reason: str
) -> None:
    message = said(RedisStore(url(guarded, files[0], user=user)))
    assert message.startswith("StoreError")
    assert reason in message
    assert "wrong-9" not in message
    assert PASSWORD not in message


def test_plain_text_to_a_tls_port_is_refused_within_the_time_out(guarded: RedisServer) -> None:
    store: Any = RedisStore(f"redis://127.0.0.1:{guarded.tls_port}/0?timeout=1")
    assert said(store).startswith(StoreUnavailableError.__name__)
