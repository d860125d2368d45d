"""One log, told in as many ways as stream and batch may tell it, and read back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import polars as pl

from tests.strategies import Event, Log, decoded
from tidemill.blocks import vector_of
from tidemill.kernel import packed
from tidemill.kernel.bundle import Bundle, Evaluated
from tidemill.online.base import Cell
from tidemill.stable import shard_of
from tidemill.times import DAY, HOUR, MIN_TIME, MINUTE, SECOND, floor_to

Rows = Sequence[tuple[int, Event]]
Cells = dict[tuple[int, str], Cell]


def some_horizon(t: int, rng: Random) -> int:
    """One that allows a read at `t`."""
    return rng.choice(
        (t, t, t - 1, t - SECOND, t - rng.randrange(2 * MINUTE), t - rng.randrange(2 * HOUR), floor_to(t, DAY), t - 40 * DAY, MIN_TIME)
    )


def pieces(rows: Rows, rng: Random) -> Iterator[Rows]:
    """The rows cut anywhere, each in one piece."""
    places = sorted(rng.sample(range(len(rows) + 1), min(rng.randrange(5), len(rows))))
    for a, b in zip([0, *places], [*places, len(rows)], strict=True):
        yield rows[a:b]


def select(bundle: Bundle, rows: Rows) -> pl.DataFrame:
    """Decoded rows, past the view's filter."""
    frame, rejected = bundle.select(decoded([e for _, e in rows], bundle.schema, offsets=[o for o, _ in rows]))
    assert not rejected
    return frame


def streamed(bundle: Bundle, log: Log, cuts: Sequence[Mapping[int, int]], t: int, rng: Random) -> dict[tuple[int, str], bytes]:
    """The tails by (table id, entity): batches of any size in any order, each with a horizon of its own, compacted now and then."""
    vectors = {k: vector_of(v) for k, v in enumerate(cuts, start=1)}
    tails: dict[tuple[int, str], bytes] = defaultdict(bytes)
    batches = [(p, piece) for p, rows in log.partitions.items() for piece in pieces(rows, rng)]
    rng.shuffle(batches)
    shards, known, reached = rng.choice((1, 5)), 0, MIN_TIME
    for partition, rows in batches:
        for shard, items in bundle.deltas(select(bundle, rows), some_horizon(t, rng), partition, shards).items():
            for table, entity, records in items:
                assert shard == shard_of(entity, shards)
                before = tails[table, entity]
                tails[table, entity] = before + records if rng.random() < 0.5 else records + before
        if rng.random() < 0.4:
            known, reached = rng.randint(known, len(cuts)), max(reached, some_horizon(t, rng))
            for table, kind in zip(bundle.table_ids, bundle.tables, strict=True):
                some = [key for key in tails if key[0] == table and rng.random() < 0.7]
                compacted = packed.compact(
                    kind, [tails[key] for key in some], bundle.ladder, reached, {k: vectors[k] for k in range(1, known + 1)}
                )
                tails.update(zip(some, compacted, strict=True))
    return tails


def folded(bundle: Bundle, log: Log, cuts: Sequence[Mapping[int, int]], t: int, rng: Random) -> list[dict[str, bytes]]:
    """The version of the last cut, per table and entity: each segment folded in pieces, with any horizons, then merged."""
    frames: list[list[pl.DataFrame]] = [[] for _ in bundle.tables]
    for partition, rows in log.partitions.items():
        before = 0
        for cut in cuts:
            end = cut.get(partition, 0)
            for piece in pieces([row for row in rows if before <= row[0] < end], rng):
                for i, frame in enumerate(bundle.fold(select(bundle, piece), some_horizon(t, rng))):
                    frames[i].append(frame)
            before = end
    out = []
    for i, parts in enumerate(frames):
        rng.shuffle(parts)
        merged = bundle.merge(i, pl.concat(parts), some_horizon(t, rng))
        out.append(dict(zip(*bundle.pack(i, bundle.with_entities(merged), tag=-len(cuts)), strict=True)))
    return out


def stored(bundle: Bundle, log: Log, cuts: Sequence[Mapping[int, int]], t: int, rng: Random) -> Cells:
    """What a store could hold after all of it: entities published with any of the cuts or with none, their tails trimmed or not yet."""
    tails = streamed(bundle, log, cuts, t, rng)
    versions = {k: folded(bundle, log, cuts[:k], t, rng) for k in range(1, len(cuts) + 1)}
    cells: Cells = {}
    for entity in entities(log):
        k = rng.randint(0, len(cuts))
        for i, (table, kind) in enumerate(zip(bundle.table_ids, bundle.tables, strict=True)):
            tail = tails[table, entity]
            if k == 0:
                cells[i, entity] = Cell(0, b"", b"", tail)
                continue
            vector = vector_of(cuts[k - 1])
            if rng.random() < 0.5:
                tail = packed.trim(kind, [tail], k, vector)[0]
            cells[i, entity] = Cell(k, vector.astype("<i8").tobytes(), versions[k][i].get(entity, b""), tail)
    return cells


def entities(log: Log) -> list[str]:
    """The keys of a log's events; one key column `k` of text is its own canonical key."""
    return sorted({e["k"] for _, _, e in log.all()})


def of(log: Log, entity: str) -> list[Event]:
    """One entity's events."""
    return [e for _, _, e in log.all() if e["k"] == entity]


def read(bundle: Bundle, cells: Cells, names: Sequence[str], t: int) -> Evaluated:
    """The features of these entities, of which the store may hold nothing."""
    return bundle.evaluate(t, {i: [cells.get((i, name)) for name in names] for i in range(len(bundle.tables))})


def answers(bundle: Bundle, cells: Cells, names: Sequence[str], t: int) -> dict[tuple[str, str], list[Any]]:
    """Every feature, by its aggregation's label and window's name."""
    found = read(bundle, cells, names, t)
    return {(a.label, w.name): found.values(a, w) for a in bundle.aggregations for w in a.windows}
