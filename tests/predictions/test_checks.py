"""What warns of a run, and what blocks it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import RequestError
from tidemill.predictions.checks import NAMES, Limits, findings
from tidemill.predictions.scorer import STATUSES
from tidemill.predictions.statistics import PSI_BINS, Statistics, of_part, population_stability


def part(scores: list[float | None], status: list[str] | str = "ok") -> Statistics:
    said = [status] * len(scores) if isinstance(status, str) else status
    frame = pl.DataFrame({"score": scores, "status": said}, schema={"score": pl.Float64, "status": pl.String})
    return of_part(frame.with_columns(features_from=pl.lit("online")))


def found(now: Statistics, last: Statistics | None = None, frame: bool = True, **limits: float | str) -> list[tuple[str, bool]]:
    return [(f.check, f.blocks) for f in findings(now, last, Limits().changed(limits), frame=frame)]


numbers = st.floats(-1e6, 1e6) | st.none()
rows = st.lists(st.tuples(numbers, st.sampled_from(STATUSES)), max_size=40)


@given(left=rows, right=rows)
def test_statistics_of_parts_add_up_to_those_of_the_whole(
    left: list[tuple[float | None, str]], right: list[tuple[float | None, str]]
) -> None:
    def of(several: list[tuple[float | None, str]]) -> Statistics:
        return part([s for s, _ in several], [s for _, s in several])

    assert of(left) + of(right) == of(left + right) == of(right) + of(left)


def test_a_run_like_the_last_one_has_no_findings() -> None:
    scores = [float(s) for s in np.random.default_rng(0).beta(2, 5, 5000)]
    other = [float(s) for s in np.random.default_rng(1).beta(2, 5, 5000)]
    assert found(part(other), part(scores)) == []


def test_rows() -> None:
    assert found(Statistics()) == [("rows", True)]
    assert found(Statistics(), min_rows="off") == []
    assert found(part([0.5] * 4), part([0.5] * 10)) == [("shrink", False)]
    assert found(part([0.5] * 4), part([0.5] * 10), block_shrink=0.45) == [("shrink", True)]
    assert found(part([0.5] * 4), part([0.5] * 10), frame=False) == [], "as many as have changed"
    assert found(part([0.5] * 5), part([0.5] * 10)) == [], "the limit itself is allowed"


def test_nulls_and_coverage() -> None:
    nulls = [None] * 2 + [0.5] * 98
    assert found(part(nulls)) == [("nulls", False)]
    assert found(part([None] * 21 + [0.5] * 79, ["missing"] * 21 + ["ok"] * 79)) == [("nulls", True), ("coverage", False)]
    assert found(part([0.5] * 10, ["fallback"] * 6 + ["ok"] * 4)) == [("coverage", True)]
    assert found(part([0.5] * 10, ["fallback"] + ["degraded"] * 9)) == [], "nine tenths are just enough"
    assert found(part([None] + [0.5] * 999, ["nonfinite"] + ["ok"] * 999)) == [("nonfinite", True)]


def test_the_range() -> None:
    assert found(part([0.0, 1.0]), min_score=0, max_score=1) == []
    assert found(part([-1e-9, 1.5]), min_score=0, max_score=1) == [("range", True), ("range", True)]
    assert [f.check for f in findings(part([1.5]), None, Limits(), frame=True, range=(0.0, 1.0))] == ["range"]
    assert findings(part([1.5]), None, Limits(max_score=2.0), frame=True, range=(0.0, 1.0)) == [], "a limit that is set counts more"
    off = Limits().changed({"min_score": "off", "max_score": "off"})
    assert findings(part([-0.5, 1.5]), None, off, frame=True, range=(0.0, 1.0)) == [], "and so does one that is switched off"
    assert found(part([None], "missing"), max_score=1, block_nulls="off", warn_nulls="off", block_coverage="off", warn_coverage="off") == []


def test_drift() -> None:
    rng = np.random.default_rng(0)
    last = part(rng.beta(2, 5, 5000).tolist())
    assert found(part(rng.beta(2.5, 4.5, 5000).tolist()), last) == [("psi", False)]
    assert found(part(rng.beta(5, 2, 5000).tolist()), last) == [("psi", True)]
    assert found(part(rng.beta(5, 2, 999).tolist()), last, frame=False) == [], "too few scores to tell"
    assert found(part(rng.beta(5, 2, 999).tolist()), last, frame=False, psi_rows=100) == [("psi", True)]
    assert found(part([0.25] * 5000), part([0.25] * 5000)) == []
    assert found(part([0.75] * 5000), part([0.25] * 5000)) == [("psi", True)], "a model that says one thing only"


@given(after=st.lists(st.integers(-2, 11), min_size=1, max_size=300))
def test_the_index_is_that_of_its_formula(after: list[int]) -> None:
    """Ten scores were there before, each as often, so each is a bin; and there is one below them, and one above."""
    before = [i for i in range(PSI_BINS) for _ in range(7)]

    def shares(scores: list[int]) -> list[float]:
        counts = Counter(min(max(s, -1), PSI_BINS) for s in scores)
        return [(counts[i] + 0.5) / (len(scores) + 0.5 * (PSI_BINS + 2)) for i in range(-1, PSI_BINS + 1)]

    expected = sum((a - b) * math.log(a / b) for a, b in zip(shares(after), shares(before), strict=True))
    index = population_stability(part([2.0**i for i in before]), part([2.0**i for i in after]))
    assert index == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=300), st.lists(st.floats(-100, 100), min_size=1, max_size=300))
def test_the_index_is_0_of_the_same_and_never_less(before: list[float], after: list[float]) -> None:
    assert population_stability(part(list(before)), part(list(before))) == pytest.approx(0.0, abs=1e-12)
    assert population_stability(part(list(before)), part(list(after))) >= -1e-12


def test_limits_are_numbers_or_off() -> None:
    assert {getattr(Limits().changed({name: "off"}), name) for name in NAMES} == {None, -math.inf, math.inf}
    for wrong in ("nan", "inf", "", True, None, [1]):
        with pytest.raises(RequestError, match="give a number"):
            Limits().changed({"max_score": wrong})
    with pytest.raises(RequestError, match=r"there is no check 'max_scor'.*max_score"):
        Limits().changed({"max_scor": 1})
