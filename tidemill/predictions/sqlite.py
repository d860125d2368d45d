"""Prediction tables in an SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from tidemill.errors import StoreError, StoreUnavailableError
from tidemill.predictions.table import PredictionTable, quoted, rows_of
from tidemill.times import from_micros

#: ISO 8601 in UTC, which sorts as the instants do.
_ISO = "%Y-%m-%dT%H:%M:%S%.6f+00:00"


class SqlitePredictions(PredictionTable):
    """Used by one thread. Instants are ISO 8601 texts, booleans 0 and 1. `timeout` in seconds: how long to wait for others' locks."""

    types = {"str": "text", "int": "integer", "float": "real", "bool": "integer", "timestamp": "text"}  # noqa: RUF012 - the base types it

    def __init__(self, path: Path, *, timeout: float = 30.0) -> None:
        self.where = f"sqlite:///{path}"
        self._path, self._timeout = path, timeout
        self._db: sqlite3.Connection | None = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            db = self._opened()
            db.execute("begin immediate")
            try:
                yield
                db.execute("commit")
            except BaseException:
                if db.in_transaction:
                    db.execute("rollback")
                raise
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"{self.where}: cannot make its folder ({error.strerror}); check --to") from error
            db = sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None)
            try:
                db.execute("pragma journal_mode = wal")  # readers go on while a run is written
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._opened().execute(sql, parameters).fetchall()

    def load(self, table: str, frame: pl.DataFrame) -> None:
        texts = [pl.col(name).dt.strftime(_ISO) for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime)]
        sql = f"insert into {table} ({', '.join(map(quoted, frame.columns))}) values ({', '.join('?' * frame.width)})"
        for rows in rows_of(frame.with_columns(texts)):
            self._opened().executemany(sql, rows)

    def columns(self, table: str) -> list[str]:
        return [row[1] for row in self.execute(f"pragma table_info({table})")]

    def instant(self, micros: int) -> object:
        return from_micros(micros).isoformat(timespec="microseconds")

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _translated(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreUnavailableError(f"{self.where}: locked by another process for longer than {self._timeout:g} s; run this again")
        if code == sqlite3.SQLITE_FULL:
            return StoreError(f"{self.where}: the disk is full; nothing was changed; free some space and run this again")
        return StoreError(f"{self.where}: {error}; nothing was changed")
