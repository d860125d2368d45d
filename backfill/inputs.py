"""The files that history comes in: here, or in a bucket."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.errors import LogChangedError, LogError, TidemillError
from tidemill.logs.bytestream import CompressedBytes, MisnamedError
from tidemill.logs.files import format_of

#: What an estimate reads of a file of text.
_SAMPLE = 1 << 20


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file. `name`: as people know it, a path or a URL. `stamp`: changes when the file does."""

    name: str
    size: int
    stamp: str

    @contextmanager
    def local(self) -> Iterator[Path]:
        """The file on this machine; of a bucket's, a copy for the time being. Raises `LogError`, `StoreError`."""
        if not self.name.startswith("s3://"):
            yield Path(self.name)
            self._unchanged(_stamp(Path(self.name)))
            return
        parts = urlsplit(self.name)
        with tempfile.TemporaryDirectory(prefix="tidemill-backfill-") as folder:
            path = Path(folder) / Path(parts.path).name
            bucket, key = _bucket(parts.netloc), self.name.removeprefix(f"s3://{parts.netloc}/")
            bucket.download(key, str(path))
            self._unchanged(bucket.stamp(key))  # else the digest of one content would stand for the events of another
            yield path

    def _unchanged(self, found: tuple[int, str] | None) -> None:
        if found != (self.size, self.stamp):
            raise LogChangedError(f"{self.name} has changed while it was read: let it be complete, then run this again")


def find_inputs(patterns: Sequence[str], base: Path, format: str | None = None) -> list[InputFile]:
    """The files that any of the patterns matches, sorted by name: paths, folders or globs (`**` is any depth), also below s3://bucket/.

    What begins with `_` or `.` is left out, as in a log. Raises `LogError` where a pattern matches nothing, or a format is not known.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        some = list(_in_bucket(pattern) if pattern.startswith("s3://") else _in_folder(pattern, base))
        if not some:
            raise LogError(f"{pattern}: no file matches; give a path, a folder or a glob in quotes, such as 'history/**/*.parquet'")
        found |= {file.name: file for file in some}
    for name in found:
        format_of(Path(name), format)
    return [found[name] for name in sorted(found)]


def _in_folder(pattern: str, base: Path) -> Iterator[InputFile]:
    place = str(base / Path(pattern).expanduser())
    if Path(place).is_dir():
        place = str(Path(glob.escape(place), "**", "*"))
    matches = [place] if Path(place).is_file() else glob.iglob(place, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute pattern)
    for match in matches:
        path = Path(match)
        if path.name[0] not in "_." and path.is_file():
            yield InputFile(str(path.resolve()), *_stamp(path))


def _in_bucket(pattern: str) -> Iterator[InputFile]:
    parts = urlsplit(pattern)
    name, key = parts.netloc, pattern.removeprefix(f"s3://{parts.netloc}").lstrip("/")
    magic = glob.has_magic(key)
    prefix = re.split(r"[*?\[]", key)[0] if magic else key
    for found, size, tag in _bucket(name).objects(prefix):
        inside = _matches(found, key) if magic else found == key or found.startswith(key.rstrip("/") + "/")
        if inside and size and found.rpartition("/")[2][:1] not in ("_", ".", ""):
            yield InputFile(f"s3://{name}/{found}", size, tag)


def _matches(key: str, pattern: str) -> bool:
    """Part by part, where `**` is any number of parts."""
    parts = [r"(?:[^/]+/)*" if part == "**" else fnmatch.translate(part)[4:-3].replace(".*", "[^/]*") + "/" for part in pattern.split("/")]
    return re.fullmatch("".join(parts), key + "/", re.DOTALL) is not None


def _bucket(name: str) -> Any:  # the module is there with the extra only
    try:
        from tidemill.offline.s3 import Bucket
    except ModuleNotFoundError:
        raise TidemillError("files in a bucket need the client of S3: pip install 'tidemill[s3]'") from None
    return Bucket(name)


def _stamp(path: Path) -> tuple[int, str]:
    try:
        stat = path.stat()
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}") from error
    return stat.st_size, str(stat.st_mtime_ns)


def content_digest(path: Path) -> str:
    """SHA-256 of a file. Raises `LogError`."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}") from error


def estimated_records(file: InputFile, format: str | None = None) -> int | None:
    """About how many records a file has: of Parquet exactly, of text by its beginning; None for one in a bucket. Raises `LogError`."""
    if file.name.startswith("s3://"):
        return None
    try:
        return _estimated(file, Path(file.name), format)
    except (OSError, pa.ArrowException, MisnamedError) as error:
        raise LogError(f"{file.name}: cannot be read, or is not complete: {error}") from error


def _estimated(file: InputFile, path: Path, format: str | None) -> int:
    kind, codec = format_of(path, format)
    if kind == "parquet":
        return int(pq.read_metadata(path).num_rows)
    if codec is None:
        with path.open("rb") as opened:
            sample = opened.read(_SAMPLE)
        size = file.size
    else:
        stream = CompressedBytes(path, _SAMPLE, codec)
        sample = stream.read()
        stream.close()
        # What a codec makes of text is a fifth, more or less; a sample that is the whole file says it exactly.
        size = len(sample) if len(sample) < _SAMPLE else 5 * file.size
    lines = sample.count(b"\n") + (not sample.endswith(b"\n") and size == len(sample) and bool(sample)) - (kind == "csv")
    return round(lines * size / max(len(sample), 1))
