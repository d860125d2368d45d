"""The whole year, with many kills and late events: 100,000 (entity, instant) pairs, every value equal to brute force."""

from __future__ import annotations

import pytest

from tidemill.apps.examples.flights.audit import differences
from tidemill.apps.examples.flights.make_logs import Delivery
from tidemill.apps.examples.flights.replay import Plan, Replay
from tidemill.environment import Environment

PAIRS = 100_000
VIEWS = 6


@pytest.mark.soak
@pytest.mark.parametrize(("late", "seed"), [(0.02, 2013), (0.2, 7)])
def test_a_year_with_many_kills_is_served_equal_to_the_oracle(tmp_path, late, seed):
    delivery = Delivery(late=late, twice=late / 20, seed=seed)
    plan = Plan(delivery=delivery, instants=-(-PAIRS // VIEWS // 2), kills=15, ahead=8_000, seed=seed)
    outcome = Replay(tmp_path, plan).run()
    assert outcome.kills == plan.kills <= outcome.restarts
    compared, wrong = differences(outcome.answers, Environment.load(outcome.project).definitions, outcome.logs)
    assert wrong == []
    assert compared == len(outcome.answers) * 52
    assert sum(len(answer.positions) for answer in outcome.answers) >= PAIRS // 2
