"""A training set's answers are brute force, for every aggregation: whenever events became visible, and however rows are split."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.aggregations.cases import CASES, Case, bundle
from tests.strategies import NOW, decoded, edges, event, examples, windows
from tidemill.kernel.past import ENTITY, VISIBLE, Past, Rows
from tidemill.kernel.table import OVERFLOW
from tidemill.testing import identical
from tidemill.times import HOUR, MINUTE

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
@examples(8)
@given(data=st.data())
def test_at_every_row_the_answer_is_brute_force_over_what_was_visible(case: Case, data: st.DataObject) -> None:
    ws = data.draw(windows(), "windows")
    events = data.draw(st.lists(event(case.schema, NOW, ws, keys=["k"], ids=["id", "sid"]), max_size=14), "events")
    delays = st.sampled_from((1, 1, 2, MINUTE, HOUR, 48 * HOUR)) | st.integers(1, 40 * 24 * HOUR)
    visible = data.draw(st.lists(delays.map(int), min_size=len(events), max_size=len(events)), "delays")
    seen = [e["at"] + d for e, d in zip(events, visible, strict=True)]
    around = [t + d for t in (*seen, *(e["at"] for e in events)) for d in (-1, 0, 1)]
    instants = st.sampled_from([*edges(NOW, ws), *around])
    names = sorted({e["k"] for e in events} | {"never seen"})
    asked = data.draw(st.lists(st.tuples(st.sampled_from(names), instants), min_size=1, max_size=20), "rows")

    view = bundle(case, ws, data.draw(st.sampled_from((None, "id", "sid")), "event id"))
    found = answers(view, events, seen, names, asked, data.draw(st.sampled_from((1, 3, 100)), "rows at once"))
    for window, column in zip(view.windows, found, strict=True):
        for (name, t), got in zip(sorted(asked), column, strict=True):
            known = [e for e, s in zip(events, seen, strict=True) if e["k"] == name and s <= t]
            want = case.oracle(ws, window, known, t, view.event_id)
            assert identical(got, None if want is OVERFLOW else want), f"{window.name} of {name!r} at {t}: {got!r}, brute force: {want!r}"


def answers(
    view: Any, events: list[dict[str, Any]], seen: list[int], names: list[str], asked: list[tuple[str, int]], step: int
) -> list[list[Any]]:
    """A column per window, in the order of the rows sorted; asked for a few rows at a time."""
    number = {name: i for i, name in enumerate(names)}
    frame = decoded(events, view.schema).with_columns(
        pl.Series(ENTITY, [number[e["k"]] for e in events], dtype=pl.Int64), pl.Series(VISIBLE, seen, dtype=pl.Int64)
    )
    past = Past(view, frame.sort(ENTITY, "_time"), [(view.aggregations[0], w) for w in view.windows])
    rows = Rows(np.array([number[name] for name, _ in sorted(asked)]), np.array([t for _, t in sorted(asked)]))
    pieces = [past.ask(rows.part(i, min(i + step, len(rows)))) for i in range(0, len(rows), step)]
    return [[v for piece in pieces for v in piece[i].values.to_list()] for i in range(len(view.windows))]
