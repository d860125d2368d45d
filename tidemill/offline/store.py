"""The offline store: files under keys, in a directory now, anywhere that keeps whole objects later.

A key is a relative path of parts joined by "/", such as `cuts/departures/00000001.json`; a part neither is empty nor begins with a
dot. Whatever may race is decided by one operation only, `create`: of many who create a key, one succeeds, and nobody ever sees
half of what it wrote. There are no locks, no appends and no renames to rely on, so object stores can do the same.
"""

from __future__ import annotations

import abc
import errno
import io
import json
import os
import re
import secrets
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

_STALE_SECONDS = 86_400.0
_TEMPORARY = re.compile(r"\.tidemill-[0-9a-f]{16}\.tmp")


class OfflineStore(abc.ABC):
    """See the module's text. Many processes may use one store at once.

    Every operation raises `StoreError` when the store cannot do it (full, no permission, damaged), and `ValueError` for a key that is none.
    """

    @staticmethod
    def open(url: str, *, base: Path) -> OfflineStore:
        """The store that `[offline] url` names: a directory (relative to `base`, the project's) or a `file:///` URL.

        Nothing is created before the first write. Raises `DefinitionError` for any other URL, `StoreVersionError` for a store that
        another version of tidemill wrote.
        """
        parts = urlsplit(url)
        if "://" in url and (parts.scheme != "file" or parts.netloc not in ("", "localhost")):
            raise DefinitionError(f"[offline] url = {url!r}: the offline store lies in a directory; write a path, or file:///path")
        if not url.strip():
            raise DefinitionError("[offline] url is empty: write the directory of the offline store, such as '.tidemill/offline'")
        path = Path(unquote(parts.path)) if "://" in url else Path(url).expanduser()
        store = DirectoryStore(base / path)
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
        """What Polars, PyArrow and DuckDB take to read the key. It may hold characters that they expand, so say `glob=False`."""

    def write_frame(self, key: str, frame: pl.DataFrame) -> None:
        """Write a frame as Parquet (zstd, statistics), as `write` does."""
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd", compression_level=1, statistics=True, row_group_size=ROW_GROUP_ROWS)
        self.write(key, buffer.getvalue())

    def scan(self, keys: str | Sequence[str]) -> pl.LazyFrame:
        """A lazy frame over one or more Parquet files with the same columns, in the order given.

        What goes wrong while it is collected comes as Polars' own error; see `reading`.
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


class DirectoryStore(OfflineStore):
    """An offline store in a directory of a file system with hard links (`create` needs them)."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._prepared: set[Path] = set()

    def __repr__(self) -> str:
        return f"DirectoryStore({str(self._root)!r})"

    def read(self, key: str) -> bytes | None:
        target = self._at(key)
        try:
            return target.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _explained(error, "read", target) from error

    def write(self, key: str, data: bytes) -> None:
        target = self._at(key)
        with self._temporary(target, data) as temporary:
            temporary.replace(target)

    def create(self, key: str, data: bytes) -> bool:
        target = self._at(key)
        if target.exists():
            return False
        with self._temporary(target, data) as temporary:
            try:
                # A link, not a rename: a rename would replace what another process created meanwhile.
                os.link(temporary, target)
            except FileExistsError:
                return False
        return True

    def list(self, prefix: str) -> Keys:
        return self._children(prefix, folders=False)

    def folders(self, prefix: str) -> Keys:
        return self._children(prefix, folders=True)

    def exists(self, key: str) -> bool:
        return self._at(key).is_file()

    def delete(self, key: str) -> None:
        target = self._at(key)
        try:
            target.unlink(missing_ok=True)
        except OSError as error:
            raise _explained(error, "delete", target) from error

    def size(self, key: str) -> int:
        target = self._at(key)
        try:
            return target.stat().st_size
        except OSError as error:
            raise _explained(error, "read", target) from error

    def path(self, key: str) -> str:
        return str(self._at(key))

    def _at(self, key: str) -> Path:
        for part in key.split("/"):
            if not part or part.startswith(".") or "\\" in part or "\0" in part:
                raise ValueError(f"{key!r} is not a key: its parts, joined by '/', are not empty, begin with no dot and hold no backslash")
        return self._root / key

    def _children(self, prefix: str, *, folders: bool) -> Keys:
        folder = self._at(prefix) if prefix else self._root
        start = f"{prefix}/" if prefix else ""
        try:
            with os.scandir(folder) as entries:
                return sorted(start + e.name for e in entries if not e.name.startswith(".") and e.is_dir() == folders)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _explained(error, "list", folder) from error

    @contextmanager
    def _temporary(self, target: Path, data: bytes) -> Iterator[Path]:
        """A durable file of `data` beside `target`, for the block to put in place; gone afterwards, the folder's entry durable."""
        temporary = target.parent / f".tidemill-{secrets.token_hex(8)}.tmp"
        try:
            self._prepare(target.parent)
            try:
                # Not `tempfile`: its files are for this user only, and other users' jobs read the archive.
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self._sweep_once(target.parent, temporary)
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)
        except OSError as error:
            # Where the folder is gone or the file system has turned read-only, the next write has to look again.
            self._prepared.discard(target.parent)
            raise _explained(error, "write", target) from error

    def _prepare(self, folder: Path) -> None:
        """Make `folder` durably, and mark the store with its format before anything else is in it."""
        if folder in self._prepared:
            return
        missing = [f for f in (folder, *folder.parents) if not f.exists()]
        for made in reversed(missing):
            made.mkdir(exist_ok=True)
            _sync_folder(made.parent)
        if folder != self._root and not self.exists(FORMAT_KEY):
            self.create(FORMAT_KEY, json.dumps({"format": FORMAT}).encode())

    def _sweep_once(self, folder: Path, mine: Path) -> None:
        """Remove what crashed writers left in `folder` more than a day ago, the first time that this store writes there.

        Ages are differences of the file system's own times, so no worker's clock can make a file that is being written look old.
        """
        if folder in self._prepared:
            return
        self._prepared.add(folder)
        now = mine.stat().st_mtime
        with os.scandir(folder) as entries:
            for entry in entries:
                if _TEMPORARY.fullmatch(entry.name):
                    leftover = Path(entry.path)
                    try:
                        if now - leftover.stat().st_mtime > _STALE_SECONDS:
                            leftover.unlink()
                    except FileNotFoundError:
                        continue  # Its writer finished, or another sweep was faster.


