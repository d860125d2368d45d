"""/openapi.json is true: whatever it allows or forbids is answered as it says, and nothing that is sent makes the service fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis.checks import CHECKS
from starlette.responses import Response
from starlette.testclient import TestClient

from tests.serving.conftest import DEFINITIONS, ROW, Served, app, event
from tidemill.apps import load
from tidemill.remote.wire import TYPES


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(Path(tmp_path_factory.mktemp("fuzz")) / "p", DEFINITIONS)
    served.log([event("a", m, x=m / 10) for m in range(1, 30)])
    served.stream()
    served.model()
    yield served
    served.env.online.close()


@pytest.fixture(scope="module")
def application(served: Served) -> Iterator[Any]:
    made = app.make_app(served.service(max_rows=50))
    with TestClient(made):
        _serving["application"] = made
        yield made
        del _serving["application"]


_serving: dict[str, Any] = {}


async def through(scope: Any, receive: Any, send: Any) -> None:
    """The application, when there is one; before that, while tests are collected, the document alone. It begins and ends elsewhere."""
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
    elif "application" in _serving:
        await _serving["application"](scope, receive, send)
    else:
        await Response(load("serving.openapi").document(50), media_type="application/json")(scope, receive, send)


schema = schemathesis.openapi.from_asgi("/openapi.json", through)
#: Not this one: a body of the right form may still name a service that there is not, which is a 404, or a key of another type.
CHECKED = [check for check in CHECKS.get_all() if check.__name__ != "positive_data_acceptance"]
assert {"not_a_server_error", "response_schema_conformance", "negative_data_rejection"} <= {check.__name__ for check in CHECKED}
_QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@schema.parametrize()
@pytest.mark.usefixtures("application")
@settings(max_examples=25, suppress_health_check=_QUIET)
def test_every_answer_is_what_the_document_says(case: Any) -> None:
    case.call_and_validate(checks=CHECKED)


@pytest.mark.soak
@schema.parametrize()
@pytest.mark.usefixtures("application")
@settings(max_examples=5_000, suppress_health_check=_QUIET)
def test_every_answer_is_what_the_document_says_for_long(case: Any) -> None:
    case.call_and_validate(checks=CHECKED)


def test_the_document_is_a_valid_one(application: Any) -> None:
    document = json.loads(load("serving.openapi").document(50))
    assert document["openapi"].startswith("3.1")
    for name, found in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(found)
        assert found["description"], name
    assert {route.path for route in application.routes} == set(document["paths"])
    assert document["components"]["schemas"]["ErrorText"]["properties"]["type"]["enum"] == sorted(TYPES)


# ---- bodies that are nearly right, which a generator from the schema alone rarely makes ------------------------------------------------

NAMES = st.sampled_from(["everything", "plain", "v", "lasts", "v:count_1h", "busy", "mixed", "nothing", "v:", ":", "v:count_2h", ""])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["a", "2026-04-01T00:00:00Z", "0000-13-45", "9999-12-31T23:59:59.999999+00:01", "NaT", "nan"])
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5
)
COLUMNS = st.sampled_from([*ROW, "other"])
ROWS = st.lists(
    st.builds(lambda base, more: {**base, **more}, st.sampled_from([{}, ROW]), st.dictionaries(COLUMNS, SCALARS, max_size=3)), max_size=4
)
BODIES = st.fixed_dictionaries(
    {"entity_rows": ROWS | ANYTHING},
    optional={
        "features": NAMES | st.lists(NAMES, max_size=3) | ANYTHING,
        "model": st.sampled_from(["m", "m@1", "m@champion", "m@x", "x", "@", ""]) | ANYTHING,
        "at": SCALARS,
        "fallback": SCALARS,
        "max_missing": SCALARS,
        "other": SCALARS,
    },
)


@pytest.fixture(scope="module")
def client(application: Any) -> TestClient:
    return TestClient(application, raise_server_exceptions=False)


@given(path=st.sampled_from(["/v1/features", "/v1/score"]), body=BODIES)
@settings(max_examples=150)
def test_a_body_that_is_nearly_right_is_answered_or_refused_and_never_fails(client: TestClient, path: str, body: Any) -> None:
    answered(client, path, json.dumps(body))


@pytest.mark.soak
@given(path=st.sampled_from(["/v1/features", "/v1/score"]), body=BODIES)
@settings(max_examples=20_000)
def test_a_body_that_is_nearly_right_never_fails_for_long(client: TestClient, path: str, body: Any) -> None:
    answered(client, path, json.dumps(body))


@given(path=st.sampled_from(["/v1/features", "/v1/score"]), body=st.binary(max_size=50))
def test_bytes_of_any_kind_are_refused(client: TestClient, path: str, body: bytes) -> None:
    answered(client, path, body)


def answered(client: TestClient, path: str, body: str | bytes) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    if answer.status_code != 200:
        assert answer.status_code in (400, 404, 409, 413, 422), answer.text
        assert TYPES[answer.json()["error"]["type"]] == answer.status_code
