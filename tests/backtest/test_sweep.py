"""A sweep over freshness: what it finds where freshness matters, and that it says what it did."""

from __future__ import annotations

import polars as pl
import pytest

from tests.backtest.conftest import Walk
from tidemill.backtest import Backtest, Names, Plan, backtest
from tidemill.errors import ModelError, NotFoundError, RequestError

LINEAR = Plan(split=0.7, models=["logistic_regression"], freshness=["6h", "0s", "10m", "1d"])


@pytest.fixture(scope="module")
def found(walked: Walk) -> Backtest:
    return backtest(walked.store, walked.frame, "s", LINEAR)


def auc(found: Backtest, model: str = "logistic_regression") -> list[float]:
    return [p.scores[model]["auc"].estimate.value for p in found.points]


def test_the_metric_falls_as_what_decides_gets_unknown(found: Backtest) -> None:
    assert [p.age for p in found.points] == ["0s", "10m", "6h", "1d"]
    fresh, ten, six, day = auc(found)
    assert fresh > 0.9
    assert ten == fresh  # nothing happens in the ten minutes before a question
    assert fresh - 0.1 > six
    assert day < 0.65


def test_it_concludes_what_streaming_is_worth(found: Backtest) -> None:
    metric = found.points[3].scores["logistic_regression"]["auc"].difference
    assert metric is not None
    assert not metric.noise
    assert f"Streaming is worth {-metric.value:.3f} AUC over day-old features (95 % interval" in found.conclusion
    assert "The difference between 0s and 10m is within noise." in found.conclusion
    assert found.freshest.scores["logistic_regression"]["auc"].difference is None


def test_an_interval_holds_its_value_and_says_what_was_resampled(found: Backtest) -> None:
    for point in found.points:
        for score in point.scores["logistic_regression"].values():
            assert score.estimate.low is not None
            assert score.estimate.high is not None
            assert score.estimate.low < score.estimate.value < score.estimate.high
    assert found.blocks == "200 blocks of rows"  # four days are too few to draw days


def test_it_says_what_was_hypothetical_and_which_features_fade(found: Backtest) -> None:
    assert [p.hypothetical for p in found.points] == [
        None,
        "nothing newer than 10m is known",
        "nothing newer than 6h is known",
        "nothing newer than 1d is known",
    ]
    assert found.points[0].nulls["v__x_mean_2h"] == 0.0
    assert found.points[2].nulls["v__x_mean_2h"] == 1.0
    assert found.points[2].null_share == pytest.approx(1 / 7)  # of seven features, counts are never null
    assert found.left_out == {"v__at_last_1d": "Datetime(time_unit='us', time_zone='UTC')"}


def test_what_had_happened_is_hypothetical_at_any_freshness(walked: Walk) -> None:
    plan = Plan(split=0.7, models=["logistic_regression"], freshness=["0s", "6h"])
    by_event_time = backtest(walked.store, walked.frame, ["p"], plan)
    assert by_event_time.knowledge == {"p": "event_time"}
    assert [p.hypothetical for p in by_event_time.points] == [
        "p know what had happened, whether it had arrived or not",
        "p know what had happened, whether it had arrived or not; nothing newer than 6h is known",
    ]


def test_the_same_input_gives_the_same_result(walked: Walk, found: Backtest) -> None:
    assert backtest(walked.store, walked.frame, "s", LINEAR).to_dict() == found.to_dict()


def test_aged_values_were_computed_that_long_before_windows_and_all(walked: Walk) -> None:
    plan = Plan(split=0.7, models=["logistic_regression"], freshness=["0s", "6h"], aged="values")
    aged = backtest(walked.store, walked.frame, "s", plan)
    fresh, six = aged.points
    assert six.hypothetical == "values were computed 6h before the request"
    assert six.nulls["v__x_mean_2h"] < 0.1  # a window of two hours that ended six hours ago has its events
    assert auc(aged)[0] > auc(aged)[1] + 0.1
    assert fresh.hypothetical is None


def test_both_models_of_scikit_learn_are_tried_unless_one_is_named(walked: Walk) -> None:
    few = Plan(split=0.7, freshness=["0s", "1d"])
    both = backtest(walked.store, walked.frame, ["v:x_mean_2h"], few)
    assert both.models == ("logistic_regression", "hist_gradient_boosting")
    # At a day nothing is known, and a model that knows nothing predicts the mean, which ranks nobody.
    for model in both.models:
        fresh, day = auc(both, model)
        assert fresh > 0.85
        assert day == 0.5
        assert "no feature has a value" in both.points[1].warnings[model][0]


def test_a_number_is_a_regression(walked: Walk) -> None:
    frame = walked.frame.with_columns(label=pl.col("label").cast(pl.Float64) * 2.5)
    found = backtest(walked.store, frame, "s", Plan(split=0.7, freshness=["0s", "1d"], models=["ridge"]))
    assert found.kind == "regressor"
    fresh, day = (p.scores["ridge"]["rmse"] for p in found.points)
    assert fresh.estimate.value < day.estimate.value - 0.2
    assert day.difference is not None
    assert day.difference.value > 0
    assert "Streaming is worth" in found.conclusion
    assert "RMSE over day-old features" in found.conclusion
    assert found.positives is None


def test_columns_may_have_other_names_and_further_ones_are_kept_from_the_features(walked: Walk) -> None:
    frame = walked.frame.rename({"event_timestamp": "asked", "label": "won", "label_time": "told"}).with_columns(note=pl.lit("x"))
    plan = Plan(split=0.7, models=["logistic_regression"], freshness=["0s"], names=Names("asked", "won", "told"))
    found = backtest(walked.store, frame.to_pandas(), "s", plan)
    assert auc(found)[0] > 0.9
    assert found.conclusion.endswith("Only one freshness was tried: there is nothing to compare it with.")


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(split=0.7, freshness=[]), "no freshness is named"),
        (Plan(split=0.7, freshness=["soon"]), "freshness: 'soon' is not a duration"),
        (Plan(split=0.7, metric="rmse"), "there is no metric 'rmse' of two classes"),
        (Plan(split=0.7, models=["logistc_regression"]), "did you mean 'logistic_regression'?"),
        (Plan(split=0.7, models=["nowhere:make"]), "nowhere:make cannot be imported (No module named 'nowhere')"),
        (Plan(split=0.7, aged="both"), "aged is 'both'"),  # type: ignore[arg-type]
        (Plan(split=0.7, knowledge="all"), "knowledge is 'all'"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(walked: Walk, plan: Plan, said: str) -> None:
    with pytest.raises((RequestError, ModelError)) as caught:
        backtest(walked.store, walked.frame, "s", plan)
    assert said in str(caught.value)


def test_a_service_that_nobody_defined(walked: Walk) -> None:
    with pytest.raises(NotFoundError):
        backtest(walked.store, walked.frame, "delay", LINEAR)


def test_features_that_are_no_numbers_alone_are_refused(walked: Walk) -> None:
    with pytest.raises(RequestError, match="none of these features is a number"):
        backtest(walked.store, walked.frame, ["v:at_last_1d"], LINEAR)
