"""The labelled frame: what was asked about, when, what came of it, and when that became known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.datasets.questions import TIMESTAMP, as_frame, instants, known_from
from tidemill.definitions import FeatureSet
from tidemill.errors import RequestError
from tidemill.models.manifest import Kind
from tidemill.models.predictor import Matrix
from tidemill.times import from_micros, to_micros

Instants = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """The rows that have a label, ordered by time.

    `asked`: keys, request columns and `event_timestamp`, and nothing else, so that no label can reach a feature. `slices`: the columns to
    report by. `y` float64, `at` and `known` int64 UTC microseconds, of shape (n,). `unlabelled`: rows left out for a null label.
    """

    asked: pl.DataFrame
    slices: pl.DataFrame
    y: Matrix
    at: Instants
    known: Instants
    kind: Kind
    unlabelled: int


@dataclass(frozen=True)
class Split:
    """Which rows to train on and which to test on, and how many rows before the split had no label by then."""

    at: int
    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    unknown_yet: int


def read_labelled(file: Path, wanted: FeatureSet) -> pl.DataFrame:
    """A labelled frame of a .parquet, .csv or .jsonl file. Keys that are text stay text in CSV ("0042"). Raises `RequestError`."""
    texts = {name: pl.String for name, kind in {**wanted.keys, **wanted.request}.items() if kind.name == "str"}
    try:
        match file.suffix:
            case ".parquet":
                return pl.read_parquet(file)
            case ".csv":
                names = pl.read_csv(file, n_rows=0).columns
                return pl.read_csv(file, schema_overrides={n: k for n, k in texts.items() if n in names}, infer_schema_length=None)
            case ".jsonl" | ".ndjson":
                return pl.read_ndjson(file, infer_schema_length=None)
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror or error}") from None
    except pl.exceptions.PolarsError as error:
        raise RequestError(f"{file} is not {file.suffix[1:]}: {(str(error).splitlines() or ['empty'])[0]}") from None
    raise RequestError(f"{file}: the name of a labelled frame must end in .parquet, .csv or .jsonl")


def prepare(given: Any, wanted: FeatureSet, *, label: str, label_time: str | None, slices: list[str], kind: Kind | None) -> Labelled:
    """The frame, checked and taken apart. Without `label_time` a label is known at its row's own instant. Raises `RequestError`."""
    frame = as_frame(given)
    row_columns = {**wanted.keys, **wanted.request}
    for name, what in {TIMESTAMP: "the instant of each row", label: "the label", **dict.fromkeys(slices, "to report by")}.items():
        _check(frame, name, what)
    if label_time is not None:
        _check(frame, label_time, "the instant at which the label became known")
    for name in [label] if label_time is None else [label, label_time]:
        if name in row_columns:
            raise RequestError(
                f"{name!r} is a column that the features read, and tells the label, which no request knows: rename one of them"
            )
    found = frame[label]
    has = found.is_not_null() & ~found.is_nan() if found.dtype.is_float() else found.is_not_null()
    rows = frame.filter(has)
    if rows.is_empty():
        raise RequestError(f"no row has a {label}: {len(frame):,} rows were given")
    at = instants(rows[TIMESTAMP]).to_numpy()
    known = at if label_time is None else _known(rows[label_time], label_time)
    early = np.flatnonzero(known < at)
    if len(early):
        row = int(early[0])
        raise RequestError(
            f"{len(early):,} labels are known before they are asked for, the first at {from_micros(int(known[row])).isoformat()} for "
            f"{from_micros(int(at[row])).isoformat()}: correct {label_time}, or drop these rows"
        )
    y, decided = _labels(rows[label], label, kind)
    order = np.argsort(at, kind="stable")
    ordered = rows[order]
    asked = ordered.select(n for n in frame.columns if n in row_columns or n == TIMESTAMP)
    return Labelled(asked, ordered.select(slices), y[order], at[order], known[order], decided, len(frame) - len(rows))


def split(rows: Labelled, where: str | float) -> Split:
    """At an instant (ISO 8601, UTC), or after a fraction of the rows by their time; rows of one instant stay together.

    Trained is on rows asked before it whose label was known before it, as a model trained at that instant would have been.
    Raises `RequestError`.
    """
    at = _split_at(where, rows.at)
    before = rows.at < at
    known = rows.known < at
    found = Split(at, np.flatnonzero(before & known), np.flatnonzero(~before), int((before & ~known).sum()))
    shown, first, last = (from_micros(int(t)).isoformat() for t in (at, rows.at.min(), rows.at.max()))
    if not before.any() or not len(found.test):
        side = "before" if not before.any() else "after"
        raise RequestError(f"no labelled row lies {side} the split, {shown}: they go from {first} to {last}; split between")
    if not len(found.train):
        raise RequestError(f"no label was known before the split, {shown}, of the {found.unknown_yet:,} rows asked before it: split later")
    if rows.kind == "classifier":
        for what, index in (("to train on", found.train), ("to test on", found.test)):
            if len(np.unique(rows.y[index])) == 1:
                raise RequestError(
                    f"all {len(index):,} labels {what} are {rows.y[index[0]]:g}, and both classes are needed: split elsewhere"
                )
    return found


def _check(frame: pl.DataFrame, name: str, what: str) -> None:
    if name not in frame.columns:
        raise RequestError(f"the labelled frame has no column {name!r}, {what}; it has {', '.join(frame.columns) or 'none'}")


def _labels(column: pl.Series, name: str, kind: Kind | None) -> tuple[Matrix, Kind]:
    if not (column.dtype == pl.Boolean or column.dtype.is_numeric()):
        raise RequestError(f"{name} is a column of {column.dtype}: give booleans or 0 and 1 for two classes, or numbers for a regression")
    y = column.cast(pl.Float64).to_numpy()
    if not np.isfinite(y).all():
        raise RequestError(f"{name} holds {y[~np.isfinite(y)][0]}: give finite numbers, and null where there is no label")
    two = np.isin(y, (0.0, 1.0))
    if kind == "classifier" and not two.all():
        raise RequestError(f"{name} holds {y[~two][0]:g}: two classes are 0 and 1, or booleans")
    return y, kind or ("classifier" if two.all() else "regressor")


def _known(column: pl.Series, name: str) -> Instants:
    if column.null_count():
        raise RequestError(
            f"{column.null_count():,} rows have a label and no {name}: say when it became known, or leave the label null too"
        )
    known: Instants = known_from(column, name).to_numpy()
    return known


def _split_at(where: str | float, times: Instants) -> int:
    wrong = RequestError(f"split is {where!r}: give an instant, such as 2013-09-01, or a fraction between 0 and 1, such as 0.75")
    try:
        fraction = float(where)
    except ValueError:
        try:
            return to_micros(str(where))
        except ValueError:
            raise wrong from None
    if not 0 < fraction < 1:
        raise wrong
    return int(times[int(len(times) * fraction)])
