"""Logged reads, as what there is to check: one entity of one bundle at one instant, with the values that were served."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tidemill.applied import Applied, AppliedView
from tidemill.definitions import OnDemand
from tidemill.entities import entity_key
from tidemill.environment import Environment
from tidemill.errors import StoreError
from tidemill.journals import exact

#: By partition of the log, the offset before which everything was known. Imported history is partition `IMPORTS`, whose offsets are cuts.
Positions = dict[int, int]
IMPORTS = -1

#: Of what was asked before its shard served.
NOT_SERVING = "the shard was not serving yet, and the answer said so"


@dataclass(frozen=True, slots=True)
class Check:
    """What one request said of one entity, out of one bundle.

    `entity` is the canonical key. `served`: by feature's short name, the value and its status.
    """

    request: str
    row: int
    at: int
    version: int
    view: str
    bundle: str
    entity: str
    known: Positions
    served: Mapping[str, tuple[Any, str]]


class Skipped(NamedTuple):
    """So many values that cannot be computed again, and why."""

    reason: str
    values: int


class Versions:
    """The versions of the registry that reads were answered by, compiled when they are first asked for."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._known: dict[int, Applied | str] = {}

    def view(self, version: int, name: str) -> AppliedView | str:
        """The view as it was in force then; or why it cannot be had."""
        if version not in self._known:
            try:
                self._known[version] = Applied.from_spec(version, self._env.registry.read(version))
            except StoreError as error:
                self._known[version] = f"version {version} of the registry cannot be read: {error}"
        found = self._known[version]
        if isinstance(found, str):
            return found
        return found.views.get(name) or f"version {version} of the registry has no view {name}"


def sampled(request: str, share: float) -> bool:
    """Whether a request is among this share of all: always the same ones, and those of a smaller share among those of a larger."""
    return share >= 1 or int.from_bytes(hashlib.blake2b(request.encode(), digest_size=8).digest(), "big") < share * 2**64


def checks(entry: Mapping[str, Any], versions: Versions) -> Iterator[Check | Skipped]:
    """What there is to check in an entry, per bundle and row.

    Raises `KeyError`, `TypeError`, `ValueError` or `IndexError` for an entry that is none.
    """
    columns = {name: exact(column) for name, column in entry["columns"].items()}
    values = {name: exact(column) for name, column in entry["values"].items()}
    for part in entry["known"]:
        width = len(part["features"])
        view = versions.view(entry["version"], part["view"])
        reason = view if isinstance(view, str) else _changed(view, part)
        if reason or isinstance(view, str):
            yield Skipped(str(reason), width * len(part["rows"]))
            continue
        names = {column: column.removeprefix(f"{part['view']}__") for column in part["features"]}
        states = [_positions(state) for state in part["states"]]
        for row, state in enumerate(part["rows"]):
            if not part["states"][state]["serving"] or not states[state]:
                yield Skipped(NOT_SERVING, width)
                continue
            keys = {key: columns[key][row] for key in view.view.entity.keys}
            entity = entity_key(keys, view.view.entity.keys, view.view.key_types)
            served = {name: (values[column][row], entry["status"][column][row]) for column, name in names.items()}
            yield Check(
                entry["request"], row, instant(entry), entry["version"], part["view"], part["bundle"], entity, states[state], served
            )


def on_demand(entry: Mapping[str, Any], function: OnDemand) -> tuple[list[Any], list[Any]]:
    """What an on-demand feature said in an entry, and what it is of the inputs that it had, row by row. Raises `RequestError`."""
    had = {**entry["columns"], **entry["values"]}
    inputs = {p.column: exact(had[p.column]) for p in function.parameters.values()}
    return exact(entry["values"][function.column]), function.evaluate(inputs)


def instant(entry: Mapping[str, Any]) -> int:
    """The instant that an entry's request asked for, UTC microseconds."""
    return int(entry["at"]["$time"])


def _positions(state: Mapping[str, Any]) -> Positions:
    """The positions; and what was imported up to the cut that the answer named."""
    known = {int(p): int(offset) for p, offset in state["positions"].items() if int(offset) > 0}
    return {**known, IMPORTS: int(state["k"]) + 1} if state["k"] else known


def _changed(view: AppliedView, part: Mapping[str, Any]) -> str | None:
    """Why a bundle's part cannot be computed by the definitions of its version; None where it can."""
    if part["bundle"] not in {b.bundle.id for b in view.bundles}:
        return f"the registry has no bundle {part['bundle']} in that version"
    missing = [f for f in part["features"] if f.removeprefix(f"{view.view.name}__") not in view.view.features]
    return f"the registry has no feature {missing[0]} in that version" if missing else None
