"""Where tiles may lie: against the rule of the design, written out tile by tile."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.strategies import NOW, edges, examples, horizons, times, windows
from tidemill.kernel.tiles import LIFETIME, RUNG_BITS, Ladder, span_of, span_starts, span_widths
from tidemill.times import BEGINNING, DAY, HOUR, MINUTE, RUNGS, SECOND, Window, floor_to, window_start

Windows = tuple[Window, ...]
HEAD = Window(0, 1)


def naive(windows: Windows, start: int, rung: int, horizon: int) -> int:
    """The span that the rule allows: the widest rung with every finer window wholly past the tile, or the lifetime tile."""
    finite = [w for w in windows if w.length is not None]
    end = start + RUNGS[rung]
    if all(end <= window_start(horizon, w) for w in finite or [HEAD]):
        return LIFETIME
    for wider in reversed(range(rung + 1, len(RUNGS))):
        if all(end <= window_start(horizon, w) for w in [*finite, HEAD] if w.hop < RUNGS[wider]):
            return span_of(floor_to(start, RUNGS[wider]), wider)
    return span_of(start, rung)


@examples(100)
@given(data=st.data(), windows=windows(), horizon=horizons(NOW))
def test_events_and_tiles_go_where_the_rule_says(data: st.DataObject, windows: Windows, horizon: int) -> None:
    ladder = Ladder(windows)
    at = data.draw(st.lists(times(horizon, windows) | times(NOW, windows), min_size=1), "times")
    assert ladder.place(np.array(at), horizon).tolist() == [naive(windows, t, 0, horizon) for t in at]
    rungs = data.draw(st.lists(st.integers(0, len(RUNGS) - 1), min_size=len(at), max_size=len(at)), "rungs")
    tiles = [(floor_to(t, RUNGS[r]), r) for t, r in zip(at, rungs, strict=True)]
    spans = np.array([span_of(*tile) for tile in tiles] + [LIFETIME])
    assert ladder.widen(spans, horizon).tolist() == [naive(windows, s, r, horizon) for s, r in tiles] + [LIFETIME]


@examples(100)
@given(data=st.data(), windows=windows(), horizon=horizons(NOW))
def test_no_read_that_is_served_can_tell_a_tile_from_its_events(data: st.DataObject, windows: Windows, horizon: int) -> None:
    ladder = Ladder(windows)
    at = np.array(data.draw(st.lists(times(horizon, windows), min_size=1), "times"))
    spans = ladder.place(at, horizon)
    for h in sorted(data.draw(st.lists(st.integers(horizon, NOW + HOUR), max_size=3), "later horizons")):
        spans, horizon = ladder.widen(spans, h), h
    starts = span_starts(spans)
    for t in (horizon, horizon + 1, horizon + SECOND, floor_to(horizon, DAY) + DAY, horizon + data.draw(st.integers(0, 40 * DAY), "later")):
        for window in windows:
            edge = window_start(t, window)
            assert ((starts >= edge) & (starts < t)).tolist() == ((at >= edge) & (at < t)).tolist(), window


@examples(60)
@given(data=st.data(), windows=windows(), horizon=horizons(NOW))
def test_widening_is_idempotent_and_never_narrows(data: st.DataObject, windows: Windows, horizon: int) -> None:
    ladder = Ladder(windows)
    at = np.array(data.draw(st.lists(times(horizon, windows), min_size=1), "times"))
    once = ladder.place(at, horizon)
    assert ladder.widen(once, horizon).tolist() == once.tolist()
    assert (span_starts(once) <= at).all()
    inside = once != LIFETIME
    assert (at < span_starts(once) + span_widths(once))[inside].all()


def test_spans_sort_by_start_and_the_lifetime_tile_comes_first() -> None:
    spans = [LIFETIME, span_of(-DAY, 7), span_of(-1, 0), span_of(0, 0), span_of(0, 7), span_of(1, 0)]
    assert spans == sorted(spans)
    assert LIFETIME >> RUNG_BITS == BEGINNING
    assert span_widths(np.array(spans)).tolist() == [0, DAY, 1, 1, DAY, 1]
    assert span_starts(np.array(spans)).tolist() == [BEGINNING, -DAY, -1, 0, 0, 1]


def test_only_a_lifetime_window_keeps_what_all_others_have_passed() -> None:
    spans = np.array([LIFETIME, span_of(0, 0)])
    assert Ladder([Window.parse("1h")]).keep(spans).tolist() == [False, True]
    assert Ladder([Window.parse("1h")]).keep(spans[1:]) is None
    assert Ladder([Window.parse("1h"), Window.parse("lifetime")]).keep(spans) is None
    assert Ladder(iter([Window.parse("lifetime")])).lifetime


#: Short enough that a test can put an event into every tile there is.
_LENGTHS = (1, 10, 61, 90, 600, 3600, 5400, 6 * 3600, 86_400, 90_000, 2 * 86_400)


@st.composite
def small_windows(draw: st.DrawFn) -> Windows:
    out = []
    for seconds in draw(st.lists(st.sampled_from(_LENGTHS) | st.integers(1, 2 * 86_400), min_size=1, max_size=4, unique=True)):
        widest = Window.parse(f"{seconds}s").hop
        out.append(Window(seconds * SECOND, draw(st.sampled_from([r for r in RUNGS if SECOND <= r <= widest]) | st.just(widest))))
    return (*out, *([Window.parse("lifetime")] if draw(st.booleans()) else []))


@examples(8)
@given(windows=small_windows(), data=st.data())
def test_no_tag_has_more_tiles_behind_the_head_than_plan_prints(windows: Windows, data: st.DataObject) -> None:
    ladder = Ladder(windows)
    longest = max(w.length or 0 for w in windows) + HOUR
    steps = st.sampled_from((0, 1, SECOND, 7 * SECOND, MINUTE, 31 * MINUTE, HOUR)) | st.integers(0, longest)
    horizon = NOW - data.draw(st.integers(0, DAY), "start")
    spans = np.zeros(0, dtype=np.int64)
    for _ in range(data.draw(st.integers(1, 4), "steps")):
        # One event in every second there is, and beside every edge: no tile stays empty.
        dense = np.arange(floor_to(horizon - longest - DAY, SECOND), horizon, SECOND)
        at = np.unique(np.concatenate([dense, np.array([e + d for e in edges(horizon, windows) for d in (-1, 0, 1)])]))
        arrived = ladder.place(at[at < horizon], horizon)
        spans = np.unique(np.concatenate([ladder.widen(spans, horizon), arrived]))
        kept = ladder.keep(spans)
        spans = spans if kept is None else spans[kept]
        assert len(spans) <= ladder.most_tiles()
        horizon += data.draw(steps, "later")
        assume(horizon < NOW + 30 * DAY)


@examples(200)
@given(data=st.data(), drawn=windows(), horizon=horizons(NOW))
def test_where_no_longer_window_has_a_finer_hop_tiles_hang_on_the_last_horizon_alone(
    data: st.DataObject, drawn: Windows, horizon: int
) -> None:
    """So that two engines whose batches differ write the same partials, row for row."""
    finite = sorted((w for w in drawn if w.length is not None), key=lambda w: w.length or 0)
    assume(all(a.hop <= b.hop for a, b in pairwise(finite)))
    ladder = Ladder(drawn)
    at = np.array(data.draw(st.lists(times(horizon, drawn), min_size=1), "times"))
    spans = ladder.place(at, horizon)
    for h in sorted(data.draw(st.lists(st.integers(horizon, NOW + HOUR), min_size=1, max_size=3), "later horizons")):
        spans, horizon = ladder.widen(spans, h), h
    assert spans.tolist() == ladder.place(at, horizon).tolist()
