"""Many entities in one read: each is answered as if it were asked for alone, at whatever version it stands."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.aggregations.cases import CASES, Case, bundle
from tests.strategies import NOW, decoded, event, examples, windows
from tidemill.blocks import vector_of
from tidemill.kernel.bundle import Bundle
from tidemill.kernel.packed import trim
from tidemill.online.base import Cell
from tidemill.testing import identical
from tidemill.times import Window

#: More than are finalized one by one.
NAMES = [f"{i:02}" for i in range(12)]
#: Versions at which entities stand: nothing published; cuts of one partition, of two, and of more than the log has.
VERSIONS = ((0, {}), (1, {0: 1024}), (2, {0: 1024, 1: 2048}), (3, {0: 2048, 1: 2048, 4: 1024}))


def drawn_cells(data: st.DataObject, view: Bundle, case: Case, rng: Random) -> dict[int, list[Cell | None]]:
    """Per table the cells of NAMES: something published, and a tail of two partitions that the publication holds in part."""
    ws = tuple(view.windows)
    rows = data.draw(st.lists(event(case.schema, NOW, ws), max_size=25), "events")
    for row in rows:
        row["k"] = rng.choice(NAMES[:-1])  # of the last one nothing is stored
    version = {name: rng.choice(VERSIONS if rng.random() < 0.8 else VERSIONS[:1]) for name in NAMES}
    published: dict[tuple[int, str], bytes] = {}
    tails: dict[tuple[int, str], bytes] = {}
    for blobs, some in ((published, rows[::2]), (tails, rows[1::2])):
        for partition in (0, 1):
            own = some[partition::2]
            offsets = sorted(rng.sample(range(0, 4096, 128), len(own)))
            frame, _ = view.select(decoded(own, case.schema, offsets=offsets))
            for table, name, records in view.deltas(frame, NOW, partition, 1).get(0, []):
                blobs[table, name] = blobs.get((table, name), b"") + records
    out: dict[int, list[Cell | None]] = {}
    for i, table in enumerate(view.table_ids):
        cells: list[Cell | None] = []
        for name in NAMES:
            k, cut = version[name]
            some, tail = published.get((table, name), b"") if k else b"", tails.get((table, name), b"")
            cells.append(Cell(k, vector_of(cut).astype("<i8").tobytes(), some, tail) if some or tail else None)
        out[i] = cells
    return out


def trimmed(view: Bundle, table: int, cell: Cell | None) -> Cell | None:
    """The same without what its tail holds in vain, by the publisher's own rule: all of it is published."""
    if cell is None:
        return None
    vector = np.frombuffer(cell.vector, dtype="<i8").astype(np.int64)
    (tail,) = trim(view.tables[table], [cell.tail], cell.k, vector)
    return Cell(0, b"", cell.published + tail, b"")


@pytest.mark.parametrize("case", CASES, ids=str)
@examples(3)
@given(data=st.data(), rng=st.randoms(use_true_random=True))
def test_each_of_many_entities_is_answered_as_if_it_were_alone(case: Case, data: st.DataObject, rng: Random) -> None:
    view = bundle(case, data.draw(windows(), "windows"))
    cells = drawn_cells(data, view, case, rng)
    t = NOW + rng.choice((0, 1, 60_000_000))
    together = view.evaluate(t, cells)
    alone = [view.evaluate(t, {i: [column[e]] for i, column in cells.items()}) for e in range(len(NAMES))]
    plainly = [view.evaluate(t, {i: [trimmed(view, i, column[e])] for i, column in cells.items()}) for e in range(len(NAMES))]
    assert together.present == [one.present[0] for one in alone] == [one.present[0] for one in plainly]
    assert not together.present[-1]
    for aggregation in view.aggregations:
        for window in aggregation.windows:
            answers = together.values(aggregation, window)
            for found, one, plain in zip(answers, alone, plainly, strict=True):
                assert identical(found, one.values(aggregation, window)[0])
                assert identical(found, plain.values(aggregation, window)[0])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_entity_gets_no_answers(case: Case) -> None:
    view = bundle(case, (Window.parse("1h"), Window.parse("1d")))
    nothing = view.evaluate(NOW, {i: [] for i in range(len(view.tables))})
    assert nothing.present == []
    assert [nothing.values(a, w) for a in view.aggregations for w in a.windows] == [[], []]
