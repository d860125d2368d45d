"""When batch last ran: a note per source, for people. Nothing is decided by it; versions and cuts are what they are without.

`runs/<source>.json` is written anew at the end of every run that came to its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tidemill.offline.store import OfflineStore


@dataclass(frozen=True, slots=True)
class Run:
    """The last run for a source. `at`: when it ended (UTC microseconds of the machine that it ran on); it took `seconds`.

    `k`: the cut that it folded to. `folded`: by bundle id, the version's k and when a run first found it folded. `published`: how many
    entities this run published, by bundle id.
    """

    at: int
    seconds: float
    k: int
    folded: dict[str, tuple[int, int]]
    published: dict[str, int]

    def folded_at(self, bundle: str, k: int) -> int | None:
        """When version `k` of a bundle was folded; None where this note is of another version."""
        noted, at = self.folded.get(bundle, (0, 0))
        return at if k and noted == k else None


def note_run(store: OfflineStore, source: str, at: int, seconds: float, k: int, versions: dict[str, int], published: dict[str, int]) -> Run:
    """Write the note of a run that has just ended, with the k of every bundle's version."""
    before = last_run(store, source)
    folded = {}
    for bundle, version in versions.items():
        known = before.folded_at(bundle, version) if before else None
        folded[bundle] = version, at if known is None else known
    run = Run(at, seconds, k, folded, published)
    store.write(_key(source), msgspec.json.encode(run))
    return run


def last_run(store: OfflineStore, source: str) -> Run | None:
    """The note; None before the first run, and where it cannot be understood: it will be written again."""
    data = store.read(_key(source))
    try:
        return None if data is None else msgspec.json.decode(data, type=Run)
    except msgspec.DecodeError:
        return None


def _key(source: str) -> str:
    return f"runs/{source}.json"
