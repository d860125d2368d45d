"""A year of New York flights in a minute or so, with every number checked: `make demo`, `tidemill demo` or `python demo.py`.

Two worker processes stream two logs while these grow; batch cuts and folds them every few days; one worker is killed the hard way in
the middle; and all along, features are asked for. In the end each value served is held against brute force over the raw log.

`make demo-kafka` does the same over a real Kafka and a real Redis.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import tidemill as tm
from tidemill.apps.examples.flights.audit import Difference, RawLog, Served, differences
from tidemill.apps.examples.flights.make_logs import SOURCES, Delivery
from tidemill.apps.examples.flights.replay import Outcome, Plan, Replay, Servers, Told
from tidemill.apps.examples.flights.scoring import Scored, Season
from tidemill.apps.examples.flights.season import SPLIT
from tidemill.definitions import Definitions, Source
from tidemill.environment import Environment
from tidemill.errors import TidemillError
from tidemill.offline.dead import count_dead

WHOLE = Delivery()
#: What the tables at the end show.
_SHOWN = {
    "origin_departures": ("count_1d", "dep_delay_mean_1d", "dep_delay_p90_30d", "late_1d", "tailnum_approx_count_distinct_7d"),
    "carrier_departures": ("count_7d", "dep_delay_mean_7d", "dep_delay_mean_30d", "dep_delay_stddev_7d", "dep_delay_max_1d"),
    "aircraft_departures": ("count_lifetime", "origin_last_7d", "dep_delay_last3_7d"),
    "aircraft_arrivals": ("dest_last_7d", "arr_delay_mean_30d"),
}


def main(directory: Path = Path(".demo"), plan: Plan | None = None, console: Console | None = None, servers: Servers | None = None) -> int:
    """Run the demo in a folder of its own, which is made; the exit code. 0 says that every value was equal, and the kill survived.

    Over files and SQLite, or over `servers`: then its topics, and its part of Redis, are made afresh.
    """
    console = console or Console(highlight=False)
    try:
        return _demo(directory, plan or Plan(), console, servers)
    except KeyboardInterrupt:
        console.print(f"stopped; no process is left behind, and what there is lies in {directory}")
        return 130
    except TidemillError as error:
        console.print(f"[red]the demo cannot go on:[/] {error}")
        return 1


def _demo(directory: Path, plan: Plan, console: Console, servers: Servers | None) -> int:
    with console.status("making the two logs of the year, as they would have been written"):
        replay = Replay(directory, plan, servers)
    definitions = Environment.load(replay.project).definitions
    logs = " and ".join(definitions.sources)
    console.print(f"{replay.logs.total:,} events in two logs, {logs}; the features are in {replay.project / 'features.py'}", soft_wrap=True)
    with _progress(console, TextColumn("{task.fields[now]}"), TextColumn("{task.fields[doing]}")) as progress:
        task = progress.add_task("streaming", total=len(replay.logs), now="", doing="starting two worker processes")
        telling = _Telling(progress, task)
        season = None if servers is None else Season(replay, SPLIT, progress.console.print)
        with season or contextlib.nullcontext():
            outcome = replay.run(telling if season is None else lambda told: (telling(told), season(told)))
            scored = season.end() if season is not None and season.began else None
    with _progress(console) as progress:
        task = progress.add_task("computing every value again from the raw log", total=len(outcome.answers))

        def counted(answers: Sequence[Served]) -> Iterator[Served]:
            for answer in answers:
                yield answer
                progress.advance(task)

        compared, wrong = differences(outcome.answers, definitions, outcome.logs, counted)
    _show_features(console, outcome, definitions)
    _show_facts(console, outcome)
    code = verdict(console, outcome, compared, wrong)
    if scored is not None:
        code = show_scored(console, scored) or code
    if plan.delivery.first <= WHOLE.first and plan.delivery.last >= WHOLE.last:
        _show_worth(console, outcome)
    return code


def verdict(console: Console, outcome: Outcome, compared: int, wrong: Sequence[Difference]) -> int:
    """Say how many values were equal; 0 if all were, and if all workers came back after each kill."""
    for difference in wrong[:10]:
        console.print(f"[red]not equal:[/] {difference}", soft_wrap=True)
    features = compared // max(len(outcome.answers), 1)
    console.print(
        f"[bold {'red' if wrong else 'green'}]{len(outcome.answers):,} instants x {features} features: {compared:,} values served "
        f"while streaming, {compared - len(wrong):,} equal to the oracle[/]",
        soft_wrap=True,
    )
    return 0 if compared and not wrong and outcome.restarts >= outcome.kills else 1


def show_scored(console: Console, scored: Scored) -> int:
    """Say what the scorer and the learner did; 0 if every feature behind a score was the training set's, and something was learned."""
    for difference in scored.different[:10]:
        console.print(f"[red]not equal:[/] {difference}", soft_wrap=True)
    console.print(
        f"{scored.flights:,} flights of the last quarter scored over HTTP in the hour before they left, AUC {scored.auc:.3f}, by "
        f"{scored.versions} versions of a model that learned from {scored.learned:,} of them on the way",
        soft_wrap=True,
    )
    console.print(
        f"[bold {'red' if scored.different else 'green'}]{scored.features:,} features behind the scores, "
        f"{scored.features - len(scored.different):,} equal to a training set's of the same instants[/]",
        soft_wrap=True,
    )
    return 0 if scored.flights and scored.learned and not scored.different and not scored.unscored else 1


