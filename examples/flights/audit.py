"""The check: every value that was served, computed again from the raw log, by brute force.

An answer says from which positions of the log it was computed. So for every value there is a right one: the aggregation of the events
that lie before those positions, are of this entity, and have their event time in the window. Here that sentence is a mask over columns,
written for this example's logs and nothing else; it shares no code with what streams, folds and serves but the definition of a window
and HyperLogLog's estimate from its registers. The flights' numbers are whole minutes, so NumPy adds them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from tidemill.definitions import Definitions, Feature, FeatureView, OnDemand, Source, resolve_features
from tidemill.kernel.registers import PRECISION, estimate
from tidemill.times import from_micros, window_start

Positions = Mapping[int, int]
Array = npt.NDArray[Any]

#: What is served, and audited. Other services of the definitions may want more of a request than is asked with here.
SERVICE = "delay_v1"


@dataclass(frozen=True)
class Served:
    """One answer: for one row of keys and request columns at one instant (UTC microseconds), the values by column name.

    `positions`: by view, the offset per partition before which the view's events were known to the answer.
    """

    at: int
    row: Mapping[str, Any]
    positions: Mapping[str, Positions]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A value that is not the right one."""

    column: str
    served: Any
    right: Any
    answer: Served

    def __str__(self) -> str:
        where = f"{dict(self.answer.row)} at {from_micros(self.answer.at).isoformat()}, known: {dict(self.answer.positions)}"
        return f"{self.column}: served {self.served!r}, right {self.right!r}; {where}"


class RawLog:
    """All events of one source, read from its files below `logs`: the columns, and for each event its partition, offset and time."""

    def __init__(self, source: Source, logs: Path) -> None:
        schema = {name: pl.String() if kind.name == "timestamp" else kind.polars for name, kind in source.schema.items()}
        parts = []
        for folder in sorted(logs.glob(f"{source.name}/partition=*")):
            lines = pl.concat(pl.read_ndjson(file, schema=schema) for file in sorted(folder.iterdir()))
            parts.append(lines.with_row_index("_offset").with_columns(_partition=int(folder.name.removeprefix("partition="))))
        times = [name for name, kind in source.schema.items() if kind.name == "timestamp"]
        self.frame = pl.concat(parts).with_columns(pl.col(name).str.to_datetime(time_zone="UTC", time_unit="us") for name in times)
        self.columns = {name: self.frame[name].to_physical().to_numpy() for name in self.frame.columns}
        self.present = {name: self.frame[name].is_not_null().to_numpy() for name in self.frame.columns}
        self.time = self.columns[source.timestamp]
        self.event_id = self.columns[source.event_id]
        self._passing: dict[str, Array] = {}
        self._rows: dict[tuple[Any, ...], tuple[Array, Array]] = {}

    def rows_of(self, keys: Sequence[str], values: Sequence[Any]) -> tuple[Array, Array]:
        """The numbers of all events with these keys, and their times, in the order of time."""
        asked = (*keys, *values)
        if asked not in self._rows:
            masks = [(self.frame[key] == value).fill_null(False).to_numpy() for key, value in zip(keys, values, strict=True)]
            rows = np.flatnonzero(np.logical_and.reduce(masks))
            rows = rows[np.argsort(self.time[rows], kind="stable")]
            self._rows[asked] = rows, self.time[rows]
        return self._rows[asked]

    def passing(self, where: str | None) -> Array:
        """Whether each event passes an SQL condition; all do where there is none."""
        if where is None:
            return self.present["_offset"]
        if where not in self._passing:
            self._passing[where] = self.frame.select(pl.sql_expr(where).fill_null(False)).to_series().to_numpy()
        return self._passing[where]

    def known(self, rows: Array, positions: Positions) -> Array:
        """Which of these events lie before the positions."""
        before = np.array([positions.get(p, 0) for p in range(int(self.columns["_partition"].max()) + 1)])
        return self.columns["_offset"][rows] < before[self.columns["_partition"][rows]]

    def value(self, view: FeatureView, feature: Feature, key: Sequence[Any], at: int, positions: Positions) -> Any:
        """What a feature is, for the entity with this key, at an instant, to someone who knows the log up to these positions."""
        rows, times = self.rows_of(view.entity.keys, key)
        first, end = np.searchsorted(times, [window_start(at, feature.window), at])  # start <= time < at
        rows = rows[first:end]
        counts = self.known(rows, positions) & self.passing(view.where)[rows] & self.passing(feature.aggregation.where)[rows]
        if feature.aggregation.column is not None:
            counts &= self.present[feature.aggregation.column][rows]
        return self._aggregate(feature, rows[counts])

    def _aggregate(self, feature: Feature, rows: Array) -> Any:
        aggregation = feature.aggregation
        n = len(rows)
        if aggregation.function == "count":
            return n
        values = self.columns[aggregation.column or ""][rows]
        if aggregation.function == "sum":
            return _whole(values).sum().item()
        if n == 0:
            return None
        match aggregation.function:
            case "mean":
                return _whole(values).sum().item() / n
            case "stddev":
                total, squares = _whole(values).sum().item(), (_whole(values) ** 2).sum().item()
                return _root(Fraction(n * squares - total * total, n * (n - 1))) if n > 1 else None
            case "min":
                return values.min().item()
            case "max":
                return values.max().item()
            case "last" | "last_n":
                latest = rows[np.lexsort([values, self.event_id[rows], self.time[rows]])[::-1]]
                shown = [self._shown(aggregation.column or "", row) for row in latest[: aggregation.options().get("n", 1)]]
                return shown[0] if aggregation.function == "last" else shown
            case "quantile":
                return _middle_of_bucket(np.sort(values)[math.floor(Fraction(str(aggregation.options()["q"])) * (n - 1))].item())
            case "approx_count_distinct":
                return _distinct(set(values))
        raise ValueError(f"no feature of this example is a {aggregation.function}")

    def _shown(self, column: str, row: int) -> Any:
        return self.frame[column][int(row)]


