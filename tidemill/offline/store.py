"""The offline store: files under keys, in a directory (`directory`) or a bucket (`bucket`).

A key is a relative path of parts joined by "/", such as `cuts/departures/00000001.json`; a part neither is empty nor begins with a
dot. Whatever may race is decided by one operation only, `create`: of many who create a key, one succeeds, and nobody ever sees
half of what it wrote. There are no locks, no appends and no renames to rely on, so object stores can do the same.
"""

from __future__ import annotations

import abc
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import polars as pl

from tidemill.errors import DefinitionError, StoreError, StoreVersionError

#: The layout of everything below the root. Raised when an older tidemill could no longer read what a newer one writes.
FORMAT = 1
FORMAT_KEY = "format.json"
#: Rows of a Parquet row group: what a reader of a few offsets has to decode at least.
ROW_GROUP_ROWS = 131_072

#: Sorted keys. (Inside the class, `list` is a method.)
Keys: TypeAlias = list[str]


class OfflineStore(abc.ABC):
    """See the module's text. Many processes may use one store at once.

    Every operation raises `StoreError` when the store cannot do it (full, no permission, damaged), and `ValueError` for a key that is none.
    """

    @staticmethod
    def open(url: str, *, base: Path) -> OfflineStore:
        """The store that `[offline] url` names: a directory (relative to `base`, the project's; also as `file:///`), or `s3://bucket/prefix`.

        Nothing is created before the first write. Raises `DefinitionError` for any other URL, `StoreVersionError` for a store that
        another version of tidemill wrote, and for a bucket the `StoreError` that says why it cannot be used.
        """
        store = _opened(url, base)
        store.check_format()
        return store

    @abc.abstractmethod
    def read(self, key: str) -> bytes | None:
        """The contents, or None where nothing has this key."""

    @abc.abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Put `data` in place of whatever was there. A reader sees the old contents or the new, whole; durable on return."""

    @abc.abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Put `data` there if nothing is there: True. False if something is. Whole or absent at every instant; durable on True."""

    def adopt(self, key: str, file: Path) -> bool:
        """Put a copy of a file there, as `write` does: True. False, and nothing was done, where files are always read whole (a bucket)."""
        return False

    @abc.abstractmethod
    def list(self, prefix: str) -> Keys:
        """The keys directly under the folder `prefix` ("" is the root), sorted; [] where there is no such folder.

        Never folders, nor hidden files: what a crashed writer left behind is hidden.
        """

    @abc.abstractmethod
    def folders(self, prefix: str) -> Keys:
        """The folders directly under the folder `prefix`, sorted, each as a prefix without a slash at its end."""

    @abc.abstractmethod
    def exists(self, key: str) -> bool:
        """Whether something has this key."""

    @abc.abstractmethod
    def delete(self, key: str) -> None:
        """Remove the key; nothing happens where it is absent."""

    @abc.abstractmethod
    def size(self, key: str) -> int:
        """Bytes stored under the key. Raises `StoreError` where nothing has it."""

    @abc.abstractmethod
    def path(self, key: str) -> str:
        """The key as people, errors, pandas and DuckDB name it: a path, or a URL. It may hold characters that Polars would expand."""

    def write_frame(self, key: str, frame: pl.DataFrame) -> None:
        """Write a frame as Parquet (zstd, statistics), as `write` does."""
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd", compression_level=1, statistics=True, row_group_size=ROW_GROUP_ROWS)
        self.write(key, buffer.getvalue())

    def scan(self, keys: str | Sequence[str]) -> pl.LazyFrame:
        """A lazy frame over one or more Parquet files with the same columns, in the order given.

        What goes wrong while it is collected comes as Polars' own error; see `reading`. A store that fetches at once raises `StoreError`.
        """
        names = [keys] if isinstance(keys, str) else keys
        return pl.scan_parquet([self.path(name) for name in names], glob=False, hive_partitioning=False)

    def read_frame(self, keys: str | Sequence[str], columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The rows of one or more Parquet files with the same columns, in the order given; of all `columns`, or of these.

        Raises `StoreError` that names the file which is absent, damaged, or has other columns than the first.
        """
        frames: list[pl.DataFrame] = []
        for key in [keys] if isinstance(keys, str) else keys:
            with self.reading(key):
                scan = self.scan(key)
                frames.append((scan if columns is None else scan.select(columns)).collect())
            if frames[-1].schema != frames[0].schema:
                raise StoreError(f"{self.path(key)} has other columns than the files before it: {dict(frames[-1].schema)}")
        return pl.concat(frames)

    @contextmanager
    def reading(self, key: str) -> Iterator[None]:
        """Turn Polars' errors while reading `key` into a `StoreError` that names it.

        Raises `MissingFileError`, a `StoreError`, where the file has gone.
        """
        try:
            yield
        except FileNotFoundError as error:
            raise MissingFileError(f"{self.path(key)} is not there (any more): restore it, or run the step that writes it again") from error
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise StoreError(f"{self.path(key)} cannot be read as Parquet with the expected columns: {reason}") from error

    def check_format(self) -> None:
        """Raise `StoreVersionError` unless this tidemill understands the store; an empty store is understood."""
        data = self.read(FORMAT_KEY)
        if data is None:
            return
        found = read_json(self, FORMAT_KEY, data).get("format")
        if found != FORMAT:
            raise StoreVersionError(
                f"the offline store says format {found!r} in {self.path(FORMAT_KEY)}, and this tidemill reads format {FORMAT}: "
                "use the version of tidemill that wrote it, or another [offline] url"
            )


class MissingFileError(StoreError):
    """A file that was listed, and has gone since: compacted away, or removed by hand."""


def _opened(url: str, base: Path) -> OfflineStore:
    """The store of a URL, untouched."""
    if not url.strip():
        raise DefinitionError("[offline] url is empty: write the directory of the offline store, such as '.tidemill/offline'")
    parts = urlsplit(url)
    if "://" in url and parts.scheme == "s3":
        try:
            from tidemill.offline.bucket import BucketStore
        except ModuleNotFoundError as error:
            if error.name not in ("fsspec", "s3fs", "aiobotocore", "botocore"):
                raise
            raise DefinitionError("[offline] url: a bucket needs the client of S3: pip install 'tidemill[s3]'") from None
        return BucketStore(url)
    if "://" in url and (parts.scheme != "file" or parts.netloc not in ("", "localhost")):
        # Not the URL itself: it may hold a password.
        raise DefinitionError(
            f"[offline] url: the offline store lies in a directory or in S3; write a path, file:///path or s3://bucket/prefix, "
            f"not a {parts.scheme!r} URL"
        )
    from tidemill.offline.directory import DirectoryStore

    return DirectoryStore(base / (Path(unquote(parts.path)) if "://" in url else Path(url).expanduser()))


def check_key(key: str) -> str:
    """`key` itself, if it is one. Raises `ValueError`.

    >>> check_key("cuts/departures/00000001.json")
    'cuts/departures/00000001.json'
    """
    for part in key.split("/"):
        if not part or part.startswith(".") or "\\" in part or "\0" in part:
            raise ValueError(f"{key!r} is not a key: its parts, joined by '/', are not empty, begin with no dot and hold no backslash")
    return key


def read_json(store: OfflineStore, key: str, data: bytes) -> dict[str, object]:
    """`data`, read from `key`, as a JSON object. Raises `StoreError` naming the key where it is none."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise StoreError(f"{store.path(key)} should be a JSON object, and is not even JSON ({error}): restore it from a copy") from error
    if not isinstance(value, dict):
        raise StoreError(f"{store.path(key)} should be a JSON object, and is a {type(value).__name__}: restore it from a copy")
    return value
