"""On-demand features: Python functions over stored features and over what the request itself carries."""

from __future__ import annotations

import datetime as dt
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Real
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.definitions.names import check_name, suggestion
from tidemill.definitions.source import str_of_type
from tidemill.definitions.view import FeatureRef, FeatureView, Selection
from tidemill.errors import DefinitionError, RequestError
from tidemill.stable import digest
from tidemill.types import ColumnType

Function = Callable[..., Any]
Array = npt.NDArray[Any]


class RequestField(NamedTuple):
    """A column that the request brings."""

    name: str
    type: ColumnType

    @property
    def column(self) -> str:
        """The name of the column in the request."""
        return self.name


Input = FeatureRef | RequestField


@dataclass(frozen=True, init=False)
class Request:
    """The columns that a request brings along, with their types: `Request(distance=float, booked=Timestamp)`.

    >>> Request(distance=float).fields["distance"].name
    'float'
    """

    fields: Mapping[str, ColumnType]

    def __init__(self, **fields: object) -> None:
        if not fields:
            raise DefinitionError("Request() names no column: write Request(distance=float) or the like")
        types = {}
        for name, declared in fields.items():
            check_name(name, "a request column's name")
            try:
                types[name] = ColumnType.of(declared)
            except DefinitionError as error:
                raise DefinitionError(f"request column {name!r}: {error}") from None
        object.__setattr__(self, "fields", types)

    def __hash__(self) -> int:
        return hash(tuple(self.fields.items()))


