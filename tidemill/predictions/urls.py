"""Where predictions are published to: `sqlite:///file` or `postgresql://host/database`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from tidemill.errors import DefinitionError, TidemillError
from tidemill.predictions.table import PredictionTable

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql", "postgres")


def open_table(url: str, *, base: Path) -> PredictionTable:
    """The tables at a URL; nothing is opened before the first use. A relative path of SQLite is relative to `base`, the project.

    Raises `DefinitionError`, which does not show the URL.
    """
    if url.startswith(_SQLITE) and len(url) > len(_SQLITE):
        from tidemill.predictions.sqlite import SqlitePredictions

        return SqlitePredictions(base / url[len(_SQLITE) :])
    if "://" in url and urlsplit(url).scheme in _POSTGRES:
        try:
            from tidemill.predictions.postgres import PostgresPredictions
        except ImportError:
            raise TidemillError("predictions in Postgres need the package psycopg: pip install 'tidemill[postgres]'") from None
        return PostgresPredictions(url)
    raise DefinitionError("--to: write sqlite:///path/to/file.db, or postgresql://user@host:5432/database")
