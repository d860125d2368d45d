"""Filters: the `where` of a view or an aggregation, an SQL expression over the columns of one event.

Polars parses the SQL. What it then means is narrowed here, so that a filter gives every replay, worker and batch job the same answer:

- Row by row and repeatable: no aggregates, window functions, subqueries, clocks or chance; and no logarithms, powers or sines,
  whose last bit differs between machines. What is not known to be such is refused.
- Never a stop: a value that a CAST cannot convert is null instead of an error.
- Three-valued logic: a comparison with null is null, and null is not true. NaN is null, also when the filter's own arithmetic makes it.
- Times are UTC. `at >= '2024-03-01'`, `at < '2024-03-01T12:00:00Z'`, `at > TIMESTAMP '2024-03-01 12:00:00'`, `at > DATE '2024-03-01'`,
  `BETWEEN` and `EXTRACT(hour FROM at)` work; naive text is read as UTC. Within IN, write `TIMESTAMP '...'`.

Polars' SQL has no schema at hand and no hook to say such things, so its expression is read as a tree (Polars' JSON form of it),
checked node by node against a short list, changed where needed, and read back. A node that is not on the list is an error, never passed on.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import polars as pl

from tidemill.definitions.names import suggestion
from tidemill.definitions.probes import probe_frame
from tidemill.errors import ExpressionError
from tidemill.times import to_micros
from tidemill.types import ColumnType

Node = Any  #: a piece of Polars' JSON

_COMPARISONS = {"Eq", "NotEq", "Lt", "LtEq", "Gt", "GtEq", "EqValidity", "NotEqValidity"}
_ARITHMETIC = {"Plus", "Minus", "Multiply", "Divide", "TrueDivide", "FloorDivide", "Modulus", "And", "Or", "Xor"}
#: Functions that look at one row only and give the same on every machine, by Polars' names for them.
_FUNCTIONS = {
    *("Boolean.IsNull", "Boolean.IsNotNull", "Coalesce", "FillNull"),
    *("Abs", "Sign", "Floor", "Ceil", "Negate", "MaxHorizontal", "MinHorizontal", "Pow.Sqrt", "ListExpr.Get"),
    *("Boolean.Not", "Boolean.IsIn", "Boolean.IsBetween", "Sql.IsIn", "Sql.Binary", "Sql.Round", "Sql.ToFloat"),
    *(f"StringExpr.{f}" for f in ("Uppercase", "Lowercase", "Titlecase", "LenChars", "LenBytes", "StartsWith", "EndsWith", "Contains")),
    *(f"StringExpr.{f}" for f in ("StripChars", "StripCharsStart", "StripCharsEnd", "StripPrefix", "StripSuffix", "Slice", "Head")),
    *(f"StringExpr.{f}" for f in ("Tail", "Find", "Replace", "Reverse", "ConcatHorizontal", "Split", "Strptime")),
    *(f"TemporalExpr.{f}" for f in ("Year", "IsoYear", "Quarter", "Month", "Week", "WeekDay", "OrdinalDay", "Day", "Hour", "Minute")),
    *(f"TemporalExpr.{f}" for f in ("Second", "Millisecond", "Microsecond", "Nanosecond", "Date", "Time", "OffsetBy", "ToString")),
    "TemporalExpr.TimeStamp",
}
_CLOCK = re.compile(r"\b(now\s*\(|current_timestamp\b|current_date\b|current_time\b|localtimestamp\b|localtime\b)", re.IGNORECASE)
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`")


@dataclass(frozen=True)
class Filter:
    """A row filter. Raises `ExpressionError`, with the text and the position where known, when it does not parse.

    >>> late = Filter("dep_delay > 15")
    >>> frame = pl.DataFrame({"dep_delay": [3.0, 20.0, None, float("nan")]})
    >>> frame.select(late.mask(frame)).to_series().to_list()
    [False, True, False, False]
    """

    sql: str
    _tree: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.sql, str):
            raise ExpressionError(f'a filter is SQL text, such as "amount > 15"; got {type(self.sql).__name__}')
        if not self.sql.strip():
            raise ExpressionError('the filter is empty: write a condition, such as "amount > 15", or leave `where` out')
        clock = _CLOCK.search(_QUOTED.sub(lambda quoted: " " * len(quoted[0]), self.sql))
        if clock:
            raise self._error("reads the clock, so that a replay would decide otherwise: compare with a fixed time instead", clock[0])
        try:
            parsed = pl.sql_expr(self.sql)
            tree = parsed.meta.serialize(format="json")
        except (pl.exceptions.PolarsError, ValueError) as error:
            reason = _first_line(error)
            token = re.search(r"found unexpected token '(.+?)'", reason)
            hint = "write one SQL condition, such as \"amount > 15 AND origin = 'JFK'\""
            raise self._error(f"does not parse ({reason}): {hint}", token[1] if token else None) from None
        object.__setattr__(self, "_tree", tree)

    def check(self, schema: Mapping[str, ColumnType]) -> None:
        """Raise `ExpressionError` unless this filter fits columns of these types."""
        self._compiled({column: declared.polars for column, declared in schema.items()})

    def columns(self, schema: Mapping[str, ColumnType]) -> tuple[str, ...]:
        """The columns that it reads, in the order of the text. Raises `ExpressionError`."""
        types = {column: declared.polars for column, declared in schema.items()}
        return tuple(dict.fromkeys(self._compiled(types).meta.root_names()))

    def mask(self, frame: pl.DataFrame | pl.LazyFrame) -> pl.Expr:
        """A Boolean expression over `frame`, true where an event passes, never null. Raises `ExpressionError` where columns do not fit.

        Times are `Datetime("us", "UTC")`, as `ColumnType.polars` gives them.
        """
        schema = frame.collect_schema() if isinstance(frame, pl.LazyFrame) else frame.schema
        return self._compiled(schema)

    def _compiled(self, schema: Mapping[str, pl.DataType]) -> pl.Expr:
        return _compile(self, tuple(schema.items()))

    def _error(self, problem: str, token: str | None = None) -> ExpressionError:
        once = token is not None and self.sql.count(token) == 1  # else its place is a guess
        place = f" at character {self.sql.find(token or '') + 1}" if once else ""
        text = self.sql if len(self.sql) <= 200 else self.sql[:200] + "..."
        return ExpressionError(f"where={text!r}{place}: {problem}")


@lru_cache(maxsize=1024)
def _compile(filter: Filter, schema: tuple[tuple[str, pl.DataType], ...]) -> pl.Expr:
    rewriter = _Rewriter(filter, dict(schema))
    try:
        tree = json.loads(filter._tree)
        expression = rewriter.condition(tree)
    except RecursionError:
        raise filter._error("is nested too deeply; use IN (...) for long lists") from None
    columns = expression.meta.root_names()
    if not columns:
        raise filter._error("names no column, so it would pass every event or none: compare a column with something")
    mask = expression.fill_null(False)
    _probe(filter, mask, {column: rewriter.schema[column] for column in columns})
    return mask


def _probe(filter: Filter, mask: pl.Expr, schema: dict[str, pl.DataType]) -> None:
    """Run the filter over awkward values, in other orders and batches too: it must neither raise nor look at other rows."""
    rows = probe_frame(schema)
    answer = mask.alias("pass")
    try:
        together = rows.select(answer)["pass"]
        backwards = rows.reverse().select(answer)["pass"].reverse()
        batched = pl.concat([rows[:1].select(answer), rows[1:].select(answer)])["pass"]
    except pl.exceptions.PolarsError as error:
        raise filter._error(f"cannot be computed for every event ({_first_line(error)})") from None
    if len(together) != len(rows) or not together.equals(backwards) or not together.equals(batched):
        raise filter._error("does not decide about each event by itself: a filter may only use the columns of one event")


class _Rewriter:
    """Checks a tree against a schema and gives it tidemill's meaning. Trees stay Polars' JSON until `condition` reads them back."""

    def __init__(self, filter: Filter, schema: dict[str, pl.DataType]) -> None:
        self.filter = filter
        self.schema = schema

    def condition(self, tree: Node) -> pl.Expr:
        """The Boolean expression. AND and OR are split first, so that long chains stay clear of the JSON reader's depth limit."""
        pieces = tree.get("BinaryExpr") if isinstance(tree, dict) else None
        if pieces and pieces["op"] in ("And", "Or"):
            left, right = self.condition(pieces["left"]), self.condition(pieces["right"])
            return left & right if pieces["op"] == "And" else left | right
        node = self.rewrite(tree)
        kind = self.type_of(node)
        if kind != pl.Boolean:
            raise self.filter._error(f'must be true or false, and is {_type_name(kind)}: compare it with something, such as "... > 0"')
        return _read(node)

    def rewrite(self, tree: Node) -> Node:
        kind: str
        body: Node
        kind, body = next(iter(tree.items())) if isinstance(tree, dict) else (tree, None)
        if kind == "Column":
            return self.column(body)
        if kind == "Literal":
            return self.literal(tree)
        if kind == "BinaryExpr":
            return self.binary(body)
        if kind == "Ternary":
            return {"Ternary": {part: self.rewrite(value) for part, value in body.items()}}
        if kind == "Cast":
            return {"Cast": {**body, "expr": self.without_nan(self.rewrite(body["expr"])), "options": "NonStrict"}}
        if kind == "Function":
            return self.function(body)
        refused = {
            "Agg": "uses an aggregate, which looks at many events",
            "Len": "counts rows, which looks at many events",
            "Over": "uses a window function, which looks at many events",
            "Explode": "makes several rows of one",
            "SubPlan": "holds a subquery",
            "Alias": "gives a result a name (AS), or compares with an array: leave the name out, and write IN (...)",
            "Selector": "selects several columns at once: name each column",
        }
        problem = refused.get(kind, f"uses {kind}, which is not known to decide about each event by itself")
        raise self.filter._error(f"{problem}; a filter may only use the columns of one event")

    def column(self, name: str) -> Node:
        if name.startswith("_POLARS_TMP"):
            raise self.filter._error("holds a subquery; a filter may only use the columns of one event")
        if name not in self.schema:
            raise self.filter._error(f"there is no column {name!r}; {suggestion(name, self.schema)}", name)
        kind = self.schema[name]
        if kind.is_float():
            return _write(pl.col(name).fill_nan(None))
        if isinstance(kind, pl.Datetime):
            return _write(pl.col(name).cast(pl.Datetime("us")))  # SQL's own literals have no zone: UTC on both sides
        return {"Column": name}

    def literal(self, tree: Node) -> Node:
        scalar = tree["Literal"].get("Scalar") if isinstance(tree["Literal"], dict) else None
        if isinstance(scalar, dict) and "Datetime" in scalar:
            moment = pl.select(_read(tree).dt.convert_time_zone("UTC").dt.replace_time_zone(None)).item()
            return _write(pl.lit(moment, dtype=pl.Datetime("us")))
        return tree

    def binary(self, body: Node) -> Node:
        operator = body["op"]
        if operator not in _COMPARISONS and operator not in _ARITHMETIC and operator not in ("LogicalAnd", "LogicalOr"):
            raise self.filter._error(f"uses the operator {operator}, which tidemill does not know")
        left, right = self.rewrite(body["left"]), self.rewrite(body["right"])
        if operator in _COMPARISONS:
            left, right = self.comparable(left, right)
        return {"BinaryExpr": {**body, "left": left, "right": right}}

    def comparable(self, left: Node, right: Node) -> tuple[Node, Node]:
        """Both sides in types that compare: text beside a time becomes a time, NaN becomes null."""
        kinds = self.type_of(left), self.type_of(right)
        if kinds[0].is_temporal() and _text_of(right) is not None:
            right = self.moment(right)
        elif kinds[1].is_temporal() and _text_of(left) is not None:
            left = self.moment(left)
        kinds = self.type_of(left), self.type_of(right)
        if pl.Null in kinds:
            raise self.filter._error("compares with NULL, which is never true: write IS NULL or IS NOT NULL")
        groups = _group(kinds[0]), _group(kinds[1])
        if groups[0] != groups[1]:
            fix = "compare values of one type, or TRY_CAST one"
            if "time" in groups:
                fix = "write the time as text, such as '2024-03-01T12:00:00Z'"
            raise self.filter._error(f"compares {_type_name(kinds[0])} with {_type_name(kinds[1])}: {fix}")
        return self.without_nan(left), self.without_nan(right)

    def function(self, body: Node) -> Node:
        name = _function_name(body["function"])
        if name not in _FUNCTIONS:
            raise self.filter._error(
                f"uses the function {name.rpartition('.')[2]}, which is not known to be the same for each event on every machine; "
                "known are arithmetic, comparisons, CASE, COALESCE, ABS, ROUND, SQRT, LIKE and the usual text and date functions"
            )
        function = body["function"]
        if name == "StringExpr.Strptime":
            kind, options = function["StringExpr"]["Strptime"]
            if options["format"] is None:
                raise self.filter._error(
                    "reads a time from text without its format, which Polars would guess from other rows: "
                    "give it, as in DATE(day, '%Y-%m-%d')"
                )
            function = {"StringExpr": {"Strptime": [kind, {**options, "strict": False}]}}
        # Of every function: to IN, BETWEEN, GREATEST, CONCAT and others NaN is a value, which null is not.
        inputs = [self.without_nan(self.rewrite(piece)) for piece in body["input"]]
        return {"Function": {**body, "input": inputs, "function": function}}

    def without_nan(self, node: Node) -> Node:
        computed = "Literal" not in node and self.type_of(node).is_float()
        return _write(_read(node).fill_nan(None)) if computed else node

    def moment(self, node: Node) -> Node:
        text = _text_of(node)
        try:
            return _write(pl.lit(to_micros(text or ""), dtype=pl.Datetime("us")))
        except ValueError:
            raise self.filter._error(f"{text!r} is not a time: write ISO 8601, such as '2024-03-01T12:00:00Z'", f"'{text}'") from None

    def type_of(self, node: Node) -> pl.DataType:
        try:
            expression = _read(node)
        except (pl.exceptions.PolarsError, ValueError):
            raise self.filter._error("holds a number too large for a float, or is nested too deeply: simplify it") from None
        try:
            return pl.LazyFrame(schema=self.schema).select(expression.alias("value")).collect_schema()["value"]
        except pl.exceptions.PolarsError as error:
            raise self.filter._error(f"does not fit the columns' types ({_first_line(error)})") from None


