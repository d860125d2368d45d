"""Hashes that stay the same for ever: across processes, machines and versions of Python.

XXH3-64 (xxhash.com) over canonical bytes. Stores, shards and definitions hang on it: never change what is here.
"""

from __future__ import annotations

import json

import xxhash


def stable_id(value: object) -> int:
    """A 63-bit id of anything JSON can say: XXH3-64 of its canonical JSON (sorted keys, no spaces, UTF-8), top bit cleared.

    >>> stable_id({"b": 1, "a": [2]}) == stable_id({"a": [2], "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return xxhash.xxh3_64_intdigest(text.encode()) & (2**63 - 1)


def digest(value: object) -> str:
    """`stable_id` as 16 hexadecimal digits.

    >>> len(digest("tidemill"))
    16
    """
    return f"{stable_id(value):016x}"


def shard_of(entity: str, shards: int) -> int:
    """The shard of an entity's canonical key: XXH3-64 of its UTF-8 bytes, modulo the number of shards.

    >>> shard_of("JFK", 16)
    15
    """
    return xxhash.xxh3_64_intdigest(entity.encode()) % shards