def read_json(store: OfflineStore, key: str, data: bytes) -> dict[str, object]:
    """`data`, read from `key`, as a JSON object. Raises `StoreError` naming the key where it is none."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise StoreError(f"{store.path(key)} should be a JSON object, and is not even JSON ({error}): restore it from a copy") from error
    if not isinstance(value, dict):
        raise StoreError(f"{store.path(key)} should be a JSON object, and is a {type(value).__name__}: restore it from a copy")
    return value


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a synced file whose name is lost with the power is lost all the same."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_ADVICE = {
    errno.ENOENT: "it is not there",
    errno.ENOSPC: "the disk is full: free some space, or point [offline] url at another disk",
    errno.EDQUOT: "the disk quota is used up: free some space, or point [offline] url at another disk",
    errno.EACCES: "this user may not: change the permissions of the folder, or point [offline] url elsewhere",
    errno.EROFS: "the file system is read-only: remount it, or point [offline] url elsewhere",
    errno.ENOTDIR: "a file stands where a folder is needed: remove it, or point [offline] url elsewhere",
    errno.ENOTSUP: "the file system has no hard links, which the offline store needs: point [offline] url at another one",
    errno.EPERM: "the file system forbids it (one without hard links does): point [offline] url at another one, or change the permissions",
}


def _explained(error: OSError, action: str, path: Path) -> StoreError:
    advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    return StoreError(f"cannot {action} {path} in the offline store: {advice}")
