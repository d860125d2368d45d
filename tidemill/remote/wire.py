"""What goes over the wire: requests and answers of the HTTP service, as JSON. One definition, for the service and for its clients.

Numbers are JSON's: an integer is written with all its digits (beyond 2^53 too; readers that make doubles of them lose some), a float by
its shortest text that reads back the same. Instants are ISO 8601 in UTC. There is no NaN and no infinity.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

_UUID = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
#: The integers of every store and engine at the edges.
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Scalar = str | Int64 | float | bool | None
Row = dict[str, Scalar]
Rows = Annotated[list[Row], Meta(min_length=1, description="One object per row: the key columns, and the request columns.")]
At = Annotated[
    str | Int64 | None,
    Meta(description="The instant to answer as of: ISO 8601 (without a zone: UTC), or UTC microseconds. Without it: now."),
]


class FeaturesRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`POST /v1/features`."""

    features: Annotated[
        str | Annotated[list[str], Meta(min_length=1)],
        Meta(description="A service's name, or a list of `view:feature`, views and on-demand features."),
    ]
    entity_rows: Rows
    at: At = None


class ScoreRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`POST /v1/score`."""

    model: Annotated[str, Meta(min_length=1, description="A model's name (its champion answers), `name@challenger` or `name@3`.")]
    entity_rows: Rows
    at: At = None
    fallback: Annotated[
        float | Literal["error"] | None,
        Meta(description="The score of a row that the model may not score; `error`: the request fails. Default: the version's own."),
    ] = None
    max_missing: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="How many of a row's features may be missing or stale before it gets the fallback. Default: the version's own."),
    ] = None
    request_id: Annotated[
        Annotated[str, Meta(pattern=_UUID)] | None,
        Meta(description="The first row's prediction id, from which the others follow. Give the same with every try of one request."),
    ] = None


class Known(Struct):
    """The positions of one view: which distinct ones there are, by partition, and which of them each row has."""

    positions: list[dict[str, int]]
    of_row: list[int]


class AsOfAnswer(Struct):
    """What an answer was computed from. `through`: the instant through which every log is known to be applied."""

    through: dt.datetime | None
    views: dict[str, Known]


class FeaturesAnswer(Struct):
    """One item per row in every list. `types`: of each column, so that text and instants can be told apart."""

    columns: dict[str, list[Any]]
    status: dict[str, list[str]]
    types: dict[str, str]
    at: dt.datetime
    as_of: AsOfAnswer


class ScoreAnswer(Struct):
    """One item per row in every list; see `tidemill.Scores`. `warning`: why another version than the promoted one goes on serving."""

    prediction_id: list[str]
    score: list[float | None]
    label: list[str | int | float | bool | None]
    status: list[str]
    reason: list[str | None]
    model: str
    version: str
    warning: str | None
    features: FeaturesAnswer


class ReadyAnswer(Struct):
    """`GET /readyz`. `checks`: what was looked at, and `ok` or what is missing."""

    ready: bool
    checks: dict[str, str]


class ModelAnswer(Struct):
    """One model: its versions, oldest first, and which of them each alias names."""

    name: str
    versions: list[str]
    aliases: dict[str, str]


class ModelsAnswer(Struct):
    """`GET /v1/models`."""

    models: list[ModelAnswer]


class ErrorText(Struct, omit_defaults=True):
    """What is wrong. `type` is one of `TYPES`; `request` names the request in the service's log."""

    type: str
    message: str
    request: str | UnsetType = UNSET
    limit: int | UnsetType = UNSET


class ErrorAnswer(Struct):
    """The body of every answer that is no success."""

    error: ErrorText


#: Every type of error, and the status that it comes with.
TYPES: dict[str, int] = {
    "malformed": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "horizon": 409,
    "not_applied": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid": 422,
    "no_score": 422,
    "too_many_rows": 422,
    "internal": 500,
    "model": 500,
    "model_refused": 503,
    "overloaded": 503,
    "store": 503,
    "store_unavailable": 503,
}
