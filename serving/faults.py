"""What can be wrong with a request, as an answer: one form of body, and the status that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tidemill.errors import (
    DefinitionError,
    HorizonError,
    ModelError,
    ModelRefusedError,
    NotAppliedError,
    NotFoundError,
    OverloadedError,
    RequestError,
    ScoringError,
    StoreError,
    StoreUnavailableError,
    TidemillError,
)
from tidemill.remote.wire import TYPES, ErrorAnswer, ErrorText

#: In seconds: when to come back after a store that is away, or a queue that is full.
_RETRY = {"store_unavailable": "1", "store": "5", "overloaded": "1", "model_refused": "30"}


class Fault(Exception):  # noqa: N818 - it becomes an answer, not a failure
    """A request that is answered with an error. `type` is one of `TYPES`; `headers` go with the answer."""

    def __init__(self, type: str, message: str, *, limit: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.type, self.status = type, TYPES[type]
        self.limit = limit
        self.headers = dict(headers or {})
        if type in _RETRY:
            self.headers["Retry-After"] = _RETRY[type]

    def body(self, request: str | None = None) -> bytes:
        """The answer's body, as JSON."""
        text = ErrorText(self.type, str(self))
        if self.limit is not None:
            text.limit = self.limit
        if request is not None:
            text.request = request
        return msgspec.json.encode(ErrorAnswer(text))


#: What the caller is told where the reason is for the log alone.
LOGGED = {
    "store_unavailable": "the store does not answer now: try again in a moment",
    "store": "the store cannot do it now: the log of the service has the reason under the id of this request",
    "model_refused": "the model cannot be loaded: the log of the service has the reason under the id of this request",
    "model": "the model failed: the log of the service has the reason under the id of this request",
}
#: What each error of the library becomes, the narrower first. The rest is ours to mend, not the caller's.
_TYPES: Sequence[tuple[type[TidemillError], str]] = (
    (StoreUnavailableError, "store_unavailable"),
    (StoreError, "store"),
    (ModelRefusedError, "model_refused"),
    (ModelError, "model"),
    (HorizonError, "horizon"),
    (RequestError, "invalid"),
    (NotFoundError, "not_found"),
    (NotAppliedError, "not_applied"),
    (ScoringError, "no_score"),
    (OverloadedError, "overloaded"),
    (DefinitionError, "invalid"),  # of the features asked for together: what is wrong by itself ends a worker before it serves
)


def fault_of(error: Exception) -> Fault | None:
    """What an error of the library is to the caller; None for what nobody expected.

    An error of a store or of a model names files, hosts and code, which are nobody's business out there: it is told in our words
    (`LOGGED`), and logged in its own.

    >>> fault_of(NotFoundError("there is no service 'x'")).status
    404
    """
    if isinstance(error, Fault):
        return error
    for kind, name in _TYPES:
        if isinstance(error, kind):
            return Fault(name, LOGGED.get(name) or str(error))
    return None
