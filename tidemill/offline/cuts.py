"""Cuts: where batch has divided a source's log into segments. Segment k is what lies between cut k-1 and cut k.

Cut k >= 1 is one file, `cuts/<source>/<k>.json`: `{"k": 1, "vector": {"0": 1024}}`, a block boundary per partition, absent meaning
0. It is created once and never changed; vectors never decrease; none lies beyond what is archived without a hole. Cut 0 is empty.

Imports (`tidemill.offline.history`) are numbered from 1, and `"imports": 2` beside the vector says that the first two of them lie in
segments 1 to k; absent means 0. So an import is part of one segment, as a block is, and a segment may be nothing but an import.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from tidemill.blocks import Int64s, block_start, vector_of
from tidemill.errors import StoreError
from tidemill.offline.archive import archived_end, partitions
from tidemill.offline.history import latest_import
from tidemill.offline.store import OfflineStore, read_json

#: Block boundaries by partition; absent means 0.
Vector: TypeAlias = dict[int, int]

_NAME = re.compile(r"(\d{8,})\.json")


class Cut(NamedTuple):
    """One cut: block boundaries by partition, and how many of the source's imports lie in the segments up to it."""

    vector: Vector
    imports: int


def make_cut(store: OfflineStore, source: str) -> int | None:
    """Cut the log at the last block boundary of what is archived of each partition; the new cut's k, or None where nothing moved.

    The new segment also holds the imports that are complete, and in no segment yet.

    Several processes may cut at once: one creates cut k, the others then look whether there is anything left for k + 1.
    """
    while True:
        k = latest_cut(store, source)
        before, imported = _read(store, source, k)
        imports = latest_import(store, source)
        # A partition that the archive has lost stays where it was cut: cuts never decrease.
        after = dict(before)
        for partition in partitions(store, source):
            after[partition] = max(before.get(partition, 0), block_start(archived_end(store, source, partition)))
        after = {partition: after[partition] for partition in sorted(after) if after[partition]}
        if after == before and imports <= imported:
            return None
        cut: dict[str, object] = {"k": k + 1, "vector": {str(partition): offset for partition, offset in after.items()}}
        if imports:
            cut["imports"] = max(imports, imported)
        if store.create(_key(source, k + 1), json.dumps(cut).encode()):
            return k + 1


def latest_cut(store: OfflineStore, source: str) -> int:
    """The largest k that exists; 0 before the first cut. Raises `StoreError` where a cut below it is missing."""
    names = (_NAME.fullmatch(key.rpartition("/")[2]) for key in store.list(f"cuts/{source}"))
    found = {int(name[1]) for name in names if name}
    latest = max(found, default=0)
    for missing in sorted(set(range(1, latest + 1)) - found):
        if store.exists(_key(source, missing)):
            continue  # Created while the folder was being listed.
        raise StoreError(f"{store.path(_key(source, missing))} is missing, and cut {latest} is there: restore the file from a copy")
    return latest


def read_cut(store: OfflineStore, source: str, k: int) -> Vector:
    """The vector of cut k, partitions ascending; empty for k = 0. Raises `StoreError` where it is absent or damaged."""
    return _read(store, source, k).vector


def imports_of(store: OfflineStore, source: str, k: int) -> int:
    """How many of the source's imports lie in segments 1 to k. Raises `StoreError`."""
    return _read(store, source, k).imports


def import_cuts(store: OfflineStore, source: str, above: int, upto: int) -> dict[int, range]:
    """The cuts in (above, upto] whose own segments hold imports, ascending, with the numbers of those. Raises `StoreError`."""
    out: dict[int, range] = {}
    done, last = imports_of(store, source, above), imports_of(store, source, upto)
    k = above
    while done < last:
        # Cuts may be thousands and imports are few: the first cut that knows of one more is looked for, not walked to.
        k = bisect_left(range(upto + 1), done + 1, lo=k + 1, key=lambda at: imports_of(store, source, at))
        through = imports_of(store, source, k)
        out[k] = range(done + 1, through + 1)
        done = through
    return out


def _read(store: OfflineStore, source: str, k: int) -> Cut:
    if k == 0:
        return Cut({}, 0)
    data = store.read(_key(source, k))
    if data is None:
        raise StoreError(f"cut {k} of {source} does not exist: {store.path(_key(source, k))} is not there")
    return _parsed(store, source, k, data)


def cuts(store: OfflineStore, source: str) -> dict[int, Vector]:
    """The vectors of all cuts, by k from 1."""
    return dict(Cuts(store, source).vectors)


class Cuts:
    """The cuts of a source as of the last `refresh`, which reads only those that are new. Used by one thread."""

    def __init__(self, store: OfflineStore, source: str) -> None:
        self._store, self._source = store, source
        self._vectors: dict[int, Vector] = {}
        self._arrays: dict[int, Int64s] = {}
        latest_cut(store, source)  # Notices a missing cut, which looking for the next one by its name would take for the end.
        self.refresh()

    @property
    def latest(self) -> int:
        """The largest k that is known; 0 before the first cut."""
        return len(self._vectors)

    @property
    def vectors(self) -> Mapping[int, Vector]:
        """The vectors by k, from 1."""
        return self._vectors

    @property
    def arrays(self) -> Mapping[int, Int64s]:
        """The vectors by k as dense arrays, as `tidemill.blocks.relabel` and `counted` take them."""
        return self._arrays

    def vector(self, k: int) -> Vector:
        """The vector of cut k; empty for k = 0."""
        return self._vectors[k] if k else {}

    def refresh(self) -> bool:
        """Read the cuts made since; whether there were any. Raises `StoreError` for a damaged cut, or one that decreases."""
        before = self.latest
        while (data := self._store.read(_key(self._source, self.latest + 1))) is not None:
            k = self.latest + 1
            vector = _parsed(self._store, self._source, k, data).vector
            for partition, offset in self.vector(k - 1).items():
                if vector.get(partition, 0) < offset:
                    raise StoreError(
                        f"{self._store.path(_key(self._source, k))} cuts partition {partition} at {vector.get(partition, 0)}, and the cut "
                        f"before at {offset}: cuts never decrease, so one of the files is damaged; restore it from a copy"
                    )
            self._vectors[k] = vector
            self._arrays[k] = vector_of(vector)
        return self.latest > before


def _key(source: str, k: int) -> str:
    return f"cuts/{source}/{k:08d}.json"


def _parsed(store: OfflineStore, source: str, k: int, data: bytes) -> Cut:
    cut = read_json(store, _key(source, k), data)
    vector, imports = cut.get("vector"), cut.get("imports", 0)
    sound = isinstance(vector, dict) and all(_is_position(p, o) for p, o in vector.items()) and _is_position("0", imports)
    if cut.get("k") != k or not sound or not isinstance(vector, dict) or not isinstance(imports, int):
        raise StoreError(f'{store.path(_key(source, k))} should be {{"k": {k}, "vector": {{partition: offset}}}}: restore it from a copy')
    return Cut({int(partition): vector[partition] for partition in sorted(vector, key=int)}, imports)


def _is_position(partition: object, offset: object) -> bool:
    return isinstance(partition, str) and partition.isdecimal() and type(offset) is int and offset >= 0
