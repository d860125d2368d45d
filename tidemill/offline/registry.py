"""The registry: the definitions that `apply` has put in force, as numbered versions in `registry/<n>.json`.

A version is created once and never changed; the largest n is in force. What a version says is the business of whoever commits it;
here it is one JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from tidemill.errors import StoreError
from tidemill.offline.store import OfflineStore, read_json

#: A version's content: a JSON object.
Spec: TypeAlias = dict[str, Any]

_NAME = re.compile(r"(\d{6,})\.json")


class Registry:
    """The versions in one offline store. Many processes may read and commit at once."""

    def __init__(self, store: OfflineStore) -> None:
        self._store = store

    def version(self) -> int:
        """The number of the version in force; 0 before the first `commit`. Cheap enough to poll every second."""
        return max(self._numbers(), default=0)

    def current(self) -> tuple[int, Spec] | None:
        """The number and content of the version in force; None before the first `commit`. Raises `StoreError` for a damaged file."""
        version = self.version()
        return (version, self.read(version)) if version else None

    def read(self, version: int) -> Spec:
        """The content of one version. Raises `StoreError` where it is absent or damaged."""
        data = self._store.read(_key(version))
        if data is None:
            raise StoreError(f"version {version} of the registry does not exist: {self._store.path(_key(version))} is not there")
        return read_json(self._store, _key(version), data)

    def history(self) -> list[tuple[int, Spec]]:
        """All versions, oldest first."""
        return [(version, self.read(version)) for version in self._numbers()]

    def commit(self, spec: Mapping[str, Any], *, expect: int) -> int:
        """Put `spec` in force as version `expect` + 1, which is returned, if `expect` (0 before the first) is still in force.

        Raises `StoreError` where someone else committed meanwhile, `TypeError` or `ValueError` for what JSON cannot hold (NaN too).
        """
        # Sorted and indented, so that two versions can be compared line by line.
        data = json.dumps(spec, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()
        # `create` alone refuses versions that exist; only one that would leave a gap has to be found by looking.
        if self.version() != expect or not self._store.create(_key(expect + 1), data):
            raise StoreError(
                f"the registry stands at version {self.version()}, and this change was made for version {expect}: "
                "someone else applied definitions meanwhile; plan and apply again"
            )
        return expect + 1

    def _numbers(self) -> list[int]:
        names = (_NAME.fullmatch(key.rpartition("/")[2]) for key in self._store.list("registry"))
        return sorted(int(name[1]) for name in names if name)


def _key(version: int) -> str:
    return f"registry/{version:06d}.json"
