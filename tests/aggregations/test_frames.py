"""Frames of tiles in Parquet: they come back as they were, and other engines add them up to the right totals."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from random import Random

import duckdb
import pandas as pd
import polars as pl
import pytest

from tests.aggregations.cases import CASES, Case, bundle, passes_filter
from tests.strategies import FLOATS, INTS, KEYS, NOW, TEXTS, Event, decoded
from tidemill.kernel.digits import to_int
from tidemill.kernel.fixed import Count, FixedTable, Max, Min, Moment, Squares, Sum
from tidemill.times import DAY, HOUR, MINUTE, Window, from_micros, to_micros

WINDOWS = tuple(map(Window.parse, ("10s", "1h", "25h", "lifetime")))
POOLS = {
    "float": FLOATS,
    "int": INTS,
    "str": TEXTS,
    "bool": (True, False),
    "timestamp": tuple(from_micros(NOW - i * HOUR) for i in range(9)),
}


def events(case: Case, n: int = 60) -> list[Event]:
    """The same awkward events every time."""
    rng = Random(case.name)
    pool = (None, *POOLS[case.kind])
    return [
        {
            "at": NOW - rng.choice((1, MINUTE, HOUR, 3 * DAY)) * rng.randrange(5),
            "k": rng.choice(KEYS),
            "v": rng.choice(pool),
            "w": rng.choice((None, 0, 1)),
            "id": rng.choice((None, 1, 2)),
            "sid": None,
        }
        for _ in range(n)
    ]


def frames(case: Case, rows: Sequence[Event]) -> list[list[pl.DataFrame]]:
    """Two folds with horizons of their own, a frame per table each."""
    view = bundle(case, WINDOWS, "id")
    half = len(rows) // 2
    return [view.fold(decoded(part, case.schema), horizon) for part, horizon in ((rows[:half], NOW), (rows[half:], NOW - DAY))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_frame_survives_parquet(case: Case, tmp_path: Path) -> None:
    view = bundle(case, WINDOWS, "id")
    for i, (table, *folds) in enumerate(zip(view.tables, *frames(case, events(case)), strict=True)):
        for name, frame in zip("ab", folds, strict=True):
            assert set(frame.columns) == {"k", "_span", *table.columns}
            frame.write_parquet(tmp_path / f"{i}{name}.parquet")
        back = pl.read_parquet(tmp_path / f"{i}*.parquet")
        assert back.equals(pl.concat(folds))
        packed, again = (view.pack(i, view.with_entities(view.merge(i, f, NOW)), tag=-1) for f in (pl.concat(folds), back))
        decode = [table.encode(table.merge_records(table.decode(blobs)), len(blobs)) for _, blobs in (packed, again)]
        assert packed[0] == again[0]
        assert decode[0] == decode[1]


_ADDS = {Min: "min", Max: "max"}
FIXED = [case for case in CASES if bundle(case, WINDOWS, "id").table_of(case.aggregation(WINDOWS)) == 0]


@pytest.mark.parametrize("case", FIXED, ids=str)
def test_duckdb_and_pandas_add_a_frame_up_to_the_right_totals(case: Case, tmp_path: Path) -> None:
    rows = events(case)
    view = bundle(case, WINDOWS, "id")
    assert isinstance(view.fixed, FixedTable)
    pl.concat(fold[0] for fold in frames(case, rows)).write_parquet(tmp_path / "tiles.parquet")
    adds = [f'{_ADDS.get(type(part), "sum")}("{column}")' for part in view.fixed.parts for column in part.columns]
    if case.kind == "timestamp":
        adds = [a if a.startswith("sum") else f"epoch_us({a})" for a in adds]  # as an instant it would come back in a zone
    (totals,) = duckdb.connect().execute(f"SELECT {', '.join(adds)} FROM '{tmp_path}/tiles.parquet'").fetchall()
    found = dict(zip(view.fixed.columns, totals, strict=True))
    plain = pd.read_parquet(tmp_path / "tiles.parquet")
    for part in view.fixed.parts:
        counted = [row for row in rows if part.where is None or passes_filter(row)]
        values = [row["v"] for row in counted if row["v"] is not None and row["v"] == row["v"]]
        if isinstance(part, Count):
            assert found[part.name] == plain[part.name].sum() == (len(counted) if part.column is None else len(values))
        elif isinstance(part, Min):
            extreme = max(values) if isinstance(part, Max) else min(values)
            assert found[part.name] == (to_micros(extreme) if case.kind == "timestamp" else extreme)
        else:
            bits = 0 if not part.floating else 60 if isinstance(part, Sum) else 30
            power = 2 if isinstance(part, Squares) else 1
            assert isinstance(part, (Sum, Moment, Squares))
            exact = sum(round(Fraction(v) * 2**bits) ** power for v in values)
            assert to_int([int(found[c]) for c in part.columns]) == exact
            assert to_int([int(plain[c].sum()) for c in part.columns]) == exact
