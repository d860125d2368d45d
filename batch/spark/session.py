"""A Spark session for one run: what tidemill has to set, what the project sets, and what is said while a job runs or fails."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark import Accumulator, inheritable_thread_target
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

import tidemill.errors
from tidemill.definitions import Project
from tidemill.errors import TidemillError

Batches = Iterator[pa.RecordBatch]
Progress = Callable[[int, int], object]

LOCAL = "local[*]"
#: What is set unless the project sets it. Rows that go to Python are frames, of megabytes each, so few may go at a time; a task has
#: one core, and Polars would take all of the machine's for each; nobody looks at the pages of a session that ends with the run.
_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"
_SETTINGS = {
    "spark.app.name": "tidemill",
    "spark.driver.extraJavaOptions": f'"-Dlog4j2.configurationFile={Path(__file__).with_name("log4j2.properties").as_uri()}"',
    "spark.executorEnv.POLARS_MAX_THREADS": "1",
    "spark.executorEnv.PYTHONWARNINGS": "ignore:PySpark does not yet fully support pandas",
    _ROWS: "8",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
#: On one machine: nothing that others could connect to.
_LOOPBACK = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
_ERROR = re.compile(r"^tidemill\.errors\.(\w+): (.*)$", re.MULTILINE)
_SECONDS = 1.0


@dataclass(frozen=True)
class Cluster:
    """Where Spark runs: the master's URL, and settings named as Spark names them. They may hold credentials, so not in the `repr`."""

    master: str = LOCAL
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, project: Project, master: str | None = None) -> Cluster:
        """What [spark] of tidemill.toml says; `master` goes before its own."""
        settings = dict(project.settings.get("spark", {}))
        found = settings.pop("master", LOCAL)
        return cls(master or str(found), {name: str(value) for name, value in settings.items()})

    @contextmanager
    def session(self) -> Iterator[SparkSession]:
        """A session that ends with the block; where one is running in this process already, that one, which goes on."""
        running = SparkSession.getActiveSession()
        if running is not None:
            before = running.conf.get(_ROWS)
            running.conf.set(_ROWS, _SETTINGS[_ROWS])
            try:
                yield running
            finally:
                running.conf.set(_ROWS, str(before))
            return
        local = self.master.startswith("local")
        builder = SparkSession.builder.master(self.master)
        for name, value in {**_SETTINGS, **(_LOOPBACK if local else {}), **self.settings}.items():
            builder = builder.config(name, value)
        with _interpreter() if local else _as_it_is():
            try:
                with _quietly():
                    spark = builder.getOrCreate()
            except Exception as error:
                raise TidemillError(
                    f"Spark does not start with master {self.master!r} ({_first_line(error)}): it needs Java 17 or newer, and a "
                    f"master that this machine reaches; see docs/spark.md"
                ) from error
            try:
                yield spark
            finally:
                spark.stop()


@contextmanager
def _interpreter() -> Iterator[None]:
    """Tasks on this machine run in the Python that runs now; `python3` on the path may be another one."""
    before = os.environ.get("PYSPARK_PYTHON")
    os.environ["PYSPARK_PYTHON"] = before or sys.executable
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYSPARK_PYTHON", None)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what PySpark says about pandas, which no function of ours uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")
        yield


def tasks(spark: SparkSession, count: int) -> DataFrame:
    """One row, and one task, for each number below `count`, in the column `id`."""
    return spark.range(0, count, 1, numPartitions=max(count, 1))


def mapped(frame: DataFrame, function: Callable[[Batches], Batches], schema: pa.Schema) -> DataFrame:
    """`mapInArrow` with a function from batches of rows to batches of this schema."""
    with _quietly():
        return frame.mapInArrow(function, _declared(schema))


def gathered(frame: DataFrame, keys: Sequence[str], order: Sequence[str] = ()) -> DataFrame:
    """The rows dealt out anew, so that those that agree on the keys lie in one partition, one after the other, in an order."""
    return frame.repartition(*keys).sortWithinPartitions(*(order or keys))


_TYPES = {pa.int32(): "int", pa.int64(): "bigint", pa.binary(): "binary", pa.string(): "string"}


def _declared(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {_TYPES[field.type]}" for field in schema)


def collected(frame: DataFrame, done: Accumulator[int] | None = None, total: int = 0, progress: Progress | None = None) -> list[Any]:
    """The rows of a frame that is small. Until they are there, `progress` hears every second what the tasks have added to `done`.

    Raises the `TidemillError` that a task failed with, as if it had been raised here; a task that merely died is Spark's to try again.
    """
    spark = frame.sparkSession
    context = spark.sparkContext

    def run() -> list[Any]:
        try:
            rows: list[Any] = frame.collect()
            return rows
        except PySparkException as error:
            raise _explained(error) from error

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(inheritable_thread_target(spark)(run))
        try:
            while True:
                try:
                    found: list[Any] = future.result(_SECONDS)
                    return found
                except NotYet:
                    if progress is not None:
                        progress(min(done.value, total or done.value) if done is not None else 0, total)
        except BaseException:
            if not future.done():  # Ctrl-C, or a lease that was lost: the tasks would go on for nobody
                context.cancelAllJobs()
            raise


def _explained(error: PySparkException) -> TidemillError:
    """A task's own error, if that is what Spark reports at length; else its first line."""
    text = str(error)
    for name, message in reversed(_ERROR.findall(text)):
        kind = getattr(tidemill.errors, name, None)
        if isinstance(kind, type) and issubclass(kind, TidemillError):
            return kind(message)
    missing = re.findall(r"ModuleNotFoundError: No module named '(tidemill|polars|pyarrow|numba)[\w.]*'", text)
    if missing:
        return TidemillError(
            f"Spark's executors have no {missing[-1]}: they need the same packages as this machine; ship them with spark.archives and set "
            f"PYSPARK_PYTHON, see docs/spark.md"
        )
    python = [line for line in text.splitlines() if re.match(r"[\w.]+(Error|Exception)\b.*: ", line)]
    return TidemillError(f"Spark gave up: {(python or [_first_line(error)])[-1].strip()}; its log has more")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
