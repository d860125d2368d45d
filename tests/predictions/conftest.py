"""A project with a log, a stand-in for a model over its real features, and real tables to publish to."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest

import tidemill as tm
from tests.project import EVENTS, Folder
from tests.servers.postgres import PostgresServer
from tidemill.apps import load
from tidemill.definitions import resolve_features
from tidemill.environment import Environment
from tidemill.predictions.scorer import DEGRADED, OK, Scored
from tidemill.predictions.table import PredictionTable
from tidemill.predictions.urls import open_table

predict = load("batch.predict")

BEGIN = tm.times.to_micros("2026-05-01")
SECOND = 1_000_000
VIEW = """\
v = tm.FeatureView("v", source=events, entity=tm.Entity("k"), aggregations=[
    tm.count(windows=["lifetime", "1h"]), tm.sum("x", windows=["1h"]), tm.mean("x", windows=["1d"])])
"""


def score_of(count: int) -> float:
    """What the stand-in makes of the number of events of an entity."""
    return 1.0 / (1.0 + count)


class StandIn:
    """A model of one line, asked as a real one is: of features read online, or from the history."""

    model, range = "standin", None

    def __init__(self, env: Environment, version: str = "1", features: Sequence[str] = ("v",)) -> None:
        self.store = tm.FeatureStore(env)
        self.version, self._features = version, list(features)
        self.wanted = resolve_features(self._features, env.definitions)
        self.asked: list[int] = []
        self.score_of: Callable[[Mapping[str, Any]], float | None] = lambda row: score_of(row["v__count_lifetime"] or 0)

    def score(self, rows: list[dict[str, Any]], at: int) -> Scored:
        self.asked.append(len(rows))
        return self._scored(self.store.get_online_features(self._features, rows, at=at).to_polars().select(self.wanted.columns))

    def score_past(self, rows: pl.DataFrame, at: int) -> Scored:
        frame = rows.with_columns(pl.lit(at).cast(pl.Datetime("us", "UTC")).alias("event_timestamp"))
        return self._scored(self.store.get_historical_features(frame, self._features).to_polars().select(self.wanted.columns))

    def _scored(self, features: pl.DataFrame) -> Scored:
        score = [self.score_of(row) for row in features.iter_rows(named=True)]
        status = [OK if None not in row else DEGRADED for row in features.iter_rows()]
        ids = [f"id-{i}" for i in range(features.height)]
        return Scored(ids, score, [None if s is None else s >= 0.3 for s in score], status, features)


class Project(Folder):
    """A `Folder` whose predictions are called p."""

    def __init__(self, path: Path, definitions: str = EVENTS + VIEW) -> None:
        super().__init__(path, definitions)
        self.now = BEGIN + 3600 * SECOND
        self.url: str | None = None

    def happen(self, *entities: str, seconds: int = 0, stream: bool = True) -> None:
        """An event of each of these entities, so many seconds after BEGIN."""
        at = tm.times.from_micros(BEGIN + seconds * SECOND).isoformat()
        self.log([{"k": k, "x": len(k), "at": at} for k in entities])
        if stream:
            self.stream()

    def standin(self, version: str | None = None) -> StandIn:
        return StandIn(self.env, version or "1")

    def table(self) -> PredictionTable | None:
        return None if self.url is None else open_table(self.url, base=self.path)

    def run(self, *, scorer: StandIn | None = None, seconds: int | None = None, name: str = "p", **more: Any) -> Any:
        """One call, at BEGIN + 1h, or at so many seconds after BEGIN."""
        now = self.now if seconds is None else BEGIN + seconds * SECOND
        table = self.table()
        try:
            request = predict.Request(name, **more)
            return predict.run(self.env, request, lambda version: scorer or self.standin(version), table, now=lambda: now)
        finally:
            if table is not None:
                table.close()

    def rollback(self) -> None:
        table = self.table()
        try:
            predict.rollback(self.env, "p", table, lambda: self.now)
        finally:
            if table is not None:
                table.close()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """What another client of the database sees."""
        assert self.url is not None
        if self.url.startswith("sqlite"):
            db = sqlite3.connect(self.path / self.url.removeprefix("sqlite:///"))
            try:
                return db.execute(sql).fetchall()
            finally:
                db.close()
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql).fetchall()  # type: ignore[arg-type]

    def query_exists(self, table: str) -> bool:
        """Whether the database has this table."""
        assert self.url is not None
        catalog = "sqlite_master where name" if self.url.startswith("sqlite") else "pg_tables where tablename"
        return self.query(f"select count(*) from {catalog} = '{table}'")[0][0] > 0

    def latest(self) -> dict[str, float | None]:
        found = self.query("select entity, score from p_latest")
        assert len({entity for entity, _ in found}) == len(found), "an entity twice"
        return dict(found)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "p")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def published(request: pytest.FixtureRequest, project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that publishes to a table; once in each kind of database."""
    if request.param == "sqlite":
        project.url = "sqlite:///scores/p.db"
    else:
        server = request.getfixturevalue("postgres")
        project.url = server.database()
        monkeypatch.setenv("PGPASSWORD", server.PASSWORD)
    return project
