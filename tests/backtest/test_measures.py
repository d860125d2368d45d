"""Metrics equal scikit-learn's, whole and resampled; intervals cover what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, mean_absolute_error, roc_auc_score, root_mean_squared_error

from tests.strategies import examples
from tidemill.backtest.sweep import _estimate
from tidemill.measures import METRICS, Blocks, blocks, draws
from tidemill.times import DAY, HOUR

PEERS = {
    "auc": roc_auc_score,
    "log_loss": lambda y, p: log_loss(y, p, labels=[0, 1]),
    "brier": lambda y, p: brier_score_loss(y, p, labels=[0, 1]),
    "rmse": root_mean_squared_error,
    "mae": mean_absolute_error,
}
ROWS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.25 + 1e-12, 0.5, 0.9, 1.0]), st.integers(0, 3)), min_size=2, max_size=40
)


@pytest.mark.parametrize("name", PEERS)
@examples(60)
@given(rows=ROWS, data=st.data())
def test_a_metric_over_drawn_blocks_is_scikit_learns_over_the_rows_repeated(
    name: str, rows: list[tuple[bool, float, int]], data: st.DataObject
) -> None:
    y, p, of = (np.array(column) for column in zip(*rows, strict=True))
    metric = next(metrics[name] for metrics in METRICS.values() if name in metrics)
    drawn = np.array(data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4), "drawn"))
    repeated = np.repeat(np.arange(len(y)), drawn[of])
    (found,) = metric.of(y.astype(float), p, Blocks(of, 4, "")).over(drawn[np.newaxis].astype(float))
    if not len(repeated) or (name == "auc" and len(set(y[repeated])) < 2):
        assert np.isnan(found)
    else:
        assert found == pytest.approx(PEERS[name](y[repeated].astype(float), p[repeated]), rel=1e-12, abs=1e-12)


def test_blocks_are_days_or_several_days_or_pieces_of_a_short_period() -> None:
    at = np.arange(30 * 24) * HOUR + 7
    month = blocks(at)
    assert (month.count, month.text) == (30, "30 blocks of 1d")
    assert all(len(np.unique((at // DAY)[month.of == b])) == 1 for b in range(30))
    assert blocks(np.arange(700) * DAY).count <= 200
    short = blocks(at[::-1][:400])
    assert (short.count, short.text) == (200, "200 blocks of rows")
    assert np.bincount(short.of).tolist() == [2] * 200
    assert (np.diff(short.of) <= 0).all()  # in the order of time, whatever the order of the rows
    assert blocks(np.array([5, 5, 5])).count == 3


def test_every_draw_has_as_many_blocks_as_there_are_and_depends_on_the_seed_alone() -> None:
    drawn = draws(30, 50, 1)
    assert (drawn.sum(axis=1) == 30).all()
    assert np.array_equal(drawn, draws(30, 50, 1))
    assert not np.array_equal(drawn, draws(30, 50, 2))


def test_an_interval_covers_the_truth_about_as_often_as_it_says_where_days_are_alike_within() -> None:
    """Rows of one day share a bad or a good day: single rows drawn would cover far less."""
    dice = np.random.default_rng(11)
    days, rows = 60, 20
    of = np.repeat(np.arange(days), rows)
    by_rows = Blocks(np.arange(days * rows), days * rows, "")
    held = {"days": 0, "rows": 0}
    for _ in range(150):
        loss = dice.normal(0, 1, days)[of] + dice.normal(0, 1, days * rows)
        for name, chosen in (("days", Blocks(of, days, "")), ("rows", by_rows)):
            resampled = (
                METRICS["regressor"]["mae"].of(np.zeros(len(of)), np.maximum(loss + 10, 0), chosen).over(draws(chosen.count, 300, 5))
            )
            found = _estimate(0.0, resampled)
            assert found.low is not None
            assert found.high is not None
            held[name] += found.low <= 10 <= found.high
    assert held["days"] / 150 > 0.88
    assert held["rows"] / 150 < 0.6


def test_too_few_periods_that_have_the_metric_give_no_interval() -> None:
    assert _estimate(0.5, np.full(1000, np.nan)).low is None
    assert _estimate(0.5, np.full(1000, np.nan)).noise
