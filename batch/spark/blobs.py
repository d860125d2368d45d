"""Frames as rows of bytes: a shuffle then needs one schema, whatever the frame's columns, and Polars' types survive it."""

from __future__ import annotations

import io
from collections.abc import Iterator

import polars as pl
import pyarrow as pa

#: Rows of a frame in one blob: some tens of megabytes at most, and a task holds a few of them.
ROWS = 131_072


def blobs(frame: pl.DataFrame) -> Iterator[bytes]:
    """A frame as Arrow streams, at least one, in the order of its rows.

    >>> [len(frame_of(blob)) for blob in blobs(pl.DataFrame({"x": range(200_000)}))]
    [131072, 68928]
    """
    for first in range(0, max(len(frame), 1), ROWS):
        out = io.BytesIO()
        frame.slice(first, ROWS).write_ipc_stream(out, compression="lz4")
        yield out.getvalue()


def frame_of(blob: bytes) -> pl.DataFrame:
    """The frame of one blob."""
    return pl.read_ipc_stream(io.BytesIO(blob))


def batch_of(schema: pa.Schema, *row: object) -> pa.RecordBatch:
    """One row as a record batch."""
    return pa.RecordBatch.from_arrays([pa.array([value], field.type) for value, field in zip(row, schema, strict=True)], schema=schema)


def numbers_of(batches: Iterator[pa.RecordBatch]) -> Iterator[int]:
    """The numbers in the first column."""
    for batch in batches:
        yield from batch.column(0).to_pylist()
