"""`tidemill dataset`: rows in, a training set out."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest


@pytest.fixture
def rows(project: Any) -> Any:
    """Two labelled rows beside a project with 1,500 events, half a second apart."""
    project.write("rows.csv", "label,card,event_timestamp,amount\n1,b,2026-01-05T00:00:10Z,3.0\n0,a,2026-01-05T00:00:10Z,3.0\n")
    return project


def test_each_row_gets_its_features_and_the_command_says_what_it_knew(rows: Any) -> None:
    ran = rows.run("dataset s --rows rows.csv --out train.parquet")
    assert ran.code == 0, ran.err
    assert "card: what had happened is known, whether it had arrived or not" in ran.out
    assert "wrote 2 rows to train.parquet, over 1,500 events read, in " in ran.out
    made = pl.read_parquet(rows.root / "train.parquet")
    assert made.columns == [
        "label",
        "card",
        "event_timestamp",
        "amount",
        "card__count_1h",
        "card__count_1d",
        "card__amount_sum_1d",
        "share",
    ]
    assert made["label"].to_list() == [1, 0]
    told = rows.run("dataset s --rows rows.csv --out train.parquet --freshness 5s --memory 10KiB --json").json
    assert (told["rows"], told["freshness"], told["knowledge"]) == (2, 5_000_000, {"card": "event_time"})
    assert told["parts"] >= 1
    older = pl.read_parquet(rows.root / "train.parquet")
    assert sum(older["card__count_1h"]) < sum(made["card__count_1h"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dataset s --rows no.csv --out t.parquet", "no.csv: there is no such file"),
        ("dataset nope --rows rows.csv --out t.parquet", "nope"),
        ("dataset s --rows rows.csv --out t.csv", "let the name end in .parquet"),
        ("dataset s --rows rows.csv --out t.parquet --memory much", "'much' is not a size"),
        ("dataset s --rows rows.csv --out t.parquet --knowledge all", "knowledge is 'all'"),
        ("dataset s --rows rows.csv --out t.parquet --freshness soon", "'soon' is not a duration"),
        ("dataset s --rows rows.csv --out t.parquet --knowledge arrival", "source 'tx' has no arrival times"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_line(rows: Any, line: str, said: str) -> None:
    assert said in rows.refused(line)
