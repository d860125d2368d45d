"""The log of reads: a share of all answers, with what they were computed from, for `tidemill audit` to compute them again.

An entry of the journal `reads` is one request: its id; `at`, the instant asked for; `version`, of the registry; `service`; `columns`,
the keys and request columns; `values` and `status` of every stored feature read and of the on-demand features; `on_demand`, the hash
of each function's text; and `known`, per bundle: which features it answered, the different `states` that its rows were read in, and
which of them each row is. A state is `k` (the cut up to which imported history was known, 0 for none), whether the slot was `serving`,
and `positions`: for each partition the offset before which everything was known.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tidemill.answers import AsOf, OnlineFeatures, ViewAnswer
from tidemill.errors import DefinitionError
from tidemill.journals import Counts, Journal
from tidemill.journals.background import Background
from tidemill.offline.store import OfflineStore
from tidemill.times import SECOND, parse_duration

if TYPE_CHECKING:
    from tidemill.definitions import FeatureSet
    from tidemill.environment import Environment

#: The journal's name.
READS = "reads"


class ShareLog:
    """Notes a share of the answers, `rate` from 0 to 1, in a journal. Costs a request a few microseconds, and never makes it wait.

    `most`: so many rows may wait to be written (default: the kind's own); what comes then is dropped and counted. An entry waits at most
    `seconds` for its file. `choose` gives numbers of [0, 1). Raises `DefinitionError` for a rate that is none.
    """

    #: The journal's name, which [log] of tidemill.toml knows its share by, and how many rows may wait.
    name: ClassVar[str]
    most: ClassVar[int]

    def __init__(
        self,
        store: OfflineStore,
        rate: float = 1.0,
        *,
        most: int | None = None,
        seconds: float = 10.0,
        choose: Any = random.random,
        journal: Background | None = None,
    ) -> None:
        if not 0 <= rate <= 1:
            raise DefinitionError(f"the log's rate is the share of {self.name} to note, from 0 to 1; got {rate!r}")
        self.rate = rate
        self._choose = choose
        self._journal = journal or Journal(store, self.name, most=self.most if most is None else most, seconds=seconds)

    @classmethod
    def of(cls, env: Environment) -> Self | None:
        """What [log] of tidemill.toml asks for; None where it asks for nothing."""
        settings = env.project.settings.get("log", {})
        rate = float(settings.get(cls.name, 0))
        if not rate:
            return None
        return cls(log_store(env), rate, seconds=parse_duration(str(settings.get("every", "10s"))) / SECOND)

    @property
    def counts(self) -> Counts:
        """What became of the entries so far."""
        return self._journal.counts

    def flush(self) -> bool:
        """Write what waits now; whether it is written."""
        return self._journal.flush()

    def close(self) -> Counts:
        """Write what waits, and end."""
        return self._journal.close()

    def chosen(self) -> bool:
        """Whether the dice say that this answer is noted."""
        return self.rate >= 1 or self._choose() < self.rate


class ReadLog(ShareLog):
    """Of reads: for `tidemill audit`."""

    name = READS
    most = 5_000

    def offer(self, answer: OnlineFeatures, stored: Mapping[str, Sequence[Any]], wanted: FeatureSet, version: int) -> None:
        """Note an answer, if the dice say so. `stored` has the values of all stored features read, row by row."""
        if not self.chosen():
            return
        # Copies: the lists are the caller's from now on.
        columns = {n: list(answer.columns[n]) for n in (*wanted.keys, *wanted.request)}
        values = {n: [v[:] if type(v) is list else v for v in column] for n, column in stored.items()}
        values.update((o.column, list(answer.columns[o.column])) for o in wanted.on_demands)
        status = {n: list(column) for n, column in {**_statuses(answer.as_of), **answer.status}.items()}
        request, at = secrets.token_hex(8), answer.at
        as_of = answer.as_of

        def entry() -> dict[str, Any]:
            return {
                "request": request,
                "at": at,
                "version": version,
                "service": wanted.service,
                "on_demand": {o.column: o.source_hash for o in wanted.on_demands},
                "columns": columns,
                "values": values,
                "status": status,
                "known": [part for view in as_of.answers for part in _known(view)],
            }

        self._journal.put(entry, weight=max(len(next(iter(columns.values()), ())), 1))


def log_store(env: Environment) -> OfflineStore:
    """Where journals lie: [log] directory in tidemill.toml, a path or an s3:// URL; else the offline store."""
    url = env.project.settings.get("log", {}).get("directory")
    return env.offline if url is None else OfflineStore.open(str(url), base=env.project.directory)


def _statuses(as_of: AsOf) -> dict[str, list[str]]:
    """The status of every stored feature read, row by row."""
    return {n: [column[i] for i in view.asked.row] for view in as_of.answers for n, column in view.status.items()}


def _known(view: ViewAnswer) -> list[dict[str, Any]]:
    """What each bundle of a view knew of each row's entity."""
    parts = []
    positions = [view.positions(row) for row in range(len(view.asked.row))]
    imports = [view.imports(row) for row in range(len(view.asked.row))]
    for b, bundle in enumerate(view.plan.bundles):
        states: dict[tuple[Any, ...], int] = {}
        rows = []
        for row, entity in enumerate(view.asked.row):
            k = imports[row][b]
            serving = view.states[b][view.asked.shards[entity]].serving
            state = k, serving, tuple(sorted(positions[row][b].items()))
            rows.append(states.setdefault(state, len(states)))
        parts.append(
            {
                "view": view.plan.name,
                "bundle": bundle.id,
                "features": [name for name, at, _ in view.plan.features if at == b],
                "states": [{"k": k, "serving": serving, "positions": {str(p): o for p, o in known}} for k, serving, known in states],
                "rows": rows,
            }
        )
    return parts
