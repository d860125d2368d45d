"""Every error that tidemill raises, as one tree.

TidemillError
├── DefinitionError            a definition, or tidemill.toml, is wrong; names the file, the view and the fix
│   └── ExpressionError        a `where` filter that does not parse, or does not fit the schema
├── NotFoundError              an entity, feature, view, service or project that nobody defined
├── NotAppliedError            defined, but `tidemill apply` has not been run for it
├── RequestError               a request row that cannot be answered: missing key, wrong type
│   └── HorizonError           a read of an instant that the store has already compacted past
├── LogError                   a source's log cannot be read: missing, unreadable, not the format it says
│   ├── LogChangedError        files that were already read have changed, moved or vanished
│   ├── LogTruncatedError      offsets that are still needed are gone
│   └── LogUnavailableError    not now: its servers do not answer
├── StoreError                 the online or the offline store cannot do it: full, no permission, unreachable
│   ├── StoreVersionError      a store that another version of tidemill wrote
│   └── StoreUnavailableError  not now: locked for longer than the time-out, unreachable
├── ModelError                 a model cannot be registered, promoted or asked
│   └── ModelRefusedError      what the registry holds is not what its manifest says, or not for these definitions or libraries
├── ScoringError               a row that the model may not score, where the caller wanted an error instead of a score
├── OverloadedError            more requests wait than may; trying again later helps
├── LeaseError                 another process holds the lease (a batch job that is already running)
└── ServiceError               the scoring service (HTTP) failed, or what answers there is none
    ├── ServiceUnavailableError  not now: no connection, no answer in time, too many requests at once
    └── ServiceAccessError     it wants an API key, or another one
"""

from __future__ import annotations


class TidemillError(Exception):
    """Anything that tidemill raises on purpose. The text is one clear sentence that says what to do."""


class DefinitionError(TidemillError):
    """A definition (or tidemill.toml) is wrong."""


class ExpressionError(DefinitionError):
    """A `where` filter does not parse, or does not fit the source's schema."""


class NotFoundError(TidemillError):
    """A name that nobody defined."""


class NotAppliedError(TidemillError):
    """A definition that the registry does not hold yet, or holds in another form."""


class RequestError(TidemillError):
    """A request that cannot be answered as it stands."""


class HorizonError(RequestError):
    """A read of an instant before the horizon: the tiles it would need have been widened or dropped."""


class LogError(TidemillError):
    """A source's log cannot be read."""


class LogChangedError(LogError):
    """Log files that were already read have changed, so offsets would no longer name the same events."""


class LogTruncatedError(LogError):
    """Offsets that are still needed are gone from the log, and from the archive."""


class LogUnavailableError(LogError):
    """A log whose servers do not answer now; trying again later may help."""


class StoreError(TidemillError):
    """A store cannot do what was asked."""


class StoreVersionError(StoreError):
    """A store written by another version of tidemill."""


class StoreUnavailableError(StoreError):
    """A store that does not answer now; trying again later may help."""


class LeaseError(TidemillError):
    """Another process holds the lease."""


class ModelError(TidemillError):
    """A model that cannot be registered, promoted or asked."""


class ModelRefusedError(ModelError):
    """A version whose artifact, definitions or libraries are not those of its manifest: it is not loaded."""


class ScoringError(TidemillError):
    """A row whose features are missing or stale beyond the limit, or whose score is not finite, with fallback="error"."""


class OverloadedError(TidemillError):
    """More requests wait than may wait; trying again later helps."""


class ServiceError(TidemillError):
    """The scoring service answered with an error of its own, or with something that is no answer of tidemill's."""


class ServiceUnavailableError(ServiceError):
    """The scoring service does not answer now, or not in time, or has too much to do; trying again later may help."""


class ServiceAccessError(ServiceError):
    """The scoring service wants an API key, or another one."""
