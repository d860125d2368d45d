"""One call to the service, without the network: what to send when, when to try again, and what the answer means.

A call is a generator: it yields `Send` and `Wait`, and is sent what came of them. So the client with threads and the one with asyncio are
the same, and tests need neither sockets nor clocks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec

from tidemill.errors import (
    HorizonError,
    ModelError,
    ModelRefusedError,
    NotAppliedError,
    NotFoundError,
    OverloadedError,
    RequestError,
    ScoringError,
    ServiceAccessError,
    ServiceError,
    ServiceUnavailableError,
    StoreError,
    StoreUnavailableError,
    TidemillError,
)
from tidemill.remote.wire import ErrorAnswer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient a client is. `timeout`: seconds for a whole call, with everything that is tried again in it.

    After what may pass by itself (no connection, a connection that was cut, 429, 503) a call is tried again up to `retries` times, after
    pauses of `pause` seconds that double, shortened at random by up to a half so that clients do not come back all at once; or as long as
    the service says. A call that got no answer in time is not: the service may be at work on it still.
    """

    timeout: float = 5.0
    retries: int = 2
    pause: float = 0.05


class Send(NamedTuple):
    """Send the request now, and wait for so many seconds at most."""

    timeout: float


class Wait(NamedTuple):
    """Do nothing for so many seconds."""

    seconds: float


class Answer(NamedTuple):
    """What came back. `retry_after`: the header, or nothing."""

    status: int
    body: bytes
    retry_after: str = ""


class Lost(NamedTuple):
    """Nothing came back: no connection, or one that was cut, or (`late`) not in time. `why`: for people."""

    why: str
    late: bool = False


Step = Send | Wait
Call = Generator[Step, Answer | Lost | None, T]
_AGAIN = (429, 503)
_KINDS: dict[str, type[TidemillError]] = {
    "malformed": RequestError,
    "invalid": RequestError,
    "too_large": RequestError,
    "too_many_rows": RequestError,
    "horizon": HorizonError,
    "not_found": NotFoundError,
    "not_applied": NotAppliedError,
    "unauthorized": ServiceAccessError,
    "overloaded": OverloadedError,
    "model": ModelError,
    "model_refused": ModelRefusedError,
    "no_score": ScoringError,
    "timeout": ServiceUnavailableError,
    "store": StoreError,
    "store_unavailable": StoreUnavailableError,
}


def call(kind: type[T], where: str, policy: Policy, clock: Callable[[], float], chance: Callable[[], float] = random.random) -> Call[T]:
    """Carry out one call; returns the answer as a `kind`. `where`: the service, for errors. `clock`: seconds; `chance`: from 0 to 1.

    Raises `RequestError`, `HorizonError`, `NotFoundError`, `NotAppliedError`, `StoreError`, `StoreUnavailableError` as in process;
    `ServiceUnavailableError`, `ServiceAccessError`, `ServiceError`.
    """
    end = clock() + policy.timeout
    found: Answer | Lost | None = None
    pause = policy.pause
    for left in range(policy.retries, -1, -1):
        found = yield Send(max(end - clock(), 0.001))
        assert found is not None
        if isinstance(found, Answer) and found.status not in _AGAIN:
            return _read(found, kind, where)
        seconds = max(pause * (1 - chance() / 2), _told(found))
        pause *= 2
        if not left or clock() + seconds >= end or (isinstance(found, Lost) and found.late):
            break
        yield Wait(seconds)
    if isinstance(found, Answer):
        return _read(found, kind, where)
    assert found is not None
    raise ServiceUnavailableError(f"the service at {where} does not answer: {found.why}; is `tidemill serve` running there?")


def _told(found: Answer | Lost) -> float:
    """The pause that the service asks for, in seconds."""
    text = found.retry_after if isinstance(found, Answer) else ""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0.0


def _read(found: Answer, kind: type[T], where: str) -> T:
    if found.status == 200:
        try:
            return msgspec.json.decode(found.body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ServiceError(
                f"what answers at {where} is no tidemill service, or one of another version: {type(error).__name__}: {error}"
            ) from None
    raise _error(found, where)


def _error(found: Answer, where: str) -> TidemillError:
    try:
        error = msgspec.json.decode(found.body, type=ErrorAnswer).error
    except (msgspec.MsgspecError, UnicodeDecodeError):  # of a proxy, say
        text = f"the service at {where} answered {found.status}: {_shown(found.body)}"
        return ServiceUnavailableError(text) if found.status in (*_AGAIN, 502, 504) else ServiceError(text)
    return _KINDS.get(error.type, ServiceError)(error.message)


def _shown(body: bytes) -> Any:
    return " ".join(body[:200].decode("utf-8", "replace").split()) or "nothing"
