"""Scoring a run's entities, part by part, into Parquet: what takes memory is one part at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from tidemill.errors import HorizonError, StoreError
from tidemill.predictions.entities import ENTITY, Entities
from tidemill.predictions.runs import Part, Plan, RunFiles
from tidemill.predictions.scorer import MISSING, NONFINITE, Scored, Scorer
from tidemill.predictions.statistics import Statistics, of_part

Progress = Callable[[str, int, int], None]
ONLINE, HISTORY, AUTO = "online", "history", "auto"


def score_parts(
    files: RunFiles | None, scorer: Scorer, plan: Plan, entities: Entities, chunk: int, progress: Progress | None
) -> tuple[tuple[Part, ...], Statistics]:
    """Score the entities of a plan. A part that is there already is kept; without `files`, nothing is written.

    `chunk`: how many rows are read online and scored at a time.
    """
    if entities.rows.height != plan.rows:
        raise StoreError(
            f"run {plan.run} was planned for {plan.rows:,} entities, and {entities.rows.height:,} are found: the archive has changed; "
            f"score in a run with another --run"
        )
    parts: list[Part] = []
    statistics = Statistics()
    for number, first in enumerate(range(0, plan.rows, plan.part_rows)):
        rows = entities.rows[first : first + plan.part_rows]
        told = _telling(progress, f"score {plan.name}", first, plan.rows)
        there = files.part(number) if files is not None else None
        if there is None:
            frame = score_part(scorer, plan, rows, chunk, told)
            there = files.write(number, frame) if files is not None else (Part("", frame.height, 0, ""), frame)
        part, frame = there
        if frame[ENTITY].to_list() != rows[ENTITY].to_list():
            raise StoreError(f"{part.key} is of other entities than its run is planned for: score in a run with another --run")
        told(rows.height)
        parts.append(part)
        statistics = statistics + of_part(frame)
    return tuple(parts), statistics


def _telling(progress: Progress | None, what: str, before: int, total: int) -> Callable[[int], None]:
    return (lambda _: None) if progress is None else (lambda done: progress(what, before + done, total))


def score_part(scorer: Scorer, plan: Plan, rows: pl.DataFrame, chunk: int, told: Callable[[int], None]) -> pl.DataFrame:
    """The rows of a part: ids, keys, scores and the features behind them."""
    pieces = []
    for asked, features_from, scored in _scored(scorer, plan, rows, chunk, told):
        pieces.append(_framed(plan, asked, features_from, scored))
    return pl.concat(pieces, rechunk=True)


def _scored(
    scorer: Scorer, plan: Plan, rows: pl.DataFrame, chunk: int, told: Callable[[int], None]
) -> Iterator[tuple[pl.DataFrame, str, Scored]]:
    at, past = 0, plan.features_from == HISTORY
    while at < rows.height:
        told(at)
        # The history is read as a whole for every question, so it is asked as few as possible.
        asked = rows[at:] if past else rows[at : at + chunk]
        given = asked.select(plan.columns)
        try:
            scored = scorer.score_past(given, plan.at) if past else scorer.score(given.to_dicts(), plan.at)
        except HorizonError:
            if past or plan.features_from != AUTO:
                raise
            past = True  # the store has moved on, and will not come back
            continue
        yield asked, HISTORY if past else ONLINE, scored
        at += asked.height


def _framed(plan: Plan, rows: pl.DataFrame, features_from: str, scored: Scored) -> pl.DataFrame:
    finite = [s is None or math.isfinite(s) for s in scored.score]
    score = [s + 0.0 if fine and s is not None else None for s, fine in zip(scored.score, finite, strict=True)]
    said = [status if fine else NONFINITE for status, fine in zip(scored.status, finite, strict=True)]
    status = [MISSING if s is None and known != NONFINITE else known for s, known in zip(score, said, strict=True)]
    label = [None if s is None else _text(value) for s, value in zip(score, scored.label, strict=True)]
    return pl.DataFrame(
        [
            pl.Series("prediction_id", scored.ids, dtype=pl.String),
            *rows,
            pl.Series("score", score, dtype=pl.Float64),
            pl.Series("label", label, dtype=pl.String),
            pl.Series("status", status, dtype=pl.String),
            pl.repeat(features_from, rows.height, dtype=pl.String, eager=True).alias("features_from"),
            pl.repeat(plan.run, rows.height, dtype=pl.String, eager=True).alias("run"),
            pl.repeat(plan.at, rows.height, dtype=pl.Int64, eager=True).cast(pl.Datetime("us", "UTC")).alias("at"),
            *scored.features,
        ]
    )


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
