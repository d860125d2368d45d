"""The offline store in a bucket: S3, or any server that speaks it and creates conditionally (`If-None-Match: *`).

Every operation is one request (`s3` says how), and the server alone decides who creates a key. A server that takes no notice of the
condition would let two batch jobs both make cut 7, so the first write of a process tries it out, and refuses such a server.

Frames are read from whole objects, by the same client as everything else, instead of by Polars' own: one place finds the credentials and
the endpoint, one set of time-outs and errors counts, and what is read is of one version. (Polars asks for ranges; of a file that a
replay writes again in between, it would put together the old end and the new beginning.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import polars as pl

from tidemill.errors import DefinitionError, StoreError
from tidemill.offline.s3 import SECONDS, Bucket
from tidemill.offline.store import FORMAT, FORMAT_KEY, Keys, MissingFileError, OfflineStore, check_key

#: How many objects are fetched at a time.
_FETCHERS = 8
_NAME = re.compile(r"[A-Za-z0-9._-]{3,255}")


class BucketStore(OfflineStore):
    """The store below `s3://bucket/prefix`. `seconds` bounds every operation, see `s3`. Raises `DefinitionError` for another URL."""

    def __init__(self, url: str, seconds: float = SECONDS) -> None:
        name, self._prefix = _parts(url)
        self._bucket = Bucket(name, seconds)
        self._prepared = False

    def __repr__(self) -> str:
        return f"BucketStore({self.path('')!r})"

    def read(self, key: str) -> bytes | None:
        return self._bucket.get(self._at(key))

    def write(self, key: str, data: bytes) -> None:
        at = self._at(key)
        self._prepare(key)
        self._bucket.put(at, data)

    def create(self, key: str, data: bytes) -> bool:
        at = self._at(key)
        self._prepare(key)
        return self._bucket.create(at, data)

    def list(self, prefix: str) -> Keys:
        return self._children(prefix, folders=False)

    def folders(self, prefix: str) -> Keys:
        return self._children(prefix, folders=True)

    def exists(self, key: str) -> bool:
        return self._bucket.size(self._at(key)) is not None

    def delete(self, key: str) -> None:
        self._bucket.delete(self._at(key))

    def size(self, key: str) -> int:
        size = self._bucket.size(self._at(key))
        if size is None:
            raise StoreError(f"cannot read {self.path(key)} in the offline store: it is not there")
        return size

    def path(self, key: str) -> str:
        return f"s3://{self._bucket.name}/{self._prefix}{key}"

    def scan(self, keys: str | Sequence[str]) -> pl.LazyFrame:
        names = [keys] if isinstance(keys, str) else list(keys)
        if len(names) == 1:
            data = [self._fetched(names[0])]
        else:
            with ThreadPoolExecutor(_FETCHERS) as pool:
                data = list(pool.map(self._fetched, names))
        return pl.scan_parquet(data, hive_partitioning=False)

    def _fetched(self, key: str) -> bytes:
        data = self.read(key)
        if data is None:
            raise MissingFileError(f"{self.path(key)} is not there (any more): restore it, or run the step that writes it again")
        return data

    def _at(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _children(self, prefix: str, *, folders: bool) -> Keys:
        below = f"{self._at(prefix)}/" if prefix else self._prefix
        found = (child.key.removesuffix("/") for child in self._bucket.children(below) if child.folder == folders)
        # Consoles mark a folder by an empty object with its name, and other programs hide their files as in a directory.
        names = (key[len(self._prefix) :] for key in found if len(key) > len(below) and not key[len(below) :].startswith("."))
        return sorted(names)

    def _prepare(self, key: str) -> None:
        """Before the first write: mark the store with its format, and see that what is there is not created again."""
        if self._prepared or key == FORMAT_KEY:
            return
        marker = json.dumps({"format": FORMAT}).encode()
        if self.create(FORMAT_KEY, marker) and self.create(FORMAT_KEY, marker):
            raise StoreError(
                f"the server of {self.path('')} creates what is there already: it takes no notice of If-None-Match, by which the offline "
                "store decides races; use a server that does, such as S3 itself, or a newer version of this one"
            )
        self._prepared = True


def _parts(url: str) -> tuple[str, str]:
    """The bucket's name, and the prefix of all keys: empty, or with a slash at its end. Errors never show the URL: it may hold a secret."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise DefinitionError(
            "[offline] url: expected s3://bucket/prefix and nothing else; credentials and the endpoint come from the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) or from ~/.aws"
        )
    if not _NAME.fullmatch(parts.netloc):
        raise DefinitionError("[offline] url: expected s3://bucket/prefix; a bucket's name is 3 or more letters, digits, dots and hyphens")
    prefix = parts.path.strip("/")
    try:
        return parts.netloc, f"{check_key(prefix)}/" if prefix else ""
    except ValueError:
        raise DefinitionError(
            "[offline] url: expected s3://bucket/prefix; no part of the prefix is empty, begins with a dot or holds a backslash"
        ) from None
