"""Training: what is learned from, what it is compared with, and when it is promoted."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest

import tidemill as tm
from tests.models.conftest import COLUMNS, NOW
from tests.project import Folder
from tidemill.errors import ModelError, ModelRefusedError, RequestError
from tidemill.labelled import Labelled, split
from tidemill.measures import measure
from tidemill.models.training import Gates, train
from tidemill.times import HOUR, MINUTE, from_micros, to_micros

END = to_micros(NOW)


def labelled(count: int = 1200, seed: int = 0, noise: float = 1.0) -> pl.DataFrame:
    """Rows of the last three hours in random order; the label follows the amount, and is known a minute later."""
    rng = np.random.default_rng(seed)
    at = END - rng.integers(0, 3 * HOUR, count)
    amount = rng.lognormal(1, 0.5, count)
    label = (amount + rng.normal(scale=noise, size=count) > 2.7).astype(int)
    frame = pl.DataFrame({"k": [f"k{i}" for i in rng.integers(0, 6, count)], "amount": amount, "event_timestamp": at, "label": label})
    times = frame["event_timestamp"].cast(pl.Datetime("us", "UTC"))
    return frame.with_columns(times, known=times + pl.duration(minutes=1), size=pl.when(pl.col("amount") > 3).then(pl.lit("big")))


def trained(store: tm.FeatureStore, frame: Any = None, **options: Any) -> Any:
    return train(store, "m", labelled() if frame is None else frame, service="s", **{"label_time": "known", **options})


def weights(store: tm.FeatureStore, version: str) -> list[float]:
    """What a linear version has learned."""
    return [float(w) for w in store.models.load(f"m@{version}").predictor._weights]


def test_a_candidate_is_a_version_that_is_not_promoted_with_its_report(store: tm.FeatureStore) -> None:
    done = trained(store, slices=["size", "k"], by="ann", why="first try")
    found = store.models.manifest("m", "1")
    assert found == done.manifest
    assert store.models.aliases("m") == {}
    assert (found.kind, found.columns, found.classes) == ("classifier", COLUMNS, (0, 1))
    assert found.metrics["auc"] > 0.85
    assert found.data["rows"] == done.report["rows"]["train"]
    assert found.data["to"] < found.data["split"] == done.report["split"]
    report = json.loads(store.models.file("m", "1", "report.json") or b"")
    assert report == done.report
    text = (store.models.file("m", "1", "report.md") or b"").decode()
    for part in ("# m: a candidate for s", "| AUC |", "## By size", "| big |", "| null |", "## Gates", "there is no champion"):
        assert part in text
    assert store.models.journal("m").history()[0].by == "ann"


def test_what_it_learns_from_and_is_scored_with_is_what_was_served_at_each_instant(store: tm.FeatureStore) -> None:
    frame = labelled(60)
    done = trained(store, frame)
    store.models.promote("m", done.manifest.version)
    golden = json.loads(store.models.file("m", "1", "golden.json") or b"")
    at_split = to_micros(done.report["split"])
    test = frame.sort("event_timestamp", maintain_order=True).filter(pl.col("event_timestamp").cast(pl.Int64) >= at_split)
    rows = golden["rows"][3:]
    assert len(rows) == len(test)
    for row, expected, asked in zip(rows, golden["scores"][3:], test.iter_rows(named=True), strict=True):
        scores = store.score("m", [{"k": asked["k"], "amount": asked["amount"]}], at=asked["event_timestamp"])
        assert [scores.features.columns[c][0] for c in COLUMNS] == row
        assert scores.score[0] == pytest.approx(expected, abs=1e-12)


def test_the_split_is_by_time_and_no_label_is_known_before_its_time() -> None:
    rng = np.random.default_rng(5)
    at = np.sort(rng.integers(0, 1000, 500))
    known = at + rng.integers(0, 300, 500)
    rows = Labelled(pl.DataFrame(), pl.DataFrame(), (rng.random(500) > 0.5).astype(float), at, known, "classifier", 0)
    for where in (0.1, 0.5, 0.9, 0.75):
        found = split(rows, where)
        assert found.train.tolist() == [i for i in range(500) if at[i] < found.at and known[i] <= found.at]
        assert found.test.tolist() == [i for i in range(500) if at[i] >= found.at]
        assert len(found.train) + len(found.test) + found.unknown_yet == 500
    assert split(rows, from_micros(400).isoformat()).at == 400


def test_rows_whose_label_came_after_the_split_teach_nothing(store: tm.FeatureStore) -> None:
    frame = labelled().sort("event_timestamp")
    at = frame["event_timestamp"][800]
    late = pl.int_range(pl.len()).is_between(200, 500)
    honest = frame.filter(~late | (pl.col("event_timestamp") >= at))
    planted = frame.with_columns(
        label=pl.when(late).then(1 - pl.col("label")).otherwise(pl.col("label")),
        known=pl.when(late).then(pl.lit(at).dt.offset_by("1us")).otherwise(pl.col("known")),
    )
    for version in (trained(store, planted, split_at=at.isoformat()), trained(store, honest, split_at=at.isoformat())):
        assert version.manifest.version
    assert weights(store, "1") == weights(store, "2")
    assert trained(store, planted, split_at=at.isoformat(), label_time=None).report["rows"]["unknown_yet"] == 0
    assert weights(store, "3") != weights(store, "1")  # that the planted labels would have taught something


def test_events_after_the_instant_and_columns_of_the_frame_change_no_feature(folder: Folder, store: tm.FeatureStore) -> None:
    frame = labelled(300).filter(pl.col("event_timestamp") < from_micros(END - HOUR))
    trained(store, frame)
    late = [{"k": r["k"], "x": 1000.0 * r["label"], "at": from_micros(END - MINUTE).isoformat()} for r in frame.iter_rows(named=True)]
    folder.log(late, "b.jsonl")
    trained(store, frame.with_columns(x=pl.col("label") * 9.0, secret=pl.col("label")))
    assert weights(store, "1") == weights(store, "2")
    assert store.models.file("m", "1", "golden.json") == store.models.file("m", "2", "golden.json")


def test_metrics_are_those_of_the_textbook() -> None:
    rng = np.random.default_rng(2)
    y = (rng.random(200) > 0.6).astype(float)
    p = np.round(np.clip(y * 0.3 + rng.random(200) * 0.7, 0.01, 0.99), 1)
    found = measure("classifier", y, p)
    pairs = [(a > b) + (a == b) / 2 for a, b in product(p[y == 1], p[y == 0])]
    assert found["auc"] == pytest.approx(sum(pairs) / len(pairs))
    assert found["log_loss"] == pytest.approx(-np.mean(np.log(np.where(y == 1, p, 1 - p))))
    assert found["brier"] == pytest.approx(np.mean((y - p) ** 2))
    assert measure("classifier", np.ones(5), p[:5])["auc"] is None
    numbers = measure("regressor", y, p)
    assert numbers == {"rmse": pytest.approx(np.sqrt(np.mean((y - p) ** 2))), "mae": pytest.approx(np.mean(np.abs(y - p)))}


def test_slices_are_measured_each_by_itself(store: tm.FeatureStore) -> None:
    frame = labelled()
    done = trained(store, frame, slices=["k"])
    test = frame.filter(pl.col("event_timestamp").cast(pl.Int64) >= to_micros(done.report["split"]))
    counts = dict(test["k"].value_counts().iter_rows())
    assert {s["value"]: s["rows"] for s in done.report["slices"]["k"]} == counts
    (one,) = [s for s in done.report["slices"]["k"] if s["value"] == "k5"]  # never seen: all features null but the request's
    assert one["mean_label"] == pytest.approx(test.filter(pl.col("k") == "k5")["label"].mean())
    assert set(one["candidate"]) == {"auc", "log_loss", "brier"}


def test_the_candidate_is_compared_with_the_champion_on_the_same_rows(store: tm.FeatureStore) -> None:
    first = trained(store, labelled(noise=1.0), model="hist_gradient_boosting")
    store.models.promote("m", "1")
    second = trained(store)
    assert second.report["champion"] == "1"
    assert second.report["metrics"]["champion"] == pytest.approx(first.report["metrics"]["candidate"])
    assert set(second.report["metrics"]) == {"candidate", "champion", "naive"}
    assert second.report["metrics"]["naive"]["auc"] == 0.5
    assert "champion" in second.report["slices"] or second.report["slices"] == {}
    later = trained(store, split_at=0.3)
    assert any("that flatters it" in note for note in later.report["notes"])


def test_a_champion_of_another_service_is_asked_with_its_own_features(folder: Folder, store: tm.FeatureStore) -> None:
    text = (folder.path / "features.py").read_text().replace("import tidemill as tm\n", "")
    folder.define(
        text + '\nt = tm.FeatureService("t", features=[v["x_mean_1d", "count_1h"]])\n'.replace('["x', '[["x').replace('1h"]', '1h"]]')
    )
    store = tm.FeatureStore(folder.path)
    train(store, "m", labelled(), service="t", label_time="known")
    store.models.promote("m", "1")
    done = train(store, "m", labelled(), service="s", label_time="known")
    assert done.report["metrics"]["champion"]["auc"] < 0.65  # it does not see the amount
    back = train(store, "m", labelled(), service="t", label_time="known")
    assert back.report["champion"] == "1"


def test_a_champion_that_cannot_be_loaded_is_noted_and_stops_auto(store: tm.FeatureStore) -> None:
    trained(store)
    store.models.promote("m", "1")
    store.env.offline.write("models/m/1/model.skops", b"")
    done = trained(store, auto=Gates(min_rows=10))
    assert not done.promoted
    assert [g.name for g in done.gates if not g.passed] == ["comparison"]
    assert any("champion 1 could not be compared: " in n and "SHA-256" in n for n in done.report["notes"])


def test_auto_promotes_what_passes_every_gate_and_says_so_in_the_journal(store: tm.FeatureStore) -> None:
    noise = labelled().with_columns(label=pl.Series(np.random.default_rng(1).integers(0, 2, 1200)))
    assert not trained(store, noise, auto=Gates(min_rows=100)).promoted  # no better than nothing
    assert not trained(store, auto=Gates(min_rows=301)).promoted
    assert not trained(store, auto=Gates(min_rows=10, min_of_class=200)).promoted
    assert store.models.aliases("m") == {}
    first = trained(store, auto=Gates(min_rows=100), by="nightly")
    assert first.promoted
    entry = store.models.journal("m").history()[-1]
    assert (entry.version, entry.by) == ("4", "nightly")
    assert entry.why is not None
    assert entry.why.startswith("trained with --auto: 300 test rows, 100 needed; ")
    again = trained(store, auto=Gates(min_rows=100))  # the same model is no better than itself
    assert not again.promoted
    assert [g.name for g in again.gates if not g.passed] == ["auc"]
    assert trained(store, auto=Gates(min_rows=100, min_gain=0.0)).promoted


@pytest.mark.parametrize("model", [None, "ridge", "hist_gradient_boosting"])
def test_regressions_are_trained_measured_and_gated(store: tm.FeatureStore, model: str | None) -> None:
    frame = labelled().with_columns(label=pl.col("amount") * 2 + pl.col("label") * 0.1)
    done = trained(store, frame, model=model, auto=Gates(min_rows=100, min_gain=0.1))
    assert done.promoted
    assert done.manifest.kind == "regressor"
    assert set(done.report["metrics"]["candidate"]) == {"rmse", "mae"}
    assert done.report["metrics"]["candidate"]["rmse"] < 0.5 * done.report["metrics"]["naive"]["rmse"]
    assert "| RMSE |" in (store.models.file("m", "1", "report.md") or b"").decode()
    assert store.score("m", [{"k": "k1", "amount": 2.0}]).label == [None]


def test_an_estimator_that_takes_no_nulls_gets_medians_in_training_and_in_requests(folder: Folder, store: tm.FeatureStore) -> None:
    (folder.path / "mine.py").write_text(
        "from sklearn.ensemble import GradientBoostingClassifier\n\ndef make():\n    return GradientBoostingClassifier(n_estimators=5)\n"
    )
    done = trained(store, model="mine:make")
    assert set(done.manifest.fill) == set(COLUMNS)
    assert done.manifest.fill["v__x_mean_1d"] == pytest.approx(2.0, abs=1.0)
    store.models.promote("m", "1")
    assert store.score("m", [{"k": "never seen", "amount": 2.0}]).status == ["degraded"]


def test_rows_without_a_label_are_left_out_and_counted(store: tm.FeatureStore) -> None:
    frame = labelled().with_columns(label=pl.when(pl.int_range(pl.len()) % 4 == 0).then(None).otherwise(pl.col("label")))
    frame = frame.with_columns(known=pl.when(pl.col("label").is_null()).then(None).otherwise(pl.col("known")))
    done = trained(store, frame)
    assert done.report["rows"]["unlabelled"] == 300
    trained(store, frame.drop_nulls("label"))
    assert weights(store, "1") == weights(store, "2")


def test_a_training_set_that_no_request_could_have_seen_says_so(store: tm.FeatureStore) -> None:
    done = trained(store, freshness="1h")
    assert any("hypothetical" in n and "1h" in n for n in done.report["notes"])
    assert done.manifest.data["freshness"] == "1h"


def test_a_candidate_that_scores_nothing_finite_is_not_kept(store: tm.FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(untrained: Any, x: Any, y: Any, _: str) -> Any:
        fitted = untrained.fit(x, y)
        fitted[-1].coef_ = fitted[-1].coef_ * np.nan
        return fitted

    monkeypatch.setattr("tidemill.models.training.trainer._fit", diverged)
    with pytest.raises(ModelRefusedError, match="m scores nan on a golden row"):
        trained(store, labelled().with_columns(label=pl.col("amount")), auto=Gates(min_rows=1))
    assert store.models.names() == []


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda f: f.drop("label"), {}, "no column 'label', the label"),
        (lambda f: f.drop("event_timestamp"), {}, "no column 'event_timestamp'"),
        (lambda f: f, {"label_time": "nope"}, "no column 'nope', the instant at which"),
        (lambda f: f, {"slices": ["nope"]}, "no column 'nope', to report by"),
        (lambda f: f, {"label": "amount"}, "'amount' is a column that the features read"),
        (lambda f: f.with_columns(label=None), {}, "no row has a label"),
        (lambda f: f.with_columns(label=pl.lit("yes")), {}, "label is a column of String"),
        (lambda f: f.with_columns(label=pl.lit(float("inf"))), {}, "label holds inf"),
        (lambda f: f.with_columns(label=pl.lit(3)), {"kind": "classifier"}, "two classes are 0 and 1"),
        (lambda f: f.with_columns(label=pl.lit(1)), {}, "needs both"),
        (lambda f: f.with_columns(known=pl.col("event_timestamp") - pl.duration(seconds=1)), {}, "are known before they are asked for"),
        (lambda f: f.with_columns(known=None), {}, "have a label and no known"),
        (lambda f: f.with_columns(known=pl.lit(from_micros(END))), {}, "no label was known before the split"),
        (lambda f: f, {"split_at": "2020-01-01"}, "no labelled row lies before the split"),
        (lambda f: f, {"split_at": "2030-01-01"}, "no labelled row lies after the split"),
        (lambda f: f, {"split_at": "soon"}, "give an instant"),
        (lambda f: f, {"split_at": 1.5}, "a fraction between 0 and 1"),
        (lambda f: f.drop("amount"), {}, "no column 'amount', a request column"),
        (lambda f: f.with_columns(k=None), {}, "has no key 'k'"),
        (lambda f: f.head(0), {}, "no row has a label: 0 rows"),
        (lambda f: f.with_columns(label=pl.col("amount")), {"threshold": 0.3}, "threshold is of a classifier, and label holds numbers"),
    ],
)
def test_a_frame_that_cannot_be_used_says_why(store: tm.FeatureStore, change: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        trained(store, change(labelled()), **options)
    assert store.models.names() == []


@pytest.mark.parametrize("model", ["forest", "ridge", "nowhere:make", "mine:number", "mine:"])
def test_a_model_that_is_none_says_what_there_is(folder: Folder, store: tm.FeatureStore, model: str) -> None:
    (folder.path / "mine.py").write_text("number = 5\n")
    with pytest.raises((ModelError, ModelRefusedError), match=r"logistic|cannot be imported|name a function|import path"):
        trained(store, model=model)