@dataclass(frozen=True)
class OnDemand:
    """A function of stored features and request columns, as `on_demand` makes it. Calling it calls the function itself.

    `parameters` maps each parameter to what it is filled with, in order; `types` to its type. `views` are the views it reads, by name.
    `source_hash` is of the function's own text as it was when it was defined, not of what it calls.
    """

    name: str
    function: Function = field(repr=False)
    parameters: Mapping[str, Input]
    types: Mapping[str, ColumnType] = field(repr=False)
    views: Mapping[str, FeatureView] = field(repr=False)
    output: ColumnType
    source_hash: str
    description: str = ""

    def __hash__(self) -> int:
        return hash((self.name, self.function))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def column(self) -> str:
        """The name of the output column."""
        return self.name

    @property
    def refs(self) -> tuple[FeatureRef, ...]:
        """The stored features that it reads."""
        return tuple(dict.fromkeys(source for source in self.parameters.values() if isinstance(source, FeatureRef)))

    @property
    def request(self) -> dict[str, ColumnType]:
        """The request columns that it reads."""
        return {source.name: source.type for source in self.parameters.values() if isinstance(source, RequestField)}

    def evaluate(self, columns: Mapping[str, Sequence[Any] | Array]) -> list[Any]:
        """The values, one per row, as plain Python values of the type `output`; None for null.

        `columns` has the n values of each input under its `column` (`view__feature`, or the request column's name); None, NaN and NaT
        are null. What the function gets of them is said at `on_demand`; it gets copies. Whatever is not finite in its result is null.

        Raises `RequestError`, naming the function, when a column is missing or holds something of another type, when the function
        raises, and when it returns something other than n numbers that `output` can hold.
        """
        values = self._result(columns)
        return [self._output(value, row) for row, value in enumerate(values.tolist())]

    def evaluate_series(self, columns: Mapping[str, pl.Series]) -> pl.Series:
        """`evaluate` of many rows: the values as a series of the type `output`. Raises `RequestError`."""
        values = self._result(columns)
        if self.output.name == "float" and values.dtype.kind in "fiu":  # as `_output`, without a Python object per row
            numbers = values.astype(np.float64)
            return pl.Series(np.where(np.isfinite(numbers), numbers, np.nan)).fill_nan(None)
        return pl.Series([self._output(value, row) for row, value in enumerate(values.tolist())], dtype=self.output.polars)

    def check(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Raise `RequestError` for one of these columns that `evaluate` would not take. The function is not called."""
        for parameter, source in self.parameters.items():
            if source.column in columns:
                self._argument(source.column, columns[source.column], self.types[parameter])

    def _result(self, columns: Mapping[str, Sequence[Any] | Array | pl.Series]) -> Array:
        """What the function returned, as n numbers."""
        inputs = {}
        for parameter, source in self.parameters.items():
            if source.column not in columns:
                raise RequestError(f"on-demand feature {self.name!r} needs {source.column!r}, which the request does not have")
            inputs[parameter] = self._argument(source.column, columns[source.column], self.types[parameter])
        lengths = {len(array) for array in inputs.values()}
        if len(lengths) != 1:
            raise RequestError(f"on-demand feature {self.name!r} got columns of different lengths: {sorted(lengths)}")
        (n,) = lengths
        try:
            with np.errstate(all="ignore"):  # 0/0 is null by contract, not a warning
                result = self.function(**inputs)
        except Exception as error:
            raise RequestError(f"on-demand feature {self.name!r} failed: {type(error).__name__}: {error}") from error
        return self._numbers(result, n)

    def _argument(self, column: str, values: Sequence[Any] | Array | pl.Series, kind: ColumnType) -> Array:
        """Each value by itself, so that what a row's value becomes does not depend on the other rows."""
        if isinstance(values, pl.Series):
            if kind.numeric and values.dtype == kind.polars:  # as below, without a Python object per row
                return values.cast(pl.Float64).fill_null(math.nan).to_numpy().copy()
            values = values.to_list()
        null, read = _ARRIVES[kind.name]
        found: list[Any] = []
        for value in values:
            try:
                found.append(null if _is_null(value) else read(value, kind))
            except (TypeError, ValueError, OverflowError):
                what = f"column {column!r} must hold values of type {kind}; got {value!r} ({type(value).__name__})"
                raise RequestError(f"on-demand feature {self.name!r}: {what}") from None
        if kind.name == "timestamp":
            return np.array(found, dtype="datetime64[us]")
        # Not np.array: of lists that are of one length it makes a matrix.
        return np.fromiter(found, dtype=np.float64 if kind.numeric else object, count=len(found))

    def _numbers(self, result: Any, n: int) -> Array:
        """The n numbers that the function returned."""
        expected = f"on-demand feature {self.name!r} must return {n} numbers, one per row"
        if result is None:
            raise RequestError(f"{expected}; it returned None: is a `return` missing?")
        try:
            values = np.asarray(result)
        except ValueError:  # lists of different lengths
            values = np.array("")
        if values.dtype.kind not in "fiubO" or (values.dtype == object and not all(v is None or _is_number(v) for v in values.flat)):
            raise RequestError(f"{expected}; it returned something else ({type(result).__name__})")
        if values.shape != (n,):
            fix = "work on whole arrays, as in np.where(a > 0, b / a, 0.0)"
            raise RequestError(f"{expected}; it returned an array of shape {values.shape}: {fix}")
        return values

    def _output(self, value: Any, row: int) -> float | int | bool | None:
        """A returned number in the type of the output; None where it is not finite."""
        if value is None or not _is_finite(value):
            return None
        if self.output.name == "int":
            if value != int(value) or not -(2**63) <= value < 2**63:
                fix = "round it, as in np.floor(a), or declare output=float"
                raise RequestError(f"on-demand feature {self.name!r} returned {value!r} for row {row}, which is no 64-bit int: {fix}")
            return int(value)
        if self.output.name == "bool":
            if value not in (0, 1):
                fix = "compare it, as in a > 0, or declare output=float"
                raise RequestError(f"on-demand feature {self.name!r} returned {value!r} for row {row}, which is no bool: {fix}")
            return bool(value)
        return float(value)

    def spec(self) -> dict[str, Any]:
        """What the registry keeps of it: names and a hash. The function itself is code, and stays in the definitions file."""
        inputs = {
            parameter: str(source) if isinstance(source, FeatureRef) else {"request": source.name, "type": str_of_type(source.type)}
            for parameter, source in self.parameters.items()
        }
        return {
            "name": self.name,
            "inputs": inputs,
            "output": str_of_type(self.output),
            "source_hash": self.source_hash,
            "description": self.description,
        }


def on_demand(
    inputs: Sequence[FeatureView | Selection | Request], *, name: str | None = None, output: object = float
) -> Callable[[Function], OnDemand]:
    """Make a function an on-demand feature: its parameters are features of `inputs` and columns of the request.

    A parameter is named by a feature's short name where that is unique among the inputs, else `view__feature`, or by a request column.
    The function always gets NumPy arrays, of length 1 for one row, and returns as many numbers. An array is, of

    - int, float and bool: float64, with NaN for null (so an int is exact below 2^53);
    - timestamps: datetime64[us] in UTC, with NaT for null (a request may bring a datetime, ISO 8601 text or epoch numbers);
    - str: objects, each a str or None;
    - lists (of `last_n`): objects, each a list of Python values or None.

    A result is null where it is not finite. `output` is float, int or bool; a number that it cannot hold, such as 0.5 for int, is a
    `RequestError`. Raises `DefinitionError`.

    >>> @on_demand(inputs=[Request(city=str)], output=int)
    ... def letters(city):
    ...     return [None if c is None else len(c) for c in city]
    >>> letters.evaluate({"city": ["Rome", None]})
    [4, None]
    """
    if callable(inputs) and not isinstance(inputs, (list, tuple)):
        raise DefinitionError("on_demand needs its inputs: write @on_demand(inputs=[view, Request(distance=float)])")
    kind = ColumnType.of(output)
    if not kind.numeric:
        raise DefinitionError(f"on_demand: output is float, int or bool; got {kind}")

    def decorate(function: Function) -> OnDemand:
        what = "an on-demand feature's name (its function's, unless name= is given)"
        label = check_name(name or getattr(function, "__name__", None), what)
        choices = _Choices(label, inputs)
        parameters = {parameter: choices.match(parameter) for parameter in _parameters(label, function)}
        types = {parameter: choices.type_of(source) for parameter, source in parameters.items()}
        used = {source.view for source in parameters.values() if isinstance(source, FeatureRef)}
        views = {view: choices.views[view] for view in choices.views if view in used}
        return OnDemand(label, function, parameters, types, views, kind, _source_hash(function), inspect.getdoc(function) or "")

    return decorate


class _Choices:
    """What a parameter can be."""

    def __init__(self, label: str, inputs: Sequence[object]) -> None:
        self.label = label
        self.views: dict[str, FeatureView] = {}
        self.request: dict[str, ColumnType] = {}
        self.short: dict[str, set[Input]] = {}
        self.long: dict[str, Input] = {}
        for given in inputs if isinstance(inputs, (list, tuple)) else [inputs]:
            if isinstance(given, Request):
                self._add_request(given)
            elif isinstance(given, (FeatureView, Selection)):
                self._add_features(given)
            else:
                raise DefinitionError(f"on-demand feature {label!r}: an input is a view, view['feature'] or Request(...); got {given!r}")

    def _add_request(self, request: Request) -> None:
        for field_name, kind in request.fields.items():
            if self.request.setdefault(field_name, kind) != kind:
                both = f"{self.request[field_name]} and as {kind}"
                raise DefinitionError(f"on-demand feature {self.label!r}: request column {field_name!r} is declared as {both}")
            self.short.setdefault(field_name, set()).add(RequestField(field_name, kind))

    def _add_features(self, given: FeatureView | Selection) -> None:
        view = given.view if isinstance(given, Selection) else given
        if self.views.setdefault(view.name, view) != view:
            raise DefinitionError(f"on-demand feature {self.label!r}: two different views are named {view.name!r}")
        for ref in given.refs:
            self.short.setdefault(ref.feature, set()).add(ref)
            self.long[ref.column] = ref

    def match(self, parameter: str) -> Input:
        """The one input of this name. Raises `DefinitionError` listing the candidates."""
        found = self.short.get(parameter, set()) | ({self.long[parameter]} if parameter in self.long else set())
        if len(found) == 1:
            return next(iter(found))
        if found:
            names = sorted(f"{c.column} (of the request)" if isinstance(c, RequestField) else c.column for c in found)
            raise DefinitionError(
                f"on-demand feature {self.label!r}: parameter {parameter!r} could be {' or '.join(names)}; "
                "name it in full, or rename the request column"
            )
        raise DefinitionError(
            f"on-demand feature {self.label!r}: parameter {parameter!r} is no feature of its inputs and no request column; "
            f"{suggestion(parameter, [*self.short, *self.long])}"
        )

    def type_of(self, source: Input) -> ColumnType:
        """The type of the values that it brings; `list` for a feature of lists (last_n)."""
        if isinstance(source, RequestField):
            return source.type
        view = self.views[source.view]
        feature = view.features[source.feature]
        listed = feature.aggregation.compile(view.source.schema, view.source.event_id).listed
        return ColumnType("list") if listed else feature.type


def _parameters(label: str, function: Function) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise DefinitionError(
                f"on-demand feature {label!r}: parameter {parameter} names no feature; write each one out, without * and /"
            )
    if not parameters:
        raise DefinitionError(f"on-demand feature {label!r} takes no parameters: name the features and request columns that it reads")
    return [parameter.name for parameter in parameters]


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, (float, np.floating, np.datetime64, dt.datetime)) and bool(value != value))  # noqa: PLR0124 - NaN, NaT


