"""Training sets on Spark: every entity's rows and events meet in one task, which answers them as the local engine does.

The driver reads the rows' file and writes the training set, some rows at a time and in their order, and evaluates on-demand features: so
neither the rows' file nor the definitions have to be where the executors are. What executors read and write lies in the offline
store: the archive; and, below `staging/`, for as long as the run takes, the rows' keys and instants, the events that the log has beyond the
archive, and the answers.

Entities are dealt to buckets by their stable hash, as many as memory asks for: a task holds one view's rows and events of one bucket.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from pyspark.sql import SparkSession

from tidemill.datasets.events import archived_ends, events_beyond
from tidemill.datasets.larger import Dataset, Writer, build, check_output, chunks, scan_of
from tidemill.datasets.point_in_time import Terms, features_of, with_outputs
from tidemill.datasets.questions import TIMESTAMP, check_columns, instants, keys_of
from tidemill.definitions import FeatureSet, FeatureView, resolve_features
from tidemill.definitions.resolve import Requested
from tidemill.environment import Environment
from tidemill.offline.segments import imports_in_segments
from tidemill.offline.store import OfflineStore

from .answering import ANSWERS, DEALT, ROW, WRITTEN, Answering, AskedView, Dealing, Work, Writing, add_up
from .fold import Place
from .ranges import OFFSETS, parts_of_tasks, ranges_of_tasks
from .session import Cluster, collected, gathered, mapped, tasks

Said = Callable[[str, int, int], object]

#: Rows and events of a bucket, about: with what they take while they are worked on, some hundreds of megabytes.
BUCKET = 1_000_000


@dataclass
class _Staged:
    """What the driver has written for the executors, and knows of it."""

    starts: list[int] = field(default_factory=list)
    rows: int = 0
    first: int = 0
    last: int = 0
    work: list[Work] = field(default_factory=list)
    events: int = 0


def spark_dataset(
    env: Environment,
    input_parquet: Path,
    features: Requested | Sequence[Requested],
    terms: Terms,
    output: Path,
    *,
    master: str | None = None,
    settings: Mapping[str, str] | None = None,
    offsets: int = OFFSETS,
    bucket: int = BUCKET,
    progress: Said = lambda *_: None,
) -> Dataset:
    """`tidemill.datasets.larger.build` on Spark: the same file, row for row. Both paths are the driver's.

    `master` and `settings` go before those of [spark] in tidemill.toml. `offsets`: about how many offsets of the archive a task reads;
    `bucket`: about how many rows and events one holds. `progress` gets (what, done, of how many).
    Raises `RequestError`, and what `get_historical_features` raises.
    """
    wanted = resolve_features(features, env.definitions)
    scan = scan_of(input_parquet, wanted)
    check_columns(scan.collect_schema().names(), wanted)
    check_output(output)
    cluster = Cluster.of(env.project, master)
    cluster = Cluster(cluster.master, {**cluster.settings, **(settings or {})})
    folder = f"staging/{secrets.token_hex(8)}"
    try:
        staged = _stage_rows(env.offline, folder, scan, wanted, progress)
        if not staged.rows:
            return build(env, input_parquet, features, output, terms)  # nothing to spread
        views = [_asked(env, wanted, terms, view, staged) for view in wanted.views.values()]
        _stage_events(env, folder, wanted, views, staged, offsets, progress)
        with cluster.session() as spark:
            answered = _answer(spark, Place.of(env), folder, views, staged, bucket, progress)
        _assemble(env.offline, folder, scan, staged, wanted, output, progress)
    finally:
        _sweep(env.offline, folder)
    knowledge = {view.name: terms.of(env, view.source) for view in wanted.views.values()}
    return Dataset(output, staged.rows, staged.events, answered.parts, knowledge, terms.freshness, answered.overflows)


def _asked(env: Environment, wanted: FeatureSet, terms: Terms, view: FeatureView, staged: _Staged) -> AskedView:
    features = {ref.column: ref.feature for ref in wanted.stored if ref.view == view.name}
    assert features.keys() == features_of(wanted, view).keys()
    return AskedView(json.dumps(view.spec()), features, terms.of(env, view.source), terms.freshness, staged.first, staged.last)


# ---- what the driver does -----------------------------------------------------------------------------------------------------------


def _stage_rows(store: OfflineStore, folder: str, scan: pl.LazyFrame, wanted: FeatureSet, progress: Said) -> _Staged:
    """Each view's keys and instants, checked, and the rows' numbers."""
    staged = _Staged()
    for i, chunk in enumerate(chunks(scan, list(dict.fromkeys([TIMESTAMP, *wanted.keys])))):
        at = staged.rows
        t = instants(chunk[TIMESTAMP], at)
        if len(chunk):
            low, high = int(t.min()), int(t.max())  # type: ignore[arg-type]  # Int64
            staged.first, staged.last = (min(staged.first, low), max(staged.last, high)) if at else (low, high)
        numbers = pl.Series(ROW, range(at, at + len(chunk)), dtype=pl.Int64)
        for v, view in enumerate(wanted.views.values()):
            key = f"{folder}/rows/{v}-{i}.parquet"
            store.write_frame(key, keys_of(chunk, view.key_types, at).with_columns(t, numbers))
            staged.work.append(Work((v,), rows=key))
        staged.starts.append(at)
        staged.rows += len(chunk)
        progress("checking rows", staged.rows, staged.rows)
    return staged


def _stage_events(
    env: Environment, folder: str, wanted: FeatureSet, views: Sequence[AskedView], staged: _Staged, offsets: int, progress: Said
) -> None:
    """What tasks read of each source: ranges of its archive, and what the log has beyond, written here."""
    sources = {view.source.name: view.source for view in wanted.views.values()}
    for source in sources.values():
        mine = tuple(i for i, view in enumerate(wanted.views.values()) if view.source.name == source.name)
        asked = [(views[i], list(wanted.views.values())[i]) for i in mine]
        read = sorted({c for one, view in asked for c in one.questions(view).reads}, key=list(source.schema).index)
        for made in imports_in_segments(env.offline, source.name):
            for _, a, b in parts_of_tasks(made.parts, 0, len(made.parts), offsets):
                staged.work.append(Work(mine, parts=made.parts[a:b]))
            staged.events += made.events
        ends = archived_ends(env, source)
        ranges = ranges_of_tasks(env.offline, source.name, [(p, 0, end) for p, end in ends.items() if end], offsets)
        staged.work += [Work(mine, archived=each) for each in ranges]
        staged.events += sum(b - a for _, a, b in ranges)
        for i, frame in enumerate(events_beyond(env, source, read, ends)):
            key = f"{folder}/events/{source.name}-{i}.parquet"
            env.offline.write_frame(key, frame)
            staged.work.append(Work(mine, events=key))
            staged.events += len(frame)
            progress("reading the log beyond the archive", i + 1, i + 1)


@dataclass(frozen=True)
class _Answered:
    parts: int
    overflows: Mapping[str, int]


def _answer(
    spark: SparkSession, place: Place, folder: str, views: Sequence[AskedView], staged: _Staged, bucket: int, progress: Said
) -> _Answered:
    buckets = max(spark.sparkContext.defaultParallelism, -(-(staged.rows + staged.events) // bucket))
    done = spark.sparkContext.accumulator(0)
    dealing = Dealing(place, tuple(views), tuple(staged.work), buckets, done)
    dealt = gathered(mapped(tasks(spark, len(staged.work)), dealing, DEALT), ["view", "bucket"], ["view", "bucket", "kind"])
    answers = mapped(dealt, Answering(tuple(views), tuple(staged.starts)), ANSWERS)
    written = mapped(gathered(answers, ["view", "chunk"]), Writing(place, folder), WRITTEN)
    found = collected(written, done, staged.events, lambda a, b: progress("reading events", a, b))
    overflows: dict[str, int] = {}
    for row in found:
        add_up(overflows, row.overflows)
    return _Answered(buckets, overflows)


def _assemble(
    store: OfflineStore, folder: str, scan: pl.LazyFrame, staged: _Staged, wanted: FeatureSet, output: Path, progress: Said
) -> None:
    """The rows with their answers beside them, in their order; the file appears when it is complete."""
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(6)}.tmp")
    try:
        with Writer(temporary) as writer:
            for i, (at, chunk) in enumerate(zip(staged.starts, chunks(scan), strict=True)):
                stored: dict[str, pl.Series] = {}
                for v in range(len(wanted.views)):
                    found = store.read_frame(f"{folder}/answers/{v}-{i}.parquet")
                    assert found[ROW].to_list() == list(range(at, at + len(chunk)))
                    stored |= {name: found[name] for name in found.columns if name != ROW}
                writer.write(with_outputs(chunk, stored, wanted))
                progress("writing", at + len(chunk), staged.rows)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(store: OfflineStore, folder: str) -> None:
    for part in ("rows", "events", "answers"):
        for key in store.list(f"{folder}/{part}"):
            store.delete(key)
