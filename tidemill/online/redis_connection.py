"""Talking to Redis: one server or a cluster, in one round trip per node, with errors in our own words.

Commands go out in pipelines that name each command's key, so that the same code serves both: with one server there is one pipeline, in
a cluster one per node that holds any of the keys. (redis-py's own cluster pipelines refuse EVALSHA and MGET.)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry

from tidemill.errors import DefinitionError, StoreError, StoreUnavailableError, StoreVersionError
from tidemill.online.redis_scripts import Script

#: Raise it when the form of a key or a value changes.
SCHEMA_VERSION = "1"
_OPTIONS = ("prefix", "timeout", "cluster", "ca")
#: How often a command is sent again when a cluster has moved its key, and the pause before, in seconds.
_MOVES, _PAUSE = 5, 0.1
_AWAY = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, redis.exceptions.BusyLoadingError)
_MOVED = (redis.exceptions.MovedError, redis.exceptions.AskError, redis.exceptions.TryAgainError, redis.exceptions.ClusterDownError)
#: What passes by itself: replicas that are missing, a disk that is full, a long script, a replica without its primary; and how a script
#: fails whose slot is being moved to another node.
_NOT_NOW = ("NOREPLICAS", "MISCONF", "BUSY", "MASTERDOWN", "Good replicas", "Errors writing")
_MOVING = "non local key"


class Command(NamedTuple):
    """A command and the key that decides where it goes. With a script, the arguments are those of EVALSHA after the SHA."""

    key: str
    arguments: Sequence[Any]
    script: Script | None = None


class RedisConnections:
    """The connections of one store, made when first needed. Safe for threads; after a fork, parent and child have their own.

    `url`: `redis://` or `rediss://[user:password@]host:port/db`, with `?prefix=` (before every key, `tm` by default), `timeout=` (seconds,
    5 by default), `cluster=true` and `ca=` (a file of certificates). Of a cluster, name several nodes, `host:port,host:port`: any one of
    them tells the others, and the first may be away. `redis+sentinel://host:port,host:port/name/db` (`rediss+sentinel://` for servers with
    TLS) asks Sentinels where the primary of that name is; user, password and `ca` are the servers'. Without a password in it,
    TIDEMILL_REDIS_USERNAME and TIDEMILL_REDIS_PASSWORD count. Raises `DefinitionError`.
    """

    def __init__(self, url: str) -> None:
        parts, more = _first_host(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.where = f"{parts.hostname or 'localhost'}:{parts.port or 6379}"  # never the URL: it may hold a password
        self.prefix = query.pop("prefix", "tm")
        if not self.prefix or any(c in self.prefix for c in "{}. "):
            raise DefinitionError("[online] url: prefix must be a word without braces, dots and spaces, such as ?prefix=flights")
        self._cluster = query.pop("cluster", "false").lower() in ("true", "1", "yes")
        secure, sentinel, _ = parts.scheme.partition("+sentinel")
        self._service = ""
        if sentinel:
            self._service, _, db = parts.path.strip("/").partition("/")
            if not self._service or self._cluster:
                raise DefinitionError("[online] url: expected redis+sentinel://host:port,host:port/name/db, with the primary's name")
            self._sentinels = [(parts.hostname or "localhost", parts.port or 26379), *((host, port or 26379) for host, port in more)]
            parts = parts._replace(scheme=secure, path=f"/{db or 0}")
        elif more and not self._cluster:
            raise DefinitionError("[online] url: several hosts are the nodes of a cluster: add ?cluster=true, or name one")
        self._nodes = [(host, port or 6379) for host, port in more]
        options: dict[str, Any] = {}
        if (ca := query.pop("ca", None)) is not None:
            options["ssl_ca_certs"] = ca
        try:
            timeout = float(query.pop("timeout", "5"))
        except ValueError:
            raise DefinitionError("[online] url: timeout is in seconds, such as ?timeout=2.5") from None
        if parts.password is None and os.environ.get("TIDEMILL_REDIS_PASSWORD"):
            options["password"] = os.environ["TIDEMILL_REDIS_PASSWORD"]
            if os.environ.get("TIDEMILL_REDIS_USERNAME"):
                options["username"] = os.environ["TIDEMILL_REDIS_USERNAME"]
        self._url = urlunsplit(parts._replace(query=urlencode(query)))
        self._options = {**options, "socket_timeout": timeout, "socket_connect_timeout": timeout}
        self._lock = threading.Lock()
        self._client: Any = None
        self._checked = False

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, in order. Raises `StoreUnavailableError`, `StoreVersionError`, `StoreError`."""
        with self._translated():
            client = self._open()
            answers = self._send(client, commands)
            unseen = [i for i, a in enumerate(answers) if isinstance(a, redis.exceptions.NoScriptError)]
            if unseen:  # a server that has restarted, or failed over: with its text, it learns the script
                texts = [commands[i]._replace(arguments=(commands[i].script.text, *commands[i].arguments)) for i in unseen]  # type: ignore[union-attr]  # only scripts answer so
                for i, answer in zip(unseen, self._send(client, [t._replace(script=None) for t in texts], "EVAL"), strict=True):
                    answers[i] = answer
        for answer in answers:
            if isinstance(answer, redis.exceptions.ResponseError):
                raise self._of(answer)
        return answers

    def close(self) -> None:
        """Give back all connections."""
        with self._lock:
            client, self._client, self._checked = self._client, None, False
        if client is not None:
            client.close()

    # ---- sending ----------------------------------------------------------------------------------------------------------------

    def _send(self, client: Any, commands: Sequence[Command], verb: str = "EVALSHA") -> list[Any]:
        if not self._cluster:
            if len(commands) == 1:  # a pipeline of one takes longer than the command
                try:
                    return [client.execute_command(*_words(commands[0], verb))]
                except redis.exceptions.ResponseError as error:
                    return [error]
            return _pipelined(client, commands, verb)
        return self._send_to_nodes(client, commands, verb)

    def _send_to_nodes(self, client: Any, commands: Sequence[Command], verb: str) -> list[Any]:
        """A pipeline per node. What a node no longer holds, or a node that is gone, is asked for again where the cluster says now."""
        answers: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        for attempt in range(_MOVES):
            nodes: dict[Any, list[int]] = {}
            for i in left:
                nodes.setdefault(client.get_node_from_key(commands[i].key), []).append(i)
            for node, mine in nodes.items():
                try:
                    found = _pipelined(client.get_redis_connection(node), [commands[i] for i in mine], verb)
                except _AWAY as error:
                    found = [error] * len(mine)
                for i, answer in zip(mine, found, strict=True):
                    answers[i] = answer
            left = [i for i in left if isinstance(answers[i], (*_MOVED, *_AWAY))]
            if not left:
                return answers
            if attempt < _MOVES - 1:
                time.sleep(_PAUSE * 2**attempt)
                client.nodes_manager.initialize()
        raise answers[left[0]]

    # ---- connecting -------------------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        client = self._client
        if client is None:
            with self._lock:
                client = self._client
                if client is None:
                    retry = Retry(NoBackoff(), 1)
                    if self._service:
                        client = self._client = self._of_sentinels(retry)
                        return self._checked_once(client)
                    kind: Any = RedisCluster if self._cluster else redis.Redis
                    node: Any = ClusterNode
                    others = {"startup_nodes": [node(*place) for place in self._nodes]} if self._cluster else {}
                    client = self._client = kind.from_url(self._url, retry=retry, **others, **self._options)
        return self._checked_once(client)

    def _of_sentinels(self, retry: Retry) -> Any:
        """A client of whatever server the Sentinels call the primary, asked again with each new connection."""
        from redis.connection import parse_url
        from redis.sentinel import Sentinel

        parse: Any = parse_url  # redis-py leaves it untyped
        wait = {k: v for k, v in self._options.items() if k.startswith("socket")}
        make: Any = Sentinel
        sentinels = make(self._sentinels, sentinel_kwargs={**wait, "retry": retry})
        given = {k: v for k, v in parse(self._url).items() if k in ("username", "password", "db")}
        secure = {"ssl": True} if self._url.startswith("rediss") else {}
        return sentinels.master_for(self._service, retry=retry, **given, **secure, **self._options)

    def _checked_once(self, client: Any) -> Any:
        if not self._checked:
            self._check(client)
        return client

    def _check(self, client: Any) -> None:
        key = f"{self.prefix}.meta"
        client.set(key, SCHEMA_VERSION, nx=True)
        found = client.get(key)
        if found is not None and found.decode() != SCHEMA_VERSION:
            raise StoreVersionError(
                f"Redis at {self.where} holds data of form {found.decode()!r} under {self.prefix!r}, and this tidemill reads "
                f"{SCHEMA_VERSION}: use the version that wrote it, or another ?prefix= in [online] url"
            )
        for info in self._memory(client):
            if int(info.get("maxmemory", 0)) and str(info.get("maxmemory_policy", "")).startswith("allkeys"):
                raise StoreError(
                    f"Redis at {self.where} evicts keys when it is full (maxmemory-policy {info['maxmemory_policy']}), and a value that is "
                    f"missing a part would be a wrong number: set it to noeviction"
                )
        self._checked = True

    def _memory(self, client: Any) -> list[dict[str, Any]]:
        """What the servers say of their memory; nothing where this user may not ask."""
        try:
            if self._cluster:
                return list(client.info("memory", target_nodes=RedisCluster.PRIMARIES).values())
            return [client.info("memory")]
        except redis.exceptions.NoPermissionError:
            return []

    # ---- errors -----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (redis.exceptions.RedisError, redis.exceptions.RedisClusterException) as error:
            raise self._of(error) from None
        except OSError as error:
            raise StoreUnavailableError(f"Redis at {self.where} does not answer ({error}): start it, or wait for it") from None

    def _of(self, error: Exception) -> StoreError:
        if str(error).startswith(_NOT_NOW) or _MOVING in str(error):
            return StoreUnavailableError(f"Redis at {self.where} takes no such request now ({_first(error)})")
        match error:
            case redis.exceptions.AuthenticationError() | redis.exceptions.NoPermissionError():
                return StoreError(
                    f"Redis at {self.where} refuses this user ({_first(error)}): check the user and password, and their rights"
                )
            case redis.exceptions.OutOfMemoryError() | redis.exceptions.ReadOnlyError():
                return StoreUnavailableError(f"Redis at {self.where} takes no writes now ({_first(error)})")
            case redis.exceptions.ResponseError() if not isinstance(error, (*_MOVED, *_AWAY)):
                return StoreError(
                    f"Redis at {self.where}: {_first(error)}; is another program using the keys that begin with {self.prefix}?"
                )
        return StoreUnavailableError(f"Redis at {self.where} does not answer ({_first(error)}): start it, or wait for it")


def _first_host(url: str) -> tuple[SplitResult, list[tuple[str, int | None]]]:
    """The URL with its first host alone, and the other hosts. Raises `DefinitionError`."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    first, *others = hosts.split(",")
    parts = parts._replace(netloc=f"{user}{at}{first}")
    try:
        _ = parts.port
        return parts, [(other.hostname or "localhost", other.port) for other in (urlsplit(f"//{each}") for each in others)]
    except ValueError:
        raise DefinitionError("[online] url: expected redis://host:port/db, with a number for the port") from None


def _words(command: Command, verb: str) -> Sequence[Any]:
    if command.script is not None:
        return (verb, command.script.sha, *command.arguments)
    return (verb, *command.arguments) if verb == "EVAL" else command.arguments


def _pipelined(client: Any, commands: Sequence[Command], verb: str) -> list[Any]:
    with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*_words(command, verb))
        answers: list[Any] = pipe.execute(raise_on_error=False)
        return answers


def _first(error: Exception) -> str:
    """An error's first line, at most."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
