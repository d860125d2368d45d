"""Writers' schemas by their ids, from a schema registry, with confluent-kafka's client.

What a registry says of an id that it knows never changes, so it is asked once. That it does not know an id is an answer too, and the
values are dead letters. That there is no answer is none: it raises, and whoever reads tries again, with nothing lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from tidemill.errors import LogError, LogUnavailableError
from tidemill.logs.registered.formats import AVRO, Format
from tidemill.logs.registered.written import Reference, SchemaRefusedError, WrittenSchema

_PREFIX = "schema.registry."
#: In seconds: for a connection, and for each piece of an answer.
TIMEOUT = 5.0
#: In seconds: how long an id that the registry did not know is not asked for again. Short, because it may be known by then.
UNKNOWN_FOR = 1.0
_MOST_UNKNOWN = 10_000
_MOST_REFERENCES = 1_000

# The names that Java's clients use without the prefix too, and librdkafka not at all.
_BARE = ("basic.auth.", "bearer.auth.")
_TAKEN = {
    "url",
    "basic.auth.user.info",
    "bearer.auth.credentials.source",
    "bearer.auth.token",
    "bearer.auth.logical.cluster",
    "bearer.auth.identity.pool.id",
    "bearer.auth.client.id",
    "bearer.auth.client.secret",
    "bearer.auth.scope",
    "bearer.auth.issuer.endpoint.url",
    "proxy",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
}
_NOT_FOUND, _SCHEMA_NOT_FOUND = 404, 40403
_NO_SUBJECT = (40401, 40402)
_DENIED = (401, 403)
_NOT_NOW = (408, 425, 429)


def split_settings(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """[kafka] of tidemill.toml in two: what is for the Kafka client, and what is for the registry's, without the prefix.

    >>> split_settings({"client.id": "me", "schema.registry.url": "http://localhost:8081", "basic.auth.user.info": "a:b"})
    ({'client.id': 'me'}, {'url': 'http://localhost:8081', 'basic.auth.user.info': 'a:b'})
    """
    ours = {name: value for name, value in given.items() if name.startswith((_PREFIX, *_BARE))}
    kafka = {name: value for name, value in given.items() if name not in ours}
    return kafka, {name.removeprefix(_PREFIX): value for name, value in ours.items()}


class SchemaRegistry:
    """See the module's text. `settings`: as `split_settings` has them. `format`: that of all its schemas. `clock` gives seconds.

    Holds no connection between calls.

    Raises `LogError` for settings that cannot be meant so, and where the packages are missing.

    >>> SchemaRegistry({"url": "localhost:8081"})
    Traceback (most recent call last):
    ...
    tidemill.errors.LogError: [kafka] schema.registry.url must begin with http:// or https://, such as http://localhost:8081
    """

    def __init__(
        self, settings: Mapping[str, str], format: Format = AVRO, *, timeout: float = TIMEOUT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        format.check()
        from confluent_kafka.schema_registry import SchemaRegistryClient
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        self._format = format
        self._client_of, self._refusal = SchemaRegistryClient, SchemaRegistryError
        self._settings: dict[str, Any] = {**_checked(settings), "timeout": timeout, "max.retries": 0}  # whoever reads tries again
        self.where = _places(settings["url"])
        self._clock = clock
        self._known: dict[int, WrittenSchema | str] = {}
        self._unknown: dict[int, float] = {}
        self._silent: tuple[float, str] = (float("-inf"), "")

    def schemas(self, ids: Collection[int]) -> Mapping[int, WrittenSchema | str]:
        """By id, the schema, or the reason why there is none that can be used.

        Raises `LogUnavailableError` where the registry does not answer, and `LogError` where it does not let us ask.
        """
        now = self._clock()
        self._unknown = {number: until for number, until in self._unknown.items() if until > now}
        missing = [number for number in ids if number not in self._known and number not in self._unknown]
        found: dict[int, WrittenSchema | str] = {}
        if missing:
            if now < self._silent[0]:
                raise LogUnavailableError(self._silent[1])
            try:
                with self._connected() as client:
                    found = {number: self._ask(client, number) for number in missing}
            except LogUnavailableError as error:
                # A worker waits for the answer with all its partitions: at most half of its time.
                after = self._clock()
                self._silent = (after + (after - now), str(error))
                raise
        return {number: self._known.get(number) or found.get(number) or _unknown(number) for number in ids}

    def _connected(self) -> Any:
        try:
            return self._client_of(dict(self._settings))
        except Exception as error:  # noqa: BLE001  (it opens files of certificates, and reads them)
            raise LogError(f"[kafka] schema.registry settings: {error}") from None

    def _ask(self, client: Any, number: int) -> WrittenSchema | str:
        registered = self._answer(f"schema id {number}", partial(client.get_schema, number), (_SCHEMA_NOT_FOUND,))
        if registered is None:
            if len(self._unknown) < _MOST_UNKNOWN:
                self._unknown[number] = self._clock() + UNKNOWN_FOR
            return _unknown(number)
        self._known[number] = made = self._made(client, number, registered)
        return made

    def _made(self, client: Any, number: int, registered: Any) -> WrittenSchema | str:
        if registered.schema_type != self._format.kind:
            return f"schema id {number} is {registered.schema_type}, and not {self._format.title}"
        references: list[Reference] = []
        missing = self._refer(client, registered, references, set())
        if missing is not None:
            return f"schema id {number} refers to {missing}, which the registry does not have"
        try:
            return self._format.made(registered.schema_str, references)
        except SchemaRefusedError as error:
            return f"schema id {number} {error}"

    def _refer(self, client: Any, registered: Any, found: list[Reference], seen: set[tuple[str, int]]) -> str | None:
        """Add the schemas that one refers to, each after those that it refers to itself; or say which one is not there."""
        for reference in registered.references or ():
            subject, version = place = (reference.subject, reference.version)
            if place in seen:
                continue
            seen.add(place)
            name = f"{subject}, version {version}"
            if len(seen) > _MOST_REFERENCES:
                return f"more than {_MOST_REFERENCES} others"
            other = self._answer(name, partial(client.get_version, subject, version, deleted=True), (*_NO_SUBJECT, _SCHEMA_NOT_FOUND))
            if other is None:
                return name
            missing = self._refer(client, other.schema, found, seen)
            if missing is not None:
                return missing
            found.append(Reference(reference.name, other.schema.schema_str))
        return None

    def _answer(self, what: str, call: Callable[[], Any], unknown: tuple[int, ...]) -> Any:
        """What the registry says; None: that it does not know."""
        try:
            return call()
        except self._refusal as refusal:
            status, code, text = refusal.http_status_code, refusal.error_code, refusal.error_message
            if status == _NOT_FOUND and code in unknown:
                return None
            said = f"{what}: the schema registry at {self.where} answers {status}: {str(text)[:200]}"
            if status >= 500 or status in _NOT_NOW:
                raise LogUnavailableError(said) from None
            if status in _DENIED:
                raise LogError(f'{said}; see "schema.registry.basic.auth.user.info" in [kafka]') from None
            raise LogError(f'{said}; is "schema.registry.url" in [kafka] the address of a registry?') from None
        except Exception as error:  # noqa: BLE001  (no connection, a time-out, half an answer, something that is no JSON)
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise LogUnavailableError(f"{what}: no answer from the schema registry at {self.where}: {why}") from None


def _unknown(number: int) -> str:
    return f"schema id {number} is not in the schema registry"


def _checked(settings: Mapping[str, str]) -> dict[str, str]:
    taken = dict(settings)
    # Java's clients want to be told where the credentials come from; here that is plain.
    source = taken.pop("basic.auth.credentials.source", "USER_INFO").upper()
    if source != "USER_INFO":
        raise LogError(f"[kafka] basic.auth.credentials.source: {source} is not supported, only USER_INFO; see basic.auth.user.info")
    for name in sorted(taken.keys() - _TAKEN):
        raise LogError(f"[kafka] schema.registry.{name}: tidemill does not know it; it takes {', '.join(sorted(_TAKEN))}")
    for url in taken.get("url", "").split(","):
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LogError("[kafka] schema.registry.url must begin with http:// or https://, such as http://localhost:8081")
        if parts.username is not None or parts.password is not None:
            raise LogError(
                '[kafka] schema.registry.url holds a password: put it into "schema.registry.basic.auth.user.info" = "${VARIABLE}"'
            )
    return taken


def _places(urls: str) -> str:
    """The addresses, to be shown."""
    return ", ".join(f"{parts.scheme}://{parts.netloc}{parts.path}" for parts in (urlsplit(url.strip()) for url in urls.split(",")))
