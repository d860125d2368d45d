"""What the service answers, and what it refuses: each with one status, one type and a sentence."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serving.conftest import NOW, ROW, Served, app
from tidemill.errors import ModelError, StoreError, StoreUnavailableError
from tidemill.journals.reader import journal_files, read_file
from tidemill.prediction_log import PredictionLog
from tidemill.remote.wire import TYPES

FEATURES = {"features": "everything", "entity_rows": [ROW]}
JSON = {"content-type": "application/json"}


def body(**changes: Any) -> bytes:
    return json.dumps({**FEATURES, **changes}).encode()


def post(client: TestClient, content: bytes | str, path: str = "/v1/features", **headers: str) -> Any:
    return client.post(path, content=content, headers={**JSON, **headers})


def error(answer: Any, kind: str) -> dict[str, Any]:
    """The error of an answer, which must be of this type, with its status, and in the one form."""
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert set(document) == {"error"}, document
    found: dict[str, Any] = document["error"]
    assert (found["type"], answer.status_code) == (kind, TYPES[kind]), found
    assert found["message"], found
    assert "Traceback" not in answer.text
    return found


# ---- answers ------------------------------------------------------------------------------------------------------------------------


def test_features_come_with_statuses_types_and_what_was_known(client: TestClient, served: Served) -> None:
    answer = post(client, body(entity_rows=[ROW, {**ROW, "k": "nobody"}])).json()
    assert answer["columns"]["v__count_1h"] == [9, 0]
    assert answer["columns"]["k"] == ["a", "nobody"]
    assert answer["columns"]["lasts__word_last_lifetime"] == ["w1", None]
    assert answer["columns"]["lasts__seen_last_lifetime"] == ["2026-05-01T11:59:00Z", None]
    assert answer["status"]["v__count_1h"] == ["ok", "missing"]
    assert {answer["types"][c] for c in answer["status"]} == {"int", "float", "str", "bool", "timestamp", "list[timestamp]", "list[int]"}
    assert answer["at"] == "2026-05-01T12:00:00Z"
    assert answer["as_of"]["views"]["v"]["positions"] == [{"0": 18}]
    assert answer["as_of"]["views"]["v"]["of_row"] == [0, 0]
    assert answer["as_of"]["through"] is not None


def test_features_may_be_a_list_and_the_instant_any_that_the_library_takes(client: TestClient) -> None:
    for at in ("2026-05-01T11:00:00", "2026-05-01T13:00:00+02:00", 1777633200000000):
        answer = post(client, body(features=["v:count_1h", "busy"], at=at)).json()
        assert answer["at"] == "2026-05-01T11:00:00Z"
        assert answer["columns"]["v__count_1h"] == [8]
        assert answer["columns"]["busy"] == [4.0]


def test_scores_come_with_ids_a_version_and_their_features(client: TestClient, served: Served) -> None:
    served.model()
    answer = post(client, json.dumps({"model": "m", "entity_rows": [{"k": "a"}, {"k": "b"}]}), "/v1/score").json()
    assert (answer["model"], answer["version"], answer["status"], answer["warning"]) == ("m", "1", ["ok", "ok"], None)
    assert len(set(answer["prediction_id"])) == 2
    assert answer["label"] == [1, 1] or answer["label"] == [None, None]
    assert answer["features"]["columns"]["v__count_1h"] == [9, 1]
    assert all(0.5 < score < 1 for score in answer["score"])


def test_tries_of_one_request_have_the_same_prediction_ids(client: TestClient, served: Served) -> None:
    served.model()
    request = {"model": "m", "entity_rows": [{"k": "a"}, {"k": "b"}], "request_id": "018bcfe5-6800-7000-bfff-ffffffffffff"}
    first, second = (post(client, json.dumps(request), "/v1/score").json()["prediction_id"] for _ in range(2))
    assert first == second == ["018bcfe5-6800-7000-bfff-ffffffffffff", "018bcfe5-6800-7000-8000-000000000000"]
    for wrong in ("", "me", request["request_id"] + "0", 7):
        error(post(client, json.dumps({**request, "request_id": wrong}), "/v1/score"), "invalid")


def test_a_row_that_the_model_may_not_score_gets_the_fallback_or_fails_the_request(client: TestClient, served: Served) -> None:
    served.model()

    def asked(fallback: Any) -> Any:
        request = {"model": "m", "entity_rows": [{"k": "nobody"}], "fallback": fallback, "max_missing": 0}
        return post(client, json.dumps(request), "/v1/score")

    answer = asked(0.25).json()
    assert (answer["score"], answer["status"]) == ([0.25], ["fallback"])
    assert "missing" in answer["reason"][0]
    assert "fallback" in error(asked("error"), "no_score")["message"]
    error(asked("sometimes"), "invalid")


def test_models_are_listed_with_versions_and_aliases(client: TestClient, served: Served) -> None:
    assert client.get("/v1/models").json() == {"models": []}
    served.model()
    assert client.get("/v1/models").json() == {"models": [{"name": "m", "versions": ["1"], "aliases": {"champion": "1"}}]}


# ---- refusals -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b"", "malformed", "not JSON"),
        (b"{", "malformed", "not JSON"),
        (b"\xff\xfe{}", "malformed", "not JSON"),
        (b'{"features": "\xff", "entity_rows": [{}]}', "malformed", "UTF-8"),
        (body(entity_rows=[{**ROW, "amount": float("nan")}]), "malformed", "no NaN"),
        (body(entity_rows=[{**ROW, "amount": float("inf")}]), "malformed", "no NaN"),
        (b'{"features": "plain", "entity_rows": [{"k": "a", "k": "b"}]}', "malformed", "'k' twice"),
        (b'{"features": "plain", "features": "plain", "entity_rows": [{"k": "a"}]}', "malformed", "'features' twice"),
        (b'{"features": "plain", "entity_rows": [{"k": "a"}], "at": null, "at": null}', "malformed", "'at' twice"),
        (b'{"features": "plain", "entity_rows": [{"k": "\\ud800"}]}', "malformed", ""),
        (b"[" * 100_000, "invalid", "expected `object`"),
        (b"null", "invalid", "expected `object`"),
        (b"[]", "invalid", "expected `object`"),
        (b"{}", "invalid", "missing required field"),
        (body(colour="red"), "invalid", "unknown field `colour`"),
        (body(entity_rows=[]), "invalid", "length >= 1"),
        (body(entity_rows={"k": "a"}), "invalid", "$.entity_rows"),
        (body(entity_rows=["a"]), "invalid", "$.entity_rows[0]"),
        (body(entity_rows=[{"k": ["a"]}]), "invalid", "$.entity_rows[0]"),
        (body(entity_rows=[{"k": {"a": [[[]]]}}]), "invalid", "$.entity_rows[0]"),
        (body(entity_rows=[{**ROW, "many": 2**63}]), "invalid", "<= 9223372036854775807"),
        (body(entity_rows=[{**ROW, "many": -(2**63) - 1}]), "invalid", ">= -9223372036854775808"),
        (body(entity_rows=[{**ROW, "many": 10**400}]), "invalid", "$.entity_rows[0]"),
        (b'{"features": "plain", "entity_rows": [{"k": 1e400}]}', "invalid", "out of range"),
        (body(entity_rows=[{}]), "invalid", "no key 'k'"),
        (body(entity_rows=[{"k": None}]), "invalid", "no key 'k'"),
        (body(entity_rows=[{**ROW, "k": 5}]), "invalid", "key 'k' is 5 (int)"),
        (body(entity_rows=[{**ROW, "k": "x" * 5000}]), "invalid", "longer than 4096 bytes"),
        (body(entity_rows=[{**ROW, "amount": "much"}]), "invalid", "'amount'"),
        (body(entity_rows=[{"k": "a"}]), "invalid", "request row 0 has no"),
        (body(at="soon"), "invalid", "at is 'soon'"),
        (body(at=2**62), "invalid", "at is"),
        (body(at=1.5), "invalid", "$.at"),
        (body(at=True), "invalid", "$.at"),
        (body(features=[]), "invalid", "$.features"),
        (body(features=5), "invalid", "$.features"),
        (body(features="everythin"), "not_found", "everything"),
        (body(features=["v:count_2h"]), "not_found", "v"),
        (body(features=""), "not_found", ""),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_with_its_reason(client: TestClient, content: bytes, kind: str, says: str) -> None:
    assert says in error(post(client, content), kind)["message"]


def test_a_name_may_have_as_many_colons_as_it_likes(client: TestClient) -> None:
    assert post(client, body(features=["v:count_1h"], entity_rows=[{"k": "a:b::c"}])).status_code == 200


def test_an_instant_that_the_store_has_compacted_past_is_a_conflict(client: TestClient, served: Served) -> None:
    assert "horizon" in error(post(client, body(at="1999-01-01")), "horizon")["message"]


@pytest.mark.parametrize("model", ["nobody", "m@challenger", "m@7", "m@007", "@", "m@1/../2", "m@\0"])
def test_a_model_that_there_is_not_is_not_found(client: TestClient, served: Served, model: str) -> None:
    served.model()
    error(post(client, json.dumps({"model": model, "entity_rows": [{"k": "a"}]}), "/v1/score"), "not_found")


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "application/json; charset=latin-1"])
def test_another_type_of_content_is_refused(client: TestClient, kind: str) -> None:
    error(client.post("/v1/features", content=body(), headers={"content-type": kind}), "unsupported_media_type")
    error(post(client, body(), **{"content-encoding": "gzip"}), "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", 'application/json;charset="UTF-8"'])
def test_json_may_be_said_in_several_ways(client: TestClient, kind: str) -> None:
    assert client.post("/v1/features", content=body(), headers={"content-type": kind}).status_code == 200


def test_a_body_may_be_as_large_as_the_limit_and_no_larger(start: Callable[..., TestClient]) -> None:
    content = body()
    assert post(start(max_body=len(content)), content).status_code == 200
    client = start(max_body=len(content) - 1)
    found = error(post(client, content), "too_large")
    assert found["limit"] == len(content) - 1
    assert "--max-body" in found["message"]
    parts = (content[i : i + 10] for i in range(0, len(content), 10))
    error(client.post("/v1/features", content=parts, headers=JSON), "too_large")  # in chunks, without a length


def test_a_request_may_have_as_many_rows_as_the_limit_and_no_more(start: Callable[..., TestClient]) -> None:
    client = start(max_rows=2)
    assert post(client, body(entity_rows=[ROW] * 2)).status_code == 200
    found = error(post(client, body(entity_rows=[ROW] * 3)), "too_many_rows")
    assert found["limit"] == 2
    assert "3 entity rows" in found["message"]


def test_other_paths_and_methods_are_refused_in_the_same_form(client: TestClient) -> None:
    assert "/openapi.json" in error(client.get("/v1/feature"), "not_found")["message"]
    error(client.get("/v1/features/"), "not_found")
    answer = client.put("/v1/features", content=body(), headers=JSON)
    error(answer, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


# ---- keys ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer 0123456789abcdef"}, {"X-API-Key": "fedcba9876543210"}])
def test_with_keys_only_who_has_one_may_ask(start: Callable[..., TestClient], headers: dict[str, str]) -> None:
    client = start(api_keys=["0123456789abcdef", "fedcba9876543210"])
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        answer = client.get(path)
        error(answer, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    error(post(client, body()), "unauthorized")
    error(post(client, body(), authorization="Bearer 0123456789abcdeF"), "unauthorized")
    error(post(client, body(), authorization="Basic 0123456789abcdef"), "unauthorized")
    assert post(client, body(), **headers).status_code == 200
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200


# ---- when something is away ---------------------------------------------------------------------------------------------------------


def test_a_store_that_is_away_is_a_503_with_a_time_to_come_back(
    client: TestClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/readyz").json() == {"ready": True, "checks": {"definitions": "ok", "store": "ok"}}

    def away(*_: Any) -> None:
        raise StoreUnavailableError("redis at 10.0.0.7:6379 does not answer")

    monkeypatch.setattr("tidemill.online.sqlite.SqliteStore.read", away)
    monkeypatch.setattr("tidemill.online.sqlite.SqliteStore.heartbeats", away)
    answer = post(client, body())
    found = error(answer, "store_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert "10.0.0.7" not in answer.text
    assert any("10.0.0.7" in line and found["request"] in line for line in served.lines)
    assert client.get("/livez").status_code == 200


def test_not_ready_says_what_is_missing(start: Callable[..., TestClient], served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise StoreUnavailableError("redis at 10.0.0.7:6379 does not answer")

    client = start(models=("m", "m@challenger"))
    monkeypatch.setattr("tidemill.online.sqlite.SqliteStore.heartbeats", away)
    served.model()
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    checks = {"definitions": "ok", "store": "does not answer", "model m": "ok", "model m@challenger": "not loaded"}
    assert answer.json() == {"ready": False, "checks": checks}
    assert client.get("/livez").json() == {"live": True}


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (StoreError("no space left on /var/lib/x"), "store"),
        (ModelError("m 1 failed: KeyError: secret"), "model"),
        (KeyError("secret"), "internal"),
    ],
)
def test_what_is_ours_to_mend_is_told_to_the_log_and_not_to_the_caller(
    client: TestClient, served: Served, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: str
) -> None:
    def fails(*_: Any) -> None:
        raise raised

    monkeypatch.setattr("tidemill.online.sqlite.SqliteStore.read", fails)
    answer = post(client, body())
    found = error(answer, kind)
    assert "secret" not in answer.text
    assert "/var" not in answer.text
    (line,) = [line for line in served.lines if found["request"] in line]
    assert str(raised) in line


def test_a_failing_on_demand_function_is_the_requests_error(client: TestClient) -> None:
    answer = post(client, body(features=["mixed"], entity_rows=[{**ROW, "name": 5}]))
    assert "mixed" in error(answer, "invalid")["message"]


def test_without_threads_requests_are_answered_in_the_event_loop(start: Callable[..., TestClient]) -> None:
    client = start(threads=0)
    assert post(client, body()).json()["columns"]["v__count_1h"] == [9]
    error(post(client, b"{"), "malformed")


def test_too_many_requests_at_once_are_turned_away_at_once(start: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    client = start(threads=1, queue=0)
    go, begun = threading.Event(), threading.Semaphore(0)

    def slow(*_: Any) -> Any:
        begun.release()
        go.wait(30)
        raise StoreUnavailableError("it took too long")

    monkeypatch.setattr("tidemill.online.sqlite.SqliteStore.read", slow)
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(post(client, body())))
    waiting.start()
    try:
        assert begun.acquire(timeout=30)
        answer = post(client, body())
        error(answer, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert client.get("/livez").status_code == 200
    finally:
        go.set()
        waiting.join(30)
    error(answers[0], "store_unavailable")


# ---- figures ------------------------------------------------------------------------------------------------------------------------


def test_metrics_count_requests_rows_errors_and_scores_and_name_no_entity(client: TestClient, served: Served) -> None:
    served.model()
    post(client, body(entity_rows=[ROW] * 3))
    post(client, b"{")
    post(client, json.dumps({"model": "m", "entity_rows": [{"k": "a"}, {"k": "someone-secret"}]}), "/v1/score")
    client.get("/v1/models/../../x")
    text = client.get("/metrics").text
    lines = set(text.splitlines())
    assert 'tidemill_http_requests_total{route="/v1/features",status="200"} 1.0' in lines
    assert 'tidemill_http_requests_total{route="/v1/features",status="400"} 1.0' in lines
    assert 'tidemill_http_requests_total{route="other",status="404"} 1.0' in lines
    assert 'tidemill_http_rows_total{route="/v1/features"} 3.0' in lines
    assert 'tidemill_http_errors_total{type="malformed"} 1.0' in lines
    assert 'tidemill_http_request_seconds_count{route="/v1/features"} 2.0' in lines
    assert 'tidemill_scored_rows_total{model="m",outcome="ok",version="1"} 1.0' in lines
    assert 'tidemill_scored_rows_total{model="m",outcome="degraded",version="1"} 1.0' in lines
    assert any(line.startswith("tidemill_model_info{") and 'version="1"' in line for line in lines)
    assert "someone-secret" not in text


def test_metrics_count_what_was_logged_and_what_was_dropped_also_by_workers_before(served: Served) -> None:
    served.model()
    store = served.store()
    store.prediction_log = log = PredictionLog(store.env.offline, most=2)
    made = served.service(store=store)
    made._logged_before["predictions"] = {"written": 100, "dropped": 10}
    with TestClient(app.make_app(made)) as client:
        for rows in (1, 2, 3):
            post(client, json.dumps({"model": "m", "entity_rows": [{"k": "a"}] * rows}), "/v1/score")
            assert log.flush()
        lines = set(client.get("/metrics").text.splitlines())
    assert 'tidemill_log_entries_total{log="predictions",outcome="written"} 102.0' in lines
    assert 'tidemill_log_entries_total{log="predictions",outcome="dropped"} 11.0' in lines
    assert 'tidemill_log_entries_total{log="predictions",outcome="failed"} 0.0' in lines


def test_of_more_rows_than_may_wait_some_are_logged_and_the_rest_is_counted(served: Served) -> None:
    served.model()
    store = served.store()
    store.prediction_log = log = PredictionLog(store.env.offline, most=2_500)
    made = store.score("m", [{"k": "a"}] * 3_200)
    assert log.flush()
    noted = [entry for file in journal_files(store.env.offline, "predictions") for entry in read_file(store.env.offline, file)]
    assert log.counts.dropped == 16 - len(noted) <= 4  # the writer may have taken some before the last came
    places = {id: place for place, id in enumerate(made.prediction_id)}
    for entry in noted:
        rows = [places[id] for id in entry["ids"]]
        assert rows == list(range(rows[0], rows[0] + len(entry["ids"])))
        assert entry["score"] == [made.score[row] for row in rows]
        assert entry["columns"] == {"k": ["a"] * len(rows)}
        assert len(entry["x"]) == len(entry["status"]) == len(entry["outcome"]) == len(entry["reason"]) == len(rows)
    assert {len(entry["ids"]) for entry in noted} == {200}


def test_now_is_the_stores_clock(client: TestClient) -> None:
    assert post(client, body()).json()["at"] == f"{NOW}Z"
