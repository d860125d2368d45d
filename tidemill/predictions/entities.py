"""Who is scored: the rows of a file, or every entity that got an event since the last run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tidemill.datasets.questions import keys_of
from tidemill.definitions import FeatureSet, Source
from tidemill.entities import key_expr
from tidemill.environment import Environment
from tidemill.errors import RequestError
from tidemill.offline.archive import archived_end, iter_range, partitions
from tidemill.online.base import SlotId
from tidemill.predictions.runs import Positions
from tidemill.times import DAY
from tidemill.types import ColumnType

#: What a row of the output is called by, beside the keys.
ENTITY = "entity"
#: Columns of the output that no key can be called.
RESERVED = (ENTITY, "score", "label", "status", "prediction_id", "features_from", "run", "seq", "at")
#: An event that claims to be further in the future than this is wrong, and does not hold the next run back.
_FUTURE = DAY

_READERS: Mapping[str, Callable[[Path], pl.DataFrame]] = {
    ".parquet": lambda path: pl.read_parquet(path, glob=False),
    ".csv": lambda path: pl.read_csv(path, glob=False, infer_schema=False),
    ".jsonl": lambda path: pl.read_ndjson(path, infer_schema_length=None),
    ".ndjson": lambda path: pl.read_ndjson(path, infer_schema_length=None),
}


@dataclass(frozen=True)
class Entities:
    """Rows to score: `entity` (text), then the keys and the request columns; each entity once. `digest` is of what they were read from.

    `types`: of the columns that tables show: keys and the id. Where they are those with events, the positions: see `Plan`.
    """

    rows: pl.DataFrame
    types: Mapping[str, str]
    digest: str = ""
    since: Positions | None = None
    until: Positions | None = None
    upto: Positions | None = None


def check_reserved(wanted: FeatureSet) -> None:
    """Raise `RequestError` for keys, request columns or features that are named like columns of the output."""
    for name in (*wanted.keys, *wanted.request, *wanted.columns):
        if name.lower() in RESERVED:  # to a database, Score is score
            raise RequestError(f"predictions have a column {name!r} of their own: rename the key, request column or feature of this name")


def from_file(path: Path, wanted: FeatureSet, id: str | None) -> Entities:
    """The rows of a Parquet, CSV or JSON-lines file with the key and request columns. They lie in memory, column by column.

    `id` is a column that names the rows, where entities come more than once, with other request columns. Raises `RequestError`.
    """
    check_reserved(wanted)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise RequestError(f"{path}: entities come in a file that ends with {', '.join(_READERS)}")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        frame = reader(path)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None
    except pl.exceptions.PolarsError as error:
        raise RequestError(f"{path} cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from None
    if path.suffix.lower() == ".csv":
        frame = _typed(path, frame, {**wanted.keys, **wanted.request})
    for name in (*wanted.keys, *wanted.request, *([id] if id else [])):
        if name not in frame.columns:
            raise RequestError(f"{path} has no column {name!r}, which the features need; it has {', '.join(frame.columns) or 'none'}")
    keys = keys_of(frame, wanted.keys)
    rows = keys.hstack([frame[name] for name in wanted.request if name not in wanted.keys])
    types = {name: kind.name for name, kind in wanted.keys.items()}
    if id is None:
        rows = rows.select(key_expr(list(wanted.keys), wanted.keys).alias(ENTITY), *rows.columns)
    else:
        kind = "str" if frame[id].dtype == pl.String else "int" if frame[id].dtype.is_integer() else None
        if id.lower() in (*RESERVED, *(name.lower() for name in rows.columns if name != id)):  # to a database, Score is score
            raise RequestError(f"--id {id}: predictions have a column of this name beside it: rename the one in {path}")
        if kind is None or frame[id].null_count():
            raise RequestError(f"--id {id}: a column of texts or integers without nulls names the rows; this one is of {frame[id].dtype}")
        if id not in rows.columns:
            rows, types = rows.hstack([frame[id]]), {**types, id: kind}
        rows = rows.select(pl.col(id).cast(pl.String).alias(ENTITY), *rows.columns)
    double = rows[ENTITY].is_duplicated()
    if double.any():
        first = double.arg_max()
        assert first is not None
        other = "" if id else "; where they differ by request columns, name the rows by a column with --id"
        raise RequestError(
            f"{path}: {rows[ENTITY][first]!r} is there more than once: each row is one prediction, so drop the others{other}"
        )
    return Entities(rows, types, digest)


def _typed(path: Path, frame: pl.DataFrame, types: Mapping[str, ColumnType]) -> pl.DataFrame:
    """Texts of a CSV in the types of the columns; instants stay texts."""
    for name, kind in types.items():
        if name in frame.columns and kind.name in ("int", "float", "bool"):
            texts = frame[name]
            if kind.name == "bool":
                cast = texts.str.to_lowercase().replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)
            else:
                cast = texts.cast(kind.polars, strict=False)
            if cast.null_count() > texts.null_count():
                row = (cast.is_null() & texts.is_not_null()).arg_max()
                assert row is not None
                raise RequestError(f"{path}, row {row}: {name!r} is {texts[row]!r}, and a {kind} is expected")
            frame = frame.with_columns(cast.alias(name))
    return frame


def sources_of(wanted: FeatureSet) -> tuple[list[Source], list[str]]:
    """The sources whose events tell who has changed, which are those with all key columns; and the names of the others.

    Raises `RequestError` where there is none, or a request column is needed, which no event has.
    """
    check_reserved(wanted)
    if wanted.request:
        raise RequestError(
            f"the model also needs {', '.join(wanted.request)} with each row, which no event has: give the rows with --entities"
        )
    sources = {view.source.name: view.source for view in wanted.views.values()}
    telling = [s for s in sources.values() if all(k in s.schema and s.schema[k].name == t.name for k, t in wanted.keys.items())]
    if not telling:
        raise RequestError(
            f"no source has all of the key columns {', '.join(wanted.keys)}, so events do not tell whom to score: give rows with --entities"
        )
    return telling, sorted(set(sources) - {s.name for s in telling})


def changed(env: Environment, wanted: FeatureSet, since: Positions, at: int, *, past: bool, until: Positions | None = None) -> Entities:
    """Every entity with an event in the archive from `since` on, ascending; late events count as others do.

    Up to `until`, or up to what is archived now and, where features are read online, applied there. `past`: features will be those that
    were known at `at`, so what arrived later tells nothing yet. The next run begins at `upto`, which is before the first event that does
    not count yet at `at`.
    """
    telling, _ = sources_of(wanted)
    until = _until(env, wanted, telling, since, online=not past) if until is None else until
    keys: list[pl.DataFrame] = [pl.DataFrame(schema={k: t.polars for k, t in wanted.keys.items()})]
    upto: Positions = {}
    for source in telling:
        types = {name: source.schema[name].polars for name in wanted.keys}
        for partition, end in until.get(source.name, {}).items():
            start = since.get(source.name, {}).get(partition, 0)
            reached = end
            for frame in iter_range(env.offline, source.name, partition, start, end, types, rows=500_000):
                counts = pl.max_horizontal(pl.col("_time") + 1, pl.coalesce("_arrival", "_time")) <= at
                waiting = frame.filter(~counts & (pl.lit(past) | (pl.col("_time") < at + _FUTURE)))["_offset"]
                if len(waiting):
                    reached = min(reached, int(waiting[0]))
                counted = frame.filter(counts) if past else frame
                keys[0] = pl.concat([keys[0], counted.select(*types).drop_nulls()]).unique()
            upto.setdefault(source.name, {})[partition] = max(reached, start)
    rows = keys[0].select(key_expr(list(wanted.keys), wanted.keys).alias(ENTITY), *wanted.keys).sort(ENTITY)
    return Entities(rows, {name: kind.name for name, kind in wanted.keys.items()}, "", since, until, upto)


def _until(env: Environment, wanted: FeatureSet, telling: list[Source], since: Positions, *, online: bool) -> Positions:
    """Where the archive ends; online not beyond what every slot has applied: an event that no answer holds yet is for the next run."""
    applied = env.applied()
    out: Positions = {}
    for source in telling:
        ends = {p: archived_end(env.offline, source.name, p) for p in partitions(env.offline, source.name)}
        if online and ends:
            bundles = [b.bundle.id for b in applied.of_source(source.name) if b.view in wanted.views]
            slots = env.online.slots([SlotId(bundle, shard) for bundle in bundles for shard in range(applied.shards)])
            ends = {p: min([end, *(slot.positions.get(p, 0) for slot in slots)]) for p, end in ends.items()}
        begun = since.get(source.name, {})
        out[source.name] = {p: max(end, begun.get(p, 0)) for p, end in ends.items()}
    return out
