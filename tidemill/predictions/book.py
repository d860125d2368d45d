"""The predictions of one name: its journal, its runs, and what follows the journal: `current.json`, and tables."""

from __future__ import annotations

import json
from dataclasses import replace

from tidemill.errors import RequestError, StoreError, TidemillError
from tidemill.offline.store import OfflineStore
from tidemill.predictions.journal import VISIBLE, Journal, Published, State
from tidemill.predictions.runs import Manifest, Plan, Positions, RunFiles, behind, check_name
from tidemill.predictions.table import PredictionTable, Source
from tidemill.times import from_micros


class Predictions:
    """Used by one thread. Raises `StoreError`, and `LeaseError` where another process changes the same predictions."""

    def __init__(self, store: OfflineStore, name: str) -> None:
        self._store, self.name = store, check_name(name)
        self.journal = Journal(store, name)

    def files(self, run: str) -> RunFiles:
        """The files of a run."""
        return RunFiles(self._store, self.name, run)

    def last(self, state: State) -> Manifest | None:
        """The manifest of the current run; None where there is none, and where its files were removed."""
        return self.files(state.current.run).manifest() if state.current else None

    def last_like(self, state: State, plan: Plan) -> Manifest | None:
        """The manifest of the newest visible run of the plan's kind: of all that was given, or of what had changed."""
        manifests = (self.files(published.run).manifest() for published in reversed(state.visible))
        return next((found for found in manifests if found is not None and found.plan.changed == plan.changed), None)

    def positions(self, state: State) -> Positions:
        """Where the next run begins: after what the current run has seen."""
        last = self.last(state)
        return {} if last is None else last.plan.upto

    # ---- what changes -----------------------------------------------------------------------------------------------------------

    def begin(self, state: State, run: str, now: int) -> State:
        """Note that a run is under way; what was cut short before it is abandoned."""
        return state if state.pending == run else self.journal.append(replace(state.after("begin", run, now), pending=run))

    def block(self, state: State, run: str, now: int, why: str) -> State:
        """Note that a run did not pass its checks: the one before stays."""
        return self.journal.append(replace(state.after("block", run, now, why), pending=None))

    def publish(self, state: State, plan: Plan, now: int, threshold: float | None) -> State:
        """Make a run the current one, in one step. Raises `RequestError` where others have come before it meanwhile."""
        self.check_order(state, plan)
        replaced = () if threshold is None else (state.threshold,)
        visible = (*state.visible, Published(plan.run, state.n + 1, plan.at, replaced))[-VISIBLE:]
        after = replace(state.after("publish", plan.run, now), pending=None, visible=visible)
        return self.journal.append(after if threshold is None else replace(after, threshold=threshold))

    def check_order(self, state: State, plan: Plan) -> None:
        """Raise `RequestError` where a run may not become current: it is older than the one that is, or leaves out what nobody scored."""
        current = state.current
        if current and plan.at < current.at:
            raise RequestError(
                f"run {plan.run} is as of {from_micros(plan.at).isoformat()}, and {current.run} of {from_micros(current.at).isoformat()} "
                f"is published: scores do not go back in time; say another --name, or roll back first"
            )
        if behind(plan.since, self.positions(state)):
            raise RequestError(
                f"run {plan.run} begins after events that no published run has seen, because one was rolled back since it was planned: "
                f"score in a run with another --run"
            )

    def roll_back(self, state: State, now: int) -> State:
        """Take the current run back, and its threshold; the one before is current again.

        Raises `TidemillError` where there is none to take back.
        """
        current = state.current
        if current is None:
            raise TidemillError(f"the predictions {self.name!r} have no published run to roll back")
        self._store.create(self._withdrawn(current.run), b"")  # first: what is withdrawn must not be published by whoever repeats the run
        threshold = current.replaced[0] if current.replaced else state.threshold
        after = replace(state.after("rollback", current.run, now), pending=None, visible=state.visible[:-1], threshold=threshold)
        return self.journal.append(after)

    def withdrawn(self, run: str) -> bool:
        """Whether a run that is not visible was rolled back."""
        return self._store.exists(self._withdrawn(run))

    def _withdrawn(self, run: str) -> str:
        return f"{self.files(run).folder}/withdrawn"

    # ---- what follows -----------------------------------------------------------------------------------------------------------

    def follow(self, state: State, table: PredictionTable | None) -> bool:
        """Bring `current.json`, and a table, to where the journal stands. Whether one of them was behind."""
        moved = self._follow_file(state)
        return (table is not None and table.follow(self.name, state, lambda run: self._source(run, state))) or moved

    def _source(self, run: str, state: State) -> Source | None:
        files = self.files(run)
        manifest = files.manifest()
        if manifest is None:
            if state.current and run == state.current.run:
                raise StoreError(
                    f"{self._store.path(files.folder)}: the manifest of the current run is not there; restore it, or roll back"
                )
            return None
        return Source(manifest, files.frames(manifest))

    def _follow_file(self, state: State) -> bool:
        """For people and tools that read the Parquet files: which ones to read."""
        if not state.n:
            return False
        last, current = self.last(state), state.current
        document = {
            "run": current.run if current else None,
            "at": from_micros(current.at).isoformat() if current else None,
            "parts": [self._store.path(part.key) for part in last.parts] if last else [],
            "visible": [published.run for published in state.visible],
        }
        key, data = f"predictions/{self.name}/current.json", json.dumps(document, indent=1).encode()
        if self._store.read(key) == data:
            return False
        self._store.write(key, data)
        return True
