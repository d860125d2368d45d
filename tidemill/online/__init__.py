"""The online store: the protocol in `base`, and one adapter per kind of server or file."""

from __future__ import annotations

from pathlib import Path

from tidemill.errors import DefinitionError
from tidemill.online.base import OnlineStore

__all__ = ["OnlineStore", "open_online_store"]


def open_online_store(url: str, *, base: Path) -> OnlineStore:
    """The store that `url` (in tidemill.toml: `[online] url`) names; relative paths start at `base`, the project's folder.

    `sqlite:///relative/path` or `sqlite:////absolute/path`; `redis://host:port/db`, or `rediss://` with TLS, with `?cluster=true` for a
    cluster (see `tidemill.online.redis_connection` for more). Nothing is opened or made before the first call. Raises `DefinitionError`.

    >>> store = open_online_store("sqlite:///.tidemill/online.db", base=Path("flights"))
    >>> store.close()
    >>> open_online_store("mysql://host/db", base=Path("flights"))
    Traceback (most recent call last):
    tidemill.errors.DefinitionError: [online] url: expected sqlite:///path, sqlite:////path or redis://host:port/db, got a 'mysql' URL
    """
    scheme, separator, rest = url.partition("://")
    expected = "[online] url: expected sqlite:///path, sqlite:////path or redis://host:port/db"
    if not separator:
        raise DefinitionError(f"{expected}, got {url!r}")
    if scheme in ("redis", "rediss", "redis+sentinel", "rediss+sentinel"):
        try:
            from tidemill.online.redis import RedisStore
        except ModuleNotFoundError as error:
            if error.name != "redis":
                raise
            raise DefinitionError("[online] url: Redis needs its client: pip install 'tidemill[redis]'") from None
        return RedisStore(url)
    if scheme != "sqlite":
        raise DefinitionError(f"{expected}, got a {scheme!r} URL")  # not the URL itself: it may hold a password
    if not rest.startswith("/"):
        raise DefinitionError(f"{expected}, got {url!r}: a file has no host, so there are three slashes before a relative path")
    if rest.endswith("/"):
        raise DefinitionError(f"{expected}, got {url!r}, which names no file")
    from tidemill.online.sqlite import SqliteStore

    return SqliteStore(base / rest[1:])
