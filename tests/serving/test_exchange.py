"""One call of a client: when it tries again, for how long, and what an answer means to its caller. Simulated time, no network."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

import tidemill as tm
from tidemill import errors
from tidemill.models.prediction_ids import ids_from
from tidemill.remote.client import AsyncScoringClient, ScoringClient
from tidemill.remote.exchange import Answer, Lost, Policy, Send, Wait, call
from tidemill.remote.rows import json_rows
from tidemill.remote.wire import TYPES, FeaturesAnswer, ModelsAnswer

GOOD = Answer(200, b'{"models": []}')
DEFAULT = Policy()
REFUSED = Lost("connection refused")


def fault(kind: str, retry_after: str = "") -> Answer:
    return Answer(TYPES[kind], json.dumps({"error": {"type": kind, "message": f"it is {kind}"}}).encode(), retry_after)


class Told:
    """What a call did, where the service answers with these one after the other, each after `takes` seconds."""

    def __init__(self, *answers: Answer | Lost, policy: Policy = DEFAULT, takes: float = 0.0, chance: float = 0.0) -> None:
        self.now, self.sent, self.waited = 0.0, 0, []
        self.timeouts: list[float] = []
        self.result: Any = None
        steps = call(ModelsAnswer, "http://x", policy, lambda: self.now, lambda: chance)
        left = list(answers)
        try:
            step = next(steps)
            while True:
                if isinstance(step, Wait):
                    self.now += step.seconds
                    self.waited.append(step.seconds)
                    step = steps.send(None)
                else:
                    assert isinstance(step, Send)
                    self.sent += 1
                    self.timeouts.append(step.timeout)
                    self.now += takes
                    step = steps.send(left.pop(0))
        except StopIteration as over:
            self.result = over.value
        except errors.TidemillError as error:
            self.result = error


def test_an_answer_ends_the_call() -> None:
    told = Told(GOOD)
    assert (told.result, told.sent, told.waited) == (ModelsAnswer([]), 1, [])


@pytest.mark.parametrize(
    "first", [REFUSED, Lost("reset"), fault("overloaded"), fault("store_unavailable"), Answer(429, b""), Answer(503, b"")]
)
def test_what_may_pass_by_itself_is_tried_again_after_pauses_that_double(first: Answer | Lost) -> None:
    told = Told(first, first, GOOD)
    assert (told.result, told.sent, told.waited) == (ModelsAnswer([]), 3, [0.05, 0.1])


def test_pauses_are_shortened_by_chance_so_that_clients_do_not_come_back_together() -> None:
    assert Told(REFUSED, REFUSED, GOOD, chance=1.0).waited == [0.025, 0.05]


def test_a_pause_is_as_long_as_the_service_says() -> None:
    assert Told(fault("overloaded", "1"), GOOD).waited == [1.0]
    assert Told(fault("overloaded", "Wed, 21 Oct 2026 07:28:00 GMT"), GOOD).waited == [0.05]
    told = Told(fault("overloaded", "3600"), GOOD)  # nobody waits that long
    assert isinstance(told.result, errors.OverloadedError)
    assert (told.sent, told.waited) == (1, [])


def test_tries_end_with_their_number_and_with_the_time() -> None:
    told = Told(*[REFUSED] * 9)
    assert isinstance(told.result, errors.ServiceUnavailableError)
    assert "connection refused" in str(told.result)
    assert told.sent == 3
    told = Told(*[REFUSED] * 9, policy=Policy(timeout=1.0, retries=8, pause=0.3), takes=0.2)
    assert told.now <= 1.0
    assert told.timeouts == pytest.approx([1.0, 0.5])
    assert Told(REFUSED, GOOD, policy=Policy(retries=0)).sent == 1


def test_what_got_no_answer_in_time_is_not_tried_again() -> None:
    told = Told(Lost("no answer in time", late=True), GOOD)
    assert isinstance(told.result, errors.ServiceUnavailableError)
    assert told.sent == 1


def test_no_other_answer_is_tried_again() -> None:
    for kind, status in TYPES.items():
        if status != 503:
            assert Told(fault(kind), GOOD).sent == 1, kind


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("malformed", errors.RequestError),
        ("invalid", errors.RequestError),
        ("too_large", errors.RequestError),
        ("too_many_rows", errors.RequestError),
        ("horizon", errors.HorizonError),
        ("not_found", errors.NotFoundError),
        ("not_applied", errors.NotAppliedError),
        ("no_score", errors.ScoringError),
        ("unauthorized", errors.ServiceAccessError),
        ("overloaded", errors.OverloadedError),
        ("store", errors.StoreError),
        ("store_unavailable", errors.StoreUnavailableError),
        ("model", errors.ModelError),
        ("model_refused", errors.ModelRefusedError),
        ("internal", errors.ServiceError),
        ("unsupported_media_type", errors.ServiceError),
    ],
)
def test_every_type_of_error_has_its_place_in_the_tree(kind: str, error: type[Exception]) -> None:
    told = Told(*[fault(kind)] * 3)
    assert type(told.result) is error
    assert str(told.result) == f"it is {kind}"


@pytest.mark.parametrize("body", [b"", b"<html>nginx</html>", b"[]", b'{"models": 5}', b"\xff"])
def test_what_is_no_answer_of_tidemills_is_said_to_be_none(body: bytes) -> None:
    assert "no tidemill service" in str(Told(Answer(200, body)).result)
    assert type(Told(Answer(200, body)).result) is errors.ServiceError
    assert type(Told(Answer(404, body)).result) is errors.ServiceError
    assert type(Told(Answer(502, body)).result) is errors.ServiceUnavailableError


# ---- the clients around it ----------------------------------------------------------------------------------------------------------

ANSWER = msgspec.json.encode(
    {
        "columns": {"k": ["a"], "v__n": [2**60 + 1]},
        "status": {"v__n": ["ok"]},
        "types": {"k": "str", "v__n": "int"},
        "at": "2026-05-01T12:00:00Z",
        "as_of": {"through": None, "views": {"v": {"positions": [{"0": 5}], "of_row": [0]}}},
    }
)


def test_both_clients_send_their_key_and_read_the_answer() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=ANSWER)

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        client = tm.ScoringClient("https://host:8443/base/", api_key="sesame", http=http)
        found = client.get_online_features(["v:n"], [{"k": "a"}], at=5)

    async def ask() -> Any:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            asking = tm.AsyncScoringClient("https://host:8443/base/", api_key="sesame", http=http)
            return await asking.get_online_features(["v:n"], [{"k": "a"}], at=5)

    also = asyncio.run(ask())
    assert found.columns == also.columns == {"k": ["a"], "v__n": [2**60 + 1]}
    assert found.as_of.positions("v") == {0: 5}
    with pytest.raises(errors.RequestError, match="reads no view 'w'; it reads v"):
        found.as_of.positions("w")
    for request in seen:
        assert str(request.url) == "https://host:8443/base/v1/features"
        assert request.headers["authorization"] == "Bearer sesame"
        assert json.loads(request.content) == {"features": ["v:n"], "entity_rows": [{"k": "a"}], "at": 5}
    assert "sesame" not in repr(client)


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.ConnectTimeout])
def test_a_connection_that_is_cut_once_is_no_error(kind: type[httpx.HTTPError], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    tries: list[int] = []

    def answer(_: httpx.Request) -> httpx.Response:
        tries.append(1)
        if len(tries) == 1:
            raise kind("it is gone")
        return httpx.Response(200, content=ANSWER)

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        assert ScoringClient("http://x", http=http).get_online_features("s", [{"k": "a"}]).status == {"v__n": ["ok"]}
    assert len(tries) == 2


def test_every_try_of_a_request_for_scores_names_the_same_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    asked: list[str] = []

    def cut(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["request_id"])
        raise httpx.ReadError("it is gone")

    with httpx.Client(transport=httpx.MockTransport(cut)) as http:
        client = ScoringClient("http://x", http=http)
        for _ in range(2):
            with pytest.raises(errors.ServiceUnavailableError):
                client.score("m", [{"k": "a"}])
    assert len(asked) == 6
    assert asked[:3] == [asked[0]] * 3 != asked[3:] == [asked[3]] * 3


def test_what_stands_in_for_an_answer_has_the_ids_under_which_the_service_may_have_logged_its_own() -> None:
    asked: list[str] = []

    def late(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["request_id"])
        raise httpx.ReadTimeout("")

    async def ask() -> Any:
        async with httpx.AsyncClient(transport=httpx.MockTransport(late)) as http:
            return await AsyncScoringClient("http://x", http=http).score("m", [{"k": "a"}, {"k": "b"}], fallback=0)

    with httpx.Client(transport=httpx.MockTransport(late)) as http:
        found = [ScoringClient("http://x", http=http).score("m", [{"k": "a"}, {"k": "b"}], fallback=0.5), asyncio.run(ask())]
    assert [scores.score for scores in found] == [[0.5, 0.5], [0.0, 0.0]]
    assert [scores.prediction_id for scores in found] == [ids_from(first, 2) for first in asked]


def test_an_answer_that_is_late_is_said_to_be() -> None:
    def late(_: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("")

    with httpx.Client(transport=httpx.MockTransport(late)) as http:
        client = ScoringClient("http://user:pass@x:1", http=http)
        with pytest.raises(errors.ServiceUnavailableError, match=r"http://x:1 does not answer: no answer in time") as caught:
            client.get_online_features("s", [{"k": "a"}])
        assert "pass" not in str(caught.value)
        scores = client.score("m@challenger", [{"k": "a", "x": 1}, {"k": "b"}], fallback=0.1)
    assert (scores.score, scores.status, scores.model, scores.version) == ([0.1, 0.1], ["fallback"] * 2, "m", "")
    assert "no answer in time" in str(scores.reason[0])
    assert scores.to_dict()["x"] == [1, None]
    assert len(set(scores.prediction_id)) == 2


def test_an_async_call_ends_in_time_though_the_service_never_does() -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(never)) as http:
            await AsyncScoringClient("http://x", http=http, timeout=0.05).get_online_features("s", [{"k": "a"}])

    with pytest.raises(errors.ServiceUnavailableError, match="no answer in time"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "ftp://x", "http://", "http://x:1\n", "http://x y", "http://[::1", "http://x:y", "http://x:99999", "http://x?y"],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(errors.RequestError, match="no address of a service"):
        ScoringClient(url)


@pytest.mark.parametrize("client", [ScoringClient, AsyncScoringClient])
def test_patience_that_is_none_is_refused(client: Any) -> None:
    for timeout in (0, -1, None, "5", float("nan"), float("inf")):
        with pytest.raises(errors.RequestError, match="timeout is seconds for a call"):
            client("http://x", timeout=timeout)
    for retries in (-1, 1.5, None, "2"):
        with pytest.raises(errors.RequestError, match="retries is how often"):
            client("http://x", retries=retries)


def test_what_no_request_can_be_made_of_is_refused_before_it_is_sent() -> None:
    with ScoringClient("http://127.0.0.1:1") as client:
        for features in (5, None, [5], [["v"]], {"v"}):
            with pytest.raises(errors.RequestError, match="give the name of a service"):
                client.get_online_features(features, [{"k": "a"}])  # type: ignore[arg-type]
        with pytest.raises(errors.RequestError, match="no entity rows"):
            client.get_online_features("s", [])
        for fallback in ("never", float("nan"), True):
            with pytest.raises(errors.RequestError, match="fallback is"):
                client.score("m", [{"k": "a"}], fallback=fallback)  # type: ignore[arg-type]
        with pytest.raises(errors.RequestError, match="model is"):
            client.score("", [{"k": "a"}])
        for limit in (-1, "1", True, np.int64(1)):
            with pytest.raises(errors.RequestError, match="max_missing is"):
                client.score("m", [{"k": "a"}], max_missing=limit)  # type: ignore[arg-type]
        for asking in ({"entity_rows": [{"k": "\ud800"}]}, {"entity_rows": [{"\ud800": 1}]}, {"at": "\ud800"}, {"model": "\ud800"}):
            with pytest.raises(errors.RequestError, match="half of a surrogate pair"):
                client.score(**{"model": "m", "entity_rows": [{"k": "a"}], **asking})  # type: ignore[arg-type]
        with pytest.raises(errors.RequestError, match=r"row 0: 'k' is array\(\[1, 2\]\)"):
            client.score("m", [{"k": np.array([1, 2])}])


class Airport(str):
    """Text of a class of its own, in the way of enumerations before StrEnum."""

    __slots__ = ()


class Number(int):
    """Beside it."""


def test_text_and_numbers_of_classes_of_their_own_are_sent_by_their_value() -> None:
    assert json_rows([{"k": Airport("JFK"), "n": Number(2**60 + 1)}]) == [{"k": "JFK", "n": 2**60 + 1}]
    found = json_rows([{"k": Airport("JFK"), "n": Number(3)}])[0]
    assert [type(value) for value in found.values()] == [str, int]
    with pytest.raises(errors.ServiceAccessError, match="no HTTP header"):
        ScoringClient("http://x", api_key="a\nb")


def test_an_answer_with_more_than_this_client_knows_is_still_read() -> None:
    found = msgspec.json.decode(ANSWER[:-1] + b', "news": 1}', type=FeaturesAnswer)
    assert found.columns["v__n"] == [2**60 + 1]
