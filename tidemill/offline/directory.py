"""The offline store in a directory: a new file beside the target, then a rename (`write`) or a hard link (`create`)."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tidemill.errors import StoreError
from tidemill.offline.store import FORMAT, FORMAT_KEY, Keys, OfflineStore, check_key

_STALE_SECONDS = 86_400.0
#: Bytes that are copied at a time.
_COPIED = 1 << 20
_TEMPORARY = re.compile(r"\.tidemill-[0-9a-f]{16}\.tmp")


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

    def adopt(self, key: str, file: Path) -> bool:
        target = self._at(key)
        try:
            with file.open("rb") as source, self._temporary(target, source) as temporary:
                temporary.replace(target)
        except OSError as error:
            raise _explained(error, "copy", file) from error
        return True

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
        return self._root / check_key(key)

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
    def _temporary(self, target: Path, data: bytes | BinaryIO) -> Iterator[Path]:
        """A durable file of `data` beside `target`, for the block to put in place; gone afterwards, the folder's entry durable."""
        temporary = target.parent / f".tidemill-{secrets.token_hex(8)}.tmp"
        try:
            self._prepare(target.parent)
            try:
                # Not `tempfile`: its files are for this user only, and other users' jobs read the archive.
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                with os.fdopen(descriptor, "wb") as file:
                    if isinstance(data, bytes):
                        file.write(data)
                    else:
                        shutil.copyfileobj(data, file, _COPIED)
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
