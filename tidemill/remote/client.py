"""Clients of the HTTP service: `ScoringClient`, and `AsyncScoringClient` for asyncio."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from tidemill.errors import (
    OverloadedError,
    RequestError,
    ServiceAccessError,
    ServiceUnavailableError,
    StoreUnavailableError,
    TidemillError,
)
from tidemill.models.manifest import check_fallback, check_max_missing
from tidemill.models.prediction_ids import prediction_ids
from tidemill.remote.answers import RemoteFeatures, RemoteScores, features_of, scores_instead, scores_of
from tidemill.remote.exchange import Answer, Call, Lost, Policy, Send, Wait, call
from tidemill.remote.rows import json_instant, json_rows, plain_rows
from tidemill.remote.wire import FeaturesAnswer, FeaturesRequest, ScoreAnswer, ScoreRequest

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
Features = str | Sequence[str]
Fallback = float | Literal["error"] | None
#: What a fallback score stands in for: the service, or its store, cannot be asked now.
AWAY = (ServiceUnavailableError, OverloadedError, StoreUnavailableError)
_FEATURES, _SCORE = "v1/features", "v1/score"


class _Base:
    """What both clients have in common: where the service is, and how a call is written and read."""

    def __init__(self, url: str, api_key: str | None, timeout: float, retries: int) -> None:
        parts = _parts(url)
        if not isinstance(timeout, (int, float)) or not math.isfinite(timeout) or timeout <= 0:
            raise RequestError(f"timeout is seconds for a call, more than nothing, such as 5.0; got {timeout!r}")
        if not isinstance(retries, int) or retries < 0:
            raise RequestError(f"retries is how often a call is tried again, such as 2, or 0; got {retries!r}")
        self.url = url.rstrip("/")
        self._where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # never what stands before an @
        self._policy = Policy(timeout, retries)
        self._headers = {"content-type": "application/json"}
        if api_key is not None:
            if not api_key.isascii() or not api_key.isprintable():
                raise ServiceAccessError("the API key has characters that no HTTP header can carry: is it the right one?")
            self._headers["authorization"] = f"Bearer {api_key}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._where!r})"

    def _call(self, kind: type[T]) -> Call[T]:
        return call(kind, self._where, self._policy, time.monotonic)

    def _request(self, path: str, body: msgspec.Struct, timeout: float) -> dict[str, Any]:
        try:
            content = msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.start + 20]
            raise RequestError(f"the request holds {half!r}, which begins with a half of a surrogate pair, and so is no text") from None
        except TypeError as error:
            raise RequestError(f"the request holds what JSON cannot carry: {error}") from None
        return {"url": f"{self.url}/{path}", "content": content, "headers": self._headers, "timeout": timeout}


def _parts(url: str) -> SplitResult:
    """The address, taken apart. Raises `RequestError` for what is none."""
    try:
        if isinstance(url, str) and url.isprintable() and " " not in url:  # urlsplit takes line breaks away, and the URL has them still
            parts = urlsplit(url)
            if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment):
                return parts
    except ValueError:  # such as of a port that is none
        pass
    raise RequestError(f"{url!r} is no address of a service: give one such as 'http://127.0.0.1:8080'")


class ScoringClient(_Base):
    """`tidemill serve` at `url`, asked over HTTP, with the same answers as `FeatureStore` gives in process. Safe for threads.

    `api_key`: where the service wants one. `timeout`: seconds for a call with all its tries. `retries`: how often a call is tried again
    when there was no connection, the connection was cut, or the service said that it cannot now; every call only reads, so that is safe.
    `http`: an `httpx.Client` of your own, for proxies and certificates; it is yours to close.

    Needs neither Polars nor NumPy: `pip install 'tidemill[client]'`.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout: float = 5.0, retries: int = 2, http: httpx.Client | None = None
    ) -> None:
        super().__init__(url, api_key, timeout, retries)
        self._http = http or _httpx().Client()
        self._owned = http is None

    def close(self) -> None:
        """Give back connections."""
        if self._owned:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_online_features(self, features: Features, entity_rows: Any, *, at: dt.datetime | int | str | None = None) -> RemoteFeatures:
        """The features of some entities as of now, or as of `at`: see `FeatureStore.get_online_features`.

        `features`: a service's name, or a list of `view:feature`, views and on-demand features, all by name. At least one row. Raises
        what the store raises, and `ServiceUnavailableError`, `ServiceAccessError`, `ServiceError`.
        """
        rows = plain_rows(entity_rows)
        return features_of(self._do(_FEATURES, features_request(features, rows, at), FeaturesAnswer), rows)

    def score(
        self,
        model: str,
        entity_rows: Any,
        *,
        at: dt.datetime | int | str | None = None,
        fallback: Fallback = None,
        max_missing: int | None = None,
    ) -> RemoteScores:
        """The scores of some entities: see `FeatureStore.score`.

        With a number as `fallback`, a service that cannot be asked now (no connection, no answer in time, too much to do) is no error
        either: every row gets this score, with the status `fallback` and the reason. A call that is tried again has the same prediction
        ids with every try, so that what the log of predictions has of it counts once.
        """
        rows = plain_rows(entity_rows)
        request = score_request(model, rows, at, fallback, max_missing)
        try:
            return scores_of(self._do(_SCORE, request, ScoreAnswer), rows)
        except AWAY as error:
            return _instead(request, rows, error)

    def _do(self, path: str, body: msgspec.Struct, kind: type[T]) -> T:
        return _driven(self._call(kind), lambda timeout: self._sent(path, body, timeout))

    def _sent(self, path: str, body: msgspec.Struct, timeout: float) -> Answer | Lost:
        try:
            return _answer(self._http.post(**self._request(path, body, timeout)))
        except _httpx().HTTPError as error:
            return _lost(error)


