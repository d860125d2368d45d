"""The tables that follow the journal of predictions, in SQLite or Postgres: what is visible there changes in one transaction.

A table is a follower: `follow` brings it from wherever it stands to what the journal says. It carries the number of the journal's entry
that it stands at, which only grows, in the same transaction; so a process that comes late, or is killed anywhere, changes nothing that
it should not. docs/predictions.md has the schema.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl

from tidemill.errors import StoreError
from tidemill.predictions.entities import ENTITY
from tidemill.predictions.journal import State
from tidemill.predictions.runs import Manifest

#: Every column of the scores beside the keys, after which they come: name and type.
COLUMNS: Mapping[str, str] = {"score": "float", "label": "str", "status": "str", "prediction_id": "str", "at": "timestamp", "run": "str"}
RUNS, CURRENT = "tidemill_prediction_runs", "tidemill_prediction_current"
#: Postgres cuts longer names off.
_LONGEST = 63


@dataclass(frozen=True)
class Source:
    """Where a run's rows come from: its manifest, and its parts' frames."""

    manifest: Manifest
    frames: Iterable[pl.DataFrame]


class Sources(Protocol):
    """The source of a run; None where its files have been removed."""

    def __call__(self, run: str) -> Source | None: ...


class PredictionTable(abc.ABC):
    """See the module's text. `where`: the database as people may see it, without credentials.

    All operations raise `StoreError`; `StoreUnavailableError` where trying again later may help.
    """

    where: str
    #: Names of types in this database, and the mark of a parameter.
    types: Mapping[str, str]
    mark = "?"

    # ---- what an adapter brings -------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """One transaction, alone among those of all who publish: committed at the end, or rolled back by any exception."""

    @abc.abstractmethod
    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; its rows."""

    @abc.abstractmethod
    def load(self, table: str, frame: pl.DataFrame) -> None:
        """Insert the rows of a frame, whose columns are some of the table's. Instants are aware and UTC."""

    @abc.abstractmethod
    def columns(self, table: str) -> list[str]:
        """The columns of a table, in order; [] where there is none."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give the connection back."""

    # ---- following --------------------------------------------------------------------------------------------------------------

    def check(self, name: str, types: Mapping[str, str]) -> None:
        """Raise `StoreError` where the database does not answer, or has these predictions with other columns."""
        with self.transaction():
            self._fits(name, types)

    def follow(self, name: str, state: State, sources: Sources) -> bool:
        """Make visible what `state` says, and nothing else, at once.

        False where the table stands there, or further: then nothing happens.
        """
        with self.transaction():
            self._create()
            stands = self.execute(f"select n from {CURRENT} where name = {self.mark}", [name])
            if stands and stands[0][0] >= state.n:
                return False
            known = dict(self.execute(f"select run, seq from {RUNS} where name = {self.mark} and withdrawn_at is null", [name]))
            visible = {p.run: p.seq for p in state.visible}
            # The journal names the newest runs only; older ones stay as they are.
            oldest = min(visible.values(), default=0)
            removed = sorted((run for run, seq in known.items() if run not in visible and seq >= oldest), key=known.__getitem__)
            for run in removed:
                self._withdraw(name, run, known[run], state.when)
            added = [run for run in visible if run not in known and self._add(name, run, visible[run], state.when, sources)]
            self._point(name, state)
            if oldest and added:
                self._prune(name, oldest)
            return True

    def _create(self) -> None:
        t = self.types
        self.execute(
            f"create table if not exists {RUNS} (name {t['str']} not null, run {t['str']} not null, seq {t['int']} not null, "
            f"at {t['timestamp']} not null, model {t['str']} not null, version {t['str']} not null, {quoted('rows')} {t['int']} not null, "
            f"scored {t['int']} not null, statuses {t['str']} not null, published_at {t['timestamp']} not null, "
            f"withdrawn_at {t['timestamp']}, primary key (name, run))"
        )
        self.execute(
            f"create table if not exists {CURRENT} (name {t['str']} primary key, n {t['int']} not null, run {t['str']}, seq {t['int']}, "
            f"threshold {t['float']})"
        )

    def _add(self, name: str, run: str, seq: int, now: int, sources: Sources) -> bool:
        source = sources(run)
        if source is None:
            return False
        plan, found = source.manifest.plan, source.manifest.statistics
        table = scores_table(name)
        shown = [ENTITY, *source.manifest.types, *COLUMNS]
        if not self._fits(name, source.manifest.types):
            self._create_scores(name, source.manifest.types)
        self.execute(f"delete from {RUNS} where name = {self.mark} and run = {self.mark}", [name, run])
        self.execute(
            f"insert into {RUNS} (name, run, seq, at, model, version, {quoted('rows')}, scored, statuses, published_at) "
            f"values ({', '.join([self.mark] * 10)})",
            [
                *(name, run, seq, self.instant(plan.at), plan.model, plan.version),
                *(found.rows, found.scored, json.dumps(found.statuses, sort_keys=True), self.instant(now)),
            ],
        )
        for frame in source.frames:
            self.load(table, frame.select(*shown, pl.lit(seq, pl.Int64).alias("seq")))
        return True

    def _fits(self, name: str, types: Mapping[str, str]) -> bool:
        """Whether the table of scores is there; raises `StoreError` if it is another one."""
        found, shown = self.columns(scores_table(name)), [ENTITY, *types, *COLUMNS, "seq"]
        if found and sorted(found) != sorted(shown):
            raise StoreError(
                f"{self.where}: table {scores_table(name)} has the columns {', '.join(found)}, and these predictions have "
                f"{', '.join(shown)}: publish them under another name"
            )
        return bool(found)

    def _create_scores(self, name: str, types: Mapping[str, str]) -> None:
        table = scores_table(name)
        for column in types:
            if len(column.encode()) > _LONGEST:
                raise StoreError(f"column {column!r} is longer than the {_LONGEST} bytes that a database takes: rename the key")
        typed = [f"{quoted(ENTITY)} {self.types['str']} not null", *(f"{quoted(c)} {self.types[k]}" for c, k in types.items())]
        typed += [f"{quoted(c)} {self.types[k]}" for c, k in COLUMNS.items()]
        self.execute(f"create table {table} ({', '.join(typed)}, seq {self.types['int']} not null, primary key ({ENTITY}, seq))")
        self.execute(f"create index {quoted(name + '_scores_seq')} on {table} (seq)")
        for view, sql in views(name).items():
            self.execute(f"create view {view} as {sql}")

    def _withdraw(self, name: str, run: str, seq: int, now: int) -> None:
        self.execute(f"delete from {scores_table(name)} where seq = {self.mark}", [seq])
        self.execute(
            f"update {RUNS} set withdrawn_at = {self.mark} where name = {self.mark} and run = {self.mark}", [self.instant(now), name, run]
        )

    def _point(self, name: str, state: State) -> None:
        current = state.current
        run, seq = (current.run, current.seq) if current else (None, None)
        self.execute(f"delete from {CURRENT} where name = {self.mark}", [name])
        self.execute(
            f"insert into {CURRENT} (name, n, run, seq, threshold) values ({', '.join([self.mark] * 5)})",
            [name, state.n, run, seq, state.threshold],
        )

    def _prune(self, name: str, oldest: int) -> None:
        """Delete what neither the oldest visible run nor any after it shows as an entity's latest score: nobody can roll back to it."""
        table = scores_table(name)
        self.execute(
            f"delete from {table} where seq < {self.mark} and exists (select 1 from {table} n where n.{ENTITY} = {table}.{ENTITY} "
            f"and n.seq > {table}.seq and n.seq <= {self.mark})",
            [oldest, oldest],
        )

    def instant(self, micros: int) -> object:
        """An instant as a parameter."""
        from tidemill.times import from_micros

        return from_micros(micros)


def scores_table(name: str) -> str:
    """The table of all visible runs' scores.

    >>> scores_table("fraud")
    '"fraud_scores"'
    """
    return quoted(f"{name}_scores")


def views(name: str) -> dict[str, str]:
    """The views over the scores, and what each selects."""
    scores = scores_table(name)
    latest = f"select s.* from {scores} s where s.seq = (select max(l.seq) from {scores} l where l.{ENTITY} = s.{ENTITY})"
    pointer = f"from {CURRENT} c where c.name = '{name}'"
    return {
        quoted(f"{name}_current"): f"select s.* from {scores} s where s.seq = (select c.seq {pointer})",
        quoted(f"{name}_latest"): latest,
        quoted(f"{name}_above"): f"{latest} and s.score >= (select c.threshold {pointer})",
    }


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever it holds.

    >>> print(quoted('a"b c'))
    "a""b c"
    """
    return '"' + name.replace('"', '""') + '"'


def rows_of(frame: pl.DataFrame, size: int = 10_000) -> Iterator[list[tuple[Any, ...]]]:
    """A frame's rows, some at a time."""
    for piece in frame.iter_slices(size):
        yield piece.rows()
