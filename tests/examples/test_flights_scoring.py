"""The scorer and the learner beside the stream, as `make demo-kafka` runs them: real processes, over files."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from tidemill.apps.examples.flights import demo
from tidemill.apps.examples.flights.make_logs import Delivery
from tidemill.apps.examples.flights.replay import Plan, Replay
from tidemill.apps.examples.flights.scoring import Scored, Season


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    plan = Plan(delivery=Delivery(last="2013-01-16"), instants=20, kills=0, hours=11, fold_days=3, torn=False)
    replay = Replay(tmp_path_factory.mktemp("scored"), plan)
    with Season(replay, "2013-01-09", every=5) as season:
        replay.run(season)
        return season.end()


def test_features_behind_the_scores_are_the_training_sets(scored: Scored) -> None:
    assert scored.different == []
    assert scored.features == 36 * scored.flights
    assert scored.flights > 200
    assert scored.unscored == 0


def test_the_learner_learns_on_the_way_and_the_scorer_takes_up_its_versions(scored: Scored) -> None:
    assert scored.learned > 100
    assert scored.versions > 1
    assert 0.6 < scored.auc < 1


def test_a_feature_that_is_not_the_training_sets_makes_the_demo_fail_and_is_shown(scored: Scored) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    assert demo.show_scored(console, scored) == 0
    assert demo.show_scored(console, replace(scored, different=["a of b: 1 was served, and a training set has 2"])) == 1
    assert "not equal: a of b" in screen.getvalue()
    assert demo.show_scored(console, replace(scored, learned=0)) == 1
    assert demo.show_scored(console, replace(scored, unscored=1)) == 1