class AsyncScoringClient(_Base):
    """The same as `ScoringClient`, for asyncio: every method is to be awaited, and `http` is an `httpx.AsyncClient`."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout: float = 5.0, retries: int = 2, http: httpx.AsyncClient | None = None
    ) -> None:
        super().__init__(url, api_key, timeout, retries)
        self._http = http or _httpx().AsyncClient()
        self._owned = http is None

    async def aclose(self) -> None:
        """Give back connections."""
        if self._owned:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def get_online_features(
        self, features: Features, entity_rows: Any, *, at: dt.datetime | int | str | None = None
    ) -> RemoteFeatures:
        """See `ScoringClient.get_online_features`."""
        rows = plain_rows(entity_rows)
        return features_of(await self._do(_FEATURES, features_request(features, rows, at), FeaturesAnswer), rows)

    async def score(
        self,
        model: str,
        entity_rows: Any,
        *,
        at: dt.datetime | int | str | None = None,
        fallback: Fallback = None,
        max_missing: int | None = None,
    ) -> RemoteScores:
        """See `ScoringClient.score`."""
        rows = plain_rows(entity_rows)
        request = score_request(model, rows, at, fallback, max_missing)
        try:
            return scores_of(await self._do(_SCORE, request, ScoreAnswer), rows)
        except AWAY as error:
            return _instead(request, rows, error)

    async def _do(self, path: str, body: msgspec.Struct, kind: type[T]) -> T:
        steps = self._call(kind)
        try:
            step = next(steps)
            while True:
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    step = steps.send(None)
                else:
                    step = steps.send(await self._sent(path, body, step.timeout))
        except StopIteration as over:
            found: T = over.value
            return found

    async def _sent(self, path: str, body: msgspec.Struct, seconds: float) -> Answer | Lost:
        try:
            async with asyncio.timeout(seconds):
                return _answer(await self._http.post(**self._request(path, body, seconds)))
        except _httpx().HTTPError as error:
            return _lost(error)
        except TimeoutError:
            return Lost("no answer in time", late=True)


def features_request(features: Features, rows: list[dict[str, Any]], at: dt.datetime | int | str | None) -> FeaturesRequest:
    """What `POST /v1/features` gets. Raises `RequestError`."""
    named = features if isinstance(features, str) else list(features) if isinstance(features, (list, tuple)) else None
    if named is None or not all(isinstance(name, str) for name in named):
        raise RequestError(f"features is {features!r}: over HTTP, give the name of a service, or a list of names and `view:feature`")
    if not rows:
        raise RequestError("there are no entity rows: give at least one")
    return FeaturesRequest(named, json_rows(rows), json_instant(at))


def score_request(
    model: str, rows: list[dict[str, Any]], at: dt.datetime | int | str | None, fallback: Fallback, max_missing: int | None
) -> ScoreRequest:
    """What `POST /v1/score` gets. Raises `RequestError`."""
    if not isinstance(model, str) or not model:
        raise RequestError(f"model is {model!r}: give the name of a registered model, such as 'delay' or 'delay@challenger'")
    try:
        instead, limit = check_fallback(fallback), check_max_missing(max_missing)
    except ValueError as error:
        raise RequestError(str(error)) from None
    if not rows:
        raise RequestError("there are no entity rows: give at least one")
    (request_id,) = prediction_ids(1, time.time_ns() // 1000)  # one for all tries
    return ScoreRequest(model, json_rows(rows), json_instant(at), instead, limit, request_id)


def _instead(request: ScoreRequest, rows: list[dict[str, Any]], error: TidemillError) -> RemoteScores:
    """The score that was given for when the service cannot be asked; without one, the error."""
    if not isinstance(request.fallback, float):
        raise error
    assert request.request_id is not None
    return scores_instead(request.request_id, request.model, request.fallback, str(error), rows, time.time_ns() // 1000)


def _driven(steps: Call[T], send: Callable[[float], Answer | Lost]) -> T:
    try:
        step: Send | Wait = next(steps)
        while True:
            if isinstance(step, Wait):
                time.sleep(step.seconds)
                step = steps.send(None)
            else:
                step = steps.send(send(step.timeout))
    except StopIteration as over:
        found: T = over.value
        return found


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.content, response.headers.get("retry-after", ""))


def _httpx() -> Any:
    """The package. Imported when a client is made, so that the names of this module need no extra."""
    try:
        import httpx
    except ImportError:
        raise TidemillError("clients of the HTTP service need the package httpx: pip install 'tidemill[client]'") from None
    return httpx


def _lost(error: httpx.HTTPError) -> Lost:
    """What became of a request. A connection that is not made in time was never a request; anything else that is late may be one."""
    import httpx

    late = isinstance(error, httpx.TimeoutException) and not isinstance(error, (httpx.ConnectTimeout, httpx.PoolTimeout))
    return Lost("no answer in time" if late else f"{error}" or type(error).__name__, late)