def _is_number(value: Any) -> bool:
    return isinstance(value, (Real, Decimal, np.bool_))


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def _number(value: Any, _kind: ColumnType) -> float:
    if not _is_number(value):  # float() also reads text
        raise TypeError
    return float(value)


def _instant(value: Any, kind: ColumnType) -> np.datetime64:
    return np.datetime64(kind.instant(value), "us")


def _text(value: Any, _kind: ColumnType) -> str:
    if not isinstance(value, str):
        raise TypeError
    return str(value)


#: By type: what null becomes, and how any other value is read.
_ARRIVES: dict[str, tuple[Any, Callable[[Any, ColumnType], Any]]] = {
    "int": (math.nan, _number),
    "float": (math.nan, _number),
    "bool": (math.nan, _number),
    "timestamp": (np.datetime64("NaT"), _instant),
    "str": (None, _text),
    "list": (None, lambda value, _kind: list(value)),
}


def _source_hash(function: Function) -> str:
    """A hash of the function's text, or of its code where the text is not to be had."""
    try:
        return digest(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return digest(repr(_code(code)) if isinstance(code, CodeType) else repr(type(function)))


def _code(code: CodeType) -> tuple[object, ...]:
    """What a function's code does, without addresses and line numbers."""
    return code.co_code, code.co_names, tuple(_code(c) if isinstance(c, CodeType) else c for c in code.co_consts)
