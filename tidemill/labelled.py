"""The labelled frame: what was asked about, when, what came of it, and when that became known. For training and for the backtest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.datasets.questions import TIMESTAMP, as_frame, instants, known_from
from tidemill.definitions import FeatureSet
from tidemill.errors import RequestError
from tidemill.models.manifest import Kind
from tidemill.times import from_micros, to_micros

Int64s: TypeAlias = npt.NDArray[np.int64]
Float64s: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Names:
    """The columns of a labelled frame that are neither keys nor request columns.

    `label_time`: None where a label is known at its row's own instant. `slices`: columns to report by.
    """

    timestamp: str = TIMESTAMP
    label: str = "label"
    label_time: str | None = "label_time"
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """The rows that have a label, in the frame's order.

    `asked`: keys, request columns and `event_timestamp`, and nothing that an answer must not see. `y` float64, `at` and `known` (the
    instants of the question, and of the label) int64 UTC microseconds; all of shape (n,). `slices`: the columns to report by.
    `unlabelled`: rows left out for a null label.
    """

    asked: pl.DataFrame
    slices: pl.DataFrame
    y: Float64s
    at: Int64s
    known: Int64s
    kind: Kind
    unlabelled: int

    def by_time(self) -> Labelled:
        """The same rows in the order of their instants."""
        order = np.argsort(self.at, kind="stable")
        slices = self.slices[order] if self.slices.width else self.slices
        return Labelled(self.asked[order], slices, self.y[order], self.at[order], self.known[order], self.kind, self.unlabelled)


def read_labelled(file: Path, wanted: FeatureSet) -> pl.DataFrame:
    """A labelled frame of a .parquet, .csv or .jsonl file. Keys that are text stay text in CSV ("0042"). Raises `RequestError`."""
    texts = {name: pl.String for name, kind in {**wanted.keys, **wanted.request}.items() if kind.name == "str"}
    try:
        match file.suffix:
            case ".parquet":
                return pl.read_parquet(file)
            case ".csv":
                names = pl.read_csv(file, n_rows=0).columns
                overrides = {name: kind for name, kind in texts.items() if name in names}
                return pl.read_csv(file, schema_overrides=overrides, try_parse_dates=True, infer_schema_length=None)
            case ".jsonl" | ".ndjson":
                return pl.read_ndjson(file, infer_schema_length=None)
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror or error}") from None
    except pl.exceptions.PolarsError as error:
        raise RequestError(f"{file} is not {file.suffix[1:]}: {(str(error).splitlines() or ['empty'])[0]}") from None
    raise RequestError(f"{file}: the name of a labelled frame must end in .parquet, .csv or .jsonl")


def prepare(given: Any, names: Names, wanted: FeatureSet, kind: Kind | None = None) -> Labelled:
    """The frame, checked and taken apart. `kind`: by default, what the labels look like.

    A row whose label is null (or NaN) is left out and counted. A label is not known before the question. Raises `RequestError`.
    """
    frame = as_frame(given)
    row_columns = {**wanted.keys, **wanted.request}
    telling = [names.label] if names.label_time is None else [names.label, names.label_time]
    needed = {names.timestamp: "the instant of each row", names.label: "the label", **dict.fromkeys(names.slices, "to report by")}
    for name, what in {**needed, **dict.fromkeys(telling[1:], _WHEN)}.items():
        if name not in frame.columns:
            raise RequestError(f"the labelled frame has no column {name!r}, {what}; it has {', '.join(frame.columns) or 'none'}")
    for name in telling:
        if name in row_columns:
            raise RequestError(
                f"{name!r} is a column that the features read, and the one that tells the label: no request knows it; rename one of them"
            )
    label = frame[names.label]
    labelled = label.is_not_null() & ~label.is_nan() if label.dtype.is_float() else label.is_not_null()
    rows = frame.filter(labelled)
    if rows.is_empty():
        raise RequestError(f"no row has a {names.label}: {len(frame):,} rows were given")
    asked = rows.select(*(n for n in frame.columns if n in row_columns and n != names.timestamp), pl.col(names.timestamp).alias(TIMESTAMP))
    at = instants(asked[TIMESTAMP]).to_numpy()
    y, found = _labels(rows[names.label], names.label, kind)
    known = at if names.label_time is None else _known(rows[names.label_time], names.label_time)
    early = known < at
    if early.any():
        row = int(early.argmax())
        raise RequestError(
            f"{int(early.sum()):,} labels are known before they are asked for, the first with {names.timestamp} "
            f"{from_micros(int(at[row])).isoformat()} and {names.label_time} {from_micros(int(known[row])).isoformat()}: there is "
            f"nothing to predict; correct {names.label_time}, or drop these rows"
        )
    return Labelled(asked, rows.select(names.slices), y, at, known, found, len(frame) - len(rows))


_WHEN = "the instant at which the label became known"


def _labels(column: pl.Series, name: str, kind: Kind | None) -> tuple[Float64s, Kind]:
    if not (column.dtype == pl.Boolean or column.dtype.is_numeric()):
        raise RequestError(f"{name} is a column of {column.dtype}: give booleans or 0 and 1 for two classes, or numbers for a regression")
    y = column.cast(pl.Float64).to_numpy()
    if not np.isfinite(y).all():
        raise RequestError(f"{name} holds {y[~np.isfinite(y)][0]}: give finite numbers, and null where there is no label")
    classes = bool(np.isin(y, (0.0, 1.0)).all())
    if kind == "classifier" and not classes:
        raise RequestError(f"{name} holds {y[~np.isin(y, (0.0, 1.0))][0]:g}: two classes are 0 and 1, or booleans")
    return y, kind or ("classifier" if classes else "regressor")


def _known(column: pl.Series, name: str) -> Int64s:
    if column.null_count():
        raise RequestError(
            f"{column.null_count():,} rows have a label and no {name}: say when each label became known, or leave the label null too"
        )
    known: Int64s = known_from(column, name).to_numpy()
    return known


@dataclass(frozen=True)
class Split:
    """A time split: which rows to train on and which to test on (indices, int64), and how many of the first have no label yet.

    Trained is on rows asked before `at` whose label was known by then, as a model trained at that instant would have been.
    """

    at: int
    train: Int64s
    test: Int64s
    unknown_yet: int


def split(rows: Labelled, where: str | float) -> Split:
    """Split at an instant (ISO 8601, UTC), or after a fraction of the rows, by their time. Raises `RequestError`.

    >>> import polars as pl
    >>> hours = np.array([0, 1, 2, 3])
    >>> rows = Labelled(pl.DataFrame(), pl.DataFrame(), np.array([0.0, 1, 0, 1]), hours, hours + np.array([0, 0, 5, 0]), "regressor", 0)
    >>> split(rows, 0.75).train.tolist(), split(rows, 0.75).test.tolist(), split(rows, 0.75).unknown_yet
    ([0, 1], [3], 1)
    """
    at = _instant(where, rows.at)
    before = rows.at < at
    known = rows.known <= at
    found = Split(at, np.flatnonzero(before & known), np.flatnonzero(~before), int((before & ~known).sum()))
    shown, first, last = (from_micros(int(t)).isoformat() for t in (at, rows.at.min(), rows.at.max()))
    if not before.any() or not len(found.test):
        side = "before" if not before.any() else "after"
        raise RequestError(f"no labelled row lies {side} the split, {shown}: they go from {first} to {last}; split between")
    if not len(found.train):
        raise RequestError(f"no label was known before the split, {shown}, of the {found.unknown_yet:,} rows asked before it: split later")
    if rows.kind == "classifier":
        for side, index in (("to train on", found.train), ("to test on", found.test)):
            if len(np.unique(rows.y[index])) == 1:
                raise RequestError(
                    f"all {len(index):,} labels {side} are {rows.y[index[0]]:g}, and a model of two classes needs both: split elsewhere "
                    f"than {shown}"
                )
    return found


def _instant(where: str | float, times: Int64s) -> int:
    wrong = RequestError(f"split is {where!r}: give an instant, such as 2013-09-01, or a fraction between 0 and 1, such as 0.75")
    try:
        fraction = float(where)
    except ValueError:
        try:
            return to_micros(where)  # type: ignore[arg-type]  # text, or float() would have taken it
        except ValueError:
            raise wrong from None
    if not 0 < fraction < 1:
        raise wrong
    return int(np.sort(times)[int(len(times) * fraction)])
