"""Requests that mean harm, or come from somebody's mistake, and what they may cost: never a 500, never a secret, never memory for ever."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import closing
from itertools import permutations
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serving.conftest import Served, app, counts
from tidemill import client as tidemill_client
from tidemill.apps import load
from tidemill.errors import RequestError, StoreUnavailableError
from tidemill.metrics import text_of
from tidemill.models import serving as served_models
from tidemill.online.sqlite import SqliteStore
from tidemill.remote.client import score_request

metrics = load("serving.metrics")


def score(client: TestClient, **body: Any) -> Any:
    content = json.dumps({"model": "m", "entity_rows": [{"k": "a"}], **body})
    return client.post("/v1/score", content=content, headers={"content-type": "application/json"})


@pytest.mark.parametrize("model", ["m@" + "1" * 5000, "a" * 5000, "m@" + "x" * 5000], ids=["version", "name", "alias"])
def test_a_name_that_no_file_system_takes_is_not_found_and_not_worth_another_try(client: TestClient, served: Served, model: str) -> None:
    served.model()
    answer = score(client, model=model)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")


def test_a_content_length_of_thousands_of_digits_is_too_large(client: TestClient) -> None:
    headers = {"content-type": "application/json", "content-length": "9" * 5000}
    answer = client.post("/v1/score", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "too_large")


def test_a_registration_that_was_killed_hides_no_other_model(client: TestClient, served: Served) -> None:
    served.model()
    models = served.path / ".tidemill" / "offline" / "models"
    for killed in ("half/1", "Not-a-name/1"):
        (models / killed).mkdir(parents=True)
        (models / killed / "golden.json").write_text("{}")
    assert [m["name"] for m in client.get("/v1/models").json()["models"]] == ["m"]
    with closing(served.store()) as store:
        assert [(m.model, m.version) for m in store.models.list()] == [("m", "1")]


def test_a_body_that_trickles_in_is_given_up_after_the_patience_and_not_after_that_for_each_byte() -> None:
    pieces = [0]

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        pieces[0] += 1
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def body() -> Any:
        return await asyncio.wait_for(app._body(receive, 1 << 20, 0.1), 5)

    with pytest.raises(load("serving.faults").Fault, match=r"did not come within 0\.1 s"):
        asyncio.run(body())
    assert pieces[0] <= 10


SECRET = "redis://10.20.30.40:6379 refuses"


def test_a_fallback_tells_the_caller_no_hosts_and_no_code(
    start: Callable[..., TestClient], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.model()
    client = start()
    assert score(client).json()["status"] == ["ok"]

    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailableError(SECRET)

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "read", away)
        answer = score(client, fallback=0.2).json()
    assert (answer["score"], answer["reason"]) == ([0.2], ["the online store does not answer"])
    assert any(SECRET in line for line in served.lines)
    code = "def score(x):\n    if len(x) == 5:\n        raise ValueError('hunter2')\n    return x[:, 0] * 0 + 0.5\n"
    (served.path / "fails.py").write_text(code)
    with closing(served.store()) as store:
        fill = {"v__count_1h": 0.0}
        store.models.register("f", "fails:score", service="plain", fill=fill)
        store.models.promote("f", "1")
    answer = score(client, model="f", entity_rows=[{"k": "a"}] * 5, fallback=0.3, max_missing=9).json()
    assert (answer["score"], answer["reason"]) == ([0.3] * 5, ["the model failed"] * 5)
    assert any("hunter2" in line for line in served.lines)


def test_a_warning_tells_the_caller_that_another_version_goes_on_and_no_paths(start: Callable[..., TestClient], served: Served) -> None:
    served.model()
    service_ = served.service()
    client = TestClient(app.make_app(service_), raise_server_exceptions=False)
    with client:
        assert score(client).json()["warning"] is None
        with closing(served.store()) as store:
            store.models.register("m", "made:score", service="plain")
            store.models.promote("m", "2")
        (served.path / ".tidemill/offline/models/m/2/golden.json").write_text("{}")
        service_.store.scorer.served.look()
        assert score(client).json()["warning"] == "version 2 is refused, and version 1 goes on"


@pytest.mark.parametrize("fallback", [10**400, True, float("inf"), "never"])
def test_a_fallback_that_is_no_finite_score_is_a_wrong_request_in_process_and_in_the_client(served: Served, fallback: Any) -> None:
    served.model()
    with closing(served.store()) as store, pytest.raises(RequestError, match="finite score"):
        store.score("m", [{"k": "a"}], fallback=fallback)
    with pytest.raises(RequestError, match="finite score"):
        score_request("m", [{"k": "a"}], None, fallback, None)


# ---- what grows -----------------------------------------------------------------------------------------------------------------------


def test_versions_that_are_asked_for_by_number_are_not_all_kept(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tidemill predict --every` asks for each version that a learner publishes."""
    monkeypatch.setattr(served_models, "MAX_PINNED", 3)
    served.model()
    with closing(served.store()) as store:
        for _ in range(6):
            store.models.register("m", "made:score", service="plain")
        assert store.score("m", [{"k": "a"}]).version == "1"
        for version in ("1", "2", "3", "1", "4", "5"):
            assert store.score(f"m@{version}", [{"k": "a"}]).version == version
        assert [s.reference for s in store.scorer.served.all()] == ["m", "m@1", "m@4", "m@5"]


def test_plans_of_ever_other_lists_of_features_are_not_all_kept(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidemill_client, "_MAX_PLANS", 5)
    with closing(served.store()) as store:
        for order in permutations(["v:count_1h", "v:count_1d", "v:x_sum_1d", "busy"]):
            assert store.get_online_features(list(order), [{"k": "a"}]).columns["v__count_1h"] == [9]
        assert len(store._plans) <= 5


def test_the_metrics_show_the_newest_versions_and_all_older_ones_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [counts.Counts(index=0), counts.Counts(index=1)]
    shown: dict[str, float] = {}
    for version in range(1, 1001):
        some[version % 2].scored_rows("m", str(version), {"ok": 2, "degraded": 1})
        if version % 100 == 0:
            lines = text_of(metrics.collect(some, "p")).decode().splitlines()
            now = {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if line.startswith("tidemill_scored_rows_total{")}
            assert len(now) <= 2 * (counts.SHOWN + 1)
            assert sum(now.values()) == 3 * version
            assert all(now[name] >= value for name, value in shown.items() if name in now), "a counter went back"
            shown = now
    versions = {m[1] for name in shown if (m := re.search(r'version="(\w+)"', name))}
    assert versions == {*map(str, range(981, 1001)), "older"}
    assert all(len(each.scored["m"]) <= counts.KEPT + 1 for each in some)
