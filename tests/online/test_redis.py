"""The Redis store against real servers: the contract, on one and on a cluster, and what can only go wrong with a server."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import redis

from tests.online.contract import OnlineStoreContract, SharedStoreContract
from tests.online.processes import Connect
from tests.servers.redis import RedisClusterServers, RedisSentinels, RedisServer
from tidemill.errors import DefinitionError, StoreError, StoreUnavailableError, StoreVersionError
from tidemill.online.base import Advance, Cell, CellChange, CellId, EntityChange, SlotId, SlotState, tail_digest
from tidemill.online.redis import RedisStore

SLOT = SlotId("by_origin", 3)
JFK = CellId(5, 3, "JFK")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisClusterServers]:
    cluster = RedisClusterServers(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSentinels]:
    sentinels = RedisSentinels(tmp_path_factory.mktemp("sentinels"))
    yield sentinels
    sentinels.stop()


def prefix() -> str:
    return f"t{os.getpid()}x{next(_numbers)}"


class TestRedisStore(SharedStoreContract):
    @pytest.fixture
    def connect(self, server: RedisServer) -> Connect:
        return partial(RedisStore, f"{server.url}?prefix={prefix()}&timeout=30")


class TestRedisCluster(OnlineStoreContract):
    @pytest.fixture
    def connect(self, cluster: RedisClusterServers) -> Connect:
        return partial(RedisStore, f"{cluster.url}&prefix={prefix()}&timeout=30")


class TestRedisBehindSentinels(OnlineStoreContract):
    @pytest.fixture
    def connect(self, sentinels: RedisSentinels) -> Connect:
        return partial(RedisStore, f"{sentinels.url}?prefix={prefix()}&timeout=30")


def test_when_sentinels_name_another_primary_the_store_goes_on_with_what_the_replica_has(tmp_path: Path) -> None:
    sentinels = RedisSentinels(tmp_path / "own")
    store = RedisStore(f"{sentinels.url}?timeout=1")
    try:
        assert store.apply([Advance(SLOT, 0, 0, 7, 0, 0, 0, 0, [])]) == [True]
        sentinels.nodes[1].wait_for(sentinels.nodes[0])
        sentinels.nodes[0].kill()
        with pytest.raises(StoreUnavailableError):
            store.slots([SLOT])
        deadline = time.monotonic() + 30
        while True:
            try:
                if store.apply([Advance(SLOT, 0, 7, 9, 0, 0, 0, 0, [])]) == [True]:
                    break
                raise AssertionError("refused, though the replica had it all")
            except StoreUnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert store.slots([SLOT])[0].positions == {0: 9}
    finally:
        store.close()
        sentinels.stop()


@pytest.mark.parametrize("url", ["redis+sentinel://localhost:26379", "redis+sentinel://localhost:26379/mill/0?cluster=true"])
def test_a_sentinel_url_needs_the_primarys_name(url: str) -> None:
    with pytest.raises(DefinitionError, match="with the primary's name"):
        RedisStore(url)


def test_a_name_that_no_sentinel_knows_is_said(sentinels: RedisSentinels) -> None:
    store = RedisStore(sentinels.url.replace("/mill/", "/other/") + "?timeout=1")
    with pytest.raises(StoreUnavailableError, match="other"):
        store.slots([SLOT])
    store.close()


@pytest.fixture
def opened(server: RedisServer) -> Iterator[Callable[..., RedisStore]]:
    """Opens stores on the server, by default each with a prefix of its own, and closes them."""
    stores: list[RedisStore] = []

    def open_store(url: str | None = None) -> RedisStore:
        stores.append(RedisStore(url or f"{server.url}?prefix={prefix()}"))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def advance(start: int, end: int, data: bytes = b"a") -> Advance:
    return Advance(SLOT, 0, start, end, appends=[(5, "JFK", data)])


# Scripts


def test_a_server_that_forgot_the_scripts_is_told_them_again(opened: Callable[..., RedisStore], server: RedisServer) -> None:
    store = opened()
    with redis.Redis(port=server.port) as client:
        for at in range(3):
            client.script_flush()
            assert store.apply([advance(at, at + 1), Advance(SlotId("other", 9), 0, at, at + 1)]) == [True, True]
    assert store.read([JFK], [])[0] == [Cell(0, b"", b"", b"aaa")]


def test_offsets_and_times_beyond_what_a_double_holds_stay_exact(opened: Callable[..., RedisStore]) -> None:
    store = opened()
    at = 2**60 + 1
    times = {"through": 2**61 + 1, "horizon": -(2**57) - 1, "latest": 2**61 + 3, "arrived": -3}
    assert store.apply([Advance(SLOT, 0, 0, at, **times)]) == [True]
    assert store.apply([advance(at - 1, at + 1)]) == [False]
    assert store.apply([Advance(SLOT, 0, at, at + 1, **{name: value - 1 for name, value in times.items()})]) == [True]
    assert store.slots([SLOT]) == [SlotState({0: at + 1}, {0: times.pop("through")}, **times)]


def test_thousands_of_entities_are_published_in_several_scripts(opened: Callable[..., RedisStore]) -> None:
    store = opened()
    names = [f"e{i:05}" for i in range(1500)]
    store.apply([Advance(SLOT, 0, 0, 1, appends=[(5, n, n.encode()) for n in names])])
    changes = [EntityChange(n, [CellChange(5, 6, tail_digest(n.encode()), b"", (1, b"v", n.encode() * 40))]) for n in names]
    assert all(store.rewrite(SLOT, changes, 7))
    assert store.entities(SLOT, 5, limit=2000) == names
    assert store.entities(SLOT, 5, limit=2000, min_tail=1) == []
    cells, (state,) = store.read([CellId(5, 3, n) for n in names], [SLOT])
    assert cells == [Cell(1, b"v", n.encode() * 40, b"") for n in names]
    assert state.horizon == 7


# The server


def test_a_server_that_dies_is_unavailable_and_has_what_it_acknowledged_when_it_is_back(
    tmp_path: Path, opened: Callable[..., RedisStore]
) -> None:
    server = RedisServer(tmp_path, "--appendfsync", "always")
    try:
        store = opened(f"{server.url}?timeout=1")
        assert store.apply([advance(0, 1)]) == [True]
        server.kill()
        for call in (lambda: store.apply([advance(1, 2)]), lambda: store.read([JFK], [SLOT])):
            with pytest.raises(StoreUnavailableError, match=rf"Redis at 127\.0\.0\.1:{server.port} does not answer"):
                call()
        server.start()
        assert store.apply([advance(1, 2)]) == [True]
        assert store.read([JFK], [])[0] == [Cell(0, b"", b"", b"aa")]
    finally:
        server.stop()


def test_a_server_that_hangs_is_unavailable_after_the_time_out(tmp_path: Path, opened: Callable[..., RedisStore]) -> None:
    server = RedisServer(tmp_path)
    try:
        store = opened(f"{server.url}?timeout=0.2")
        store.slots([SLOT])
        with redis.Redis(port=server.port) as client:
            client.execute_command("CLIENT", "PAUSE", 60_000, "ALL")
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            store.slots([SLOT])
    finally:
        server.stop()


def test_a_wrong_password_is_said_without_the_password(
    tmp_path: Path, opened: Callable[..., RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = RedisServer(tmp_path, "--requirepass", "right")
    try:
        for url in (f"redis://:wrong-secret@127.0.0.1:{server.port}/0", server.url):
            with pytest.raises(StoreError, match="refuses this user") as raised:
                opened(url).slots([SLOT])
            assert "secret" not in str(raised.value)
        monkeypatch.setenv("TIDEMILL_REDIS_PASSWORD", "right")
        assert opened(server.url).slots([SLOT]) == [SlotState()]
    finally:
        server.stop()


def test_data_of_another_version_is_refused(opened: Callable[..., RedisStore], server: RedisServer) -> None:
    name = prefix()
    with redis.Redis(port=server.port) as client:
        client.set(f"{name}.meta", "99")
    with pytest.raises(StoreVersionError, match="holds data of form '99'"):
        opened(f"{server.url}?prefix={name}").slots([SLOT])


def test_a_key_that_another_program_uses_is_an_error_and_nothing_is_written(opened: Callable[..., RedisStore], server: RedisServer) -> None:
    name = prefix()
    with redis.Redis(port=server.port) as client:
        client.hset(f"{{{name}.3}}sby_origin", "a", "b")
        with pytest.raises(StoreError, match="is another program using the keys"):
            opened(f"{server.url}?prefix={name}").apply([advance(0, 1)])
        assert client.keys(f"{{{name}.3}}c*") == []


def test_a_server_that_evicts_keys_is_refused(tmp_path: Path, opened: Callable[..., RedisStore]) -> None:
    server = RedisServer(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreError, match="set it to noeviction"):
            opened(server.url).slots([SLOT])
    finally:
        server.stop()


@pytest.mark.parametrize(("query", "message"), [("prefix=a.b", "prefix must be a word"), ("timeout=soon", "timeout is in seconds")])
def test_an_url_that_cannot_be_is_refused_at_once(query: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        RedisStore(f"redis://localhost/0?{query}")
