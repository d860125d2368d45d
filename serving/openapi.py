"""What the service says of itself: an OpenAPI 3.1 document. Its schemas are those of the types that bodies are really read into."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from tidemill import __version__
from tidemill.remote.wire import TYPES, ErrorAnswer, FeaturesAnswer, FeaturesRequest, ModelsAnswer, ReadyAnswer, ScoreAnswer, ScoreRequest

Schema = dict[str, Any]
_REF = "#/components/schemas/{name}"
_TYPES = (FeaturesRequest, FeaturesAnswer, ScoreRequest, ScoreAnswer, ErrorAnswer, ReadyAnswer, ModelsAnswer)
#: The errors that any route with a body may answer with.
_OF_BODIES = ("malformed", "unauthorized", "not_found", "timeout", "horizon", "too_large", "unsupported_media_type", "invalid", "store")
_MEANINGS = {
    400: "The body is not JSON, or names something twice.",
    401: "An API key is wanted.",
    404: "Nobody defined what was asked for.",
    408: "The body did not arrive in time.",
    409: "The instant lies before the store's horizon, or definitions are not applied.",
    413: "The body is too large.",
    415: "The body is not `application/json`.",
    422: "The request is JSON, and none that can be answered.",
    503: "Not now: the store is away, or there is too much to do. `Retry-After` says when.",
}


def document(max_rows: int) -> bytes:
    """The document, as JSON. `max_rows`: how many rows a request may have."""
    _, components = msgspec.json.schema_components(_TYPES, ref_template=_REF)
    components["ErrorText"]["properties"]["type"]["enum"] = sorted(TYPES)
    for request in ("FeaturesRequest", "ScoreRequest"):
        components[request]["properties"]["entity_rows"]["maxItems"] = max_rows
    anything = {"application/json": {"schema": {"type": "object"}}}
    paths = {
        "/v1/features": {"post": _post("features", "Features of some entities", FeaturesRequest, FeaturesAnswer)},
        "/v1/score": {"post": _post("score", "Scores of some entities, by a registered model", ScoreRequest, ScoreAnswer)},
        "/v1/models": {"get": _get("models", "Models, their versions and aliases", _json(ModelsAnswer))},
        "/livez": {"get": _get("livez", "Whether the process answers at all", anything, key=False)},
        "/readyz": {"get": _ready()},
        "/metrics": {"get": _get("metrics", "Figures for Prometheus", {"text/plain": {"schema": {"type": "string"}}})},
        "/openapi.json": {"get": _get("openapi", "This document", anything)},
    }
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "tidemill", "version": __version__, "description": "Features and scores, as of now or as of an instant."},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                },
            },
            # Where the service has no keys, nobody is asked for one.
            "security": [{"bearer": []}, {"key": []}, {}],
        }
    ).encode()


def _post(name: str, summary: str, request: type[msgspec.Struct], answer: type[msgspec.Struct]) -> Schema:
    statuses = sorted({TYPES[kind] for kind in _OF_BODIES})
    responses = {"200": {"description": "Answered.", "content": _json(answer)}, **{str(s): _error(s) for s in statuses}}
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": _json(request)},
        "responses": responses,
    }


def _get(name: str, summary: str, content: Schema, *, key: bool = True) -> Schema:
    responses: Schema = {"200": {"description": summary, "content": content}}
    if key:
        responses["401"] = _error(401)
    found: Schema = {"operationId": name, "summary": summary, "responses": responses}
    return found if key else {**found, "security": []}


def _ready() -> Schema:
    found = _get("readyz", "Whether requests can be answered, and if not, why", _json(ReadyAnswer), key=False)
    retry = {"Retry-After": {"schema": {"type": "string"}}}
    found["responses"]["503"] = {"description": "Not now.", "content": _json(ReadyAnswer), "headers": retry}
    return found


def _error(status: int) -> Schema:
    return {"description": _MEANINGS[status], "content": _json(ErrorAnswer)}


def _json(kind: type[msgspec.Struct]) -> Schema:
    return {"application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}}
