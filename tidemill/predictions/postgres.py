"""Prediction tables in PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import psycopg
from psycopg.conninfo import conninfo_to_dict

from tidemill.errors import StoreError, StoreUnavailableError
from tidemill.predictions.table import PredictionTable, quoted

#: Whoever publishes holds this lock of the database until the transaction's end: "tidemill" as a number, more or less.
_LOCK = 0x7469_6465_6D69_6C6C
_CONNECT_SECONDS = 10


class PostgresPredictions(PredictionTable):
    """Used by one thread. What the URL leaves open comes from libpq's own places: PGPASSWORD, PGPASSFILE, ~/.pgpass, PGSERVICE."""

    types = {  # noqa: RUF012 - the base types it
        "str": "text",
        "int": "bigint",
        "float": "double precision",
        "bool": "boolean",
        "timestamp": "timestamptz",
    }
    mark = "%s"

    def __init__(self, url: str) -> None:
        try:
            found = conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            raise StoreError("--to: this is not a URL of Postgres: write postgresql://user@host:5432/database") from None
        host, port = found.get("host") or os.environ.get("PGHOST") or "localhost", found.get("port") or os.environ.get("PGPORT")
        name = found.get("dbname") or os.environ.get("PGDATABASE") or found.get("user") or ""
        self.where = f"postgresql://{host}{f':{port}' if port else ''}/{name}"
        self._url = url
        self._secret = str(found.get("password") or "")
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            db = self._opened()
            with db.transaction():
                # Also keeps two who create the tables at once from each other's way.
                db.execute("select pg_advisory_xact_lock(%s)", [_LOCK])
                yield
        except psycopg.Error as error:
            if self._connection is not None and self._connection.closed:
                self._connection = None
            raise self._translated(error) from None

    def _opened(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            options: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS, "application_name": "tidemill predict"}
            # In a pool's session other clients' prepared statements may lie: PgBouncer and the like.
            self._connection = psycopg.connect(self._url, autocommit=True, prepare_threshold=None, **options)
        return self._connection

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        # Names come from checked or quoted text, values are bound.
        cursor = self._opened().execute(sql, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def load(self, table: str, frame: pl.DataFrame) -> None:
        sql = f"copy {table} ({', '.join(map(quoted, frame.columns))}) from stdin (format csv, null '', encoding 'UTF8')"
        with self._opened().cursor() as cursor, cursor.copy(sql) as copy:
            for piece in frame.iter_slices(50_000):
                # Texts in quotes, nulls without: an empty text is no null. A float is written as its shortest text that reads back as it.
                iso = "%Y-%m-%dT%H:%M:%S%.6fZ"
                text = piece.write_csv(include_header=False, quote_style="non_numeric", null_value="", datetime_format=iso)
                copy.write(text)

    def columns(self, table: str) -> list[str]:
        sql = "select attname from pg_attribute where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped order by attnum"
        return [row[0] for row in self.execute(sql, [table])]

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _translated(self, error: psycopg.Error) -> StoreError:
        said = " ".join(str(error).split()) or type(error).__name__
        if self._secret:
            said = said.replace(self._secret, "***")
        if isinstance(error, psycopg.OperationalError):
            return StoreUnavailableError(f"{self.where} does not answer, or lets nobody in: {said}")
        return StoreError(f"{self.where}: {said}; nothing was changed")
