"""`tidemill get`: features of some entities, as a model would read them."""

from __future__ import annotations

import datetime as dt
import json as json_format
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from tidemill.cli.options import LOOK, JsonOption, ProjectOption, examples, project_directory
from tidemill.cli.output import Output
from tidemill.cli.shown import instant, shortened, span
from tidemill.errors import RequestError

if TYPE_CHECKING:
    from tidemill.answers import OnlineFeatures
    from tidemill.types import ColumnType

_STYLES = {"ok": "", "stale": "yellow", "missing": "dim", "overflow": "red"}
#: Entities side by side, at most; with more, each is a row.
_BESIDE = 4
_VALUE = 40


def register(app: typer.Typer) -> None:
    """Put `get` on the app."""
    text = examples(
        "tidemill get delay_v1 origin=JFK distance=2475",
        "tidemill get origin_departures:count_1h origin=JFK --at 2013-07-04T12:00:00Z",
        """tidemill get delay_v1 --row '{"origin": "JFK", "distance": 2475}' --row '{"origin": "EWR", "distance": 719}'""",
        "tidemill get delay_v1 --file airports.csv --json",
    )
    app.command(epilog=text, rich_help_panel=LOOK)(get)


def get(
    what: Annotated[
        list[str],
        typer.Argument(metavar="FEATURES KEY=VALUE", help="A service, views, view:feature; and the columns of one entity."),
    ],
    row: Annotated[list[str] | None, typer.Option("--row", metavar="JSON", help="An entity as a JSON object; may be repeated.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Entities in a .jsonl, .csv or .parquet file.")] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help="Read as of this instant (ISO 8601, UTC). Default: now.")] = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Read features of some entities, as they are served now, or as of an instant.

    A status other than ok is shown: stale (the stream is behind), missing (no events, or no backfill yet), overflow.

    JSON: at, as_of, rows; each row has entity, features, status, positions (per view, the offset per partition that its values are of).
    """
    from tidemill.client import FeatureStore
    from tidemill.definitions import resolve_features

    features = [text for text in what if "=" not in text]
    pairs = [text for text in what if "=" in text]
    if not features:
        raise typer.BadParameter("name a service, a view or view:feature first, then the keys")
    instant_at = _instant(at)
    store, out = FeatureStore(project_directory(project)), Output(json=json)
    requested = features[0] if len(features) == 1 else features
    wanted = resolve_features(requested, store.env.definitions)
    types = {**wanted.keys, **wanted.request}
    rows = [_row(text, types) for text in row or []]
    if file is not None:
        rows += _read(file, types)
    if pairs or not rows:
        rows.append(_entity_of(pairs, types))
    _complete(rows, types)
    try:
        answer = store.get_online_features(requested, rows, at=instant_at)
        columns = list(wanted.columns)
        out.document(_document(answer, columns, list(types), list(wanted.views)))
        if not json:
            _show(out, answer, columns, list(types))
    finally:
        store.close()


# ---- what was asked -------------------------------------------------------------------------------------------------------------


def _instant(text: str | None) -> int | None:
    from tidemill.times import to_micros

    if text is None:
        return None
    try:
        return to_micros(text)
    except ValueError:
        raise typer.BadParameter(f"--at {text!r} is not an instant: write ISO 8601, such as 2026-01-05T12:00:00Z") from None


def _value(name: str, text: str, types: Mapping[str, ColumnType]) -> Any:
    """The text of `name=text` in the type of its column."""
    kind = types.get(name)
    if kind is None:
        raise RequestError(f"these features have no key and no request column {name!r}; they take {', '.join(types)}")
    try:
        match kind.name:
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            case "timestamp":
                return dt.datetime.fromisoformat(text)
    except (ValueError, KeyError):
        raise RequestError(f"{name}={text}: {name} is of type {kind}, and this is none") from None
    return text


def _entity_of(pairs: Sequence[str], types: Mapping[str, ColumnType]) -> dict[str, Any]:
    """One row of all `name=text` together."""
    row: dict[str, Any] = {}
    for name, _, text in (pair.partition("=") for pair in pairs):
        if name in row:
            raise typer.BadParameter(f"{name} is given twice, and NAME=VALUE are of one entity: write --row once for each of several")
        row[name] = _value(name, text, types)
    return row


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises `ValueError` for a name that it has twice: one of the two values would not count."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is given twice")
    return row


def _row(text: str, types: Mapping[str, ColumnType]) -> dict[str, Any]:
    try:
        row = json_format.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        raise RequestError(f"--row {shortened(text, 60)} is no row in JSON: {error}") from None
    if not isinstance(row, dict):
        raise RequestError(f'--row {shortened(text, 60)} is not a JSON object: write it as {{"{next(iter(types), "key")}": ...}}')
    return _typed(row, types, "--row")


def _typed(row: Mapping[str, Any], types: Mapping[str, ColumnType], where: str) -> dict[str, Any]:
    """JSON has no instants: text in their place is read."""
    unknown = [name for name in row if name not in types]
    if unknown:
        raise RequestError(f"{where}: these features have no key and no request column {unknown[0]!r}; they take {', '.join(types)}")
    times = {n: _value(n, v, types) for n, v in row.items() if types[n].name == "timestamp" and isinstance(v, str)}
    return {**row, **times}


def _read(file: Path, types: Mapping[str, ColumnType]) -> list[dict[str, Any]]:
    """The rows of a file, of which only the columns that are needed count."""
    import polars as pl

    try:
        match file.suffix:
            case ".jsonl" | ".ndjson":
                # Not splitlines: text in JSON may hold what Unicode calls an end of line.
                rows = [_object(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
                return [_typed({n: v for n, v in row.items() if n in types}, types, str(file)) for row in rows]
            case ".csv":
                frame = pl.read_csv(file, infer_schema=False)
                texts = frame.select(name for name in frame.columns if name in types).iter_rows(named=True)
                return [{n: None if v is None else _value(n, v, types) for n, v in row.items()} for row in texts]
            case ".parquet":
                frame = pl.read_parquet(file)
                return list(frame.select(name for name in frame.columns if name in types).iter_rows(named=True))
    except OSError as error:
        raise RequestError(f"--file {file} cannot be read: {error.strerror or error}") from None
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise RequestError(f"--file {file} is not {file.suffix[1:]}: {str(error).splitlines()[0]}") from None
    raise typer.BadParameter(f"--file {file}: the name must end in .jsonl, .csv or .parquet")


def _object(line: str) -> dict[str, Any]:
    row = json_format.loads(line, object_pairs_hook=_once)
    if not isinstance(row, dict):
        raise ValueError("every line must be a JSON object")  # noqa: TRY004 - as what is no JSON at all
    return row


def _complete(rows: Sequence[Mapping[str, Any]], types: Mapping[str, ColumnType]) -> None:
    """Every row has every column. Raises `RequestError` that says how to give what is missing."""
    for number, row in enumerate(rows):
        missing = [name for name in types if name not in row]
        if missing:
            where = "" if len(rows) == 1 else f"row {number}: "
            needed = ", ".join(f"{name} ({types[name]})" for name in missing)
            raise RequestError(f"{where}these features also need {needed}: add {' '.join(f'{name}=...' for name in missing)}")


# ---- what was answered ----------------------------------------------------------------------------------------------------------


def _document(answer: OnlineFeatures, columns: Sequence[str], given: Sequence[str], views: Sequence[str]) -> dict[str, Any]:
    count = len(next(iter(answer.columns.values()), []))
    rows = [
        {
            "entity": {name: answer.columns[name][i] for name in given},
            "features": {name: answer.columns[name][i] for name in columns},
            "status": {name: answer.status[name][i] for name in columns},
            "positions": {view: answer.as_of.positions(view, i) for view in views},
        }
        for i in range(count)
    ]
    return {"at": answer.at, "as_of": answer.as_of.time, "rows": rows}


def _show(out: Output, answer: OnlineFeatures, columns: Sequence[str], given: Sequence[str]) -> None:
    count = len(answer.columns[columns[0]])
    names = _names(columns)
    if count == 1:
        values = [(names[c], _cell(answer, c, 0), _status(answer.status[c][0])) for c in columns]
        out.table(("feature", "value", "status"), values, numbers=("value",), title=_entity(answer, given, 0))
    elif count <= _BESIDE and all(len(_entity(answer, given, i)) <= _VALUE // 2 for i in range(count)):
        heads = [_entity(answer, given, i) for i in range(count)]
        heads = heads if len(set(heads)) == count else [f"{i + 1}: {head}" for i, head in enumerate(heads)]
        out.table(("feature", *heads), [(names[c], *(_marked(answer, c, i) for i in range(count))) for c in columns], numbers=heads)
    else:
        _rows(out, answer, columns, given)
    out.say()
    _footer(out, answer, count)


def _rows(out: Output, answer: OnlineFeatures, columns: Sequence[str], given: Sequence[str]) -> None:
    """A row per entity; where the features do not fit beside one another, several tables."""
    count, names = len(answer.columns[columns[0]]), _names(columns)
    keys = [[shortened(_plain(answer.columns[g][i]), _VALUE) for i in range(count)] for g in given]
    used = sum(max(map(len, [*column, name])) + 3 for name, column in zip(given, keys, strict=True))
    page: list[str] = []
    width = used
    for column in [*columns, None]:
        need = 0 if column is None else 3 + max(len(names[column]), *(len(_marked(answer, column, i)) for i in range(count)))
        if page and (column is None or width + need > out.width):
            rows = [(*(k[i] for k in keys), *(_marked(answer, c, i) for c in page)) for i in range(count)]
            out.table((*given, *(names[c] for c in page)), rows, numbers=[names[c] for c in page])
            page, width = [], used
            if column is not None:
                out.say()
        if column is not None:
            page.append(column)
            width += need


def _footer(out: Output, answer: OnlineFeatures, count: int) -> None:
    """As of when. How old, only for a read of now: who asks for an instant knows."""
    entities = "1 entity" if count == 1 else f"{count} entities"
    known = answer.as_of.time
    if known is None:
        out.say(f"{entities} at {instant(answer.at)} UTC; no event is in yet: see `tidemill status`")
        return
    age = (answer.at - known) // dt.timedelta(microseconds=1)
    behind = f" ({span(age)} before)" if age > 0 else ""
    out.say(f"{entities} at {instant(answer.at)} UTC, as of {instant(known)} UTC{behind}")


def _names(columns: Sequence[str]) -> dict[str, str]:
    """Short names where they tell the features apart, else the full ones."""
    short = {c: c.rpartition("__")[2] if "__" in c else c for c in columns}
    views = {c.partition("__")[0] for c in columns if "__" in c}
    return short if len(views) <= 1 and len(set(short.values())) == len(columns) else {c: c.replace("__", ":", 1) for c in columns}


def _entity(answer: OnlineFeatures, given: Sequence[str], row: int) -> str:
    return ", ".join(f"{name}={_plain(answer.columns[name][row])}" for name in given)


def _cell(answer: OnlineFeatures, column: str, row: int) -> Text:
    value = answer.columns[column][row]
    return Text(shortened(_plain(value), _VALUE), style="dim" if value is None else "")


def _marked(answer: OnlineFeatures, column: str, row: int) -> Text:
    """A value with its status where that is not ok."""
    status, cell = answer.status[column][row], _cell(answer, column, row)
    if status == "ok":
        return cell
    said = Text(status, style=_STYLES[status])
    return said if answer.columns[column][row] is None else Text.assemble(cell, " ", said)


def _status(status: str) -> Text:
    return Text(status, style=_STYLES[status])


def _plain(value: Any) -> str:
    """Six significant digits of a float are enough to look at; --json has them all."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.10g}"
        case dt.datetime():
            return instant(value)
        case list():
            return "[" + ", ".join(map(_plain, value)) + "]"
    return str(value)
