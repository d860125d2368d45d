"""A learner's checkpoint: the model and how far it has read, in one file that is replaced in one step.

`learners/<model>/checkpoint`: a line of JSON with a hash (XXH3-128) of the rest, then as many bytes of JSON as it says (positions, what
waits to be joined, metrics), then the model. So the two can never disagree, whenever the process dies.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgspec
import xxhash

from tidemill.errors import StoreError, StoreVersionError
from tidemill.offline.store import OfflineStore

FORMAT = 1


class Checkpoint(NamedTuple):
    """What is known (plain values), and the model as bytes."""

    state: dict[str, Any]
    model: bytes


def checkpoint_key(name: str) -> str:
    """Where the checkpoint of the learner of a model lies."""
    return f"learners/{name}/checkpoint"


def save(store: OfflineStore, name: str, checkpoint: Checkpoint) -> None:
    """Put it in place of the one before, whole."""
    state = msgspec.json.encode(checkpoint.state)
    body = state + checkpoint.model
    head = {"format": FORMAT, "state": len(state), "xxh3": xxhash.xxh3_128_hexdigest(body)}
    store.write(checkpoint_key(name), json.dumps(head).encode() + b"\n" + body)


def load(store: OfflineStore, name: str) -> Checkpoint | None:
    """The newest; None before the first. Raises `StoreError` for one that is damaged."""
    key = checkpoint_key(name)
    data = store.read(key)
    if data is None:
        return None
    first, _, body = data.partition(b"\n")
    try:
        head = json.loads(first)
        version, length, sha = head["format"], int(head["state"]), head["xxh3"]
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{store.path(key)} is no checkpoint of a learner: restore it, or delete it to begin from the champion") from None
    if version != FORMAT:
        raise StoreVersionError(
            f"{store.path(key)} has format {version!r}, and this tidemill reads {FORMAT}: use the version that wrote it"
        )
    if xxhash.xxh3_128_hexdigest(body) != sha:
        raise StoreError(f"{store.path(key)} was changed or damaged: restore it, or delete it to begin from the champion, and all logs")
    return Checkpoint(msgspec.json.decode(body[:length]), body[length:])
