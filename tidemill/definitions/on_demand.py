"""On-demand features: Python functions over stored features and over what the request itself carries."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tidemill.definitions.names import check_name, suggestion
from tidemill.definitions.source import str_of_type
from tidemill.definitions.view import FeatureRef, FeatureView, Selection
from tidemill.errors import DefinitionError, RequestError
from tidemill.stable import digest
from tidemill.times import to_micros
from tidemill.types import ColumnType

Function = Callable[..., Any]
Array = npt.NDArray[Any]
Float64s = npt.NDArray[np.float64]


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

    def evaluate(self, columns: Mapping[str, Array]) -> Float64s:
        """The values, float64 of the columns' length n, NaN for null.

        `columns` has an array of length n under the `column` of each input: `view__feature`, or the request column's name. The
        function gets copies: numbers and booleans as float64 with NaN for null, timestamps as datetime64[us] with NaT, strings and
        lists as objects with None. Whatever is not finite in its result is null.

        Raises `RequestError`, naming the function, when a column is missing, when the function raises, and when it returns
        something other than n numbers.
        """
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
        return self._values(result, n)

    def _argument(self, column: str, values: Array, kind: ColumnType) -> Array:
        array = _numbers(values) if kind.numeric else _instants(values) if kind.name == "timestamp" else _objects(values)
        if array is None:
            raise RequestError(f"on-demand feature {self.name!r}: column {column!r} must hold values of type {kind}; got {values.dtype}")
        return array

    def _values(self, result: Any, n: int) -> Float64s:
        expected = f"on-demand feature {self.name!r} must return {n} numbers, one per row"
        if result is None:
            raise RequestError(f"{expected}; it returned None: is a `return` missing?")
        values = _numbers(result)
        if values is None:
            raise RequestError(f"{expected}; it returned something else ({type(result).__name__})")
        if values.shape != (n,):
            fix = "work on whole arrays, as in np.where(a > 0, b / a, 0.0)"
            raise RequestError(f"{expected}; it returned an array of shape {values.shape}: {fix}")
        values[~np.isfinite(values)] = np.nan
        return values

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
    The function always gets NumPy arrays, of length 1 for one row, and returns an array of the same length (`OnDemand.evaluate`).
    `output` is float, int or bool. Raises `DefinitionError`.
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


def _numbers(values: Any) -> Float64s | None:
    """Numbers, booleans and None as float64, in a fresh array; None where there is something else, such as text that looks like numbers."""
    try:
        array = np.asarray(values)
        return np.array(array, dtype=np.float64) if array.dtype.kind in "fiubO" else None
    except (TypeError, ValueError):
        return None


def _instants(values: Array) -> Array | None:
    """Instants as datetime64[us], UTC, with NaT for None, in a fresh array; None where there is something else."""
    try:
        if values.dtype != object:
            return np.array(values, dtype="datetime64[us]") if values.dtype.kind in "iM" else None
        return np.array([np.datetime64("NaT") if v is None else np.datetime64(to_micros(v), "us") for v in values], dtype="datetime64[us]")
    except (TypeError, ValueError):
        return None


def _objects(values: Array) -> Array:
    """An object array of the same length, also where the values are lists of one length, which NumPy would make a matrix of."""
    objects = np.empty(len(values), dtype=object)
    objects[:] = list(values)
    return objects


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
