"""The rows of a request: what callers hold them in, and the columns that on-demand features read of them.

Imports no frame library: clients over HTTP do without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tidemill.errors import RequestError

if TYPE_CHECKING:
    from tidemill.definitions import OnDemand

Rows = list[Mapping[str, Any]]


def _by_arrow(frame: Any) -> Rows:
    from tidemill.datasets.questions import as_frame  # the one place that knows what Arrow makes of pandas' objects

    return list(as_frame(frame).iter_rows(named=True))


def rows_of(entity_rows: Any, of_pandas: Callable[[Any], Rows] = _by_arrow) -> Rows:
    """Dicts, or the rows of a Polars, Arrow or pandas frame (by `of_pandas`). Raises `RequestError` for anything else.

    >>> rows_of([{"origin": "JFK"}, {"origin": "EWR"}])
    [{'origin': 'JFK'}, {'origin': 'EWR'}]
    """
    if hasattr(entity_rows, "to_pylist"):  # Arrow
        return list(entity_rows.to_pylist())
    if hasattr(entity_rows, "to_dicts"):  # Polars
        return list(entity_rows.to_dicts())
    if hasattr(entity_rows, "to_dict") and hasattr(entity_rows, "columns"):  # pandas
        return of_pandas(entity_rows)
    one = isinstance(entity_rows, (Mapping, str)) or not isinstance(entity_rows, Iterable)
    rows: list[Any] = [entity_rows] if one else list(entity_rows)
    wrong = [r for r in rows if not isinstance(r, Mapping)]
    if wrong or isinstance(entity_rows, Mapping):
        got = f"has {wrong[0]!r} in it" if wrong else "is one dict"
        raise RequestError(f"entity_rows {got}: give a list of dicts, such as [{{'origin': 'JFK'}}], or a frame")
    return rows


def request_columns(output: OnDemand, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The request columns that an on-demand feature reads. Raises `RequestError` for one that a row does not have."""
    columns: dict[str, list[Any]] = {}
    for name in output.request:
        missing = [i for i, r in enumerate(rows) if name not in r]
        if missing:
            raise RequestError(f"request row {missing[0]} has no {name!r}, which on-demand feature {output.name!r} needs")
        columns[name] = [r[name] for r in rows]
    return columns
