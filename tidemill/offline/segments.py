"""What of the imported events lies in segments: whole imports, as cuts say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from tidemill.offline.cuts import imports_of, latest_cut
from tidemill.offline.history import Import, iter_parts, read_import
from tidemill.offline.store import OfflineStore


def iter_history(
    store: OfflineStore,
    source: str,
    upto_k: int | None = None,
    columns: Mapping[str, pl.DataType] | None = None,
    *,
    rows: int = 1_000_000,
) -> Iterator[pl.DataFrame]:
    """The imported events that lie in segments 1 to `upto_k` (None: to the newest cut), each once, as frames of 1 to `rows` rows.

    They have the columns of `archive.iter_range`: `columns`, with their types, and `_offset`, `_time`, `_arrival`; None takes every
    column as it is stored. Raises `StoreError`.
    """
    for made in imports_in_segments(store, source, upto_k):
        for _, frame in iter_parts(store, made.parts, columns, rows=rows):
            yield frame


def imports_in_segments(store: OfflineStore, source: str, upto_k: int | None = None) -> Iterator[Import]:
    """The imports that lie in segments 1 to `upto_k` (None: to the newest cut), in order."""
    last = imports_of(store, source, latest_cut(store, source) if upto_k is None else upto_k)
    for number in range(1, last + 1):
        yield read_import(store, source, number)
