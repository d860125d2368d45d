"""Where chunks of events become tiles: here in threads, elsewhere in whatever can run the kernel's `fold` beside the data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self, runtime_checkable

import polars as pl

from tidemill.definitions import Source
from tidemill.kernel.bundle import Bundle
from tidemill.offline.history import Part
from tidemill.offline.partials import PartialFile

Tiles = list[pl.DataFrame]


class Engine(Protocol):
    """Folds chunks of events, several at once."""

    @property
    def width(self) -> int:
        """How many chunks it folds at once."""
        ...

    def submit(self, bundle: Bundle, events: pl.DataFrame, horizon: int) -> Future[Tiles]:
        """The tiles of a chunk of a source's events: a frame per table of the bundle. Chunks come back in any grouping, not merged."""
        ...


@dataclass(frozen=True, slots=True)
class Stretch:
    """What there is to read of a source: ranges of its archive's partitions, or, where the partition is `blocks.HISTORY`, of `parts`."""

    source: Source
    ranges: tuple[tuple[int, int, int], ...]
    parts: tuple[Part, ...] = ()


class Newest(NamedTuple):
    """The largest times of some events, and whether some of them, but not all, have an arrival time."""

    latest: int
    arrived: int
    partly: bool


@runtime_checkable
class Spread(Protocol):
    """Folds whole stretches where they lie, on many machines. Used within a `with`; may be used again after it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def newest(self, stretch: Stretch, progress: Callable[[int], None]) -> Newest:
        """What is to be known of the times before anything is folded. `progress` is called now and then, with 0: it renews a lease."""
        ...

    def fold(
        self, stretch: Stretch, bundles: Sequence[tuple[Bundle, int]], k: int, progress: Callable[[int], None]
    ) -> list[list[PartialFile]]:
        """Fold into bundles, with their horizons; per bundle the files that were written. `progress`: how many events more are folded."""
        ...


class Local:
    """Threads of this process: Polars works without the interpreter's lock."""

    def __init__(self, threads: int | None = None) -> None:
        self.width = threads or min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self.width)

    def submit(self, bundle: Bundle, events: pl.DataFrame, horizon: int) -> Future[Tiles]:
        return self._pool.submit(_fold, bundle, events, horizon)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _fold(bundle: Bundle, events: pl.DataFrame, horizon: int) -> Tiles:
    selected, _ = bundle.select(events)  # what it rejects was counted when it was streamed, or imported
    return bundle.fold(selected, horizon)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much is held at once: events of a chunk, tiles of all folds together before they are written, tiles that are published.

    `events`, `seconds`: a fold notes how far it came after about so many events, or so long; less than that is lost if it is killed.
    """

    rows: int = 1_000_000
    tiles: int = 4_000_000
    published: int = 8_000_000
    events: int = 16_000_000
    seconds: float = 60.0

    @classmethod
    def of(cls, memory: int) -> Budget:
        """A budget for about so many bytes, of which the interpreter and its libraries take the first 300 MiB.

        >>> Budget.of(2 << 30).rows, Budget.of(512 << 20).rows
        (716007, 86918)
        """
        left = max(memory - (300 << 20), 64 << 20)
        least = cls()
        return cls(
            min(least.rows, left // 2_560),
            min(least.tiles, left // 640),
            min(least.published, left // 960),
        )


#: Where nobody says how much memory there is.
USUAL = Budget()