def _show_worth(console: Console, outcome: Outcome) -> None:
    """What the features are for: will a flight be late? Trained on nine months, asked through the last quarter, at scheduled departure."""
    with console.status("training on nine months, and asking about every flight of the last three"):
        from tidemill.apps.examples.flights.learning import learned
        from tidemill.apps.examples.flights.season import scored

        store = tm.FeatureStore(outcome.project)
        try:
            old, fresh = scored(store, models=["logistic_regression"])
        finally:
            store.close()
        found = [(q, q.auc(q.scores["logistic_regression"])) for q in (old, fresh)]
        still, online = map(fresh.auc, learned(fresh))
    console.print(
        f"late by 15 minutes or more? {len(fresh.told):,} flights of the last quarter, AUC: {found[0][1]:.3f} with day-old features, "
        f"{found[1][1]:.3f} with fresh ones, {online:.3f} with fresh ones and a model of River that goes on learning "
        f"({still:.3f} if it stops)",
        soft_wrap=True,
    )


class _Telling:
    """Shows how a replay goes."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task
        self._month = ""

    def __call__(self, told: Told) -> None:
        for news in told.news:
            self._progress.console.print(f"{told.now:%Y-%m-%d}  {news}")
        doing = f"{told.events:,} events, {told.answers:,} requests answered, folded {told.folds} times"
        self._progress.update(self._task, completed=told.piece, now=f"{told.now:%Y-%m-%d}", doing=doing)
        if not self._progress.console.is_terminal and f"{told.now:%Y-%m}" != self._month:
            self._month = f"{told.now:%Y-%m}"
            self._progress.console.print(f"{told.now:%Y-%m-%d}  {doing}")


def _progress(console: Console, *columns: ProgressColumn) -> Progress:
    bar = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), *columns, TimeElapsedColumn())
    return Progress(*bar, console=console, transient=True)


def _show_features(console: Console, outcome: Outcome, definitions: Definitions) -> None:
    """Live features of the airport, the carrier and the aircraft of the last flight, as it left."""
    flight = _last_flight(definitions.source("departures"), outcome.logs)
    store = tm.FeatureStore(outcome.project)
    tables: dict[str, Table] = {}
    try:
        for view, features in _SHOWN.items():
            keys = {key: flight[key] for key in definitions.views[view].entity.keys}
            title = f"{definitions.views[view].entity.name} {' '.join(keys.values())}"
            values = store.get_online_features([f"{view}:{feature}" for feature in features], [keys], at=outcome.latest).to_dict()
            table = tables.setdefault(title, Table("feature", "value", title=title, title_justify="left"))
            for feature in features:
                table.add_row(feature, _plain(values[f"{view}__{feature}"][0]))
    finally:
        store.close()
    console.print(Columns(tables.values(), padding=(1, 2)))


def _last_flight(source: Source, logs: Path) -> dict[str, Any]:
    """Of the raw log of departures, the one with the latest time and the largest id."""
    flights = RawLog(source, logs).frame.drop_nulls("tailnum").sort(source.timestamp, "flight_id")
    return flights.row(-1, named=True)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:,.2f}".removesuffix(".00") if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _show_facts(console: Console, outcome: Outcome) -> None:
    offline = Environment.load(outcome.project).offline
    for source in SOURCES:
        for reason, count in count_dead(offline, source).items():
            console.print(f"{count:,} of the {source} are dead letters ({reason}): `tidemill dead-letters` lists them", soft_wrap=True)
    console.print(
        f"{outcome.events:,} events in {outcome.seconds:.1f} s, {outcome.events / outcome.seconds:,.0f} events/s, "
        f"in which {len(outcome.answers):,} requests were answered, the logs cut and folded {outcome.folds} times, "
        f"and {outcome.kills} worker{'s' * (outcome.kills != 1)} killed ({outcome.restarts} restarts)",
        soft_wrap=True,
    )


def _arguments() -> argparse.Namespace:
    whole = Delivery()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directory", type=Path, default=Path(".demo"), help="where the logs and the project are made (default: .demo)")
    parser.add_argument("--first", default=whole.first, help=f"the first day (default: {whole.first})")
    parser.add_argument("--last", default=whole.last, help=f"the last day (default: {whole.last})")
    parser.add_argument("--brokers", default=os.environ.get("FLIGHTS_KAFKA"), help="Kafka, in the place of files; topics are made afresh")
    parser.add_argument("--online", default=os.environ.get("FLIGHTS_REDIS"), help="Redis, in the place of SQLite: redis://host:port/db")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    if (given.brokers is None) != (given.online is None):
        sys.exit("the demo wants both servers or none: --brokers and --online")
    real = None if given.brokers is None else Servers(given.brokers, given.online)
    sys.exit(main(given.directory, Plan(delivery=Delivery(first=given.first, last=given.last)), servers=real))