def differences(served: Sequence[Served], definitions: Definitions, logs: Path, progress: Any = iter) -> tuple[int, list[Difference]]:
    """How many values were compared, and those that are not equal to the right ones. `progress` wraps the answers, one by one."""
    raw = {name: RawLog(source, logs) for name, source in definitions.sources.items()}
    compared, wrong = 0, []
    for answer in progress(served):
        right = right_values(answer, definitions, raw)
        compared += len(answer.values)
        wrong += [Difference(c, v, right[c], answer) for c, v in answer.values.items() if v != right[c] or type(v) is not type(right[c])]
    return compared, wrong


def right_values(answer: Served, definitions: Definitions, logs: Mapping[str, RawLog]) -> dict[str, Any]:
    """What should have been served, by column name: all features of the views read, and all on-demand features over them and the row."""
    right: dict[str, Any] = {}
    for name, positions in answer.positions.items():
        view = definitions.views[name]
        key = [answer.row[column] for column in view.entity.keys]
        for feature, declared in view.features.items():
            right[f"{name}__{feature}"] = logs[view.source.name].value(view, declared, key, answer.at, positions)
    for on_demand in resolve_features([*definitions.on_demands.values()], definitions).on_demands:
        values = {**answer.row, **right}
        if all(p.column in values for p in on_demand.parameters.values()):
            right[on_demand.column] = _on_demand(on_demand, values)
    return right


def _on_demand(on_demand: OnDemand, values: Mapping[str, Any]) -> Any:
    """The user's own function over the right values, of length 1."""
    (result,) = on_demand.evaluate({p.column: [values[p.column]] for p in on_demand.parameters.values()})
    return result


def _whole(values: Array) -> Array:
    whole = values.astype(np.int64)
    assert (whole == values).all(), "delays and air times are whole minutes"
    return whole


def _root(x: Fraction) -> float:
    """The square root to 100 digits, then rounded once."""
    context = Context(prec=100)
    return float(context.sqrt(context.divide(context.create_decimal(x.numerator), context.create_decimal(x.denominator))))


def _middle_of_bucket(value: float) -> float:
    """64 buckets to each power of two, and an answer is the middle of one: at most 1/128 off."""
    if value == 0:
        return 0.0
    mantissa, exponent = math.frexp(abs(value))  # in [1/2, 1)
    middle = (math.floor(mantissa * 128) + 0.5) / 128
    return math.copysign(math.ldexp(middle, exponent), value)


def _distinct(different: Iterable[str]) -> int:
    """Each value's hash names a register, and how long a run of zeros it has seen."""
    registers = np.zeros(1 << PRECISION, dtype=np.int64)
    for value in different:
        register, rank = _register(value)
        registers[register] = max(registers[register], rank)
    return estimate(np.bincount(registers, minlength=64 - PRECISION + 2).tolist())


_REGISTERS: dict[str, tuple[int, int]] = {}


def _register(value: str) -> tuple[int, int]:
    if value not in _REGISTERS:
        bits = f"{xxhash.xxh3_64_intdigest(value.encode()):064b}"
        rest = bits[PRECISION:]
        _REGISTERS[value] = int(bits[:PRECISION], 2), len(rest) - len(rest.lstrip("0")) + 1
    return _REGISTERS[value]
