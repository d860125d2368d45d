"""What the batch job does, as metrics: from the notes that every run leaves in the offline store, so also of runs before this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tidemill import __version__
from tidemill.environment import Environment
from tidemill.metrics import Metric, Sample
from tidemill.offline.runs import Run, last_run

from .job import SourceResult


class BatchMetrics:
    """The metrics of a process that runs batch again and again. Counters count from its start."""

    def __init__(self, env: Environment) -> None:
        self._project = env.project.name
        self._runs = 0
        self._published: dict[tuple[str, str], int] = {}
        self._last: dict[str, Run] = {}
        for name in env.applied().sources:
            run = last_run(env.offline, name)
            if run is not None:
                self._last[name] = run

    def ran(self, env: Environment, results: Sequence[SourceResult]) -> None:
        """A run has ended."""
        # Copies, because another thread may be reading what was there.
        last, published = dict(self._last), dict(self._published)
        for result in results:
            run = last_run(env.offline, result.source)
            if run is not None:
                last[result.source] = run
            for bundle, entities in result.published.items():
                published[result.source, bundle] = published.get((result.source, bundle), 0) + entities
        self._last, self._published = last, published
        self._runs += 1

    def collect(self) -> Iterator[Metric]:
        """All metrics, as of the last run."""
        last = sorted(self._last.items())

        def by_source(name: str, text: str, value: Callable[[Run], float]) -> Metric:
            return Metric(f"tidemill_batch_{name}", "gauge", text, ("source",), [Sample((source,), value(run)) for source, run in last])

        yield Metric("tidemill_build_info", "gauge", "Always 1.", ("version", "project"), [Sample((__version__, self._project), 1)])
        yield Metric("tidemill_batch_runs_total", "counter", "Runs that came to their end.", (), [Sample((), self._runs)])
        yield by_source("last_run_timestamp_seconds", "When the last run ended, in seconds since 1970.", lambda run: run.at / 1e6)
        yield by_source("last_run_seconds", "How long the last run took.", lambda run: run.seconds)
        yield by_source("cut", "The number of the cut that the last run folded to.", lambda run: run.k)
        folded = [((source, bundle), k, at) for source, run in last for bundle, (k, at) in sorted(run.folded.items())]
        text = "The version of the bundle's partials: the number of the cut that it is of."
        yield Metric("tidemill_batch_version", "gauge", text, ("source", "bundle"), [Sample(place, k) for place, k, _ in folded])
        text = "When a run folded that version, in seconds since 1970."
        samples = [Sample(place, at / 1e6) for place, _, at in folded]
        yield Metric("tidemill_batch_version_timestamp_seconds", "gauge", text, ("source", "bundle"), samples)
        published = [Sample(place, entities) for place, entities in sorted(self._published.items())]
        yield Metric("tidemill_batch_published_entities_total", "counter", "Entities published.", ("source", "bundle"), published)