def _read(node: Node) -> pl.Expr:
    return pl.Expr.deserialize(io.StringIO(json.dumps(node)), format="json")


def _write(expression: pl.Expr) -> Node:
    return json.loads(expression.meta.serialize(format="json"))


def _text_of(node: Node) -> str | None:
    """The text of a string literal, else None."""
    scalar = node.get("Literal", {}).get("Scalar") if isinstance(node, dict) and isinstance(node.get("Literal"), dict) else None
    text = scalar.get("String") if isinstance(scalar, dict) else None
    return text if isinstance(text, str) else None


def _function_name(function: Node) -> str:
    """`"Abs"`, or `"StringExpr.Slice"` for a function of a family."""
    if isinstance(function, str):
        return function
    family, member = next(iter(function.items()))
    if isinstance(member, str):
        return f"{family}.{member}"
    inner = next(iter(member), None) if isinstance(member, dict) else None
    grouped = family.endswith("Expr") or family in ("Boolean", "Sql", "Pow", "Trigonometry", "Range")
    return f"{family}.{inner}" if grouped and inner else str(family)


def _group(kind: pl.DataType) -> str:
    """Types of one group compare with one another; booleans count as 0 and 1."""
    if kind.is_numeric() or kind == pl.Boolean:
        return "number"
    if kind in (pl.Datetime, pl.Date):
        return "time"
    return str(kind.base_type())


def _type_name(kind: pl.DataType) -> str:
    names: list[tuple[bool, str]] = [
        (kind.is_integer(), "int"),
        (kind.is_numeric(), "float"),
        (kind == pl.String, "str"),
        (kind == pl.Boolean, "bool"),
        (kind in (pl.Datetime, pl.Date), "timestamp"),
        (kind == pl.Null, "NULL"),
    ]
    return next((name for fits, name in names if fits), str(kind))


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 160 else line[:160] + "..."
