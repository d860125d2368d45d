"""Scoring in process: which score a row gets, and what is said of it."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import tidemill as tm
from tests.models.conftest import COLUMNS, fitted
from tests.project import Folder
from tidemill.errors import ModelError, NotFoundError, OverloadedError, RequestError, ScoringError, StoreUnavailableError

ROWS: list[dict[str, Any]] = [{"k": f"k{i % 5}", "amount": 0.5 + i} for i in range(20)]
KNOWN, UNKNOWN = {"k": "k1", "amount": 2.0}, {"k": "never seen", "amount": 2.0}


@pytest.fixture
def model(store: tm.FeatureStore) -> Any:
    """A champion named `m`."""
    model = fitted()
    store.models.register("m", model, service="s")
    store.models.promote("m", "1")
    return model


def callable_model(folder: Folder, store: tm.FeatureStore, body: str, **options: Any) -> None:
    """A champion named `m` that is a function of the matrix `x`."""
    (folder.path / "made.py").write_text(f"import numpy as np\n\ndef score(x):\n    {body}\n")
    store.models.register("m", "made:score", service="s", **options)
    store.models.promote("m", store.models.versions("m")[-1])


def test_a_score_is_the_models_of_the_features_that_an_online_read_returns(store: tm.FeatureStore, model: Any) -> None:
    scores = store.score("m", ROWS)
    features = store.get_online_features("s", ROWS)
    assert {c: scores.features.columns[c] for c in COLUMNS} == {c: features.columns[c] for c in COLUMNS}
    matrix = np.array([features.columns[c] for c in COLUMNS], dtype=float).T
    assert np.abs(model.predict_proba(matrix)[:, 1] - np.array(scores.score)).max() <= 1e-12
    assert scores.label == [int(p >= 0.5) for p in scores.score if p is not None]
    assert scores.status == ["ok"] * 20
    assert (scores.model, scores.version, scores.warning) == ("m", "1", None)
    assert scores.features.as_of.time is not None


@pytest.mark.usefixtures("model")
def test_rows_score_alone_as_they_do_in_a_batch(store: tm.FeatureStore) -> None:
    batch = store.score("m", ROWS)
    for i, row in enumerate(ROWS):
        alone = store.score("m", [row])
        assert alone.features.columns == {c: [v[i]] for c, v in batch.features.columns.items()}
        assert alone.score[0] == pytest.approx(batch.score[i], abs=1e-12)
        assert alone.score == store.score("m", [row]).score


@pytest.mark.usefixtures("model")
def test_frames_in_and_frames_out_keep_the_order_of_the_rows(store: tm.FeatureStore) -> None:
    frame = pl.DataFrame(ROWS)
    scores = store.score("m", frame)
    assert scores.to_polars().select("k", "amount").equals(frame)
    assert scores.to_polars()["score"].to_list() == scores.score == store.score("m", frame.to_pandas()).score  # type: ignore[arg-type]
    assert scores.to_df()["label"].tolist() == scores.to_dict()["label"] == scores.label
    assert scores.to_arrow().column_names == ["k", "amount", "prediction_id", "score", "label", "status", "reason", "model", "version"]


@pytest.mark.usefixtures("model")
def test_no_rows_have_no_scores(store: tm.FeatureStore) -> None:
    scores = store.score("m", [])
    assert (len(scores), scores.score, scores.version) == (0, [], "1")
    assert scores.to_polars().shape == (0, 9)


@pytest.mark.usefixtures("model")
def test_prediction_ids_are_sorted_uuids_of_version_7_and_never_come_twice(store: tm.FeatureStore) -> None:
    ids = [i for _ in range(50) for i in store.score("m", ROWS).prediction_id]
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)
    assert {uuid.UUID(i).version for i in ids} == {7}
    assert {uuid.UUID(i).variant for i in ids} == {uuid.RFC_4122}


@pytest.mark.usefixtures("model")
def test_a_request_that_is_made_again_makes_the_same_predictions(store: tm.FeatureStore) -> None:
    given = store.score("m", ROWS[:1]).prediction_id[0]
    first, second = (store.score("m", ROWS, request_id=given).prediction_id for _ in range(2))
    assert first == second
    assert first[0] == given
    assert len(set(first)) == len(ROWS)
    with pytest.raises(RequestError, match="request_id is 'mine': give a UUID"):
        store.score("m", ROWS, request_id="mine")


def test_missing_features_go_to_the_model_and_the_row_is_degraded(store: tm.FeatureStore, model: Any) -> None:
    scores = store.score("m", [KNOWN, UNKNOWN])
    assert scores.status == ["ok", "degraded"]
    given = [[0.0, 0.0, math.nan, math.nan, math.nan]]
    assert scores.score[1] == pytest.approx(model.predict_proba(given)[0, 1], abs=1e-12)
    assert scores.features.status["ratio"] == ["ok", "missing"]


@pytest.mark.usefixtures("model")
def test_a_fallback_is_the_score_of_rows_with_missing_features(store: tm.FeatureStore) -> None:
    scores = store.score("m", [KNOWN, UNKNOWN], fallback=0.75)
    assert (scores.score[1], scores.label[1], scores.status) == (0.75, 1, ["ok", "fallback"])
    assert scores.reason == [None, "5 of 5 features are missing, stale or overflown"]
    assert store.score("m", [UNKNOWN], fallback=0.75, max_missing=5).status == ["degraded"]
    alone = store.score("m", [UNKNOWN], max_missing=4)
    assert (alone.score, alone.label, alone.status) == ([None], [None], ["fallback"])
    with pytest.raises(ScoringError, match="row 1 has no score of m 1: 5 of 5"):
        store.score("m", [KNOWN, UNKNOWN], fallback="error")


def test_a_version_may_bring_its_own_fallback(store: tm.FeatureStore) -> None:
    store.models.register("m", fitted(), service="s", fallback=0.25, max_missing=2, threshold=0.1)
    store.models.promote("m", "1")
    assert store.score("m", [UNKNOWN]).to_dict()["score"] == [0.25]
    assert store.score("m", [UNKNOWN]).label == [1]
    assert store.score("m", [UNKNOWN], fallback=0.05).label == [0]


@pytest.mark.usefixtures("model")
def test_stale_features_are_degraded(folder: Folder, open_store: Callable[[], tm.FeatureStore]) -> None:
    folder.define((folder.path / "features.py").read_text().replace("aggregations=", 'max_lag="1m", aggregations='))
    store = open_store()  # max_lag is no part of what a number means, so the model goes on
    scores = store.score("m", [KNOWN], at="2026-05-01T18:00:00")
    assert scores.features.status["v__count_1d"] == ["stale"]
    assert scores.status == ["degraded"]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_score_that_is_not_finite_is_never_returned(folder: Folder, store: tm.FeatureStore, value: str) -> None:
    callable_model(folder, store, f"return np.where(x[:, 0] > 10, float('{value}'), 0.5)")
    assert store.score("m", [KNOWN, UNKNOWN]).score == [None, 0.5]
    scores = store.score("m", [KNOWN, UNKNOWN], fallback=0.1, max_missing=5)
    assert (scores.score, scores.status) == ([0.1, 0.5], ["fallback", "degraded"])
    assert scores.reason == [f"the model's score is {value}", None]
    with pytest.raises(ScoringError, match="the model's score is"):
        store.score("m", [KNOWN], fallback="error", max_missing=5)


def test_a_model_that_fails_is_an_error_or_the_fallback(folder: Folder, store: tm.FeatureStore) -> None:
    callable_model(folder, store, "return 1 / 0 if x[0, 0] > 10 else np.full(len(x), 0.5)")
    with pytest.raises(ModelError, match="m 1 failed: ZeroDivisionError"):
        store.score("m", [KNOWN])
    with pytest.raises(ModelError, match="m 1 failed: ZeroDivisionError"):
        store.score("m", [KNOWN], fallback="error")
    assert store.score("m", [KNOWN], fallback=0.5).reason == ["the model failed: m 1 failed: ZeroDivisionError: division by zero"]


def test_a_model_that_returns_another_shape_is_an_error(folder: Folder, store: tm.FeatureStore) -> None:
    callable_model(folder, store, "return np.full(len(x) + (x[0, 0] > 10), 0.5)")
    with pytest.raises(ModelError, match=r"returned scores of shape \(2,\) for 1 rows"):
        store.score("m", [KNOWN])


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"amount": 1.0}, "k"),
        ({"k": None, "amount": 1.0}, "k"),
        ({"k": 5, "amount": 1.0}, "k"),
        ({"k": "k1"}, "amount"),
        ({"k": "k1", "amount": "much"}, "amount"),
        ({"k": "k1", "amount": [1.0]}, "amount"),
        ("k1", "list of dicts"),
    ],
)
@pytest.mark.parametrize("fallback", [None, 0.5])
def test_a_row_that_is_wrong_is_a_clear_error_whatever_the_fallback(store: tm.FeatureStore, row: Any, error: str, fallback: Any) -> None:
    with pytest.raises(RequestError, match=error):
        store.score("m", [KNOWN, row], fallback=fallback)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("amount", [None, math.nan, math.inf, -math.inf, 1e308])
def test_a_request_column_that_is_null_or_not_finite_makes_a_null_feature(store: tm.FeatureStore, amount: Any) -> None:
    scores = store.score("m", [{"k": "k1", "amount": amount}])
    assert scores.features.columns["ratio"] == ([None] if amount != 1e308 else [1e308 / scores.features.columns["v__x_mean_1d"][0]])
    assert scores.score[0] is not None
    assert 0.0 <= scores.score[0] <= 1.0


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    "options", [{"fallback": "none"}, {"fallback": math.nan}, {"fallback": True}, {"max_missing": -1}, {"max_missing": 0.5}]
)
def test_options_that_are_none_are_refused(store: tm.FeatureStore, options: Any) -> None:
    with pytest.raises(RequestError, match=r"(fallback|max_missing) is"):
        store.score("m", [KNOWN], **options)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("name", ["n", "m@challenger", "m@9", "m@x", "m@", "@", "", 5, ["m"], "../m", "é", "a/b"])
def test_a_model_that_nobody_registered_is_an_error_that_says_what_there_is(store: tm.FeatureStore, name: Any) -> None:
    with pytest.raises(NotFoundError, match=r"there is no model 'n'|model 'm' has no|name a registered model"):
        store.score(name, [KNOWN])


def test_a_model_without_a_champion_says_how_to_promote_one(store: tm.FeatureStore) -> None:
    store.models.register("m", fitted(), service="s")
    with pytest.raises(NotFoundError, match="tidemill model promote m 1"):
        store.score("m", [KNOWN])


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("row", [{"k": "k1", "amount": "much"}, {"k": "k1"}, {"k": None, "amount": 1.0}], ids=["type", "column", "key"])
def test_a_wrong_request_is_wrong_whatever_the_fallback_and_while_the_store_is_away_too(
    store: tm.FeatureStore, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any]
) -> None:
    with pytest.raises(RequestError) as there:
        store.score("m", [row], fallback=0.5)

    def away(*_: object) -> None:
        raise StoreUnavailableError("nobody there")

    monkeypatch.setattr(store.env.online, "read", away)
    with pytest.raises(RequestError) as gone:
        store.score("m", [row], fallback=0.5)
    assert str(gone.value) == str(there.value)


@pytest.mark.usefixtures("model")
def test_the_online_store_that_is_away_is_an_error_or_the_fallback(store: tm.FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.score("m", [KNOWN])

    def away(*_: object) -> None:
        raise StoreUnavailableError("nobody there")

    monkeypatch.setattr(store.env.online, "read", away)
    for fallback in (None, "error"):
        with pytest.raises(StoreUnavailableError):
            store.score("m", [KNOWN], fallback=fallback)  # type: ignore[arg-type]
    scores = store.score("m", [KNOWN, UNKNOWN], fallback=0.5)
    assert (scores.score, scores.status) == ([0.5, 0.5], ["fallback"] * 2)
    assert scores.reason[0] == "the online store does not answer: nobody there"
    assert scores.features.status["ratio"] == ["missing"] * 2
    assert scores.to_dict()["k"] == ["k1", "never seen"]
    with pytest.raises(RequestError):
        store.score("m", [{"k": None}], fallback=0.5)


@pytest.mark.usefixtures("model")
def test_score_async_answers_as_score_does_and_many_at_once(store: tm.FeatureStore) -> None:
    async def several() -> list[tm.Scores]:
        return list(await asyncio.gather(*(store.score_async("m", [row]) for row in ROWS)))

    assert [s.score[0] for s in asyncio.run(several())] == [store.score("m", [row]).score[0] for row in ROWS]


@pytest.mark.usefixtures("model")
def test_score_async_refuses_more_than_may_wait(store: tm.FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.models.scorer.MAX_WAITING", 3)

    async def several() -> list[Any]:
        return list(await asyncio.gather(*(store.score_async("m", ROWS) for _ in range(30)), return_exceptions=True))

    answers = asyncio.run(several())
    refused = [a for a in answers if isinstance(a, OverloadedError)]
    assert 0 < len(refused) <= 27
    assert all(a.version == "1" for a in answers if a not in refused)
    assert asyncio.run(store.score_async("m", ROWS)).version == "1"  # and then there is room again


@pytest.mark.usefixtures("model")
def test_a_key_that_is_named_like_a_column_of_the_answer_is_not_lost(tmp_path: Path, store: tm.FeatureStore) -> None:
    scores = store.score("m", [KNOWN])
    renamed = type(scores)(**{**vars(scores), "features": scores.features, "_given": ("k",)})
    renamed.features.columns["model"] = ["boeing"]
    object.__setattr__(renamed, "_given", ("model", "k"))
    assert renamed.to_dict()["row_model"] == ["boeing"]
    assert renamed.to_dict()["model"] == ["m"]
