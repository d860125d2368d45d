"""Bytes of a log file, chunk by chunk: plain files, which may grow while they are read, and compressed ones, which may not."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pyarrow as pa

_BOM = b"\xef\xbb\xbf"
_MAGIC = {b"PAR1": "a Parquet file", b"\x1f\x8b": "compressed with gzip", b"\x28\xb5\x2f\xfd": "compressed with zstd"}


class MisnamedError(ValueError):
    """A file whose first bytes show another format than its name."""


class ByteStream(Protocol):
    """A file's bytes in order, without a byte order mark. `position`: of the next byte, in the file or in what is unpacked."""

    position: int

    def read(self) -> bytes:
        """The next chunk; b"" for now, or at the end. Raises `OSError` or `MisnamedError`."""
        ...

    def close(self) -> None: ...


class PlainBytes:
    """Opens the file for each chunk: nothing is held while a log is idle, and a file that was replaced is seen as it is now."""

    def __init__(self, path: Path, chunk: int, position: int = 0) -> None:
        self._path = path
        self._chunk = chunk
        self.position = position

    def read(self) -> bytes:
        with self._path.open("rb", buffering=0) as file:
            file.seek(self.position)
            data = file.read(self._chunk) or b""
        if self.position == 0:
            for magic, what in _MAGIC.items():
                if data.startswith(magic):
                    raise MisnamedError(f"it is {what}, and its name does not say so; rename it")
        return _count(self, data)

    def close(self) -> None:
        """Nothing is held open."""


class CompressedBytes:
    """A gzip or zstd file, of one or many members, unpacked from its beginning.

    PyArrow's codec reports a file that was cut short; the `zstandard` package's reader takes it for the end.
    """

    def __init__(self, path: Path, chunk: int, codec: str) -> None:
        self._chunk = chunk
        self.position = 0
        if path.stat().st_size == 0:
            raise MisnamedError(f"it is empty, so it is not {codec}; write it elsewhere, and rename it when it is complete")
        self._stream = pa.CompressedInputStream(pa.OSFile(str(path)), codec)

    def read(self) -> bytes:
        return _count(self, self._stream.read(self._chunk))

    def close(self) -> None:
        self._stream.close()


def _count(stream: ByteStream, data: bytes) -> bytes:
    """Moves the position, and takes off the byte order mark."""
    skip = len(_BOM) if stream.position == 0 and data.startswith(_BOM) else 0
    stream.position += len(data)
    return data[skip:]
